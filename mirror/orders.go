package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What the operator orders while the agent runs; promotion has its own file.

// modeWait is how long SetMode waits for what was written before it.
const modeWait = 5 * time.Second

// SetMode changes the mode. What was answered under the old one stays true, and every write and FLUSH that is answered
// from now on holds the new one's word. It returns once that is so for everything that was written before, too, or when the
// target takes longer for that than a few seconds, which is told as an event.
func (a *Agent) SetMode(ctx context.Context, m Mode) error {
	if _, err := ParseMode(string(m)); err != nil {
		return err
	}
	a.opMu.Lock()
	a.mu.Lock()
	p := a.promise
	a.c.Mode = m
	a.mu.Unlock()
	if p != nil {
		p.setMode(m)
	}
	a.opMu.Unlock()
	if p == nil || m == ModeAsync {
		a.event("mode", "", "mode is %s", m)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, modeWait)
	defer cancel()
	switch err := a.v.flush(ctx, a.v.log.Head()); {
	case errors.Is(err, context.DeadlineExceeded):
		a.event("mode", "", "mode is %s; the target has not caught up yet with what was written before", m)
	case err != nil:
		a.event("mode", "", "mode is %s; what was written before: %v", m, err)
	default:
		a.event("mode", "", "mode is %s, also for everything written before", m)
	}
	return nil
}

// Suspend stops the data flow to the followers, Resume starts it again.
func (a *Agent) Suspend(context.Context) error { return a.setSuspended(true) }

// Resume starts the data flow again after Suspend.
func (a *Agent) Resume(context.Context) error { return a.setSuspended(false) }

func (a *Agent) setSuspended(on bool) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.Role() != RolePrimary {
		return errors.New("this volume is secondary: suspend and resume are orders for the source")
	}
	if a.count() == 0 {
		return errNoTarget
	}
	a.mu.Lock()
	already := a.suspended == on
	a.suspended = on
	p := a.promise
	a.mu.Unlock()
	if already {
		return nil
	}
	if on {
		return a.suspendAll(p)
	}
	for i := range a.count() {
		a.mu.Lock()
		away, fed := a.followers[i].away, a.fedLocked(i)
		a.mu.Unlock()
		a.transition(i, followerResume, "")
		switch {
		case !fed: // suspended when it was the active one
			a.transition(i, followerLeave, "")
		case away != "":
			a.transition(i, followerUnreachable, away)
		}
	}
	if err := a.transport.suspend(false); err != nil {
		return err
	}
	a.feedAgain()
	a.goOn()
	return nil
}

func (a *Agent) suspendAll(p *promise) error {
	for i := range a.count() {
		a.mu.Lock()
		fed := a.fedLocked(i)
		a.mu.Unlock()
		if !fed {
			continue
		}
		a.stopSender(i)
		a.transition(i, followerSuspend, "by the operator")
		if p != nil {
			p.giveUp(i)
		}
	}
	return a.transport.suspend(true)
}

// ResetPath closes a path to a follower (its ID in Status; "" is the active one) so that it is built anew.
func (a *Agent) ResetPath(_ context.Context, target string, id int) error {
	i, err := a.pathTarget(target)
	if err != nil {
		return err
	}
	return a.transport.resetPath(a.portOf(i), id)
}

// RemovePath takes a path (its ID in Status) away for good, once everything on it is acknowledged. The last one stays.
func (a *Agent) RemovePath(_ context.Context, target string, id int) error {
	i, err := a.pathTarget(target)
	if err != nil {
		return err
	}
	return a.transport.removePath(a.portOf(i), id)
}

// pathTarget says which follower is meant.
func (a *Agent) pathTarget(target string) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := a.current
	if target != "" {
		i = slices.IndexFunc(a.followers, func(f *follower) bool { return f.target == target })
	}
	if i < 0 || i >= len(a.followers) {
		return 0, fmt.Errorf("there is no target %s: status shows all and their paths", target)
	}
	return i, nil
}

// Resize makes the mirrored device size bytes long; 0 is as long as the backing device is by now. The followers that are fed
// enlarge their devices first, or say why they cannot; one that is away does it when it comes back. It returns the new size.
func (a *Agent) Resize(ctx context.Context, size int64) (int64, error) {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	old := a.v.size.Load()
	size, err := a.v.prepareGrow(size) // no other host is asked for what cannot be here
	if err != nil {
		return old, err
	}
	if size > old {
		for _, s := range a.streamingSenders() {
			if err := s.makeRoom(ctx, size); err != nil {
				return old, err
			}
		}
	}
	now, err := a.v.Grow(ctx, size)
	if err == nil && now > old {
		a.event("resized", "", "the device has %d bytes, before it had %d; clients see it when they connect again, what `attach` attached within seconds", now, old)
	}
	return now, err
}

// Listen has the data port listen at one more address until the agent ends,
// and tells the other hosts. It returns the address with the port it has.
func (a *Agent) Listen(_ context.Context, address string) (string, error) {
	at, err := a.transport.listen(address)
	if err == nil {
		a.event("listen", "", "listening at %s", at)
	}
	return at, err
}

// Unlisten ends that at one address, and tells the other hosts: they move to
// the others and close their paths to this one. A target keeps its last one.
func (a *Agent) Unlisten(_ context.Context, address string) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if at := a.transport.addresses(); a.v.Role() == RoleSecondary && len(at) == 1 && at[0] == address {
		return fmt.Errorf("%s is the only address of this target: add another one first", address)
	}
	if err := a.transport.unlisten(address); err != nil {
		return err
	}
	a.event("listen", "", "not listening at %s any more", address)
	return nil
}
