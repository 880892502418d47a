package integration

import (
	"context"
	"slices"
	"time"

	"mirror-agent/dataport"
)

// OnEvent notes the event and follows the rules of the test, inside the callback.
func (u *portUser) OnEvent(e dataport.Event) {
	line := eventLine{Kind: e.Kind.String(), Path: uint32(e.Path), Target: e.Target, Reason: e.Reason, At: e.Time}
	if e.Session != nil {
		line.Session, line.Inbound = e.Session.ID().String(), e.Session.Peer().Inbound
	}
	u.mu.Lock()
	u.events = append(u.events, line)
	u.noteInbound(e.Session)
	port := u.port
	var due []*eventRule
	for _, r := range u.rules {
		if r.Kind == line.Kind && !r.spent {
			r.spent = true
			due = append(due, r)
		}
	}
	u.mu.Unlock()
	for _, r := range due {
		var err error
		switch r.Do {
		case "switch":
			err = port.Switch(context.Background(), -1)
		case "close":
			err = port.Close()
		case "sleep":
			time.Sleep(r.For)
		default:
			u.fault("no such rule: %s", r.Do)
		}
		if err != nil {
			u.fault("%s in the callback of %s: %v", r.Do, r.Kind, err)
		}
	}
}

// setRule has the callback do something at the next event of a kind.
func (u *portUser) setRule(r *eventRule) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rules = append(u.rules, r)
}

func (u *portUser) eventsSince(n int) []eventLine {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.events[min(n, len(u.events)):])
}
