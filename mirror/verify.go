package mirror

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"mirror-agent/journal"
)

// A verify compares what the device of the source holds with what that of a follower holds, by keyed hashes, while both are
// written. A block counts as different only when both sides were seen at one LSN:
//
//	source                                              follower
//	watch a chunk; H is where the log ends     ──────→  has everything up to H: watches the chunk too, from its own end L on
//	reads the chunk                                     reads the chunk beside the stream
//	                                           ←──────  sums at L; what was written since L is marked
//	what was written since H is marked here
//
// A block that is marked on neither side was read as it was at L, here and there. What is marked, and what differs, is looked
// at again, a few blocks at a time and exactly: the source reads it as it is at E, the follower, in the order of the stream, as it is at
// L ≥ E, and the source puts what its log has in [E, L) over what it read. That ends, however often the block is written, and
// tells which 4 KiB differ. Nothing here keeps a writer waiting.
//
// What is compared is what would be read: the newest of log and backing device. Zeroes are equal to holes.

// comparer compares with one follower over one session. For one goroutine.
type comparer struct {
	*sender
	r      *verifyReader
	key    [32]byte
	number uint64
	tally  *verifyTally
	repair verifySide // 0: nothing is repaired
	denied int64      // up to here asking the follower for a hole is of no use
}

// verifySide is whose bytes count.
type verifySide int

const (
	sideSource verifySide = iota + 1
	sideTarget
)

func newComparer(s *sender, direct bool, repair verifySide, t *verifyTally) (*comparer, error) {
	c := &comparer{sender: s, r: newVerifyReader(s.v, direct), repair: repair, tally: t}
	_, err := rand.Read(c.key[:])
	return c, err
}

// verified takes the answer to a scan. One that nobody waits for makes room for the next.
func (s *sender) verified(b []byte) {
	b = append([]byte(nil), b...)
	for {
		select {
		case s.answers <- b:
			return
		default:
		}
		select {
		case <-s.answers:
		default:
		}
	}
}

var (
	// errNotInSync: the follower does not stream now; it may again.
	errNotInSync = errors.New("the target is not in sync")
	errAgain     = errors.New("mirror: not yet")
)

// step compares a hole or a chunk from off on, and returns up to where it is done. may returns when a chunk may be read, and how
// much of it.
func (c *comparer) step(ctx context.Context, off int64, may func() (int64, error)) (int64, error) {
	next, err := c.holes(ctx, off)
	if err != nil || next > off {
		return next, err
	}
	chunk, err := may()
	if err != nil {
		return off, err
	}
	end := min(off/verifyBlockBytes*verifyBlockBytes+chunk, c.v.size.Load())
	suspects, err := c.scan(ctx, off, end)
	if err != nil {
		return off, err
	}
	if err := c.settle(ctx, suspects, off, end); err != nil {
		return off, err
	}
	c.tally.compared(end - off)
	return end, nil
}

// exactBlocks are looked at by one request: as much as one message of the stream may hold.
const exactBlocks = batchBytes / verifyBlockBytes

// runs are the suspects among the blocks of [off, end), some that adjoin at a time.
func runs(suspects []bool, off, end int64) iter.Seq2[int64, int64] {
	edge := func(i int) int64 { return min(max(off, (off/verifyBlockBytes+int64(i))*verifyBlockBytes), end) }
	return func(yield func(from, to int64) bool) {
		for i := 0; i < len(suspects); i++ {
			k := i
			for k < len(suspects) && suspects[k] && k-i < exactBlocks {
				k++
			}
			if k > i {
				if !yield(edge(i), edge(k)) {
					return
				}
				i = k - 1
			}
		}
	}
}

