package journal

import "fmt"

// The sync turn: one fdatasync at a time, whoever asked. Who finds it taken waits and shares the next one.
// An anchor takes the turn too, since its fdatasync makes the records durable as well, and so does a cut, since
// durable goes down in it.

// takeTurn waits for the turn.
func (l *Log) takeTurn() error {
	l.smu.Lock()
	defer l.smu.Unlock()
	for l.syncing {
		if l.isClosed() {
			return ErrClosed
		}
		l.turn.Wait()
	}
	if err := l.Failed(); err != nil {
		return err
	}
	l.syncing = true
	return nil
}

// endTurn gives the turn back; everything below durable has become so.
func (l *Log) endTurn(durable LSN) {
	l.smu.Lock()
	l.syncing = false
	if durable > l.Durable() {
		l.durable.Store(uint64(durable))
	}
	l.turn.Broadcast()
	l.smu.Unlock()
	l.notify()
}

// Sync returns when everything below upTo is durable (G2), or everything when upTo is beyond the head. One
// fdatasync serves all who wait. ErrCut: records below upTo were cut meanwhile.
func (l *Log) Sync(upTo LSN) (LSN, error) {
	upTo = min(upTo, l.Head())
	if d := l.Durable(); upTo <= d {
		return d, l.Failed()
	}
	l.smu.Lock()
	cuts := l.cuts
	for {
		durable := l.Durable()
		switch {
		case l.Failed() != nil:
			l.smu.Unlock()
			return durable, l.Failed()
		case upTo <= durable:
			l.smu.Unlock()
			return durable, nil
		case cuts != l.cuts:
			l.smu.Unlock()
			return durable, fmt.Errorf("sync up to %d: %w", upTo, ErrCut)
		case !l.syncing:
			l.syncing = true
			l.smu.Unlock()
			l.syncOnce()
			l.smu.Lock()
		case l.isClosed():
			l.smu.Unlock()
			return durable, ErrClosed
		default:
			l.turn.Wait()
		}
	}
}

// syncOnce needs the turn and gives it back.
func (l *Log) syncOnce() {
	head := l.Head() // what is in the file now
	if err := l.syncFile(); err != nil {
		l.fail(fmt.Errorf("sync journal: %w", err)) //nolint:errcheck // latched, the caller looks
		head = 0
	}
	l.endTurn(head)
}

// Anchor returns a copy of the newest durable anchor.
func (l *Log) Anchor() Anchor { return l.anchor.Load().Anchor.clone() }

// WriteAnchor changes the anchor and returns when it is durable. Durable, Sequence and the chain values of Tail
// and Applied are filled in by the journal. Applied must be a record boundary ≤ Durable, Tail one ≤ Applied; both
// only move forwards. Moving Tail frees its space. update must not call Append, WriteAnchor, Cut, Reset or Close; nor may OnAppend.
func (l *Log) WriteAnchor(update func(a *Anchor)) error {
	l.amu.Lock()
	defer l.amu.Unlock()
	if l.isClosed() {
		return ErrClosed
	}
	old := l.anchor.Load()
	next := old.clone()
	if update != nil {
		update(&next.Anchor)
	}
	if err := l.place(old, next); err != nil {
		return fmt.Errorf("write anchor: %w", err)
	}
	if err := l.takeTurn(); err != nil {
		return err
	}
	head := l.Head()
	if err := l.commit(next); err != nil {
		l.endTurn(0)
		return err
	}
	l.index.trim(point{next.Tail, next.TailChain})
	l.applied.Store(uint64(next.Applied))
	l.tail.Store(uint64(next.Tail))
	l.endTurn(head)
	return nil
}

// place checks the positions of the next anchor and fills in their chain values. Needs amu: nothing is cut.
func (l *Log) place(old, next *diskAnchor) error {
	next.Durable = l.promise()
	if next.Tail < old.Tail || next.Applied < old.Applied {
		return fmt.Errorf("%w anchor: tail %d → %d, applied %d → %d", ErrInvalid, old.Tail, next.Tail, old.Applied, next.Applied)
	}
	if err := next.check(); err != nil {
		return err
	}
	next.TailChain, next.AppliedChain = old.TailChain, old.AppliedChain
	var err error
	if next.Applied != old.Applied {
		if next.AppliedChain, err = l.ChainAt(next.Applied); err != nil {
			return fmt.Errorf("applied %d: %w", next.Applied, err)
		}
	}
	if next.Tail != old.Tail {
		if next.TailChain, err = l.ChainAt(next.Tail); err != nil {
			return fmt.Errorf("tail %d: %w", next.Tail, err)
		}
	}
	return nil
}

// commit makes next the durable anchor, with the promise that holds now. Needs amu and the turn.
func (l *Log) commit(next *diskAnchor) error {
	next.Durable = l.promise()
	return l.store(next)
}

// store makes next durable as it is. Needs amu and the turn.
func (l *Log) store(next *diskAnchor) error {
	next.Sequence = l.anchor.Load().Sequence + 1
	next.ringSize = l.ring.size
	if next.pending != pendingReset { // else Reset, which has the lead, chose it
		next.horizon = max(next.horizon, LSN(l.horizon.Load()), l.Head()+horizonStep(l.ring.size))
	}
	if err := next.check(); err != nil {
		return err
	}
	if _, err := l.ring.f.WriteAt(next.encode(), slotOffset(next.Sequence)); err != nil {
		return l.fail(fmt.Errorf("write anchor: %w", err))
	}
	if err := l.syncFile(); err != nil {
		return l.fail(fmt.Errorf("sync anchor: %w", err))
	}
	l.counters.anchors.Add(1)
	l.anchor.Store(next)
	l.horizon.Store(uint64(next.horizon))
	return nil
}
