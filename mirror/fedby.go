package mirror

import (
	"context"
	"errors"
	"fmt"
)

// The agent's side towards the source that feeds a secondary.

// onFollowerMessage takes a source's message: its session's receiver does.
func (a *Agent) onFollowerMessage(ctx context.Context, l link, session uint64, b []byte) ([]byte, error) {
	r := a.receiverFor(l, session, b[0] == kindHello)
	if r == nil {
		return nil, nil // of a session that another one has superseded, or of one without hello
	}
	reply, err := r.handle(ctx, b)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errRepaired) {
		a.event("refused", l.Peer(), "%v", err)
	}
	return reply, err
}

// receiverFor returns the session's receiver; a hello makes one.
func (a *Agent) receiverFor(l link, session uint64, hello bool) *receiver {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.receivers[session]; in != nil {
		return in.receiver
	}
	if !hello || a.closed || a.promoting {
		return nil
	}
	select {
	case <-l.Done():
		return nil // its end was announced already
	default:
	}
	r := newReceiver(a.v, l)
	r.name, r.node, r.mirror, r.busy = a.c.Name, a.node, a.uuid, &a.feedMu
	r.agent = a.c.Version
	r.newStage = a.openStage
	r.stageFailed = a.holdResync
	r.adopt = func(id string) error { r.mirror = id; return a.adopt(id) }
	r.accept = a.acceptSource
	r.accepted = func() { a.supersede(session) }
	r.seen = a.tellGeneration
	r.diverged = a.exportMore
	r.members = a.noteMembers
	r.repaired = func() { a.noteRepaired(l.Peer()) }
	r.listTold, r.addresses = a.listTold, a.transport.announced
	r.resynced = func() {
		a.holdResync(nil)
		a.event("resynced", l.Peer(), "the copy is complete, consistent from here on")
	}
	a.receivers[session] = &inbound{session: session, link: l, receiver: r}
	return r
}

// acceptSource says why a source may not feed this volume, or "".
func (a *Agent) acceptSource(h *hello) string {
	if h.Name != a.c.Name {
		return fmt.Sprintf("%s holds mirror %q, not %q", a.node, a.c.Name, h.Name)
	}
	if a.v.Role() == RoleSecondary {
		return ""
	}
	mine, theirs := a.v.Generation(), h.generation()
	if compareRank(theirs, mine) > 0 {
		reason := fmt.Sprintf("%s is primary of generation %s, this is %s", h.Node, rankString(theirs), rankString(mine))
		generations := h.Generations
		a.spawn(func() { a.fence(reason, theirs); a.noteFork(h.Node, generations) })
		return fmt.Sprintf("%s was primary of generation %s and is fenced; it rejoins when its volume is given up: mirror-agent demote on that host", a.node, rankString(mine))
	}
	return fmt.Sprintf("%s is primary of generation %s itself", a.node, rankString(mine))
}

// supersede makes session the only one that feeds the volume. Called under
// feedMu.
func (a *Agent) supersede(session uint64) {
	a.mu.Lock()
	var others []*inbound
	for id, in := range a.receivers {
		if id != session {
			others = append(others, in)
			delete(a.receivers, id)
		}
	}
	first := a.inbound == nil || a.inbound.session != session
	a.inbound = a.receivers[session]
	a.source.level = false // until it is in sync with this one
	in := a.inbound
	a.mu.Unlock()
	for _, o := range others {
		o.receiver.closeLocked()
		a.dismiss(o, "another source feeds "+a.node+" now")
	}
	if first && in != nil {
		a.event("source", in.link.Peer(), "fed by %s", in.link.Peer())
	}
}

// dropReceiver: a session has ended.
func (a *Agent) dropReceiver(session uint64) {
	a.mu.Lock()
	in := a.receivers[session]
	delete(a.receivers, session)
	lost := a.inbound != nil && a.inbound.session == session
	if lost {
		a.noteHeard(in)
		a.inbound = nil
	}
	a.mu.Unlock()
	if in == nil {
		return
	}
	in.receiver.close()
	if lost {
		a.event("source-lost", in.link.Peer(), "the source is not connected any more")
	}
}

// dismiss tells a source that it does not feed this volume any more. Its
// session goes on: it would wait for acknowledgements for ever. It shakes
// hands again instead, and learns of a higher generation that way.
func (a *Agent) dismiss(in *inbound, why string) {
	a.spawn(func() {
		ctx, cancel := context.WithTimeout(a.tasks, a.c.UnreachableAfter)
		defer cancel()
		_, _ = in.link.Send(ctx, append([]byte{kindBroken}, why...))
	})
}

// closeInbound ends every receiver and returns them; no record is taken
// after it.
func (a *Agent) closeInbound() map[uint64]*inbound {
	a.feedMu.Lock()
	defer a.feedMu.Unlock()
	a.mu.Lock()
	all := a.receivers
	a.receivers = map[uint64]*inbound{}
	if a.inbound != nil {
		a.noteHeard(a.inbound)
	}
	a.inbound = nil
	a.mu.Unlock()
	for _, in := range all {
		in.receiver.closeLocked()
	}
	return all
}

func (a *Agent) inboundLink() link {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inbound == nil {
		return nil
	}
	return a.inbound.link
}

// sourceAlive says whether the source is connected and heard of on a path
// just now. That it is not does not prove it dead: with two members only the
// operator can tell a dead source from a cut cable.
func (a *Agent) sourceAlive() (string, bool) {
	l := a.inboundLink()
	if l == nil {
		return "", false
	}
	select {
	case <-l.Done():
		return "", false
	default:
	}
	if !linkAlive(l) {
		return "", false
	}
	return l.Peer(), true
}
