package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
)

// An excerpt is a part of a log in a file of its own, so that what only this log had is not lost when it is cut:
//
//	 0 "MAEXCPT1"   8 length of the description u32   12 zero u32
//	16 description, JSON, zeroes up to a multiple of 8
//	   the records as the log holds them, From to To
//	   "MAEXCEND", number of records u64, To u64, xxh64 of everything before u64
//
// A file that ends in between is an interrupted export; what it has is read up to there, and the end is an error.
const (
	excerptMagic = "MAEXCPT1"
	excerptEnd   = "MAEXCEND"
	excerptTail  = 32
	maxAbout     = 1 << 20
	copyBytes    = 1 << 20
)

// Excerpt describes an excerpt.
type Excerpt struct {
	Mirror      string       `json:"mirror"`      // uuid
	Name        string       `json:"name"`        // of the mirror
	Node        string       `json:"node"`        // whose log it was
	DeviceSize  int64        `json:"device_size"` // bytes
	Generations []Generation `json:"generations"` // of the log at To
	From        LSN          `json:"from"`        // first record
	To          LSN          `json:"to"`          // end of the last one
	Chain       uint64       `json:"chain"`       // at From
	Created     time.Time    `json:"created"`
	Reason      string       `json:"reason"` // in words
}

// WriteExcerpt writes the records of about.From to about.To, which are boundaries of l, and how many they were. Everything is
// verified on the way: a *CorruptError means that w has got the records before it, and no end. The caller makes w durable.
func (l *Log) WriteExcerpt(w io.Writer, about Excerpt) (records uint64, err error) {
	if about.Chain, err = l.ChainAt(about.From); err != nil {
		return 0, err
	}
	text, err := json.Marshal(about)
	if err != nil {
		return 0, err
	}
	sum := xxhash.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), copyBytes)
	head := append([]byte(excerptMagic), make([]byte, 8)...)
	le.PutUint32(head[8:], uint32(len(text)))
	head = append(head, text...)
	head = append(head, make([]byte, -len(head)&7)...)
	_, _ = out.Write(head) // its errors come with Flush
	buf, chain := make([]byte, copyBytes), about.Chain
	for at := about.From; at < about.To; {
		n, err := l.ReadRaw(at, buf)
		if short := (ErrShortBuffer{}); errors.As(err, &short) {
			buf = make([]byte, short.Need)
			n, err = l.ReadRaw(at, buf)
		}
		if err != nil {
			return records, errors.Join(fmt.Errorf("excerpt at LSN %d: %w", at, err), out.Flush())
		}
		raw := buf[:n]
		err = ParseRaw(raw, func(r Record, payload []byte) error {
			if r.LSN >= about.To {
				return io.EOF
			}
			bad := error(nil)
			if r.End() > about.To {
				bad = fmt.Errorf("excerpt to LSN %d, within a record: %w", about.To, ErrChain)
			} else if bad = verify(r, raw[r.LSN-at:], payload, chain); bad == nil {
				_, bad = out.Write(raw[r.LSN-at : r.End()-at])
			}
			chain = r.Chain
			records++
			return bad
		})
		if err != nil && !errors.Is(err, io.EOF) {
			return records, errors.Join(err, out.Flush())
		}
		at += LSN(n)
	}
	if err := out.Flush(); err != nil {
		return records, err
	}
	tail := append([]byte(excerptEnd), make([]byte, excerptTail-len(excerptEnd))...)
	le.PutUint64(tail[8:], records)
	le.PutUint64(tail[16:], uint64(about.To))
	_, _ = sum.Write(tail[:24])
	le.PutUint64(tail[24:], sum.Sum64())
	_, err = w.Write(tail)
	return records, err
}

// verify checks a record and its payload, which begin header, after a record with chain value chain.
func verify(r Record, header, payload []byte, chain uint64) error {
	switch {
	case checksum(payload) != r.PayloadHash:
		return &CorruptError{LSN: r.LSN, Reason: "payload does not match its hash"}
	case r.Chain != chainOf(chain, header):
		return &CorruptError{LSN: r.LSN, Reason: "does not continue the record before it"}
	}
	return nil
}

