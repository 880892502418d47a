package journal

import (
	"errors"
	"fmt"
)

// Cut and Reset drop records, and what was dropped must never come back (wipe.go). One anchor is the point where it
// happens; the anchor says what remains to be done, and Open does it when the power went in between:
//
//	1 anchor: the new end, the lowered promise, "pending"   ── the cut has happened
//	2 zero the headers, fdatasync
//	3 anchor: nothing pending                               ── records may be appended again
//
// Step 1 before 2: zeroes below a standing promise would be taken for rot. Step 3 before an append: else
// Open would cut what was appended since.

// Cut drops the records at and above to, a record boundary, durably. Generations that start at or above to
// leave the anchor. ErrCommitted below Applied, ErrBeyondHead, ErrNotBoundary.
func (l *Log) Cut(to LSN) error {
	return l.drop(func(next *diskAnchor) (point, error) {
		switch {
		case to < next.Applied:
			return point{}, fmt.Errorf("cut at %d, applied %d: %w", to, next.Applied, ErrCommitted)
		case to > l.Head():
			return point{}, fmt.Errorf("cut at %d, head %d: %w", to, l.Head(), ErrBeyondHead)
		}
		chain, err := l.ChainAt(to)
		if err != nil {
			return point{}, fmt.Errorf("cut: %w", err)
		}
		keep := next.Generations[:0]
		for _, g := range next.Generations {
			if g.First < to {
				keep = append(keep, g)
			}
		}
		if to == l.Head() && len(keep) == len(next.Generations) && l.Damaged() == 0 {
			return point{}, errNothing
		}
		next.Generations = keep
		next.pending, next.cutAt = pendingCut, to
		return point{to, chain}, nil
	})
}

// Reset forgets all records; the log then starts, empty, at at with this chain value. update changes the rest of the anchor
// (positions are set by Reset). It happens with one anchor: before it the old log is there, after it the new one.
func (l *Log) Reset(at LSN, chain uint64, update func(*Anchor)) error {
	return l.drop(func(next *diskAnchor) (point, error) {
		if update != nil {
			update(&next.Anchor)
		}
		next.Tail, next.TailChain, next.Applied, next.AppliedChain = at, chain, at, chain
		next.Durable = at
		next.pending, next.horizon = pendingReset, at+horizonStep(l.ring.size)
		return point{at, chain}, next.check()
	})
}

var errNothing = fmt.Errorf("nothing to drop")

// drop is what Cut and Reset share; plan says where the log will end.
func (l *Log) drop(plan func(next *diskAnchor) (point, error)) error {
	if err := l.alone(); err != nil {
		return err
	}
	defer l.leave()
	l.amu.Lock()
	defer l.amu.Unlock()
	next := l.anchor.Load().clone()
	end, err := plan(next)
	if errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := l.takeTurn(); err != nil {
		return err
	}
	defer l.endTurn(0)
	old := l.Head()
	next.Durable = min(l.Durable(), end.at)
	if next.pending == pendingReset {
		next.Durable = end.at
	}
	if err := l.store(next); err != nil {
		return err
	}
	l.smu.Lock()
	l.cuts++
	if l.Damaged() > 0 { // the promise is given up with that anchor; records of it may lie anywhere
		old = l.Tail() + LSN(l.ring.size)
		l.repair.Store(0)
	}
	l.durable.Store(uint64(end.at)) // what lies below was in the file before the anchor's fdatasync
	l.smu.Unlock()
	l.setHead(end.at, end.chain)
	if next.pending == pendingReset {
		l.index.reset(end)
		l.applied.Store(uint64(end.at))
		l.tail.Store(uint64(end.at))
	}
	l.index.truncate(end.at)
	l.epoch.Add(1)
	return l.finish(next, old)
}

// finish does what a pending anchor has announced; the dropped records lie below end. Needs amu and the turn.
func (l *Log) finish(pending *diskAnchor, end LSN) error {
	err := error(nil)
	if pending.pending == pendingReset {
		err = l.ring.forget(pending.Applied)
	} else {
		err = l.ring.wipe(pending.cutAt, end)
	}
	if err != nil {
		return l.fail(err)
	}
	if err := l.ring.f.Sync(); err != nil {
		return l.fail(fmt.Errorf("sync journal: %w", err))
	}
	done := pending.clone()
	done.pending, done.cutAt = pendingNone, 0
	return l.commit(done)
}
