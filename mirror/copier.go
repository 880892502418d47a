package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zeebo/blake3"

	"mirror-agent/blockdev"
)

const (
	// hashesAhead is for how many chunks the follower is asked before the first of them is compared: it reads and hashes while
	// this host does, and the path's round trips are hidden.
	hashesAhead = 3
	// resyncTick is how often a resync that yields looks whether there are records to send.
	resyncTick = 20 * time.Millisecond
)

// copier walks over the device of the source. For one goroutine.
type copier struct {
	*sender
	size    int64 // of the device, when the resync began
	key     [32]byte
	hasher  *blockHasher
	data    []byte // what is read at a time
	pace    *yieldPace
	fetched int64 // up to where the kernel was told to read ahead
	shift   int64 // from an offset to how much is done, for the follower's status
}

func newCopier(s *sender) (*copier, error) {
	c := &copier{sender: s, size: s.v.size.Load(), data: make([]byte, batchBytes), pace: newYieldPace(s.resyncRate, s.load)}
	c.pace.tick = resyncTick
	if _, err := rand.Read(c.key[:]); err != nil {
		return nil, err
	}
	c.hasher = newBlockHasher(&c.key)
	return c, nil
}

// turn waits until n more bytes may be read. All records that are there by then have been sent.
func (c *copier) turn(ctx context.Context, n int64) error {
	err := c.pace.wait(ctx, n, func() error {
		c.tell()
		return c.drainRecords(ctx)
	})
	if err != nil {
		return err
	}
	c.tell()
	return c.drainRecords(ctx)
}

// tell shows whether it yields.
func (c *copier) tell() {
	to := int64(0)
	if c.pace.busy {
		to = int64(min(c.pace.rate, paceFree-1))
	}
	c.resync.yieldsTo.Store(to)
}

// copyData copies all data to a follower that reads as zeroes: holes are jumped over, zeroes left out.
func (c *copier) copyData(ctx context.Context) error {
	for off := int64(0); off < c.size; {
		start, dataEnd, err := c.v.nextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if start >= c.size {
			break
		}
		off = start / resyncBlockBytes * resyncBlockBytes
		dataEnd = min(c.size, (dataEnd+resyncBlockBytes-1)/resyncBlockBytes*resyncBlockBytes)
		end := min(off+c.pace.chunk(c.chunk), dataEnd)
		c.readAhead(off, min(end+c.chunk, dataEnd))
		if err := c.turn(ctx, end-off); err != nil {
			return err
		}
		skip := func(b []byte, _ int) bool { return allZero(b) }
		if err := c.copyUnless(ctx, resyncBlockBytes, off, end, skip); err != nil {
			return err
		}
		off = end
		c.resync.done.Store(off)
	}
	c.resync.done.Store(c.size)
	return nil
}

// hashAnswer is what the follower's blocks of [off, end) are like, once done is closed.
type hashAnswer struct {
	off, end int64
	done     chan struct{}
	hashes   []byte
	err      error
}

// ask asks the follower for the hashes of [off, end), at most a chunk. It may answer with a state that records sent meanwhile have
// changed by then. That does no harm: bytes that these touched are made right by them, or by those that follow, and all other
// bytes are as the hash says.
func (c *copier) ask(ctx context.Context, unit, off, end int64) *hashAnswer {
	a := &hashAnswer{off: off, end: end, done: make(chan struct{})}
	req := hashRequest{Offset: off, Length: end - off, Unit: unit, Key: c.key}
	go func() {
		defer close(a.done)
		a.hashes, a.err = c.l.Call(ctx, req.encode())
		if a.err != nil {
			a.err = fmt.Errorf("resync: hashes at %d: %w", off, a.err)
		} else if want := int((end-off+unit-1)/unit) * hashBytes; len(a.hashes) != want {
			a.err = fmt.Errorf("resync: %w: %d bytes of hashes instead of %d", errMessage, len(a.hashes), want)
		}
	}()
	return a
}

// compareAll copies all blocks whose hashes differ from the follower's.
func (c *copier) compareAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var asked []*hashAnswer
	defer func() {
		cancel()
		for _, a := range asked {
			<-a.done
		}
	}()
	for off, next := int64(0), int64(0); off < c.size; {
		for next < c.size && len(asked) < hashesAhead {
			end := min(next+c.pace.chunk(c.chunk), c.size)
			asked = append(asked, c.ask(ctx, resyncBlockBytes, next, end))
			next = end
		}
		a := asked[0]
		c.readAhead(a.off, min(a.end+c.chunk, c.size))
		if err := c.turn(ctx, a.end-a.off); err != nil {
			return err
		}
		if err := c.compareTo(ctx, resyncBlockBytes, a); err != nil {
			return err
		}
		asked = asked[1:]
		off = a.end
		c.resync.done.Store(off)
	}
	return nil
}

