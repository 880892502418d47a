package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"
)

// A resync is a fuzzy copy (DESIGN: section 6): the source notes where its
// log is, copies what differs while the stream goes on, and the follower is
// consistent at the LSN reached at the end, where its log then begins.
//
// One goroutine sends both blocks and records. A block is read after all
// records sent so far were written, so whatever it shows too early comes
// again as a record, in order, before the end; that makes the copy right
// without any lock against the writers.

// resyncProgress is read by the status while the sender works.
type resyncProgress struct {
	zeroed            bool // the follower reads as zeroes: nothing to compare
	done, total, sent atomic.Int64
	started           atomic.Int64 // unix ns
}

func (p *resyncProgress) status() *Progress {
	at := p.started.Load()
	if at == 0 {
		return nil
	}
	return &Progress{DoneBytes: p.done.Load(), TotalBytes: p.total.Load(), SentBytes: p.sent.Load(), Started: time.Unix(0, at)}
}

// runResync makes the follower equal and leaves s.sent where its log begins.
func (s *sender) runResync(ctx context.Context) error {
	s.sent = s.v.log.Head()
	s.v.hold(s.sent)
	size := s.v.size.Load() // after sent: a resize that this has not seen is a record that follows, and ends the resync
	if err := s.callResync(ctx, encodeJSON(kindResync, resyncBegin{From: s.sent, Size: size})); err != nil {
		return err
	}
	p := &s.resync
	p.total.Store(size)
	p.started.Store(time.Now().UnixNano())
	defer p.started.Store(0)
	c := &copier{sender: s, size: size, block: make([]byte, resyncBlockBytes)}
	if _, err := rand.Read(c.key[:]); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		if err := s.drainRecords(ctx); err != nil {
			return err
		}
		next, err := c.chunk(ctx, off)
		if err != nil {
			return err
		}
		off = next
		p.done.Store(off)
	}
	return s.endResync(ctx)
}

// drainRecords sends what the log holds now.
func (s *sender) drainRecords(ctx context.Context) error {
	for head := s.v.log.Head(); s.sent < head; {
		if err := s.sendRecords(ctx); err != nil {
			return err
		}
		s.v.hold(s.sent)
	}
	// The log shows records an instant before reads do: a block must be read
	// with all in it that was sent.
	for s.v.overlay.end() < s.sent {
		runtime.Gosched()
	}
	return nil
}

func (s *sender) endResync(ctx context.Context) error {
	if err := s.drainRecords(ctx); err != nil {
		return err
	}
	// What the follower will call committed must be durable here (G3).
	if _, err := s.v.log.Sync(s.sent); err != nil {
		return s.v.journalError(err)
	}
	chain, err := s.v.log.ChainAt(s.sent)
	if err != nil {
		return fmt.Errorf("chain at LSN %d: %w", s.sent, err)
	}
	gs := keepBelow(s.v.History(), s.sent)
	return s.callResync(ctx, encodeJSON(kindResyncEnd, resyncEnd{At: s.sent, Chain: chain, Generations: gs}))
}

func (s *sender) callResync(ctx context.Context, msg []byte) error {
	b, err := s.l.Call(ctx, msg)
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	var r resyncReply
	if err := decodeJSON(b, &r); err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	if r.Refused != "" {
		return &refusedError{kind: outcomeRefused, reason: r.Refused, retry: min(time.Duration(r.RetryMillis)*time.Millisecond, maxStageWait)}
	}
	return nil
}

// copier walks over the device of the source.
type copier struct {
	*sender
	size  int64 // of the device, when the resync began
	key   [32]byte
	block []byte
}

// chunk copies what differs in one chunk at off, and returns where the next
// one begins: holes of a follower that is all zeroes are jumped over.
func (c *copier) chunk(ctx context.Context, off int64) (int64, error) {
	end := min(off+resyncChunkBytes, c.size)
	var hashes []byte
	if c.resync.zeroed {
		start, dataEnd, err := c.v.nextData(off)
		if errors.Is(err, io.EOF) {
			return c.size, nil
		}
		if err != nil {
			return 0, err
		}
		if start >= c.size {
			return c.size, nil
		}
		off = start / resyncBlockBytes * resyncBlockBytes
		end = min(off+resyncChunkBytes, c.size, (dataEnd+resyncBlockBytes-1)/resyncBlockBytes*resyncBlockBytes)
	} else {
		var err error
		req := hashRequest{Offset: off, Length: end - off, Key: c.key}
		if hashes, err = c.l.Call(ctx, req.encode()); err != nil {
			return 0, fmt.Errorf("resync: hashes at %d: %w", off, err)
		}
		if want := int(end-off+resyncBlockBytes-1) / resyncBlockBytes * hashBytes; len(hashes) != want {
			return 0, fmt.Errorf("resync: %w: %d bytes of hashes instead of %d", errMessage, len(hashes), want)
		}
	}
	for i := 0; off < end; i++ {
		n := min(int64(resyncBlockBytes), end-off)
		var theirs []byte
		if hashes != nil {
			theirs = hashes[i*hashBytes : (i+1)*hashBytes]
		}
		if err := c.copyBlock(ctx, off, n, theirs); err != nil {
			return 0, err
		}
		off += n
	}
	return end, nil
}

// copyBlock sends one block unless the follower has it.
func (c *copier) copyBlock(ctx context.Context, off, n int64, theirs []byte) error {
	b := c.block[:n]
	if _, err := c.v.ReadAt(b, off); err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	zero := allZero(b)
	if theirs == nil && zero {
		return nil
	}
	if theirs != nil {
		var mine [hashBytes]byte
		hashBlock(mine[:], &c.key, b)
		if bytes.Equal(mine[:], theirs) {
			return nil
		}
	}
	buf, err := c.buffers.get(ctx, c.l)
	if err != nil {
		return err
	}
	blockHeader{Zero: zero, Length: n, Offset: off, Done: off + n}.put(buf)
	size := blockHeaderBytes
	if !zero {
		size += copy(buf[blockHeaderBytes:], b)
	}
	r, err := c.l.Send(ctx, buf[:size])
	if err != nil {
		return err
	}
	c.buffers.put(buf, r)
	c.resync.sent.Add(int64(size))
	return nil
}

// hashBlock puts the keyed hash of a block into dst. The key is new for
// every resync, so nobody can prepare two blocks that look equal.
func hashBlock(dst []byte, key *[32]byte, b []byte) {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("mirror: " + err.Error()) // the key has 32 bytes
	}
	_, _ = h.Write(b)
	var sum [32]byte
	copy(dst[:hashBytes], h.Sum(sum[:0]))
}

var zeroes [4096]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
