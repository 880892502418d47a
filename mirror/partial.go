package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2"

	"mirror-agent/journal"
)

// A partial resync copies what a follower lacks, over the state that it has:
// the blocks that its dirty set marks and those that the log has changed
// since, while the stream goes on. It is a fuzzy copy like the full one and
// is built in the same staging. An earlier try may have left blocks there, of
// a state of its own: the follower names them, and they are compared by hash.
//
// The set is forgotten when the follower is durable at where the resync ended
// and has said so, see tracker.acked.

// maxStagedBytes bounds what a follower says of earlier tries; with more
// than that it begins afresh.
const maxStagedBytes = 1 << 20

// partial returns why all blocks have to be compared instead, if so.
func (c *copier) partial(ctx context.Context, out outcome) (compare string, err error) {
	w := c.track
	c.sent = c.v.log.Head()
	set, err := c.v.dirty.since(w, c.sent)
	for errors.Is(err, journal.ErrGone) && ctx.Err() == nil { // it left the log just now, and is in a newer set
		if w = c.v.dirty.view(c.follower); w.set == nil || w.id != c.track.id || w.base != c.track.base {
			break
		}
		c.sent = c.v.log.Head()
		set, err = c.v.dirty.since(w, c.sent)
	}
	if errors.Is(err, journal.ErrCorrupt) {
		return fmt.Sprintf("what %s lacks cannot be told: %v", c.l.Peer(), err), nil
	}
	if err != nil {
		return "", fmt.Errorf("resync: what %s lacks: %w", c.l.Peer(), c.v.journalError(err))
	}
	c.hold.move(c.sent)
	c.size = c.v.size.Load() // after sent, as for a full one
	r, err := c.callResync(ctx, encodeJSON(kindResync, resyncBegin{
		From: c.sent, Size: c.size,
		Partial: &partialBegin{At: out.at, Base: w.base, Chain: w.chain, Bytes: set.bytes()},
	}))
	if err != nil || r.Compare != "" {
		return r.Compare, err
	}
	if err := addRewound(set, r.Rewound, c.size); err != nil {
		return "", err
	}
	staged, err := stagedSet(r.Staged, c.size)
	if err != nil {
		return "", err
	}
	if err := staged.each(func(off, end int64) error {
		set.bits.RemoveRange(uint64(off/set.block), uint64((end+set.block-1)/set.block))
		return nil
	}); err != nil {
		return "", err
	}
	c.report(followerNeedsResync, out.reason)
	c.resync.begin(staged.bytes() + set.bytes())
	if err := staged.each(func(off, end int64) error { return c.run(ctx, off, end, c.compareFinely) }); err != nil {
		return "", err
	}
	c.fetched = 0 // from the beginning again
	if err := set.each(func(off, end int64) error { return c.run(ctx, off, end, c.copy) }); err != nil {
		return "", err
	}
	return "", c.endResync(ctx)
}

// run does a run of blocks, a chunk at a time.
func (c *copier) run(ctx context.Context, off, end int64, do func(ctx context.Context, off, end int64) error) error {
	for off < end {
		next := min(off+c.pace.chunk(c.chunk), end)
		c.readAhead(off, min(next+c.chunk, end))
		if err := c.turn(ctx, next-off); err != nil {
			return err
		}
		c.shift = c.resync.done.Load() - off
		if err := do(ctx, off, next); err != nil {
			return err
		}
		c.resync.done.Add(next - off)
		off = next
	}
	return nil
}

// stagedSet reads what a follower says that it has staged.
func stagedSet(raw []byte, size int64) (*dirtySet, error) {
	s := &dirtySet{size: size, block: resyncBlockBytes, bits: roaring.New()}
	if len(raw) == 0 {
		return s, nil
	}
	bits, err := decodeBits(raw, s.blocks())
	if err != nil {
		return nil, fmt.Errorf("resync: %w: staged blocks: %w", errMessage, err)
	}
	s.bits = bits
	return s, nil
}

// leftover says which blocks an earlier try has staged.
func (st *staging) leftover() ([]byte, error) {
	bits := roaring.New()
	for i, ok := range st.staged {
		if ok {
			bits.Add(uint32(i))
		}
	}
	bits.RunOptimize()
	return bits.ToBytes()
}

// beginPartial makes the volume's state the one that a partial resync builds
// upon, or says why that cannot be.
func (r *receiver) beginPartial(m *partialBegin) (compare string, err error) {
	head := r.v.log.Head()
	switch {
	case r.v.flags()&(stateBlank|stateMerging) != 0:
		return r.node + " has never been consistent", nil
	case m.Base > m.At || m.At > head:
		return fmt.Sprintf("%s has the log up to LSN %d", r.node, head), nil
	}
	chain, err := r.v.log.ChainAt(m.Base)
	if err != nil {
		return fmt.Sprintf("the log of %s does not show what it was at LSN %d (%v)", r.node, m.Base, err), nil
	}
	if chain != m.Chain {
		return fmt.Sprintf("the log of %s differs at LSN %d", r.node, m.Base), nil
	}
	if m.At < head {
		if err := r.v.cut(m.At); err != nil {
			if errors.Is(err, journal.ErrCommitted) || errors.Is(err, journal.ErrNotBoundary) {
				return err.Error(), nil
			}
			return "", err
		}
	}
	return "", nil
}

// openPartial opens the staging of a partial resync and says what is in it.
func (r *receiver) openPartial(size int64) (*staging, []byte, error) {
	st, err := r.newStage(size)
	if err != nil {
		return nil, nil, err
	}
	b, err := st.leftover()
	if err == nil && len(b) > maxStagedBytes {
		if err = errors.Join(st.file.Close(), st.remove()); err != nil {
			return nil, nil, err
		}
		st, err = r.newStage(size)
		return st, nil, err
	}
	if err != nil {
		st.suspend()
	}
	return st, b, err
}