// compareFinely copies what differs of [off, end), at most a chunk, which an earlier try has staged: most of each block is as it was,
// and is not sent again for the rest.
func (c *copier) compareFinely(ctx context.Context, off, end int64) error {
	return c.compareTo(ctx, minDirtyBlock, c.ask(ctx, minDirtyBlock, off, end))
}

func (c *copier) compareTo(ctx context.Context, unit int64, a *hashAnswer) error {
	tick := time.NewTicker(resyncTick)
	defer tick.Stop()
	for answered := false; !answered; {
		select {
		case <-a.done:
			answered = true
		case <-tick.C:
			if err := c.drainRecords(ctx); err != nil {
				return err
			}
		}
	}
	if a.err != nil {
		return a.err
	}
	return c.copyUnless(ctx, unit, a.off, a.end, func(b []byte, i int) bool {
		var mine [hashBytes]byte
		c.hasher.sum(mine[:], b)
		return bytes.Equal(mine[:], a.hashes[i*hashBytes:(i+1)*hashBytes])
	})
}

// copy sends [off, end) as it is.
func (c *copier) copy(ctx context.Context, off, end int64) error {
	return c.copyUnless(ctx, resyncBlockBytes, off, end, func([]byte, int) bool { return false })
}

// copyUnless sends the blocks of unit bytes of [off, end) that are not to be skipped, the last one may be shorter. Blocks that
// follow each other go as one message.
func (c *copier) copyUnless(ctx context.Context, unit, off, end int64, skip func(b []byte, i int) bool) error {
	for i := 0; off < end; {
		n := min(int64(len(c.data)), end-off)
		p := c.data[:n]
		if _, err := c.v.ReadAt(p, off); err != nil {
			return fmt.Errorf("resync: %w", err)
		}
		first, zero := int64(0), false // of the run that is to be sent
		at := int64(0)
		flush := func() error {
			if first == at {
				return nil
			}
			err := c.send(ctx, off+first, p[first:at], zero)
			first = at
			return err
		}
		for at < n {
			b := p[at:min(at+unit, n)]
			if skip(b, i) {
				if err := flush(); err != nil {
					return err
				}
				at += int64(len(b))
				first = at
			} else {
				if z := allZero(b); z != zero {
					if err := flush(); err != nil {
						return err
					}
					zero = z
				}
				at += int64(len(b))
			}
			i++
		}
		if err := flush(); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// send sends what stands at off.
func (c *copier) send(ctx context.Context, off int64, b []byte, zero bool) error {
	buf, err := c.buffers.get(ctx, c.l)
	if err != nil {
		return err
	}
	n := int64(len(b))
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

// readAhead has the kernel read what is read soon: more at a time than it would by itself, as long as the path is busy with what
// was read before.
func (c *copier) readAhead(off, end int64) {
	off = max(off, c.fetched)
	if off < end {
		readAhead(c.v.dev, off, end-off)
		c.fetched = end
	}
}

// readAhead is advice: where it fails the reads are slower, or fail themselves.
func readAhead(dev blockdev.Device, off, n int64) {
	if p, ok := dev.(blockdev.Prefetcher); ok {
		_ = p.Prefetch(off, n)
	}
}

// blockHasher makes the keyed hashes of blocks. The key is new for every resync, so nobody can prepare two blocks that look
// equal. For one goroutine.
type blockHasher struct{ h *blake3.Hasher }

func newBlockHasher(key *[32]byte) *blockHasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("mirror: " + err.Error()) // the key has 32 bytes
	}
	return &blockHasher{h}
}

// hashBlock is the hash of one block.
func hashBlock(dst []byte, key *[32]byte, b []byte) { newBlockHasher(key).sum(dst, b) }

// sum puts the hash of a block into dst, hashBytes.
func (h *blockHasher) sum(dst, b []byte) {
	h.h.Reset()
	_, _ = h.h.Write(b)
	var sum [32]byte
	copy(dst[:hashBytes], h.h.Sum(sum[:0]))
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
