package mirror

import (
	"context"
	"math"
	"time"

	"mirror-agent/journal"
)

// A connected follower holds the tail of the log at what it has durably, so
// that the log is all that it needs when it comes back from anything. When
// writers outrun it they are slowed to its pace (pacing.go). With OnFullTrack
// that ends after PushBack: the follower loses its hold, the tail passes it,
// and the tracker marks what it lacks.

// heldTail is the hold of the one follower that is fed.
type heldTail struct {
	on     bool
	lost   bool // it held writers up for too long, and may not hold again
	at     journal.LSN
	giveUp func() // called once, when the hold is lost; must not block

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

// startHold begins the hold of a follower that is about to be fed; giveUp is
// called when it is lost.
func (v *Volume) startHold(lsn journal.LSN, giveUp func()) {
	v.stateMu.Lock()
	v.held = heldTail{on: true, at: lsn, giveUp: giveUp}
	v.holdMark.Store(uint64(lsn))
	v.stateMu.Unlock()
}

// hold moves the hold up to lsn, never down: the tail may not pass it.
func (v *Volume) hold(lsn journal.LSN) {
	v.stateMu.Lock()
	if v.held.lost {
		v.stateMu.Unlock()
		return
	}
	moved := !v.held.on || lsn > v.held.at
	if moved {
		v.held.on, v.held.at = true, lsn
		v.holdMark.Store(uint64(lsn))
	}
	waits := v.waiting > 0
	v.stateMu.Unlock()
	if moved && (waits || int64(v.log.Head()-v.log.Tail()) > v.log.Capacity()/4*3) {
		v.poke()
	}
}

// release ends the hold.
func (v *Volume) release() {
	v.stateMu.Lock()
	v.held = heldTail{}
	v.holdMark.Store(noHold)
	v.stateMu.Unlock()
	v.poke()
}

// pinned is the LSN that the tail cannot pass now, and whether that is for a
// follower and not for the backing device.
func (v *Volume) pinned() (journal.LSN, bool) {
	applied, held := v.log.Applied(), journal.LSN(v.holdMark.Load())
	return min(applied, held), held < applied
}

// heldUp notes that a writer is slowed or waits. When that has been for a
// follower for too long, the follower loses its hold.
func (v *Volume) heldUp(now time.Time) {
	if _, follower := v.pinned(); !follower {
		return
	}
	v.stateMu.Lock()
	h := &v.held
	if !h.on {
		v.stateMu.Unlock()
		return
	}
	if now.Sub(h.last) > pushGap {
		h.since = now
	}
	h.last = now
	var giveUp func()
	if v.opts.OnFull == OnFullTrack && now.Sub(h.since) >= v.opts.PushBack {
		giveUp = h.giveUp
		*h = heldTail{lost: true}
		v.holdMark.Store(noHold)
	}
	v.stateMu.Unlock()
	if giveUp != nil {
		giveUp()
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
