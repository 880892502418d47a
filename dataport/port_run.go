package dataport

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// slot is a path of a port over all its connections: it dials, authenticates, waits for the loss, and dials again.
type slot struct {
	p             *Port
	rec           *record
	epoch         int
	local, remote string
	turn          int  // among LocalAddrs, when local is ""
	announced     bool // the peer told us of remote
	leaving       bool // its address is not announced any more; guarded by p.mu
	cancel        context.CancelFunc
	now           chan struct{} // capacity 1: do not wait out the backoff
	up            *Session      // in which it was up last; used by its goroutine only
	removed       bool          // guarded by p.mu: by RemovePath
}

// startSlots begins the paths to the current target. p.mu is held.
func (p *Port) startSlots() {
	addrs := p.targets[p.index]
	for i := range min(max(len(addrs), p.conf.Paths), p.node.conf.MaxPaths) {
		p.startSlot("", addrs[i%len(addrs)])
	}
}

func (p *Port) startSlot(local, remote string) *slot {
	return p.launch(&slot{local: local, remote: remote, rec: p.newRecord(local, remote)})
}

func (p *Port) newRecord(local, remote string) *record {
	p.lastPath++
	return &record{id: p.lastPath, local: local, remote: remote, since: time.Now()}
}

func (p *Port) launch(sl *slot) *slot {
	ctx, cancel := context.WithCancel(context.Background())
	sl.p, sl.epoch, sl.turn, sl.cancel, sl.now = p, p.epoch, len(p.slots), cancel, make(chan struct{}, 1)
	p.slots = append(p.slots, sl)
	p.tasks.start(func() { sl.run(ctx) })
	return sl
}

func (sl *slot) hurry() {
	select {
	case sl.now <- struct{}{}:
	default:
	}
}

// move feeds the path's state machine; the record is what others see of it.
func (sl *slot) move(in pathInput, reason string) {
	sl.rec.mu.Lock()
	next, ok := sl.rec.state.next(in)
	sl.rec.mu.Unlock()
	if ok || reason != "" {
		sl.rec.set(next, reason)
	}
}

func (sl *slot) run(ctx context.Context) {
	t := sl.p.node.conf.Timing
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.Multiplier, wait.RandomizationFactor = t.BackoffMin, 1.6, 0.3
	wait.Reset()
	for in := pathStart; ctx.Err() == nil && sl.p.mayDial(ctx.Done()); in = pathRetry {
		wait.MaxInterval = sl.patience() * 10 / 13 // the longest pauses are jittered too
		sl.move(in, "")
		live, err := sl.connect(ctx)
		if err == nil {
			began := time.Now()
			select {
			case <-live.dead:
			case <-ctx.Done():
				live.s.drainPath(live.id, "removed") // or its session has ended: that closes it too
				<-live.dead
			}
			sl.up = live.s
			if time.Since(began) >= t.PathDownAfter {
				wait.Reset()
			}
		} else {
			sl.p.attemptFailed(ctx, sl, err)
		}
		if ctx.Err() != nil {
			break
		}
		sl.fall()
		if errors.Is(err, errNoSession) {
			continue // the session it wanted to join is over: open a new one
		}
		pause := time.NewTimer(min(wait.NextBackOff(), sl.patience()))
		select {
		case <-pause.C:
		case <-sl.now:
			wait.Reset()
		case <-ctx.Done():
		}
		pause.Stop()
	}
	sl.move(pathStop, "")
	sl.p.slotEnded(sl)
}

// fall brings a lost path, whatever it was lost in, into Reserved when the session it was up in lives, else into Backoff.
func (sl *slot) fall() {
	in := pathPause
	if s := sl.up; s != nil {
		s.mu.Lock() // or it ended in between
		defer s.mu.Unlock()
		if !s.ended {
			in = pathReserve
		}
	}
	sl.rec.fall(in)
}

func (r *record) fall(in pathInput) {
	r.mu.Lock()
	s := r.state
	r.mu.Unlock()
	if next, ok := s.next(pathFailed); ok {
		s = next
	}
	if s == PathIdle { // its session ended and took it down
		s = PathLost
	}
	next, _ := s.next(in)
	r.set(next, "")
}