// ErrNotExcerpt: the file is something else.
var ErrNotExcerpt = errors.New("journal: not an excerpt of a log")

// ErrTruncated: the excerpt ends before its end; what was read before it is good.
var ErrTruncated = errors.New("journal: the excerpt is incomplete")

// ExcerptReader reads an excerpt from its beginning to its end.
type ExcerptReader struct {
	Excerpt
	r     *bufio.Reader
	sum   *xxhash.Digest
	pos   int64 // in the file
	at    LSN
	chain uint64
	count uint64
	buf   []byte
}

// ReadExcerpt reads the description.
func ReadExcerpt(r io.Reader) (*ExcerptReader, error) {
	x := &ExcerptReader{r: bufio.NewReaderSize(r, copyBytes), sum: xxhash.New()}
	head, err := x.take(16)
	if err != nil || string(head[:8]) != excerptMagic {
		return nil, ErrNotExcerpt
	}
	n := int(le.Uint32(head[8:]))
	if n > maxAbout {
		return nil, fmt.Errorf("%w: its description has %d bytes", ErrNotExcerpt, n)
	}
	text, err := x.take((n + 7) &^ 7)
	if err != nil {
		return nil, fmt.Errorf("%w: in its description", ErrTruncated)
	}
	if err := json.Unmarshal(text[:n], &x.Excerpt); err != nil {
		return nil, fmt.Errorf("%w: its description: %w", ErrNotExcerpt, err)
	}
	x.at, x.chain = x.From, x.Chain
	return x, nil
}

func (x *ExcerptReader) take(n int) ([]byte, error) {
	if cap(x.buf) < n {
		x.buf = make([]byte, n)
	}
	b := x.buf[:n]
	if _, err := io.ReadFull(x.r, b); err != nil {
		return nil, err
	}
	_, _ = x.sum.Write(b)
	x.pos += int64(n)
	return b, nil
}

// Next returns the next record, verified, and its payload, valid until the next call. io.EOF: that was all, and the excerpt as a
// whole is as it was written. ErrTruncated, *CorruptError: it is not.
func (x *ExcerptReader) Next() (Record, []byte, error) {
	if x.at >= x.To {
		return Record{}, nil, x.end()
	}
	peek, err := x.r.Peek(HeaderSize)
	if err != nil {
		return Record{}, nil, fmt.Errorf("%w: it ends at LSN %d of %d", ErrTruncated, x.at, x.To)
	}
	r, err := decodeHeader(peek)
	if err != nil {
		return Record{}, nil, &CorruptError{LSN: x.at, Offset: x.pos, Reason: err.Error()}
	}
	if r.LSN != x.at || r.End() > x.To {
		return Record{}, nil, &CorruptError{LSN: x.at, Offset: x.pos, Reason: fmt.Sprintf("a record of LSN %d to %d", r.LSN, r.End())}
	}
	b, err := x.take(int(r.End() - r.LSN))
	if err != nil {
		return Record{}, nil, fmt.Errorf("%w: it ends in the record at LSN %d", ErrTruncated, x.at)
	}
	payload := b[HeaderSize : HeaderSize+int(r.PayloadLen)]
	if err := verify(r, b, payload, x.chain); err != nil {
		var rot *CorruptError
		if errors.As(err, &rot) {
			rot.Offset = x.pos - int64(len(b))
		}
		return Record{}, nil, err
	}
	x.at, x.chain = r.End(), r.Chain
	x.count++
	return r, payload, nil
}

func (x *ExcerptReader) end() error {
	b, err := io.ReadAll(io.LimitReader(x.r, excerptTail+1))
	if err != nil || len(b) < excerptTail {
		return fmt.Errorf("%w: its last %d bytes are missing", ErrTruncated, excerptTail)
	}
	_, _ = x.sum.Write(b[:24])
	if string(b[:8]) != excerptEnd || len(b) > excerptTail || le.Uint64(b[8:]) != x.count || le.Uint64(b[16:]) != uint64(x.To) || le.Uint64(b[24:]) != x.sum.Sum64() {
		return &CorruptError{LSN: x.To, Offset: x.pos, Reason: "the end of the excerpt does not fit what is before it"}
	}
	return io.EOF
}
