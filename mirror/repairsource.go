package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A source whose log is damaged, before it serves: see repair.go.

// repairFirst has the log repaired by the target, then lets the source begin; the start is refused when nobody can.
func (a *Agent) repairFirst(ctx context.Context) {
	deadline := time.NewTimer(a.c.StartWait)
	defer deadline.Stop()
	tick := time.NewTicker(retryBroken)
	defer tick.Stop()
	why := errors.New("no target was reached")
	late := false
	for !late {
		for i := range a.count() {
			l, _ := a.transport.session(a.portOf(i))
			if l == nil {
				continue
			}
			done, err := a.repairFrom(ctx, l)
			if done {
				a.repaired(ctx, l.Peer())
				return
			}
			why = err
		}
		a.mu.Lock()
		fenced := a.fenced != ""
		a.mu.Unlock()
		if fenced || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			late = true
		case <-tick.C:
		}
	}
	a.refuseStart(a.damageError(why))
}

// damageError is what a source that cannot be repaired ends with.
func (a *Agent) damageError(why error) error {
	d := a.v.damageNow()
	return fmt.Errorf("volume %s: journal %s: %w; it could not be repaired: %w; nothing was changed: start the target with a good copy of the log (named first, "+
		"by --target) and then this source again, or restore %s from a good copy, or promote the other side and resync this one",
		a.c.Device, a.c.journalPath(), d.rot, why, a.c.journalPath())
}

// refuseStart ends Run with err.
func (a *Agent) refuseStart(err error) {
	a.mu.Lock()
	a.startError = err
	a.mu.Unlock()
	a.event("failed", "", "%v", err)
	close(a.refused)
}

// repairFrom fetches what is rotten from the follower at the other end of l.
func (a *Agent) repairFrom(ctx context.Context, l link) (bool, error) {
	for {
		head, chain := a.v.log.HeadChain()
		b, err := l.Call(ctx, encodeJSON(kindFetch, fetch{Mirror: a.uuid, From: head, Chain: chain}))
		if err != nil {
			return false, err
		}
		r, raw, err := decodeFetchReply(b)
		if err != nil {
			return false, err
		}
		if compareRank(r.Seen, a.v.Seen()) > 0 {
			a.fence(fmt.Sprintf("%s has seen generation %s, this is %s", l.Peer(), rankString(r.Seen), rankString(a.v.Seen())), r.Seen)
			return false, ErrFenced
		}
		switch {
		case r.Refused != "":
			return false, errors.New(r.Refused)
		case len(raw) == 0:
			return false, fmt.Errorf("%s has nothing at LSN %d", l.Peer(), head)
		}
		if err := a.v.repairRaw(raw); err != nil {
			return false, fmt.Errorf("what %s has at LSN %d does not fit: %w", l.Peer(), head, err)
		}
		if whole, err := a.v.resumeLog(); err != nil || whole {
			return whole, err
		}
	}
}

// repaired: the log is whole, the start goes on.
func (a *Agent) repaired(ctx context.Context, peer string) {
	a.noteRepaired(peer)
	a.activeAsBefore()
	a.fetchBackFirst(ctx)
}

// noteRepaired: the log is whole by what peer had.
func (a *Agent) noteRepaired(peer string) {
	a.event("repaired", peer, "what had rotted in the log came from %s; the log is whole up to LSN %d", peer, a.v.log.Head())
	if err := a.c.stamp(a.v, nil); err != nil {
		a.log.Error().Err(err).Msg("stamp the device")
	}
}

// damagedState explains a damaged log.
func (a *Agent) damagedState(d *damage) stateReport {
	s := stateReport{
		state:  stateDamaged,
		reason: fmt.Sprintf("%s: %v; everything up to LSN %d was promised", a.c.journalPath(), d.rot, d.promise),
	}
	if a.v.Role() == RolePrimary {
		s.reason += "; the front is closed until it is repaired"
		s.next = fmt.Sprintf("start the target, whose log may have it (within %s of this start)", a.c.StartWait)
		return s
	}
	s.reason += fmt.Sprintf("; this host is not promotable before it is repaired (forced, it goes on from LSN %d)", a.v.log.Head())
	s.next = "start the source, it is repaired from there"
	if in := a.inbound; in != nil {
		s.reason += "; " + in.link.Peer() + " is sending"
		s.next = "wait"
	}
	return s
}

const stateDamaged = "damaged"
