package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The agent's side towards followers: which one is fed, by which session.

const (
	// retryRefused is how long a follower that refused is left alone.
	retryRefused = 5 * time.Second
	// retryBroken is the pause before a handshake after an error.
	retryBroken = 200 * time.Millisecond
)

// transition moves the state of follower i (-1: the current one).
func (a *Agent) transition(i int, e followerEvent, reason string) {
	a.mu.Lock()
	if i < 0 {
		i = a.current
	}
	if i >= len(a.followers) {
		a.mu.Unlock()
		return
	}
	f := a.followers[i]
	next := nextFollowerState(f.state, e)
	changed := next != f.state
	if changed {
		f.state, f.since = next, time.Now()
	}
	if changed || reason != "" {
		f.reason = reason
	}
	target := f.target
	a.mu.Unlock()
	if !changed {
		return
	}
	if reason != "" {
		a.event("follower-"+string(next), target, "%s: %s", next, reason)
	} else {
		a.event("follower-"+string(next), target, "%s", next)
	}
}

// onPortEvent takes what the data port says, in order.
func (a *Agent) onPortEvent(e portEvent) {
	switch e.kind {
	case portSessionUp, portSessionDown:
	default:
		text := string(e.kind)
		if e.text != "" {
			text = e.text
		}
		ev := Event{Kind: string(e.kind), Mirror: a.c.Name, Target: e.target, Text: text}
		if e.path != 0 {
			ev.Path = pathName(e.path)
		}
		a.events.add(ev)
		a.log.Info().Str("event", ev.Kind).Str("peer", e.target).Str("path", ev.Path).Msg(text)
	}
	if e.inbound {
		if e.kind == portSessionDown {
			a.dropReceiver(e.session)
		}
		return
	}
	switch e.kind {
	case portSessionUp:
		a.sessionUp(e)
	case portSessionDown:
		a.sessionDown(e)
	case portUnreachable:
		a.unreachable(e.text)
	case portSwitching:
		a.stopSender()
		a.transition(-1, followerLeave, "")
		a.withPromise((*promise).giveUp)
	case portSwitched:
		a.mu.Lock()
		current := min(a.transport.target(), len(a.followers)-1)
		a.current = current
		a.mu.Unlock()
		for i := range a.followers {
			if i != current { // resumed since it was left, perhaps
				a.transition(i, followerLeave, "")
			}
		}
		a.transition(current, followerDial, "")
	case portFenced:
		reason := fmt.Sprintf("%s has seen generation %s, this is %s", e.by, rankString(portRank(e.generation)), rankString(a.v.Generation()))
		a.transition(-1, followerRefuse, reason)
		a.spawn(func() { a.fence(reason) })
	case portPeerRefused:
		a.transition(-1, followerRefuse, e.text)
		a.withPromise((*promise).giveUp)
	}
}

func (a *Agent) withPromise(f func(*promise)) {
	a.mu.Lock()
	p := a.promise
	a.mu.Unlock()
	if p != nil {
		f(p)
	}
}

func (a *Agent) unreachable(reason string) {
	a.transition(-1, followerUnreachable, reason)
	a.withPromise((*promise).giveUp)
}

// sessionUp starts a sender for the current follower, after the one before it
// has ended: hold, promise and the follower's state are one sender's at a time.
func (a *Agent) sessionUp(e portEvent) {
	current := a.transport.target()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || len(a.followers) == 0 || a.promise == nil {
		return
	}
	i := min(current, len(a.followers)-1)
	a.current = i
	f := a.followers[i]
	if f.session == e.session && f.cancel != nil {
		return // it is fed already
	}
	for _, f := range a.followers {
		if f.cancel != nil {
			f.cancel()
			f.cancel = nil
		}
	}
	f.session = e.session
	if a.suspended {
		return
	}
	ctx, cancel := context.WithCancel(a.tasks)
	before, done := a.feeding, make(chan struct{})
	f.cancel, a.feeding = cancel, done
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		defer close(done)
		defer cancel()
		if before != nil {
			<-before
		}
		a.feed(ctx, e.link, e.session, i)
	}()
}

func (a *Agent) sessionDown(e portEvent) {
	a.mu.Lock()
	i := -1
	for k, f := range a.followers {
		if f.session == e.session {
			i = k
			if f.cancel != nil {
				f.cancel()
			}
		}
	}
	current := i == a.current
	a.mu.Unlock()
	if i < 0 {
		return
	}
	a.transition(i, followerLost, e.text)
	if current {
		a.withPromise(func(p *promise) { a.expect(p) })
	}
}

