package nbd

import (
	"sync/atomic"
	"time"
)

// pulse notices when the whole process stood still: stopped by a signal, frozen, starved. Who waits for a socket meanwhile cannot tell that
// from a silent client. It beats while the server has connections; any goroutine may ask it.
type pulse struct {
	born time.Time
	beat atomic.Int64 // the last one, since born
	late atomic.Int64 // the last one that came late
}

// staleAfter is far below the time after which any client gives a connection up, and rare enough to cost nothing.
const staleAfter = 100 * time.Millisecond

func newPulse() *pulse {
	p := &pulse{born: time.Now()}
	p.late.Store(-1)
	return p
}

// begin comes before run, and before anybody asks: nothing beat until now.
func (p *pulse) begin() { p.beat.Store(int64(time.Since(p.born))) }

// run beats until stop is closed.
func (p *pulse) run(stop <-chan struct{}) {
	tick := time.NewTicker(staleAfter / 2)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			p.beaten(time.Now())
		}
	}
}

func (p *pulse) beaten(at time.Time) {
	now := int64(at.Sub(p.born))
	if time.Duration(now-p.beat.Load()) > staleAfter {
		p.late.Store(now) // before the beat: who asks in between sees one or the other
	}
	p.beat.Store(now)
}

// stoodStill says whether the process did so at any time from from to now, or may have.
func (p *pulse) stoodStill(from, now time.Time) bool {
	beat := p.beat.Load()
	return now.Sub(p.born)-time.Duration(beat) > staleAfter || p.late.Load() >= int64(from.Sub(p.born))
}
