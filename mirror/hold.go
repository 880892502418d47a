package mirror

import (
	"context"
	"math"
	"slices"
	"time"

	"mirror-agent/journal"
)

// A connected follower holds the tail of the log at what it has durably, so
// that the log is all that it needs when it comes back from anything; the tail
// waits for the slowest. When writers outrun one they are slowed to its pace
// (pacing.go). With OnFullTrack that ends after PushBack: that follower loses
// its hold, the tail passes it, and the tracker marks what it lacks.

// hold is that of one follower.
type hold struct {
	v      *Volume
	who    string
	giveUp func() // called once, when the hold is lost; must not block

	at journal.LSN // guarded by the volume's stateMu, as all below
	// Since when writers have been held up for it, and when they last were.
	since, last time.Time
}

const (
	noHold = math.MaxUint64
	// roomTick is how often a writer that waits for room looks who holds it up.
	roomTick = 250 * time.Millisecond
	// pushGap without a writer held up ends the time that counts for PushBack.
	pushGap = 2 * time.Second
)

// newHold begins the hold of a follower that is about to be fed; giveUp is
// called when it is lost.
func (v *Volume) newHold(who string, lsn journal.LSN, giveUp func()) *hold {
	h := &hold{v: v, who: who, giveUp: giveUp, at: lsn}
	v.stateMu.Lock()
	v.holds = append(v.holds, h)
	v.markHoldsLocked()
	v.stateMu.Unlock()
	return h
}

// markHoldsLocked notes where the slowest hold is.
func (v *Volume) markHoldsLocked() {
	mark := uint64(noHold)
	for _, h := range v.holds {
		mark = min(mark, uint64(h.at))
	}
	v.holdMark.Store(mark)
}

// move moves the hold up to lsn, never down: the tail may not pass it. One
// that was lost or released stays so.
func (h *hold) move(lsn journal.LSN) {
	v := h.v
	v.stateMu.Lock()
	moved := lsn > h.at
	if moved {
		before := v.holdMark.Load()
		h.at = lsn
		v.markHoldsLocked()
		moved = v.holdMark.Load() != before
	}
	waits := v.waiting > 0
	v.stateMu.Unlock()
	if moved && (waits || int64(v.log.Head()-v.log.Tail()) > v.log.Capacity()/4*3) {
		v.poke()
	}
}

// release ends the hold.
func (h *hold) release() {
	h.v.stateMu.Lock()
	h.v.dropHoldLocked(h)
	h.v.stateMu.Unlock()
	h.v.poke()
}

func (v *Volume) dropHoldLocked(h *hold) {
	v.holds = slices.DeleteFunc(v.holds, func(o *hold) bool { return o == h })
	v.markHoldsLocked()
}

// pinned is the LSN that the tail cannot pass now, and whether that is for a
// follower and not for the backing device.
func (v *Volume) pinned() (journal.LSN, bool) {
	applied, held := v.log.Applied(), journal.LSN(v.holdMark.Load())
	return min(applied, held), held < applied
}

// slowest names the follower that holds the tail, "" when none does.
func (v *Volume) slowest() (who string) {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	mark := v.holdMark.Load()
	for _, h := range v.holds {
		if uint64(h.at) == mark {
			who = h.who
		}
	}
	return who
}

// heldUp notes that a writer is slowed or waits. That is put down to the
// slowest follower, and to all others for which alone writers would be slowed.
// Who did it for too long loses its hold.
func (v *Volume) heldUp(now time.Time) {
	slowest, follower := v.pinned()
	if !follower {
		return
	}
	head, most := v.log.Head(), journal.LSN(paceStart*float64(v.log.Capacity()))
	var lost []*hold
	v.stateMu.Lock()
	for _, h := range v.holds {
		if h.at > slowest && (h.at >= v.log.Applied() || head-min(head, h.at) <= most) {
			continue
		}
		if now.Sub(h.last) > pushGap {
			h.since = now
		}
		h.last = now
		if v.opts.OnFull == OnFullTrack && now.Sub(h.since) >= v.opts.PushBack {
			lost = append(lost, h)
		}
	}
	for _, h := range lost {
		v.dropHoldLocked(h)
	}
	v.stateMu.Unlock()
	for _, h := range lost {
		h.giveUp()
	}
	if len(lost) > 0 {
		v.poke()
	}
}

// awaitRoom waits until the background goroutine has moved something; moved
// was taken before the log was found full.
func (v *Volume) awaitRoom(ctx context.Context, moved <-chan struct{}) error {
	v.stateMu.Lock()
	v.waiting++
	v.stateMu.Unlock()
	defer func() {
		v.stateMu.Lock()
		v.waiting--
		v.stateMu.Unlock()
	}()
	tick := time.NewTicker(roomTick)
	defer tick.Stop()
	for {
		v.heldUp(time.Now())
		v.poke()
		select {
		case <-moved:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
