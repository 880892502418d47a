package journal

import "fmt"

// Repair. A log that Open found rotten at x, below the promise D, can be opened all the same (Options.Damaged): it then ends at x,
// and holds the promise until one of these happens:
//
//	AppendRaw at the head, then Resume   the records from x on came from a copy of this log; what follows them
//	                                     here is read on, and at D or beyond the log is whole again
//	Cut, Reset                           the owner gives up what is lost
//
// Nothing is written before that; anchors written meanwhile repeat the promise, so a crash leaves the log as
// damaged as it was, or less. What AppendRaw puts over the ring's bytes is checked against the chain: where the copy is of this
// history it is what was there. Where it is of another, records of the old one stay beyond the head, which no other log
// has; only Cut ends that, and it wipes the whole free part of the ring.

// Damaged returns the promise that a damaged log has to keep, 0 when it is whole.
func (l *Log) Damaged() LSN { return LSN(l.repair.Load()) }

// promise is what an anchor written now says.
func (l *Log) promise() LSN { return max(l.Durable(), l.Damaged()) }

// damaged ends recovery at rot, for an owner that can repair it.
func (l *Log) damaged(d *diskAnchor, w *walker, rot *CorruptError, promise LSN) (*Recovery, error) {
	if !l.opts.Damaged || d.pending != pendingNone {
		return nil, rot
	}
	l.setHead(w.at, w.chain)
	l.durable.Store(uint64(w.at)) // it was promised, and the owner has read it from the disk
	l.repair.Store(uint64(promise))
	return &Recovery{Head: w.at, Rot: rot, Promise: promise}, nil
}

// Resume reads on at the head of a damaged log, where AppendRaw has put what was rotten. Recovery.Rot is nil when the log is whole
// again; else it says where the next rot is, and the head is there.
func (l *Log) Resume() (*Recovery, error) {
	if err := l.alone(); err != nil {
		return nil, err
	}
	defer l.leave()
	l.amu.Lock()
	defer l.amu.Unlock()
	if err := l.takeTurn(); err != nil {
		return nil, err
	}
	defer func() { l.endTurn(0) }()
	r, err := l.resume()
	if err != nil {
		return nil, l.fail(err)
	}
	return r, nil
}

// resume has the lead, amu and the turn.
func (l *Log) resume() (*Recovery, error) {
	d := l.anchor.Load()
	promise, limit := l.Damaged(), min(l.Tail()+LSN(l.ring.Load().size), LSN(l.horizon.Load()))
	head, chain := l.HeadChain()
	if promise == 0 {
		return &Recovery{Head: head}, nil
	}
	w := l.walk(point{head, chain}, limit, scanBytes)
	defer w.win.free()
	stop, err := l.replay(&w)
	if err != nil {
		return nil, err
	}
	x := w.at
	if err := l.ring.Load().f.Sync(); err != nil {
		return nil, err
	}
	var left remains
	if x >= promise {
		if left, err = l.remains(d, &w, limit); err != nil {
			return nil, err
		}
		if d.Role == RolePrimary && left.promise > x {
			promise = left.promise
		}
	}
	l.setHead(x, w.chain)
	l.durable.Store(uint64(x))
	if x < promise {
		l.repair.Store(uint64(promise))
		rot := &CorruptError{LSN: x, Offset: l.ring.Load().offset(x), Reason: fmt.Sprintf("%s, but everything up to %d is promised", stop.reason, promise)}
		return &Recovery{Head: x, Rot: rot, Promise: promise}, nil
	}
	if err := l.settle(d, x, limit, left); err != nil {
		return nil, err
	}
	l.repair.Store(0)
	return &Recovery{Head: x, Cut: left.end > x, CutBytes: int64(max(left.end, x) - x)}, nil
}
