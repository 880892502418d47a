package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// How a primary begins to serve, and how it is made to stop.

// startPrimary begins a generation where the last end was not clean, asks the
// followers for a higher one, and opens the front.
func (a *Agent) startPrimary(ctx context.Context) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.flags()&stateFenced != 0 {
		a.mu.Lock()
		a.fenced = fmt.Sprintf("generation %s was met before", rankString(a.v.Seen()))
		a.mu.Unlock()
		a.event("fenced", "", "a higher generation was met before this start; the front stays closed")
		a.tellGeneration()
		return a.openFollowers() // to ask them where the histories part
	}
	if a.v.damageNow() != nil {
		if err := a.openFollowers(); err != nil {
			return err
		}
		a.spawn(func() { a.repairFirst(a.tasks) })
		return nil
	}
	a.mu.Lock()
	alone := len(a.c.Target) == 0 && len(a.members) == 0
	a.mu.Unlock()
	if a.unclean && !alone {
		a.activeAsBefore()
		if err := a.openFollowers(); err != nil {
			return err
		}
		a.dialMembers()
		a.spawn(func() { a.fetchBackFirst(a.tasks) })
		return nil
	}
	if err := a.beginLead(); err != nil {
		return err
	}
	if !alone {
		if err := a.openFollowers(); err != nil {
			return err
		}
		a.dialMembers()
	}
	switch {
	case !alone && !a.fresh:
		a.startAsking(a.c.StartWait)
	case a.arbiter.Leases():
		a.startWithLease()
	default:
		return unlessFenced(a.serve(""))
	}
	return nil
}

// activeAsBefore: the follower that was the active one is asked, and fed, first.
func (a *Agent) activeAsBefore() {
	active := parseSidecar(a.v.log.Anchor().Extra).active
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, f := range a.followers {
		if f.name == active {
			a.current = i
		}
	}
}

// startAsking has the followers asked for a higher generation, for so long before this volume serves alone.
func (a *Agent) startAsking(wait time.Duration) {
	a.mu.Lock()
	a.starting = fmt.Sprintf("asking the followers for a higher generation, for up to %s", a.c.StartWait)
	a.mu.Unlock()
	a.spawn(func() { a.askFirst(a.tasks, wait) })
}

// beginLead begins a generation where the last end was not clean, and the mode's promise.
func (a *Agent) beginLead() error {
	if a.unclean {
		g, err := a.v.beginGeneration(false)
		if err != nil {
			return err
		}
		a.event("generation", "", "generation %s after an unclean end", rankString(g))
	}
	a.lead()
	return nil
}

// unlessFenced: that the volume is fenced is a state, not a failed start.
func unlessFenced(err error) error {
	if errors.Is(err, ErrFenced) {
		return nil
	}
	return err
}

// lead makes the promise of a primary's mode the volume's gate.
func (a *Agent) lead() {
	a.tellGeneration()
	a.mu.Lock()
	followers := a.followers
	p := newPromise(a.c.Mode, a.c.OnLoss, len(followers), a.v.log.Durable())
	a.mu.Unlock()
	active := parseSidecar(a.v.log.Anchor().Extra).active
	current := 0
	var names []string
	for i, f := range followers {
		names = append(names, f.name)
		if f.name == active {
			current = i
		}
	}
	a.v.dirty.keepOnly(names)
	if current > 0 {
		p.activate(current, a.v.log.Head())
	}
	a.leasePromise(p)
	a.mu.Lock()
	a.promise, a.current, a.leading = p, current, time.Now()
	a.mu.Unlock()
	if p.lease != nil {
		a.spawn(func() { a.keepLease(a.tasks, p) })
	}
	a.v.gate.Store(&gateBox{p})
	a.leadMembers()
}

// tellGeneration has the data port carry this volume's generation, which is
// stored by now: who is below it is refused there already (G5).
func (a *Agent) tellGeneration() { a.transport.generation(a.v.log.Anchor().Mirror, a.rank()) }

// rank is what this volume lives by: a primary's own generation, else, also
// when it is fenced, the highest that it has seen.
func (a *Agent) rank() journal.Generation {
	if a.v.Role() == RolePrimary && a.v.flags()&stateFenced == 0 {
		return a.v.Generation()
	}
	return a.v.Seen()
}

// allAsked: every follower that is fed has said what generation it knows.
func (a *Agent) allAsked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, f := range a.followers {
		if a.fedLocked(i) && !f.asked {
			return false
		}
	}
	return true
}

// askOthers gives the others a while to answer, when one follower has.
func (a *Agent) askOthers(ctx context.Context) {
	enough := time.NewTimer(a.c.UnreachableAfter)
	defer enough.Stop()
	for !a.allAsked() {
		select {
		case <-ctx.Done():
			return
		case <-a.verdict:
		case <-enough.C:
			return
		}
	}
}

