package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The agent's side towards followers: who is fed, by which session. Each
// follower that is fed has a connection, a session, a sender and a hold of its
// own; who is the active one is moved in switchover.go.

const (
	// retryRefused is how long a follower that refused is left alone.
	retryRefused = 5 * time.Second
	// retryBroken is the pause before a handshake after an error.
	retryBroken = 200 * time.Millisecond
)

// transition moves the state of follower i.
func (a *Agent) transition(i int, e followerEvent, reason string) {
	a.mu.Lock()
	if i >= len(a.followers) {
		a.mu.Unlock()
		return // of a lead that is over
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
	if e.kind == portSessionDown {
		a.dropReceiver(e.session)
	}
	if e.inbound {
		if e.kind == portSessionDown {
			a.callerGone(e)
		}
		return
	}
	if a.v.Role() == RoleSecondary {
		a.onCallersEvent(e)
		return
	}
	if e.follower = a.portFollower(e.follower, e.kind == portSessionUp); e.follower < 0 {
		return // of a connection that was given up
	}
	switch e.kind {
	case portSessionUp:
		a.sessionUp(e.follower, e.link, e.session)
		a.goOn() // to one that was out of reach until now, perhaps
	case portSessionDown:
		a.sessionDown(e)
	case portUnreachable:
		a.unreachable(e.follower, e.text)
	case portFenced:
		reason := fmt.Sprintf("%s has seen generation %s, this is %s", e.by, rankString(portRank(e.generation)), rankString(a.v.Generation()))
		a.transition(e.follower, followerRefuse, reason)
		a.spawn(func() { a.fence(reason, portRank(e.generation)) })
	case portPeerRefused:
		a.transition(e.follower, followerRefuse, e.text)
		a.withPromise(func(p *promise) { p.giveUp(e.follower) })
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

func (a *Agent) unreachable(i int, reason string) {
	a.mu.Lock()
	a.followers[i].away = reason
	a.mu.Unlock()
	a.transition(i, followerUnreachable, reason)
	a.goOn() // first: a FLUSH that waits for this one is to wait for the next, and not be answered alone in between
	a.withPromise(func(p *promise) { p.giveUp(i) })
}

// fedLocked: follower i is one to be connected to.
func (a *Agent) fedLocked(i int) bool { return i == a.current || a.followers[i].hot }

// openFollowers connects to everybody who is fed.
func (a *Agent) openFollowers() error {
	a.mu.Lock()
	var fed []int
	for i := range a.followers {
		if a.fedLocked(i) {
			fed = append(fed, i)
		}
	}
	a.mu.Unlock()
	for _, i := range fed {
		if err := a.connect(i); err != nil {
			return err
		}
	}
	return nil
}

// connect begins to connect to follower i.
func (a *Agent) connect(i int) error {
	a.mu.Lock()
	idle := a.followers[i].state == FollowerIdle
	a.mu.Unlock()
	if idle {
		a.transition(i, followerDial, "")
	}
	a.mu.Lock()
	port, addresses := a.followers[i].port, a.followers[i].addresses
	a.mu.Unlock()
	if port == noPort {
		return nil // it dials this host
	}
	return a.transport.open(port, addresses)
}

// sessionUp starts a sender for follower i, after the one before it has ended:
// its hold, its part of the promise and its state are one sender's at a time.
func (a *Agent) sessionUp(i int, l link, session uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if a.fenced != "" {
		a.wg.Go(func() { a.askHistory(a.tasks, l) })
		return
	}
	if a.promise == nil {
		return
	}
	if !a.fedLocked(i) {
		return // a secondary had called in there, and leads now: shutUnfed ends it; or the flow is about to move there (move)
	}
	f := a.followers[i]
	f.away, f.up = "", true
	if f.session == session && f.cancel != nil {
		return // it is fed already
	}
	if f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
	f.session = session
	if a.suspended {
		return
	}
	ctx, cancel := context.WithCancel(a.tasks)
	before, done := f.feeding, make(chan struct{})
	f.cancel, f.feeding = cancel, done
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		defer close(done)
		defer cancel()
		if before != nil {
			<-before
		}
		a.feed(ctx, l, i)
	}()
}

func (a *Agent) sessionDown(e portEvent) {
	i := e.follower
	a.mu.Lock()
	f := a.followers[i]
	known := f.session == e.session
	if known {
		f.up = false
	}
	if known && f.cancel != nil {
		f.cancel()
	}
	a.mu.Unlock()
	if !known {
		return
	}
	a.transition(i, followerLost, e.text)
	a.withPromise(func(p *promise) { a.expect(p, p.lost(i)) })
}

// expect gives the active target UnreachableAfter to come into sync; after
// that a FLUSH does not wait for it any more. Where the flow moves by itself the
// word that the target is unreachable, which moves it, is given a little more.
func (a *Agent) expect(p *promise, spell uint64) {
	wait := a.c.UnreachableAfter
	if a.c.Switch == SwitchAuto && len(a.c.Backups) > 0 {
		wait += wait / 4
	}
	a.spawn(func() {
		select {
		case <-a.tasks.Done():
		case <-time.After(wait):
			if p.expire(spell) == fellBehind {
				a.mu.Lock()
				i, now := a.current, a.promise == p
				a.mu.Unlock()
				if !now {
					return // another lead
				}
				a.transition(i, followerBehind, "")
			}
		}
	})
}

// feed runs senders over one session of follower i until it is gone: after a
// refusal or an error it tries again.
func (a *Agent) feed(ctx context.Context, l link, i int) {
	outrun := 0
	again := make(chan struct{}, 1)
	a.mu.Lock()
	a.followers[i].again = again
	a.mu.Unlock()
	for fails := 0; ctx.Err() == nil; fails++ {
		a.mu.Lock()
		f := a.followers[i]
		p, id := a.promise, a.uuid
		s := newSender(a.v, l, p)
		s.member, s.mirror, s.name, s.node, s.follower = i, id, a.c.Name, a.node, f.name
		s.agent = a.c.Version
		s.roster, s.known = a.roster, func(id [16]byte) error { return a.knownAs(i, id) }
		s.report = func(e followerEvent, reason string) {
			a.transition(i, e, reason)
			a.signalStarted(i, e)
			a.noteMember(i, s, e)
		}
		s.resynced = func(r Resynced) { a.noteResynced(i, r) }
		s.list = a.listToTell
		s.load, s.resyncRate = a.loadNow, a.c.ResyncBytes
		f.sender = s
		a.mu.Unlock()
		p.session(i)
		p.setKick(i, s.poke)
		a.transition(i, followerConnected, "")
		began := time.Now()
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
			a.fence(refused.reason, refused.seen)
			return
		case errors.As(err, &refused):
			a.transition(i, followerRefuse, refused.reason)
			p.giveUp(i)
			a.signalVerdict(i)
			wait = max(retryRefused, refused.retry)
		case errors.Is(err, errFedElsewhere):
			return
		case errors.Is(err, errOutrun):
			a.transition(i, followerLost, err.Error())
			p.giveUp(i) // by on-loss: nobody waits for it now
			if time.Since(began) > outrunMemory {
				outrun = 0
			}
			wait = min(retryRefused<<outrun, maxStageWait) // or a slow one would slow writers most of the time
			outrun = min(outrun+1, 10)
		default:
			a.transition(i, followerLost, err.Error())
			a.expect(p, p.lost(i))
			if a.v.Err() != nil {
				return // nothing more comes from here; the state says why
			}
		}
		select {
		case <-ctx.Done():
		case <-l.Done():
		case <-again:
		case <-time.After(wait):
		}
	}
}

// outrunMemory is how long a follower has to have kept up for that its being
// outrun is forgotten.
const outrunMemory = 2 * time.Minute

// signalStarted: follower i has no higher generation.
func (a *Agent) signalStarted(i int, e followerEvent) {
	if e == followerStream || e == followerNeedsResync {
		a.signalVerdict(i)
	}
}

// stopSender ends what feeds follower i; the session stays. What it
// acknowledges after that does not count.
func (a *Agent) stopSender(i int) {
	a.mu.Lock()
	f := a.followers[i]
	if f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
	s := f.sender
	a.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

func (a *Agent) stopSenders() {
	for i := range a.count() {
		a.stopSender(i)
	}
}

// feedAgain starts the senders on the sessions that are up, after a suspension.
func (a *Agent) feedAgain() {
	for i := range a.count() {
		a.feedSession(i)
	}
}

// feedSession feeds follower i over its session, if one is up and it is not fed yet.
func (a *Agent) feedSession(i int) {
	if l, session := a.transport.session(a.portOf(i)); l != nil {
		a.sessionUp(i, l, session)
	}
}

// streamingSender feeds the active follower right now, or is nil.
func (a *Agent) streamingSender() *sender {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current >= len(a.followers) {
		return nil
	}
	if s := a.followers[a.current].sender; s != nil && s.streaming.Load() {
		return s
	}
	return nil
}

// streamingSenders feed those who have the log and follow it right now.
func (a *Agent) streamingSenders() (ss []*sender) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.followers {
		if f.sender != nil && f.sender.streaming.Load() {
			ss = append(ss, f.sender)
		}
	}
	return ss
}

// onMessage takes a message of either side, in order per session.
func (a *Agent) onMessage(ctx context.Context, l link, session uint64, in bool, b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errMessage
	}
	switch b[0] { // who says it is a matter of roles, not of who dials
	case kindFollow:
		if !in {
			return nil, errMessage
		}
		a.noteCaller(session, l)
		return a.onFollow(l, session, b[1:])
	case kindHandover:
		return a.onHandover(l, session, b[1:])
	case kindFetch: // the other side's scrub has found rot, or it starts after an unclean end
		return a.v.serveFetch(a.node, a.mirrorID(), b[1:])
	case kindHistory:
		return a.serveHistory(), nil
	case kindAck, kindVerified, kindBroken:
	default:
		return a.onFollowerMessage(ctx, l, session, b)
	}
	a.mu.Lock()
	var s *sender
	if i := slices.IndexFunc(a.followers, func(f *follower) bool { return f.session == session }); i >= 0 {
		s = a.followers[i].sender
		if again := a.followers[i].again; s == nil && b[0] == kindBroken && again != nil {
			select {
			case again <- struct{}{}:
			default:
			}
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