// expect notes that the target is lost and gives it UnreachableAfter to come
// back in sync; after that a FLUSH no longer waits for it.
func (a *Agent) expect(p *promise) {
	synced := p.lost()
	a.spawn(func() {
		select {
		case <-a.tasks.Done():
		case <-time.After(a.c.UnreachableAfter):
			p.expire(synced)
		}
	})
}

// feed runs senders over one session until it is gone: after a refusal or an
// error it tries again.
func (a *Agent) feed(ctx context.Context, l link, session uint64, i int) {
	for fails := 0; ctx.Err() == nil; fails++ {
		a.mu.Lock()
		f := a.followers[i]
		p, id := a.promise, a.uuid
		s := newSender(a.v, l, p)
		s.mirror, s.name, s.node, s.follower = id, a.c.Name, a.node, f.name
		s.report = func(e followerEvent, reason string) { a.transition(i, e, reason); a.signalStarted(e) }
		f.sender = s
		a.mu.Unlock()
		p.session()
		p.setKick(s.poke)
		a.transition(i, followerConnected, "")
		err := s.run(ctx)
		a.mu.Lock()
		f.last = s.lastAck()
		if f.sender == s {
			f.sender = nil
		}
		a.mu.Unlock()
		if s.lived {
			fails = 0
		}
		wait := min(retryBroken<<min(fails, 10), maxStageWait) // a disk that fails in each try is not read all over at once
		select {
		case <-l.Done():
			return
		default:
		}
		if ctx.Err() != nil {
			return
		}
		var refused *refusedError
		switch {
		case errors.As(err, &refused) && refused.kind == outcomeFenced:
			a.transition(i, followerRefuse, refused.reason)
			a.fence(refused.reason)
			return
		case errors.As(err, &refused):
			a.transition(i, followerRefuse, refused.reason)
			p.giveUp()
			a.signalVerdict()
			wait = max(retryRefused, refused.retry)
		case errors.Is(err, errOutrun):
			a.transition(i, followerLost, err.Error())
			p.giveUp() // by on-loss: nobody waits for it now
			wait = retryRefused
		default:
			a.transition(i, followerLost, err.Error())
			a.expect(p)
			if a.v.Err() != nil {
				return // nothing more comes from here; the state says why
			}
		}
		select {
		case <-ctx.Done():
		case <-l.Done():
		case <-time.After(wait):
		}
	}
}

// signalStarted: the follower has no higher generation, the front may open.
func (a *Agent) signalStarted(e followerEvent) {
	if e == followerStream || e == followerNeedsResync {
		a.signalVerdict()
	}
}

// stopSender ends what feeds the current follower; the session stays. What
// the follower acknowledges after it does not count.
func (a *Agent) stopSender() {
	a.mu.Lock()
	var senders []*sender
	for _, f := range a.followers {
		if f.cancel != nil {
			f.cancel()
			f.cancel = nil
		}
		if f.sender != nil {
			senders = append(senders, f.sender)
		}
	}
	a.mu.Unlock()
	for _, s := range senders {
		s.stop()
	}
}

// feedAgain starts the sender on the session that is up, after a suspension.
func (a *Agent) feedAgain() {
	if l, session := a.transport.session(); l != nil {
		a.sessionUp(portEvent{kind: portSessionUp, link: l, session: session})
	}
}

// onMessage takes a message of either side, in order per session.
func (a *Agent) onMessage(ctx context.Context, l link, session uint64, in bool, b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errMessage
	}
	if in {
		return a.onFollowerMessage(ctx, l, session, b)
	}
	if b[0] == kindFetch { // a follower's scrub has found rot
		return a.v.serveFetch(a.node, a.mirrorID(), b[1:])
	}
	a.mu.Lock()
	var s *sender
	for _, f := range a.followers {
		if f.session == session {
			s = f.sender
		}
	}
	a.mu.Unlock()
	if s == nil {
		return nil, nil
	}
	switch b[0] {
	case kindAck:
		x, err := decodeAck(b)
		if err != nil {
			return nil, err
		}
		if head := a.v.log.Head(); x.Durable > head || x.Received > head {
			return nil, errMessage
		}
		s.acknowledged(x)
	case kindVerified:
		s.verified(b)
	case kindBroken:
		s.broken(string(b[1:min(len(b), 1024)]))
	}
	return nil, nil
}