// slotEnded is the end of a slot's goroutine: of a removed path nothing comes any more, and the peer is told.
func (p *Port) slotEnded(sl *slot) {
	p.mu.Lock()
	s := p.sess
	if !sl.removed || p.epoch != sl.epoch {
		p.mu.Unlock()
		return
	}
	p.slots = slices.DeleteFunc(p.slots, func(o *slot) bool { return o == sl })
	p.mu.Unlock()
	if s != nil {
		s.forgetPath(sl.rec.id)
	}
	p.newsDue() // there may be a path to that address again
}

// connect dials, authenticates and joins the port's session, or opens it.
func (sl *slot) connect(ctx context.Context) (*path, error) {
	n := sl.p.node
	limited, cancel := context.WithTimeout(ctx, n.conf.Timing.HandshakeTimeout)
	defer cancel()
	local := sl.local
	if local == "" {
		local = n.from(sl.remote, sl.turn)
	}
	sl.rec.dials(local)
	began := n.clock.now()
	raw, err := n.conf.Dial(limited, local, sl.remote)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", plain(err))
	}
	sl.move(pathConnected, "")
	raw = n.fit(raw)
	_ = raw.SetDeadline(time.Now().Add(n.conf.Timing.HandshakeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	version := n.keys.now()
	w, err := n.secure(ctx, raw, true)
	var live *path
	if err == nil {
		live, err = sl.attach(ctx, w, n.clock.now()-began)
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	if n.keys.now() != version {
		n.endUnpinned()
	}
	return live, nil
}

// attach makes the authenticated connection a path of the port's session. The first one opens the session, the others
// wait for it, but not for good: when the answer does not come the next one opens, and what the first one began is void.
// Where not all carry data, the first address has a head start: the path that opens is active. took is how long the
// connection took so far.
func (sl *slot) attach(ctx context.Context, w *wire, took time.Duration) (*path, error) {
	p := sl.p
	deadline := time.NewTimer(p.node.conf.Timing.HandshakeTimeout)
	defer deadline.Stop()
	headStart := time.NewTimer(p.node.conf.Timing.SuspectAfter)
	defer headStart.Stop()
	waited := mostActive(p.conf.ActivePaths, p.conf.Scheduler) == 0
	for {
		p.mu.Lock()
		if p.epoch != sl.epoch || ctx.Err() != nil {
			p.mu.Unlock()
			return nil, errVoid
		}
		s, change := p.sess, p.change
		if s == nil && !sl.mayOpen(w) {
			p.mu.Unlock()
			return nil, errElsewhere
		}
		left := time.Duration(0) // until this one may take over
		if p.opening != nil {
			left = p.opening.since + p.answerWithin(took) - p.node.clock.now()
		}
		var mine *opening
		if s == nil && left <= 0 && (waited || p.slots[0] == sl) {
			mine = p.open(w)
		}
		p.mu.Unlock()
		switch {
		case s != nil:
			return sl.join(w, s)
		case mine != nil:
			live, err := sl.open(w, mine)
			p.mu.Lock()
			if p.opening == mine {
				p.opening = nil
				p.changed()
			}
			p.mu.Unlock()
			return live, err
		}
		var late <-chan time.Time // else it waits for the head start to end
		if left > 0 {
			late = time.After(left)
		}
		select {
		case <-change:
		case <-late:
		case <-headStart.C:
			waited = true
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return nil, errors.New("waited in vain for the session's first path")
		}
	}
}

// opening is an attempt to open a session.
type opening struct {
	w     *wire
	since time.Duration
}

// open begins an attempt on w. One that is under way is over. p.mu is held.
func (p *Port) open(w *wire) *opening {
	if p.opening != nil {
		_ = p.opening.w.raw.Close()
		p.overtook++
	}
	p.opening = &opening{w, p.node.clock.now()}
	return p.opening
}

// answerWithin is how long an attempt to open a session has for itself while a path waits that took so long to connect.
// It is short enough that the others still have their turn before the target counts as unreachable, and doubles each
// time, for it may be the peer that is slow. p.mu is held.
func (p *Port) answerWithin(took time.Duration) time.Duration {
	t := p.node.conf.Timing
	return max(min(t.UnreachableAfter/4, t.HandshakeTimeout/2), 2*took) << min(p.overtook, 16)
}

// changed wakes who waits for a session. p.mu is held.
func (p *Port) changed() {
	close(p.change)
	p.change = make(chan struct{})
}

func (sl *slot) open(w *wire, mine *opening) (*path, error) {
	p, n := sl.p, sl.p.node
	h := n.helloFor(helloOpen, p.reg, SessionID(randomID()), sl.rec.id)
	h.port, h.nonce = p.id, random32()
	a, err := w.ask(h)
	if p.refusedBy(a) {
		return nil, errVoid
	}
	if err != nil {
		return nil, err
	}
	secret := a.secret
	if w.tls != nil {
		secret = sessionSecret(w.binding, h.session, n.incarnation, a.incarnation)
	}
	if want := joinProof(secret, roleAccepts, w.bound(h.nonce), h.session, h.path); !hmac.Equal(a.proof[:], want[:]) || a.maxMessage == 0 {
		return nil, fmt.Errorf("%w: the answer's proof is wrong", ErrBadHello)
	}
	if err := w.establish(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.reg.fencing(); p.epoch != sl.epoch || p.fenced != 0 || f.own != h.generation || f.history != h.history {
		return nil, errVoid
	}
	if p.opening != mine {
		return nil, errors.New("another path opens the session: no answer in time")
	}
	if known := p.known[p.index]; sl.announced && known.name != a.name {
		return nil, errElsewhere
	}
	s := newSession(n, p.reg, sessionSetup{
		id: h.session, port: p, portID: p.id, peerKey: w.key, secret: secret, sched: p.conf.Scheduler, mostActive: p.conf.ActivePaths, maxMessage: a.maxMessage, credit: a.credit,
		compression: p.conf.Compression, unpacks: a.unpacks,
		history: h.history, generation: h.generation, news: a.addrs, newsVia: w.raw.RemoteAddr().String(),
		peer: PeerInfo{Name: a.name, Key: w.keyText(), Incarnation: a.incarnation, Target: p.targets[p.index][0], Generation: p.reg.comparable(a)},
	})
	s.out.hold = p.machine.suspended
	n.mu.Lock()
	n.sessions[s.id] = s
	n.mu.Unlock()
	if old, ok := p.peers[p.index]; ok && old != a.incarnation {
		p.reg.emit(Event{Kind: PeerRestarted, Port: p, Session: s, Target: s.peer.Target, Reason: "new incarnation"})
	}
	p.peers[p.index] = a.incarnation
	p.known[p.index] = peerIdentity{a.name, w.keyText()}
	switched := p.machine.base == PortSwitching || p.unannounced()
	live, err := s.addPath(w, sl.rec, func() {
		if switched {
			s.event(Switched, 0, "")
		}
		s.event(SessionUp, 0, "")
		s.start()
	})
	if err != nil {
		return nil, err
	}
	p.sess, p.declared, p.refused, p.overtook = s, false, "", 0
	p.arrived = p.index
	p.sessions++
	p.step(portSessionUp, "")
	p.newsDue()
	return live, nil
}

// unannounced reports whether the current target was switched to and has not been reached since: Switched is still to be told.
func (p *Port) unannounced() bool { return p.arrived != p.index }

func (sl *slot) join(w *wire, s *Session) (*path, error) {
	p, n := sl.p, sl.p.node
	if s.peerKey != nil && !s.peerKey.Equal(ed25519.PublicKey(w.key)) {
		return nil, fmt.Errorf("%w: %s, the session's peer is %s: the addresses of a target must lead to one node", ErrWrongKey, w.keyText(), s.peer.Key)
	}
	h := n.helloFor(helloJoin, p.reg, s.id, sl.rec.id)
	h.port, h.nonce = p.id, random32()
	if s.rests() {
		h.flags = flagStandby
	}
	bound := w.bound(h.nonce)
	h.proof = joinProof(s.secret, roleDials, bound, s.id, h.path)
	a, err := w.ask(h)
	var refusal *RefusedError
	if p.refusedBy(a) {
		return nil, errVoid
	}
	if errors.As(err, &refusal) && refusal.Code == RefusedNoSession && a != nil {
		if sl.elsewhere(s, a) {
			return nil, errElsewhere
		}
		if a.incarnation != s.peer.Incarnation {
			p.mu.Lock()
			p.peers[p.index] = a.incarnation
			p.mu.Unlock()
			s.fail("peer restarted", endRestarted)
		} else {
			s.fail("the peer has given up the session", endByPeer)
		}
		if s.young() {
			return nil, fmt.Errorf("%w: it does not know the session that began a moment ago: do all addresses of the target lead to one node?", ErrRefused)
		}
		return nil, errNoSession
	}
	if err != nil {
		return nil, err
	}
	if want := joinProof(s.secret, roleAccepts, bound, s.id, h.path); !hmac.Equal(a.proof[:], want[:]) {
		return nil, fmt.Errorf("%w: the answer's proof is wrong", ErrBadHello)
	}
	if err := w.establish(); err != nil {
		return nil, err
	}
	live, err := s.addPath(w, sl.rec, nil)
	if err == nil {
		s.heard(a.addrs, w.raw.RemoteAddr().String())
		p.newsDue() // with one more path up another one may go
	}
	return live, err
}

// attemptFailed notes why a path did not come up. A refusal is told to the client, once per reason.
func (p *Port) attemptFailed(ctx context.Context, sl *slot, err error) {
	if ctx.Err() != nil || errors.Is(err, errVoid) || errors.Is(err, errNoSession) {
		return
	}
	sl.rec.set(PathLost, err.Error())
	if sl.rec.unproven() {
		return // nobody asked for it
	}
	var refusal *RefusedError
	told := errors.Is(err, ErrWrongKey) || errors.As(err, &refusal) && refusal.Code != RefusedNoClient
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch != sl.epoch {
		return
	}
	p.reason = fmt.Sprintf("path %d to %s: %v", sl.rec.id, sl.remote, err)
	if told && p.refused != err.Error() {
		p.refused = err.Error()
		p.reg.emit(Event{Kind: PeerRefused, Port: p, Path: sl.rec.id, Target: p.targets[p.index][0], Reason: err.Error()})
	}
}

// pathsChanged is called by the session with its mutex held.
func (p *Port) pathsChanged(well int) { p.well.Store(int32(well)) }

// sessionEnded is called once by a session that ended on its own.
func (p *Port) sessionEnded(s *Session, reason string, why endCause) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sess != s {
		return
	}
	p.sess = nil
	p.well.Store(0)
	p.lastLife, p.declared = p.node.clock.now(), false
	p.step(portSessionDown, reason)
	switch {
	case why == endUnreachable:
		p.declare(reason)
	case !s.young(): // or two that fail each other's sessions would do so as fast as they can
		for _, sl := range p.slots {
			sl.hurry()
		}
	}
	p.changed()
}

// declare tells that the target is unreachable and, in Auto, goes to the next backup. p.mu is held.
func (p *Port) declare(reason string) {
	p.declared = true
	p.step(portTargetUnreachable, reason)
	p.event(TargetUnreachable, reason)
	p.goOn()
}

// goOn switches by itself where that is wanted: to the next backup, never back.
func (p *Port) goOn() {
	if p.declared && p.conf.Switch == Auto && !p.machine.suspended && p.index+1 < len(p.targets) {
		p.switchTo(p.index+1, p.reason)
	}
}

// switchTo leaves the current target for another. p.mu is held.
func (p *Port) switchTo(to int, reason string) {
	p.reg.emit(Event{Kind: Switching, Port: p, Target: p.targets[to][0], Reason: reason})
	p.step(portSwitch, reason)
	p.epoch++
	if s := p.sess; s != nil {
		p.sess = nil
		s.end("switched to "+p.targets[to][0], endQuietly)
	}
	for _, sl := range p.slots {
		sl.cancel()
	}
	p.slots = nil
	clear(p.shunned)
	p.well.Store(0)
	p.index, p.opening, p.overtook, p.declared, p.refused = to, nil, 0, false, ""
	p.arrived = -1
	p.lastLife = p.node.clock.now()
	p.startSlots()
	p.changed()
}

// supervise watches the time without a session.
func (p *Port) supervise() {
	t := time.NewTicker(p.node.conf.Timing.Heartbeat)
	defer t.Stop()
	last := p.node.clock.now()
	for {
		select {
		case <-p.done:
			return
		case <-t.C:
		}
		now := p.node.clock.now()
		late := now - last - p.node.conf.Timing.Heartbeat
		last = now
		p.mu.Lock()
		if late > p.node.conf.Timing.Heartbeat { // this process stood still, see Session.tick
			p.lastLife = min(now, p.lastLife+late)
		}
		switch waited := now - p.lastLife; {
		case p.sess != nil || p.fenced != 0 || p.machine.base == PortIsClosed:
		case p.declared:
			p.goOn() // resumed meanwhile
		case waited >= p.node.conf.Timing.UnreachableAfter:
			reason := p.reason
			if reason == "" {
				reason = "no answer"
			}
			p.declare(fmt.Sprintf("no session for %v: %s", waited.Round(time.Millisecond), reason))
		}
		p.mu.Unlock()
	}
}
