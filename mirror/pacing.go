package mirror

import (
	"time"

	"mirror-agent/journal"
)

// Back-pressure without a cliff. What the backing device and a connected
// follower have not got yet fills the ring. Up to half of it nothing happens.
// Beyond that writers are delayed so that they settle where the ring is 85 %
// full, at the pace at which it is drained. Only a drain that stands still
// makes it full; then writers wait for room. The same goes for the overlay's
// memory (memory.go), which small records may fill before the ring.

const (
	// Shares of the ring: where delays begin, and where writers go as fast as
	// the ring is drained.
	paceStart = 0.5
	paceEven  = 0.85
	// maxPace is the longest delay of one call.
	maxPace = 100 * time.Millisecond
	// minPace: shorter delays are saved up, a timer is no finer than that.
	minPace = time.Millisecond
	// The last drainMoves of what drains count for its rate, and those of
	// drainMemory at least.
	drainMemory = time.Second
	drainMoves  = 8
)

// paceDelay is how long a call that adds bytes to the log is delayed, when
// used of what there is of ring or memory cannot be freed and drain bytes of
// log are freed in a second. For a share u of the ring writers may go at the drain's rate times
// k(1-u)/(u-start), which is without bound where delays begin, 1 at paceEven,
// and 0 when the ring is full.
func paceDelay(used, capacity, bytes int64, drain float64) time.Duration {
	u := float64(used) / float64(max(capacity, 1))
	if u <= paceStart {
		return 0
	}
	if u >= 1 || drain <= 0 {
		return maxPace
	}
	const k = (paceEven - paceStart) / (1 - paceEven)
	allowed := drain * k * (1 - u) / (u - paceStart)
	seconds := float64(bytes) / allowed
	if seconds >= maxPace.Seconds() {
		return maxPace
	}
	return time.Duration(seconds * float64(time.Second))
}

// drainMeter measures how fast the ring is freed, while that matters. That
// goes by lumps: a layer of the overlay, which takes seconds on a slow disk,
// or what a follower made durable at once. So it looks back over several of
// them, however long they took: a rate that fell between two of them and shot
// up with each would let writers creep and run by turns. For one goroutine at
// a time.
type drainMeter struct {
	rate  float64 // bytes in a second
	at    time.Time
	lsn   journal.LSN
	moves []drainMove   // the last ones, oldest first
	debt  time.Duration // delays too short to be slept
}

// drainMove: at that time the ring was freed up to there; an LSN, or below the
// first one.
type drainMove struct {
	at  time.Time
	lsn float64
}

// update takes where the ring is freed up to now; capacity is the ring's.
// Until something was measured the ring is taken to drain in a second.
func (m *drainMeter) update(now time.Time, lsn journal.LSN, capacity int64) {
	if m.at.IsZero() {
		m.rate = float64(capacity)
	}
	dt := now.Sub(m.at)
	switch {
	case dt > drainMemory || lsn < m.lsn:
		// A new time of pressure begins with what was measured last.
		m.moves = append(m.moves[:0], drainMove{now.Add(-drainMemory), float64(lsn) - m.rate*drainMemory.Seconds()}, drainMove{now, float64(lsn)})
	case dt < drainMemory/20:
		return
	default:
		m.moved(now, float64(lsn))
	}
	m.at, m.lsn = now, lsn
	oldest := m.moves[0]
	m.rate = (float64(lsn) - oldest.lsn) / now.Sub(oldest.at).Seconds()
}

// moved notes a move; those that come in quick succession count as one.
func (m *drainMeter) moved(now time.Time, lsn float64) {
	newest := m.moves[len(m.moves)-1]
	if lsn == newest.lsn || now.Sub(newest.at) < drainMemory/drainMoves {
		return
	}
	if len(m.moves) > drainMoves {
		m.moves = append(m.moves[:0], m.moves[1:]...)
	}
	m.moves = append(m.moves, drainMove{now, lsn})
}

// used is how much of the ring cannot be freed now.
func (v *Volume) used() int64 {
	pinned, _ := v.pinned()
	return int64(v.log.Head() - min(v.log.Head(), pinned))
}

// paced says whether writers are slowed.
func (v *Volume) paced() bool { return v.ringPaced() || v.overlayShare() > paceStart }

// ringPaced says whether they are for the ring.
func (v *Volume) ringPaced() bool { return float64(v.used()) > paceStart*float64(v.log.Capacity()) }

// slow delays a call that adds bytes to the log, for the first in line. It
// ends early when the ring is freed, or the volume stops.
func (v *Volume) slow(bytes int64) error {
	start := time.Now()
	for {
		moved, err := v.watch()
		if err != nil {
			return err
		}
		if !v.paced() {
			v.drain.debt = 0
			return nil
		}
		now := time.Now()
		if v.ringPaced() { // a follower takes no memory of the overlay
			v.heldUp(now)
		}
		pinned, _ := v.pinned()
		v.drain.update(now, pinned, v.log.Capacity())
		v.applying.update(now, v.log.Applied(), v.log.Capacity())
		wait := max(
			paceDelay(v.used(), v.log.Capacity(), bytes, v.drain.rate),
			paceDelay(v.overlay.count.Load(), v.opts.OverlayExtents, bytes, v.applying.rate),
		) + v.drain.debt - now.Sub(start)
		if wait < minPace {
			v.drain.debt = max(0, wait)
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			v.drain.debt = 0
			return nil
		case <-moved:
			timer.Stop()
		}
	}
}
