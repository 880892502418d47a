package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// The agent's side of an arbiter: a primary keeps its lease, a target asks for it.

// leaseReport is what the operator is told of it.
type leaseReport struct {
	at      time.Time // the last answer
	problem string    // why it is not renewed, "" when it is
	since   time.Time // of the problem
}

// ArbiterStatus is the state of the arbiter's lease, as this host knows it.
type ArbiterStatus struct {
	Name    string  `json:"name"`
	Held    bool    `json:"held"`
	Seconds float64 `json:"seconds"` // held for so long still
	// TargetRecorded: the record says that the active target has everything; it would be granted the lease.
	TargetRecorded bool   `json:"target_recorded"`
	Problem        string `json:"problem,omitempty"`
}

// leasePromise gives p its lease: that of a target that was granted one, or none yet.
func (a *Agent) leasePromise(p *promise) {
	if !a.arbiter.Leases() {
		return
	}
	p.lease = newLeased(len(p.w.members))
	a.mu.Lock()
	granted := a.granted
	a.granted = nil
	a.mu.Unlock()
	if granted != nil {
		p.arbiterSays(granted.sent, granted.Ruling)
	}
}

// grantedLease is one that a target got for its promotion.
type grantedLease struct {
	Ruling
	sent int64
}

// keepLease renews the lease of the primary that p is about, and keeps the record true, until that is over.
func (a *Agent) keepLease(ctx context.Context, p *promise) {
	every := a.c.ArbiterTTL / 4
	t := time.NewTimer(0)
	defer t.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-p.lease.kick:
		}
		a.mu.Lock()
		over := a.promise != p && a.promise != nil || a.fenced != "" || a.closed
		a.mu.Unlock()
		if over || a.v.Err() != nil {
			return
		}
		if a.v.Role() != RolePrimary { // it has handed over, and answers nothing any more
			call, cancel := context.WithTimeout(ctx, a.c.ArbiterTTL/2)
			a.askMu.Lock()
			err := a.arbiter.Release(call)
			a.askMu.Unlock()
			if err != nil {
				a.noteLease(fmt.Sprintf("%s: %v", a.arbiter.Name(), err))
			}
			cancel()
			return
		}
		if p.lease.over() || p.recordDue() || time.Since(last) >= every {
			if a.renewLease(ctx, p) {
				last = time.Now()
			}
		}
		t.Reset(min(every, leaseLook))
	}
}

// leaseLook is how often a primary looks whether the record is still true when nobody waits for that.
const leaseLook = 200 * time.Millisecond

func (a *Agent) renewLease(ctx context.Context, p *promise) bool {
	ids := p.asksArbiter()
	call, cancel := context.WithTimeout(ctx, a.c.ArbiterTTL/2)
	defer cancel()
	a.askMu.Lock()
	sent := sinceBoot()
	r, err := a.arbiter.Renew(call, Holder{ID: a.v.id, Node: a.node, Generation: a.v.Generation(), Eligible: ids})
	a.askMu.Unlock()
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		a.noteLease(fmt.Sprintf("%s does not answer: %v", a.arbiter.Name(), err))
		return false
	case r.Superseded:
		a.noteLease(r.Refused)
		a.spawn(func() { a.fence(a.arbiter.Name()+" says: "+r.Refused, journal.Generation{}) })
		return false
	case r.TTL == 0:
		a.noteLease(fmt.Sprintf("%s: %s", a.arbiter.Name(), r.Refused))
		return false
	}
	p.arbiterSays(sent, r)
	a.noteLease("")
	return true
}

// noteLease keeps what is to be told, and makes an event of a change.
func (a *Agent) noteLease(problem string) {
	a.mu.Lock()
	was := a.lease.problem
	first := a.lease.at.IsZero()
	if problem == "" {
		a.lease.at = time.Now()
	} else if was == "" {
		a.lease.since = time.Now()
	}
	a.lease.problem = problem
	a.mu.Unlock()
	switch {
	case problem != "" && was == "":
		a.event("lease", "", "the lease is not renewed: %s", problem)
	case problem == "" && (was != "" || first):
		a.event("lease", "", "%s leases this host for %v at a time", a.arbiter.Name(), a.c.ArbiterTTL)
	}
}

// awaitLease returns once this primary holds the lease, or ctx ends.
func (a *Agent) awaitLease(ctx context.Context, p *promise) error {
	if p == nil || p.lease == nil {
		return nil
	}
	return p.await(ctx, func() bool { return true })
}

// frozenLocked says why nothing is answered for want of a lease, or "".
func (a *Agent) frozenLocked() string {
	if a.promise == nil || a.promise.lease == nil || !a.promise.lease.over() {
		return ""
	}
	why := a.lease.problem
	if why == "" {
		why = a.arbiter.Name() + " was not asked yet"
	}
	return fmt.Sprintf("writes and flushes wait: this host does not hold the arbiter's lease; %s", why)
}

func (a *Agent) arbiterStatusLocked() *ArbiterStatus {
	if !a.arbiter.Leases() {
		return nil
	}
	s := &ArbiterStatus{Name: a.arbiter.Name(), Problem: a.lease.problem}
	if a.promise != nil && a.promise.lease != nil && a.v.Role() == RolePrimary {
		if left := a.promise.lease.heldFor(); left > 0 {
			s.Held, s.Seconds = true, left.Seconds()
		}
		s.TargetRecorded = a.promise.recordsTarget()
	}
	return s
}

// arbitrate asks the arbiter for the lease and binds this volume to the generation that it is given for. opMu is held.
func (a *Agent) arbitrate(ctx context.Context, dryRun bool) (journal.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, a.c.ArbiterTTL)
	defer cancel()
	a.askMu.Lock()
	sent := sinceBoot()
	r, err := a.arbiter.Grant(ctx, Holder{ID: a.v.id, Node: a.node, Generation: a.v.Seen()}, dryRun)
	a.askMu.Unlock()
	if err != nil {
		return journal.Generation{}, fmt.Errorf("refused: %s does not answer: %w: or say promote --force", a.arbiter.Name(), err)
	}
	if r.Refused != "" {
		return journal.Generation{}, fmt.Errorf("refused by %s: %s: or say promote --force", a.arbiter.Name(), r.Refused)
	}
	if dryRun {
		return journal.Generation{}, nil
	}
	a.voteMu.Lock()
	defer a.voteMu.Unlock()
	if compareRank(r.Generation, a.v.Seen()) <= 0 {
		return journal.Generation{}, errors.New("refused: a higher generation was seen meanwhile: promote again")
	}
	if err := a.v.vouch(r.Generation, true); err != nil {
		return journal.Generation{}, err
	}
	a.mu.Lock()
	a.granted = &grantedLease{r, sent}
	a.mu.Unlock()
	return r.Generation, nil
}
