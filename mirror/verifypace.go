package mirror

import (
	"context"
	"time"
)

// A verify yields to the applications. Four times a second it looks at what they did: while nothing was asked of this host it goes
// as fast as the disks do, or --rate allows. When an application begins it goes back to a modest rate, and then up slowly for as
// long as appends and flushes take as long as they did at best, and down by half whenever they take longer.

const (
	paceEvery  = 250 * time.Millisecond
	paceFirst  = 32 << 20 // bytes per second beside an application, to begin with
	paceFloor  = 2 << 20
	paceFree   = 1 << 40
	paceUp     = 1.15
	paceSlower = 1.5 // times the best latency is too slow
	paceSlack  = 200 * time.Microsecond
)

// loadSample is what the applications did up to now.
type loadSample struct {
	ops  uint64        // reads, writes, flushes
	took time.Duration // of all appends and fdatasyncs, summed up
	of   uint64        // how many these were
}

// verifyPace says when the next bytes may be compared. For one goroutine.
type verifyPace struct {
	limit  float64 // of --rate, bytes per second
	rate   float64
	busy   bool          // an application is at work
	best   time.Duration // the least mean latency lately, 0: not known
	sample func() loadSample

	seen loadSample
	at   time.Time // of seen
	paid time.Time
	owed float64 // bytes
}

func newVerifyPace(limit int64, sample func() loadSample) *verifyPace {
	p := &verifyPace{limit: paceFree, sample: sample}
	if limit > 0 {
		p.limit = float64(limit)
	}
	p.rate = p.limit
	return p
}

// look takes a sample and changes the rate.
func (p *verifyPace) look(now time.Time) {
	s := p.sample()
	was := p.seen
	first := p.at.IsZero()
	p.seen, p.at = s, now
	if first {
		return
	}
	var latency time.Duration
	if n := s.of - was.of; n > 0 {
		latency = (s.took - was.took) / time.Duration(n)
	}
	p.decide(s.ops != was.ops, latency)
}

// decide changes the rate by what was seen in the last interval. Pure but for p.
func (p *verifyPace) decide(busy bool, latency time.Duration) {
	began := busy && !p.busy
	p.busy = busy
	switch {
	case !busy:
		p.rate = min(p.limit, p.rate*2)
		return
	case began:
		p.rate = min(p.rate, paceFirst)
		return // what was measured is of before
	case latency == 0: // reads only: nothing tells how they fare
		p.rate = min(p.rate, paceFirst)
	case p.best == 0 || latency < p.best:
		p.best = latency
		p.rate *= paceUp
	default:
		slow := time.Duration(float64(p.best)*paceSlower) + paceSlack
		p.best += p.best / 100 // a load that has changed is got used to
		if latency > slow {
			p.rate /= 2
		} else {
			p.rate *= paceUp
		}
	}
	p.rate = min(p.limit, max(p.rate, paceFloor))
}

// chunk is how much is read at a time: little beside an application.
func (p *verifyPace) chunk() int64 {
	if p.busy {
		return maxVerifyChunk / 8
	}
	return maxVerifyChunk
}

// wait returns when n more bytes may be compared, or on, asked now and then, says why that is of no use any more.
func (p *verifyPace) wait(ctx context.Context, n int64, on func() error) error {
	now := time.Now()
	if p.paid.IsZero() {
		p.paid = now
	}
	for {
		if now.Sub(p.at) >= paceEvery {
			p.look(now)
		}
		p.owed = max(0, p.owed-p.rate*now.Sub(p.paid).Seconds())
		p.paid = now
		if p.owed == 0 {
			p.owed = float64(n)
			return ctx.Err()
		}
		if err := on(); err != nil {
			return err
		}
		t := time.NewTimer(min(paceEvery, time.Duration(p.owed/p.rate*float64(time.Second))+time.Microsecond))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case now = <-t.C:
		}
	}
}
