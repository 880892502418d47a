package mirror

import (
	"slices"
	"sync/atomic"
	"time"

	"mirror-agent/journal"
)

// leased is the part of a promise that an arbiter has: nothing passes the gate
// while the lease is not held, asked at the point where it is about to be
// answered. nil is a mirror without one, where everything passes.
type leased struct {
	until atomic.Int64 // of t: the fast path
	now   func() int64
	kick  chan struct{} // wakes the keeper, capacity 1
	t     tenure        // guarded by the promise's mu
	ids   []memberID    // of the followers, by index; by the same
}

func newLeased(followers int) *leased {
	return &leased{now: sinceBoot, kick: make(chan struct{}, 1), ids: make([]memberID, followers)}
}

// over: nothing may be answered now. May be called without the lock.
func (l *leased) over() bool { return l != nil && !(&tenure{until: l.until.Load()}).held(l.now()) }

func (l *leased) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// coversLocked: what w would answer up to lsn, everybody has whom the arbiter may make primary.
func (l *leased) coversLocked(w *word, lsn journal.LSN, durable bool) bool {
	if l == nil || w.mode == ModeAsync {
		return true
	}
	ok := l.t.covers(lsn, func(id memberID) journal.LSN {
		i := slices.Index(l.ids, id)
		switch {
		case i < 0:
			return 0
		case durable:
			return w.members[i].durable
		}
		return max(w.members[i].received, w.members[i].durable)
	})
	if !ok {
		l.poke()
	}
	return ok
}

// knows: follower i is the volume id.
func (p *promise) knows(i int, id memberID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lease != nil {
		p.lease.ids[i] = id
	}
}

// eligibleLocked is the active follower while it counts: it has everything that a FLUSH was answered for.
func (p *promise) eligibleLocked() []memberID {
	if len(p.w.members) == 0 || p.w.standing != isCounting || p.lease.ids[p.w.active] == (memberID{}) {
		return nil
	}
	return []memberID{p.lease.ids[p.w.active]}
}

// asksArbiter: a call that records what it returns is about to be made. From here on a FLUSH waits for these, too.
func (p *promise) asksArbiter() []memberID {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := p.eligibleLocked()
	p.lease.t.records(ids)
	return ids
}

// arbiterSays takes the answer to a call that was made at sent; who waits is asked again.
func (p *promise) arbiterSays(sent int64, r Ruling) {
	p.update(func(*word) {
		p.lease.t.hasRecorded(r.Recorded)
		p.lease.t.renewed(sent, r.TTL)
		p.lease.until.Store(p.lease.t.until)
	})
}

// recordDue: the record is not known, or not what it ought to be.
func (p *promise) recordDue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.lease.t.fresh || !slices.Equal(p.lease.t.recorded, p.eligibleLocked())
}

// recordsTarget: the record says that the active target has everything, so that it would be granted the lease.
func (p *promise) recordsTarget() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := p.eligibleLocked()
	return p.lease.t.fresh && len(ids) > 0 && slices.Equal(p.lease.t.recorded, ids)
}

// heldFor is how long the lease is held still, as far as this host goes; negative: for how long it has not been.
func (l *leased) heldFor() time.Duration { return time.Duration(l.until.Load() - l.now()) }
