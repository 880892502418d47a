package mirror

import (
	"context"
	"sync"
	"sync/atomic"
)

// foresight begins what a FLUSH asks for before it comes. A database that commits, or a filesystem under one that does, writes
// and flushes in a steady beat; between the answer to its last write and its FLUSH lies a round trip through the client, in
// which the disks, here and at the followers, could be at work. So when the last few FLUSHes came after equal numbers of
// writes, the sync begins with the write that makes up that number, and the FLUSH joins it. A beat that changes costs one sync
// more, and then nothing until it is steady again. What is promised to whom is not touched: a FLUSH is answered by the same rules.
//
// Where a write is answered at once, it is whoever answers it that begins the sync, after that (blockdev.Foreseer): for a client
// that does one thing at a time the goroutine that will answer its FLUSH as well. Waking another one costs as much as the round trip.
type foresight struct {
	due  chan struct{} // a FLUSH is near
	near atomic.Bool   // and who answers the write may begin its sync

	mu    sync.Mutex // guards all below; a leaf
	since int        // writes since the last FLUSH
	beat  int        // writes before the last FLUSH
	times int        // how many FLUSHes in a row came in that beat
}

const (
	steadyBeats = 4   // FLUSHes in a row that make a beat steady
	longestBeat = 256 // writes: beyond that a sync has enough to do, and the round trip is little
)

func newForesight() *foresight { return &foresight{due: make(chan struct{}, 1)} }

// wrote takes n writes that have entered the log. due: a FLUSH of them is near; syncs at the followers are the caller's to ask
// for, at once, so that they go with the records, and that here it begins, or has it begun. flushes: the caller will FLUSH itself, and
// nothing is begun for it.
func (f *foresight) wrote(n int, flushes bool) (due bool) {
	f.mu.Lock()
	before := f.since
	f.since += n
	due = !flushes && f.times >= steadyBeats && before < f.beat && f.since == f.beat
	f.mu.Unlock()
	return due
}

// begin has the sync begin, on the goroutine of foresee.
func (f *foresight) begin() {
	select {
	case f.due <- struct{}{}:
	default:
	}
}

// flushed takes a FLUSH. One that follows another at once says nothing.
func (f *foresight) flushed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.since {
	case 0:
		return
	case f.beat:
		f.times++
	default:
		f.beat, f.times = f.since, 1
	}
	if f.beat > longestBeat {
		f.beat, f.times = 0, 0
	}
	f.since = 0
}

// foresee runs until ctx ends or the journal fails.
func (v *Volume) foresee(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.foresight.due:
		}
		if v.syncAhead() {
			return
		}
	}
}

// syncAhead makes durable what a FLUSH is expected for. over: the journal has failed, or the volume ends.
func (v *Volume) syncAhead() (over bool) {
	if v.writable() != nil {
		return false
	}
	_, err := v.log.Sync(v.log.Head())
	return v.over(err)
}

// Foresee implements blockdev.Foreseer: it begins the sync of a FLUSH that is near. The FLUSH itself says what became of it.
func (v *Volume) Foresee(here bool) {
	f := v.foresight
	switch {
	case f == nil, !f.near.Load(), !f.near.CompareAndSwap(true, false):
	case here:
		v.syncAhead()
	default:
		f.begin()
	}
}
