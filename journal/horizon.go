package journal

// The horizon bounds what Open has to read of the free part of the ring. Every anchor says: no record of this log ends beyond
// my horizon. It lies ahead of the head, mostly far enough that the next anchor comes before the head gets there; an append
// that would pass it first writes an anchor with a new one. What lies beyond it, up to tail + ring, was clean when the log was
// opened or formatted and has not been written since.
//
//	tail ≤ applied ≤ durable ≤ head ≤ horizon

// horizonBytes is how far ahead of the head an anchor puts the horizon: what Open reads in vain at most, and how often a log
// whose owner writes no anchors has to write one.
const horizonBytes = 128 << 20

func horizonStep(ringSize int64) LSN { return LSN(min(horizonBytes, ringSize/4)) }

// reach returns once records may end at end. Needs the lead.
func (l *Log) reach(end LSN) error {
	if uint64(end) <= l.horizon.Load() {
		return nil
	}
	l.amu.Lock()
	defer l.amu.Unlock()
	if err := l.takeTurn(); err != nil {
		return err
	}
	head := l.Head()
	next := l.anchor.Load().clone()
	next.horizon = end + horizonStep(l.ring.size)
	if err := l.commit(next); err != nil {
		l.endTurn(0)
		return err
	}
	l.endTurn(head)
	return nil
}
