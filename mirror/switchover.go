package mirror

import (
	"context"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// The switch-over: another follower becomes the active one, whose word counts
// for the mode. One that is hot is fed already and in sync, and begins to count
// as soon as it has what was answered: nothing is copied. One that is cold gets
// its first connection now. Who was active before is fed on when it is hot, and
// is told and left when it is cold.

// move makes follower to the active one, if that is still from.
func (a *Agent) move(from, to int, why string) error {
	a.moveMu.Lock()
	defer a.moveMu.Unlock()
	a.mu.Lock()
	p := a.promise
	old, target, suspended, closed := a.followers[from], a.followers[to], a.suspended, a.closed
	moved := a.current != from
	a.mu.Unlock()
	switch {
	case closed || p == nil:
		return ErrClosed
	case moved:
		return errors.New("the data flow has just been moved: look at the status and order it again")
	}
	if err := a.connect(to); err != nil {
		return err
	}
	a.event("switching", target.target, "%s", why)
	a.mu.Lock()
	a.current = to
	a.mu.Unlock()
	spell, news := p.activate(to, a.v.log.Head())
	a.expect(p, spell)
	a.feedSession(to) // it may have come up before the flow was moved, and was nobody's then
	if !old.hot {
		a.leave(from)
		p.giveUp(from)
	}
	if news == fellBehind {
		a.transition(to, followerBehind, "")
	}
	if suspended {
		a.transition(to, followerSuspend, "by the operator")
	}
	a.event("switched", target.target, "%s is the active target", target.target)
	return a.rememberActive(target.name)
}

// rememberActive keeps over restarts who the active one is: the flow does not
// go back by itself, nor by that.
func (a *Agent) rememberActive(name string) error {
	return a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
		withSidecar(x, func(s *sidecar) { s.active = name })
		a.v.fillAnchor(x)
	}))
}

// leave gives the connection to follower i up.
func (a *Agent) leave(i int) {
	a.stopSender(i)
	a.transition(i, followerLeave, "")
	a.mu.Lock()
	a.followers[i].session, a.followers[i].up = 0, false
	port := a.followers[i].port
	a.mu.Unlock()
	a.transport.shut(port)
}

// goOn moves the data flow by itself where that is wanted, the active target
// is out of reach, and a backup after it is not: never back.
func (a *Agent) goOn() {
	a.mu.Lock()
	from, next, why := a.current, -1, ""
	if len(a.followers) > 0 && a.promise != nil && a.handing == nil && a.c.Switch == SwitchAuto && !a.suspended && a.fenced == "" && a.followers[a.current].state == FollowerDown {
		next, why = a.nextBackupLocked(), a.followers[a.current].reason
	}
	a.mu.Unlock()
	if next < 0 {
		return
	}
	if err := a.move(from, next, why); err != nil {
		a.event("failed", "", "switch: %v", err)
	}
}

// nextBackupLocked is the first after the active one that may be reached: a
// hot one is connected to, with a cold one only a try shows it. -1: there is none.
func (a *Agent) nextBackupLocked() int {
	for i := a.current + 1; i < len(a.followers); i++ {
		if f := a.followers[i]; !f.hot || f.up && f.state != FollowerRefused {
			return i
		}
	}
	return -1
}

// Switch moves the data flow: "backup" (or "") to the next backup target,
// "primary" back to the first target, or a target's address. It returns once
// that is the active one; it may still be resynced after that.
func (a *Agent) Switch(ctx context.Context, to string) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.Role() != RolePrimary {
		return fmt.Errorf("this volume is %s: switch is an order for the source; to take over here use promote", a.v.Role())
	}
	i, err := a.switchIndex(to)
	if err != nil {
		return err
	}
	a.mu.Lock()
	from := a.current
	var s *sender
	if f := a.followers[from]; !f.hot && f.sender != nil && f.sender.streaming.Load() {
		s = f.sender
	}
	a.mu.Unlock()
	if s != nil {
		s.leave(ctx)
	}
	err = a.move(from, i, "asked by the operator")
	if err != nil && s != nil {
		s.broken("the switch did not happen: " + err.Error()) // it shakes hands again, and is told by that
	}
	return err
}

// switchIndex says which follower is meant.
func (a *Agent) switchIndex(to string) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.followers) == 0 {
		return 0, errNoTarget
	}
	i := -1
	switch to {
	case "", "backup":
		if len(a.c.Backups) == 0 && len(a.followers) < 2 {
			return 0, errors.New("no backup is configured: start the source with --backup HOST:PORT")
		}
		if i = a.nextBackupLocked(); i < 0 {
			i = a.current + 1
		}
		if i >= len(a.followers) {
			return 0, fmt.Errorf("%s is the last of the backups: switch primary, or name one by the address that status shows", a.followers[a.current].target)
		}
	case "primary":
		i = 0
	default:
		for k, f := range a.followers {
			if f.target == to {
				i = k
			}
		}
		if i < 0 {
			return 0, fmt.Errorf("no target %q: choose backup, primary or one of the addresses that status shows", to)
		}
	}
	if i == a.current {
		return 0, fmt.Errorf("data flows to %s already", a.followers[i].target)
	}
	return i, nil
}