// askFirst opens the front of a restarted source once its followers have
// answered, or when none did in time and alone is allowed.
func (a *Agent) askFirst(ctx context.Context, wait time.Duration) {
	alone := time.NewTimer(wait)
	defer alone.Stop()
	select {
	case <-ctx.Done():
		return
	case <-a.verdict:
		a.askOthers(ctx)
	case <-alone.C:
		if a.c.Alone == AloneRefuse {
			a.mu.Lock()
			a.starting = fmt.Sprintf("no follower answered within %s and alone is refuse", a.c.StartWait)
			a.mu.Unlock()
			a.event("alone", "", "no follower answered within %s: waiting for one (alone: refuse)", a.c.StartWait)
			select {
			case <-ctx.Done():
				return
			case <-a.verdict:
			}
		} else {
			a.event("alone", "", "no follower answered within %s: serving alone (alone: serve)", a.c.StartWait)
		}
	}
	a.serveWithLease(ctx)
}

// startWithLease opens the front once the arbiter lets this primary serve.
func (a *Agent) startWithLease() {
	a.mu.Lock()
	a.starting = "asking " + a.arbiter.Name() + " for the lease"
	a.mu.Unlock()
	a.spawn(func() { a.serveWithLease(a.tasks) })
}

// serveWithLease opens the front of a source that has started. Where there is an arbiter it waits for its lease first.
func (a *Agent) serveWithLease(ctx context.Context) {
	a.mu.Lock()
	p := a.promise
	if a.arbiter.Leases() && a.starting != "" {
		a.starting = "waiting for the lease of " + a.arbiter.Name()
	}
	a.mu.Unlock()
	if a.awaitLease(ctx, p) != nil {
		return
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.mu.Lock()
	blocked := a.fenced != "" || a.closed
	blocked = blocked || a.serving || a.v.Role() != RolePrimary // by now it may follow another
	a.starting = ""
	a.mu.Unlock()
	if blocked {
		return
	}
	if err := unlessFenced(a.serve("")); err != nil {
		a.mu.Lock()
		a.startError = err
		a.mu.Unlock()
		a.event("failed", "", "%v", err)
	}
}

// serve opens the front. opMu is held.
func (a *Agent) serve(address string) error {
	stored := parseSidecar(a.v.log.Anchor().Extra).nbd
	if address == "" {
		address = cmp.Or(a.c.NBD, stored)
	}
	if address == "" {
		return errors.New("nbd: no address to serve at, give --nbd unix:PATH or HOST:PORT")
	}
	at, err := a.front.Open(served{a.v}, a.c.Name, address)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	a.mu.Lock()
	closed, fenced := a.closed, a.fenced
	if !closed && fenced == "" {
		a.serving, a.nbd = true, at
	}
	a.mu.Unlock()
	switch { // while it was opening: whoever did that found nothing to close yet
	case fenced != "":
		a.front.Abort()
		return fmt.Errorf("%s: %w", fenced, ErrFenced)
	case closed:
		a.front.Abort()
		return ErrClosed
	}
	if stored != address && a.c.Role == RoleSecondary {
		// A promoted target serves there again after a restart.
		if err := a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
			withSidecar(x, func(s *sidecar) { s.nbd = address })
			a.v.fillAnchor(x)
		})); err != nil {
			return err
		}
	}
	a.event("serving", "", "NBD at %s, generation %s", at, rankString(a.v.Generation()))
	return nil
}

// served is the volume as the front sees it: its end is the agent's business.
type served struct{ *Volume }

// NextData lets clients skip holes: what neither the log nor the backing
// device has data in (blockdev.DataFinder).
func (s served) NextData(off int64) (start, end int64, err error) { return s.nextData(off) }

// Close does nothing: the agent closes the volume.
func (served) Close() error { return nil }

// fence stops this primary for good: a higher generation exists (G5).
func (a *Agent) fence(reason string, seen journal.Generation) {
	a.mu.Lock()
	if a.fenced != "" {
		a.mu.Unlock()
		return
	}
	a.fenced = reason
	a.serving = false
	p := a.promise
	a.mu.Unlock()
	a.v.endTakingBack()
	a.v.refuse(ErrFenced)
	a.front.Abort()
	if p != nil {
		p.close()
	}
	if err := a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
		x.State |= stateFenced
		if compareRank(seen, x.Seen) > 0 {
			x.Seen = seen
		}
		a.v.fillAnchor(x)
	})); err != nil {
		a.log.Error().Err(err).Msg("store that the volume is fenced")
	}
	a.event("fenced", "", "%s: the front is closed, nothing more is written here", reason)
	a.tellGeneration() // as one who knows of the higher: to be let in, and asked what it knows
	a.signalVerdict(-1)
}

// signalVerdict: follower i has answered, or the start is decided otherwise (-1).
func (a *Agent) signalVerdict(i int) {
	if i >= 0 {
		a.mu.Lock()
		a.followers[i].asked = true
		a.mu.Unlock()
	}
	select {
	case a.verdict <- struct{}{}:
	default:
	}
}
