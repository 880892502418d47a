package mirror

import (
	"context"
	"time"
)

// A verify and a resync yield to the applications. Four times a second it looks at what they did: while nothing was asked of this host it goes
// as fast as the disks and paths do, or a limit allows. When an application begins it goes back to a modest rate, and from then on it rests
// for one interval in six: as long as appends and flushes take no longer on the average beside it than while it rests it goes
// up, else down by half.

const (
	paceEvery  = 250 * time.Millisecond
	paceWork   = 5        // intervals of work between two of rest
	paceFirst  = 32 << 20 // bytes per second beside an application, to begin with
	paceFloor  = 4 << 20
	paceFree   = 1 << 40
	paceUp     = 1.5
	paceSlower = 1.5 // times the latency of rest is too slow
	paceSlack  = 200 * time.Microsecond
)

// loadSample is what the applications did up to now.
type loadSample struct {
	ops  uint64        // reads, writes, flushes
	took time.Duration // of all appends and flushes, summed up
	of   uint64        // how many these were
}

// yieldPace says when the next bytes may be read. For one goroutine.
type yieldPace struct {
	limit  float64       // bytes per second
	tick   time.Duration // who waits is asked that often whether that is of any use
	rate   float64
	busy   bool // an application is at work
	rests  bool
	quiet  time.Duration // mean latency while it rested, 0: not known
	worked int           // intervals since the last rest
	took   time.Duration // of all operations in these
	of     uint64
	sample func() loadSample

	seen loadSample
	at   time.Time // of seen
	paid time.Time
	owed float64 // bytes
}

// newYieldPace yields to what sample tells of; nil: to nobody.
func newYieldPace(limit int64, sample func() loadSample) *yieldPace {
	p := &yieldPace{limit: paceFree, tick: paceEvery, sample: sample}
	if limit > 0 {
		p.limit = float64(limit)
	}
	p.rate = p.limit
	return p
}

// look takes a sample and changes the rate.
func (p *yieldPace) look(now time.Time) {
	s := p.sample()
	was := p.seen
	first := p.at.IsZero()
	p.seen, p.at = s, now
	if !first {
		p.decide(s.ops != was.ops, s.took-was.took, s.of-was.of)
	}
}

// decide changes the rate by what the last interval was like: so many operations took so long in all. Pure but for p.
func (p *yieldPace) decide(busy bool, took time.Duration, of uint64) {
	began := busy && !p.busy
	p.busy = busy
	switch {
	case !busy:
		p.rests, p.rate = false, min(p.limit, p.rate*2)
		return
	case began:
		p.rests, p.quiet, p.rate = true, 0, min(p.rate, paceFirst)
		return
	case p.rests:
		p.rests, p.worked, p.took, p.of = false, 0, 0, 0
		if of > 0 {
			latency := took / time.Duration(of)
			if p.quiet == 0 {
				p.quiet = latency
			}
			p.quiet = (p.quiet + latency) / 2
		}
		return
	}
	p.worked, p.took, p.of = p.worked+1, p.took+took, p.of+of
	if p.worked < paceWork {
		return
	}
	p.rests = true
	switch slow := time.Duration(float64(p.quiet)*paceSlower) + paceSlack; {
	case p.of == 0 || p.quiet == 0: // reads only: nothing tells how they fare
		p.rate = min(p.rate, paceFirst)
	case p.took/time.Duration(p.of) > slow:
		p.rate /= 2
	default:
		p.rate *= paceUp
	}
	p.rate = min(p.limit, max(p.rate, paceFloor))
}

// chunk is how much of most is read at a time: little beside an application.
func (p *yieldPace) chunk(most int64) int64 {
	if p.busy {
		return max(most/8, resyncBlockBytes)
	}
	return most
}

// wait returns when n more bytes may be read, or on, asked now and then, says why that is of no use any more.
func (p *yieldPace) wait(ctx context.Context, n int64, on func() error) error {
	now := time.Now()
	if p.paid.IsZero() {
		p.paid = now
	}
	for {
		if p.sample != nil && now.Sub(p.at) >= paceEvery {
			p.look(now)
		}
		if !p.rests {
			p.owed = max(0, p.owed-p.rate*now.Sub(p.paid).Seconds())
		}
		p.paid = now
		if p.owed == 0 && !p.rests {
			p.owed = float64(n)
			return ctx.Err()
		}
		if err := on(); err != nil {
			return err
		}
		left := p.tick
		if !p.rests {
			left = min(left, time.Duration(p.owed/p.rate*float64(time.Second))+time.Microsecond)
		}
		t := time.NewTimer(left)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case now = <-t.C:
		}
	}
}