// holes passes over what is a hole on both sides.
func (c *comparer) holes(ctx context.Context, off int64) (int64, error) {
	size := c.v.size.Load()
	if off < c.denied {
		return off, nil
	}
	w, at := c.v.overlay.watch(off, size, 0)
	defer w.stop()
	to, dataEnd := c.r.holeTo(off, size)
	if to = blockFloor(to, size); to <= off {
		c.denied = min(dataEnd, size)
		return off, nil
	}
	r, err := c.ask(ctx, &verifyRequest{what: verifyHole, unit: verifyBlockBytes, notBefore: at, off: off, end: to})
	if err != nil {
		return off, err
	}
	if len(r.body) != 16 {
		return off, fmt.Errorf("%w: hole of %d bytes", errMessage, len(r.body))
	}
	theirs, theirEnd := int64(binary.LittleEndian.Uint64(r.body)), int64(binary.LittleEndian.Uint64(r.body[8:]))
	c.shows(r.at)
	next := blockFloor(min(to, theirs, w.untouchedTo()), size)
	if next <= off {
		c.denied = min(max(theirEnd, off+verifyBlockBytes), to)
		return off, nil
	}
	c.tally.skipped(next-off, r.at)
	return next, nil
}

// blockFloor is where the block begins that off lies in; the end of the device is the end of a block.
func blockFloor(off, size int64) int64 {
	if off >= size {
		return size
	}
	return off / verifyBlockBytes * verifyBlockBytes
}

// shows waits until reads here show everything below lsn, which the log has: that is an instant.
func (c *comparer) shows(lsn journal.LSN) {
	for c.v.overlay.end() < lsn && c.v.Err() == nil {
		runtime.Gosched()
	}
}

// scan compares [off, end) beside the writers and says which blocks have to be looked at again.
func (c *comparer) scan(ctx context.Context, off, end int64) ([]bool, error) {
	w, at := c.v.overlay.watch(off, end, verifyBlockBytes)
	defer w.stop()
	c.number++
	q := &verifyRequest{what: verifyScan, direct: c.r.below, unit: verifyBlockBytes, number: c.number, notBefore: at, off: off, end: end}
	if _, err := c.ask(ctx, q); err != nil {
		return nil, err
	}
	mine, err := c.r.sums(ctx, &c.key, off, end, verifyBlockBytes)
	if err != nil {
		return nil, err
	}
	a, err := c.await(ctx)
	if err != nil {
		return nil, err
	}
	if len(a.sums) != len(mine) {
		return nil, fmt.Errorf("%w: %d sums instead of %d", errMessage, len(a.sums), len(mine))
	}
	c.shows(a.at)
	mine = w.mark(mine)
	suspects := make([]bool, len(mine))
	for i, m := range mine {
		suspects[i] = !m.settled() || m != a.sums[i]
	}
	c.tally.seen(a.at, c.r.below, a.below)
	return suspects, nil
}

