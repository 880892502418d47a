package mirror

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

// With auto-promote a secondary promotes itself: when its source has been silent for long enough, it was in sync when it last
// heard of it, and the members, or the arbiter, let it. What they ask for is the same as when an operator orders it.

// autoMargin is waited beyond UnreachableAfter, and as much again at most, by chance, so that two do not try at once.
func (c *Config) autoMargin() time.Duration { return c.UnreachableAfter / 2 }

// checkAuto refuses automatic promotion where nothing could ever decide for it.
func (a *Agent) checkAuto() error {
	if !a.c.AutoPromote || a.arbiter.Leases() || a.v.Role() != RoleSecondary {
		return nil
	}
	if e, err := a.electors.list(); err == nil && needed(len(e.Members)) == 0 {
		return fmt.Errorf("auto-promote: this mirror has %d members, and of two nobody can tell a dead peer from a cut cable: "+
			"give it an arbiter (--arbiter etcd://HOST:PORT/PREFIX) or a third member, or leave --auto-promote out and promote by hand", len(e.Members))
	}
	return nil
}

// promoteByItself runs until ctx ends.
func (a *Agent) promoteByItself(ctx context.Context) {
	wait := func(d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	told := ""
	for wait(a.c.UnreachableAfter/8 + mathrand.N(a.c.UnreachableAfter/8+1)) {
		why := a.notByItself(time.Now())
		if why != "" {
			if why != told && why != sourceThere {
				a.event("auto-promote", "", "not promoted: %s", why)
			}
			told = why
			continue
		}
		r, err := a.Promote(ctx, PromoteOptions{auto: true})
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			a.event("auto-promote", "", "promoted by itself to generation %s", r.Generation)
		case err.Error() != told:
			told = err.Error()
			a.event("auto-promote", "", "not promoted: %v", err)
		}
		if !wait(mathrand.N(a.c.autoMargin() + 1)) {
			return
		}
	}
}

const sourceThere = "the source is there"

// notByItself says why this host does not promote itself now, or "".
func (a *Agent) notByItself(now time.Time) string {
	silent := a.unreachableFor(now)
	list, err := a.electors.list()
	a.mu.Lock()
	level, closed, heardOf := a.source.level, a.closed, !a.source.at.IsZero()
	a.mu.Unlock()
	flags := a.v.flags()
	switch {
	case a.v.Role() != RoleSecondary || closed || a.v.Err() != nil:
		return sourceThere
	case silent < a.c.UnreachableAfter+a.c.autoMargin():
		if !heardOf && flags&stateBlank == 0 {
			return "no source was heard of since this agent started, it may have gone on without this host"
		}
		return sourceThere
	case !level:
		return "this host was not in sync when it last heard of the source"
	case flags&(stateBlank|stateLeft) != 0 || a.v.damageNow() != nil:
		return "this volume is not promotable"
	case !a.arbiter.Leases() && err != nil:
		return err.Error()
	case !a.arbiter.Leases() && needed(len(list.Members)) == 0:
		return fmt.Sprintf("of %d members nobody can tell a dead peer from a cut cable: there is no arbiter", len(list.Members))
	}
	return ""
}
