package mirror

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// What of handovers and calling in the rest of the agent, and the operator, sees.

func (a *Agent) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.followers)
}

func (a *Agent) portOf(i int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i >= len(a.followers) {
		return noPort
	}
	return a.followers[i].port
}

// errFedElsewhere: the volume at the other end is fed by another session.
var errFedElsewhere = errors.New("it is fed by another connection")

// knownAs: the volume id has answered as follower i. One volume is fed by one session: a host that is configured here, and that
// has called in as well, is the configured one.
func (a *Agent) knownAs(i int, id [16]byte) error {
	a.mu.Lock()
	f := a.followers[i]
	f.id = id
	other := -1
	for k, o := range a.followers {
		if k == i || o.id != id {
			continue
		}
		f.resynced = cmp.Or(f.resynced, o.resynced)
		if o.up {
			other = k
		}
	}
	switch {
	case other < 0:
		a.mu.Unlock()
		return nil
	case f.dynamic:
		f.hot = false
		a.mu.Unlock()
		return errFedElsewhere
	}
	o := a.followers[other]
	o.hot = false
	active := a.current == other
	a.mu.Unlock()
	if active {
		return a.move(other, i, f.target+" is the same volume")
	}
	a.spawn(func() { a.leave(other) })
	return nil
}

func (a *Agent) noteCaller(session uint64, l link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-l.Done():
	default:
		a.callers[session] = l
	}
}

// callerGone: a session that came in has ended; a follower may have been fed by it.
func (a *Agent) callerGone(e portEvent) {
	a.mu.Lock()
	delete(a.callers, e.session)
	i := -1
	for k, f := range a.followers {
		if f.session == e.session && a.promise != nil {
			i = k
		}
	}
	p := a.promise
	a.mu.Unlock()
	if i < 0 {
		return
	}
	e.follower = i
	a.sessionDown(e)
	if port := a.dialsToo(i); port != noPort {
		if l, session := a.transport.session(port); l != nil {
			a.sessionUp(i, l, session)
			return
		}
	}
	a.spawn(func() {
		select {
		case <-a.tasks.Done():
			return
		case <-time.After(a.c.UnreachableAfter):
		}
		a.mu.Lock()
		away := a.promise == p && i < len(a.followers) && !a.followers[i].up
		a.mu.Unlock()
		if away {
			a.unreachable(i, cmp.Or(e.text, "its connection ended")+"; it dials this host, and has not since")
		}
	})
}

// dialsToo is the port of a follower that has called in, and that this host has dialled as a member too. One that has handed over
// hangs up as soon as it is fed: from then on it is dialled.
func (a *Agent) dialsToo(i int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.followers[i]
	for _, c := range a.candidates {
		if c.ID == f.id && f.port == noPort {
			f.port = c.port
		}
	}
	return f.port
}

// onCallersEvent is about a connection over which this secondary asks to be fed.
func (a *Agent) onCallersEvent(e portEvent) {
	switch e.kind {
	case portSessionUp:
		if a.callsIn() {
			a.askToFollow(e.link, e.session)
		}
	case portFenced: // G5: a follower learns
		g := portRank(e.generation)
		if err := a.v.see(g); err != nil {
			a.event("failed", "", "store that generation %s was seen: %v", rankString(g), err)
			return
		}
		a.tellGeneration()
	}
}

// followerPathsLocked are the paths of a follower's session, whoever dialled it.
func (a *Agent) followerPathsLocked(f *follower) []PathStatus {
	if f.port != noPort {
		return a.transport.paths(f.port)
	}
	if l := a.callers[f.session]; l != nil && f.up {
		return linkPaths(l)
	}
	return nil
}

func (a *Agent) followerNetworkLocked(f *follower) *NetworkStatus {
	if f.port != noPort {
		return a.transport.network(f.port)
	}
	if l := a.callers[f.session]; l != nil && f.up {
		return linkNetwork(l)
	}
	return nil
}

// tellSecondary says at the start what a secondary is waiting for. The volume's role counts, whatever the command line says.
func (a *Agent) tellSecondary() {
	if a.c.Role != RolePrimary {
		a.event("started", "", "secondary, waiting for its source")
		return
	}
	if to, ok := a.v.handedOver(); ok {
		a.event("started", "", "secondary, although started as a source: it handed over to %s", to.node)
		return
	}
	a.event("started", "", "secondary, although started as a source: another host has the lead; mirror-agent failback brings it back")
}

// stateHandingOver is the state of both sides while the lead goes from one to the other.
const stateHandingOver = "handing over"

func (a *Agent) handingStateLocked() stateReport {
	h := a.handing
	s := stateReport{state: stateHandingOver, next: "wait; it takes the front back by itself when that takes too long"}
	switch h.step {
	case handDrain:
		s.reason = fmt.Sprintf("%s takes the lead: the front is closed, the last requests are answered", h.peer)
	case handLevel:
		s.reason = fmt.Sprintf("%s takes the lead: it gets the rest of the log", h.peer)
	case handDemote, handHanded:
		s.reason, s.next = fmt.Sprintf("%s takes the lead: this volume is a secondary", h.peer), "wait"
	case handReturn:
		s.reason, s.next = fmt.Sprintf("not handed over to %s: the front opens again", h.peer), "wait"
	case handAsk:
		s.reason = fmt.Sprintf("%s closes its front and sends the rest of its log", h.peer)
	case handTake, handLead, handFollow:
		s.reason, s.next = fmt.Sprintf("%s has handed over: a new generation begins", h.peer), "wait"
	}
	return s
}

// handedStateLocked is the state of a secondary that is not fed, and of which it is known that a source handed over.
func (a *Agent) handedStateLocked() (stateReport, bool) {
	if to, ok := a.v.handedOver(); ok {
		s := stateReport{
			state: "handed over", reason: fmt.Sprintf("this host handed over to %s, which does not feed it yet", to.node),
			next: fmt.Sprintf("mirror-agent promote on %s, which has everything; or here, when %s did not take the lead and is not coming back: nothing is lost either way", to.node, to.node),
		}
		if len(a.calling) > 0 && !a.called.Primary && a.called.Node != "" {
			s.reason += fmt.Sprintf("; %s is connected and secondary", a.called.Node)
		}
		return s, true
	}
	if a.offered != "" && len(a.callers) > 0 {
		return stateReport{
			state: "waiting", reason: fmt.Sprintf("%s handed over to this host, and nobody leads", a.offered),
			next: "mirror-agent promote: this host has everything",
		}, true
	}
	return stateReport{}, false
}