// await returns the answer to the newest scan.
func (c *comparer) await(ctx context.Context) (verifyAnswer, error) {
	for {
		if err := c.inSync(); err != nil {
			return verifyAnswer{}, err
		}
		select {
		case b := <-c.answers:
			a, err := decodeVerifyAnswer(b)
			if err != nil || a.number == c.number {
				return a, err
			}
		case <-ctx.Done():
			return verifyAnswer{}, ctx.Err()
		case <-c.l.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *comparer) inSync() error {
	if err := c.v.Err(); err != nil {
		return err
	}
	select {
	case <-c.l.Done():
		return errNotInSync
	default:
	}
	if !c.streaming.Load() {
		return errNotInSync
	}
	return nil
}

// ask sends a request until the follower has what it is about.
func (c *comparer) ask(ctx context.Context, q *verifyRequest) (verifyReply, error) {
	q.key = c.key
	for {
		if err := c.inSync(); err != nil {
			return verifyReply{}, err
		}
		b, err := c.l.Call(ctx, q.encode())
		if err != nil {
			return verifyReply{}, errors.Join(c.inSync(), fmt.Errorf("verify at %d: %w", q.off, err))
		}
		r, err := decodeVerifyReply(b)
		switch {
		case err != nil:
			return r, err
		case r.status == verifyRefused:
			return r, fmt.Errorf("%w: %s", errNotInSync, r.body)
		case r.status != verifyNotYet && r.at < q.notBefore:
			return r, fmt.Errorf("%w: an answer of LSN %d, not before %d", errMessage, r.at, q.notBefore)
		case r.status != verifyNotYet:
			return r, nil
		}
		select { // what it lacks is on its way
		case <-ctx.Done():
			return r, ctx.Err()
		case <-c.l.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// verdict is what an exact comparison of a block says of one of its units.
type verdict uint8

const (
	unitEqual verdict = iota
	unitDiffers
	unitUnreadableHere
	unitUnreadableThere
	unitUnreadable // on both sides
)

// exactly compares [off, end), at most exactBlocks, on both sides as it was at the LSN that it returns.
func (c *comparer) exactly(ctx context.Context, off, end int64) (vs []verdict, at journal.LSN, err error) {
	for {
		if vs, at, err = c.exactlyOnce(ctx, off, end); !errors.Is(err, errAgain) {
			return vs, at, err
		}
	}
}

func (c *comparer) exactlyOnce(ctx context.Context, off, end int64) ([]verdict, journal.LSN, error) {
	p, bad, from, err := newVerifyReader(c.v, c.r.below).capture(ctx, off, end, verifyUnitBytes)
	if err != nil {
		return nil, 0, err
	}
	r, err := c.ask(ctx, &verifyRequest{what: verifySums, direct: c.r.below, unit: verifyUnitBytes, notBefore: from, off: off, end: end})
	if err != nil {
		return nil, 0, err
	}
	theirs, err := decodeSums(r.body)
	if err != nil || len(theirs) != len(bad) {
		return nil, 0, errors.Join(err, fmt.Errorf("%w: %d sums", errMessage, len(theirs)))
	}
	c.shows(r.at)
	if err := c.v.replay(p, off, from, r.at); errors.Is(err, journal.ErrGone) {
		return nil, 0, errAgain // the log has moved on that far meanwhile
	} else if err != nil {
		return nil, 0, c.v.journalError(err)
	}
	vs := make([]verdict, len(bad))
	for i, at := 0, off; at < end; i++ {
		next := min((at/verifyUnitBytes+1)*verifyUnitBytes, end)
		switch theirs[i].state {
		case sumTouched:
			return nil, 0, errAgain
		case sumUnreadable:
			vs[i] = unitUnreadableThere
			if bad[i] {
				vs[i] = unitUnreadable
			}
		default:
			if bad[i] {
				vs[i] = unitUnreadableHere
			} else if sumOf(&c.key, p[at-off:next-off]) != theirs[i] {
				vs[i] = unitDiffers
			}
		}
		at = next
	}
	return vs, r.at, nil
}

// exactAtOnce requests are under way at a time: each waits behind the records that were sent before it.
const exactAtOnce = 8

// settle looks at the suspects exactly, and tells of every run of units that is not as it should be.
func (c *comparer) settle(ctx context.Context, suspects []bool, off, end int64) error {
	var found []*exactRun
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(exactAtOnce)
	for from, to := range runs(suspects, off, end) {
		x := &exactRun{off: from, end: to}
		found = append(found, x)
		g.Go(func() (err error) {
			x.units, x.at, err = c.exactly(each, x.off, x.end)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, x := range found {
		c.tally.exactly(int64(units(x.off, x.end, verifyBlockBytes)))
		for d, v := range x.differences() {
			var err error
			if c.repair != 0 {
				err = c.mend(ctx, &d, v)
			}
			c.tally.add(d)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// exactRun is what an exact look at [off, end) has shown.
type exactRun struct {
	off, end int64
	at       journal.LSN
	units    []verdict
}

// differences are the units that are not equal, those of one kind that adjoin as one.
func (x *exactRun) differences() iter.Seq2[Difference, verdict] {
	edge := func(i int) int64 {
		return min(max(x.off, (x.off/verifyUnitBytes+int64(i))*verifyUnitBytes), x.end)
	}
	return func(yield func(Difference, verdict) bool) {
		for i := 0; i < len(x.units); {
			k := i + 1
			for k < len(x.units) && x.units[k] == x.units[i] {
				k++
			}
			d := Difference{Offset: edge(i), Length: edge(k) - edge(i), LSN: uint64(x.at), Kind: kindOf[x.units[i]]}
			if x.units[i] != unitEqual && !yield(d, x.units[i]) {
				return
			}
			i = k
		}
	}
}
