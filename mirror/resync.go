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

func (p *resyncProgress) begin(total int64) {
	p.total.Store(total)
	p.done.Store(0)
	p.sent.Store(0)
	p.started.Store(time.Now().UnixNano())
}

func (p *resyncProgress) status() *Progress {
	at := p.started.Load()
	if at == 0 {
		return nil
	}
	return &Progress{DoneBytes: p.done.Load(), TotalBytes: p.total.Load(), SentBytes: p.sent.Load(), Started: time.Unix(0, at)}
}

// runResync makes the follower equal and leaves s.sent where its log begins.
func (s *sender) runResync(ctx context.Context, out outcome) (err error) {
	c := &copier{sender: s, size: s.v.size.Load(), block: make([]byte, resyncBlockBytes)}
	if _, err := rand.Read(c.key[:]); err != nil {
		return err
	}
	p := &s.resync
	defer p.started.Store(0)
	done := Resynced{All: true, Started: time.Now()}
	defer func() {
		if err == nil {
			done.Reason, done.Ended = out.reason, time.Now()
			done.LookedAtBytes, done.SentBytes = p.total.Load(), p.sent.Load()
			s.resynced(done)
		}
	}()
	if out.kind == outcomePartial {
		compare, err := c.partial(ctx, out)
		if err != nil || compare == "" {
			done.All = false
			return err
		}
		out.reason = fmt.Sprintf("a partial resync cannot be, %s: all blocks are compared", compare)
	}
	s.report(followerNeedsResync, out.reason)
	s.sent = s.v.log.Head()
	s.hold.move(s.sent)
	c.size = s.v.size.Load() // after sent: a resize that this has not seen is a record that follows, and ends the resync
	begin := resyncBegin{From: s.sent, Size: c.size}
	if _, err := s.callResync(ctx, encodeJSON(kindResync, begin)); err != nil {
		return err
	}
	p.begin(c.size)
	for off := int64(0); off < c.size; {
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
		s.hold.move(s.sent)
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
	_, err = s.callResync(ctx, encodeJSON(kindResyncEnd, resyncEnd{At: s.sent, Chain: chain, Generations: gs}))
	return err
}

func (s *sender) callResync(ctx context.Context, msg []byte) (r resyncReply, err error) {
	b, err := s.l.Call(ctx, msg)
	if err != nil {
		return r, fmt.Errorf("resync: %w", err)
	}
	if err := decodeJSON(b, &r); err != nil {
		return r, fmt.Errorf("resync: %w", err)
	}
	if r.Refused != "" {
		return r, &refusedError{kind: outcomeRefused, reason: r.Refused, retry: min(time.Duration(r.RetryMillis)*time.Millisecond, maxStageWait)}
	}
	return r, nil
}

// copier walks over the device of the source.
type copier struct {
	*sender
	size  int64 // of the device, when the resync began
	key   [32]byte
	block []byte
	shift int64 // from an offset to how much is done, for the follower's status
}

// chunk copies what differs in one chunk at off, and returns where the next
// one begins: holes of a follower that is all zeroes are jumped over.
func (c *copier) chunk(ctx context.Context, off int64) (int64, error) {
	end := min(off+resyncChunkBytes, c.size)
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
		return end, c.compare(ctx, off, end)
	}
	for off < end {
		n := min(int64(resyncBlockBytes), end-off)
		zero, err := c.read(off, n)
		if err == nil && !zero {
			err = c.send(ctx, off, n, false)
		}
		if err != nil {
			return 0, err
		}
		off += n
	}
	return end, nil
}

// compare copies the blocks of [off, end), at most a chunk, whose hashes
// differ from the follower's.
func (c *copier) compare(ctx context.Context, off, end int64) error {
	return c.compareIn(ctx, resyncBlockBytes, off, end)
}

// compareFinely is compare for blocks that an earlier try has staged: most of each is as it was, and is not sent again for the rest.
func (c *copier) compareFinely(ctx context.Context, off, end int64) error {
	return c.compareIn(ctx, minDirtyBlock, off, end)
}

func (c *copier) compareIn(ctx context.Context, unit, off, end int64) error {
	req := hashRequest{Offset: off, Length: end - off, Unit: unit, Key: c.key}
	hashes, err := c.l.Call(ctx, req.encode())
	if err != nil {
		return fmt.Errorf("resync: hashes at %d: %w", off, err)
	}
	if want := int((end-off+unit-1)/unit) * hashBytes; len(hashes) != want {
		return fmt.Errorf("resync: %w: %d bytes of hashes instead of %d", errMessage, len(hashes), want)
	}
	for ; off < end; hashes = hashes[hashBytes:] {
		n := min(unit, end-off)
		zero, err := c.read(off, n)
		if err != nil {
			return err
		}
		var mine [hashBytes]byte
		hashBlock(mine[:], &c.key, c.block[:n])
		if !bytes.Equal(mine[:], hashes[:hashBytes]) {
			if err := c.send(ctx, off, n, zero); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// read puts a block of the device into c.block.
func (c *copier) read(off, n int64) (zero bool, err error) {
	if _, err := c.v.ReadAt(c.block[:n], off); err != nil {
		return false, fmt.Errorf("resync: %w", err)
	}
	return allZero(c.block[:n]), nil
}

// send sends the block that was read last.
func (c *copier) send(ctx context.Context, off, n int64, zero bool) error {
	b := c.block[:n]
	buf, err := c.buffers.get(ctx, c.l)
	if err != nil {
		return err
	}
	blockHeader{Zero: zero, Length: n, Offset: off, Done: off + n + c.shift}.put(buf)
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
