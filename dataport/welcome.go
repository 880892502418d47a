package dataport

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"mirror-agent/dataport/socket"
)

// How a connection that was accepted becomes a path.

// serve authenticates an accepted connection and makes it a path.
func (n *Node) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(n.conf.Timing.HandshakeTimeout))
	version := n.keys.now()
	err := n.welcome(c)
	if err != nil {
		letGo(c)
	}
	n.mu.Lock()
	n.door.leave(c)
	if err == nil && n.keys != nil {
		n.door.befriend(c)
	}
	told, untold := !n.closed && err != nil, 0
	if told {
		told, untold = n.refusals.tell(time.Now())
	}
	n.mu.Unlock()
	if err != nil {
		_ = c.Close()
	} else if n.keys.now() != version {
		n.endUnpinned()
	}
	if told {
		e := n.conf.Log.Warn().Err(err).Str("remote", c.RemoteAddr().String())
		if untold > 0 {
			e = e.Int("more", untold)
		}
		e.Msg("connection refused")
	}
}

// letGo ends a connection so that the peer reads our last word: a close with its bytes unread would reset the
// connection and take the reason with it.
func letGo(c net.Conn) {
	w, ok := c.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(goodbyeTime))
	_, _ = io.CopyN(io.Discard, c, headerBytes+maxControlPayload)
}

// fit sets what a path wants of a connection, and has it waited for as a path's is.
func (n *Node) fit(c net.Conn) net.Conn {
	tuneSocket(c, n.userTimeout())
	return socket.New(c, n.crowd)
}

func (n *Node) userTimeout() time.Duration { return n.conf.Timing.UnreachableAfter + 2*time.Second }

func (n *Node) welcome(c net.Conn) error {
	w, err := n.secure(context.Background(), c, false)
	if err != nil {
		return err
	}
	var h hello
	if err := w.readHello(&h); err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	var refusal *RefusedError
	switch h.kind {
	case helloOpen:
		refusal, err = n.welcomeOpen(w, &h)
	case helloJoin:
		refusal, err = n.welcomeJoin(w, &h)
	default:
		refusal = &RefusedError{RefusedHello, "a connection begins with open or join"}
	}
	if refusal == nil {
		return err
	}
	a := n.helloFor(helloRefused, nil, h.session, h.path)
	a.code, a.reason = refusal.Code, refusal.Reason
	if r := n.client(h.client); r != nil && refusal.Code == RefusedFenced {
		a.history, a.generation = r.tells(helloRefused)
	}
	if err := w.sendHello(a); err != nil {
		return err
	}
	return fmt.Errorf("%q of %s: %s", h.client, h.name, refusal.Reason)
}

// welcomeOpen begins a session. Older sessions of the same peer that it cannot know any more end.
func (n *Node) welcomeOpen(w *wire, h *hello) (*RefusedError, error) {
	n.mu.Lock()
	r := n.clients[h.client]
	_, taken := n.sessions[h.session]
	count := len(n.sessions)
	n.mu.Unlock()
	switch {
	case r == nil:
		return &RefusedError{RefusedNoClient, fmt.Sprintf("no client is registered as %q here", h.client)}, nil
	case h.incarnation == n.incarnation:
		return &RefusedError{RefusedHello, "the address leads to the node that dials"}, nil
	case taken || h.maxMessage == 0:
		return &RefusedError{RefusedHello, "session id is in use, or no message size"}, nil
	case count >= n.conf.MaxSessions:
		return &RefusedError{RefusedLimit, fmt.Sprintf("this node has %d sessions, as many as it may", count)}, nil
	}
	higher, raised := r.meet(h)
	if higher != 0 {
		return n.fences(), nil
	}
	if raised {
		r.enforce()
	}
	u := sessionSetup{
		id: h.session, portID: h.port, peerKey: w.key, sched: n.conf.Scheduler, maxMessage: h.maxMessage, credit: h.credit,
		compression: n.conf.Compression, unpacks: h.unpacks,
		history: h.history, generation: h.generation, news: h.addrs, newsVia: w.raw.RemoteAddr().String(),
		peer: PeerInfo{Name: h.name, Key: w.keyText(), Incarnation: h.incarnation, Target: w.raw.RemoteAddr().String(), Inbound: true},
	}
	u.peer.Generation = r.comparable(h)
	a := n.helloFor(helloAccepted, r, h.session, h.path)
	if w.tls != nil {
		u.secret = sessionSecret(w.binding, h.session, h.incarnation, n.incarnation)
	} else {
		u.secret = random32()
		a.secret = u.secret
	}
	a.proof = joinProof(u.secret, roleAccepts, w.bound(h.nonce), h.session, h.path)
	s := newSession(n, r, u)
	n.supersede(s)
	n.mu.Lock()
	higher, _ = r.meet(h) // again: what raises it ends the sessions that it finds here
	ok := higher == 0 && !n.closed && n.clients[h.client] == r && n.sessions[s.id] == nil && len(n.sessions) < n.conf.MaxSessions
	if ok {
		n.sessions[s.id] = s
	}
	n.mu.Unlock()
	if !ok {
		s.cancel()
		if higher != 0 {
			return n.fences(), nil
		}
		return &RefusedError{RefusedLimit, "try again"}, nil
	}
	if err := errors.Join(w.sendHello(a), w.establish()); err != nil {
		s.cancel()
		n.mu.Lock()
		delete(n.sessions, s.id)
		n.mu.Unlock()
		return nil, err
	}
	_, err := s.addPath(w, &record{id: h.path}, func() {
		s.event(SessionUp, 0, "")
		s.start()
	})
	return nil, err
}

// supersede ends the sessions that the peer of s has forgotten: those of an earlier incarnation, and an earlier one of the same port.
func (n *Node) supersede(s *Session) {
	for _, old := range n.sessionsOf(s.reg) {
		if !old.peer.Inbound || old.peer.Key != s.peer.Key || old.peer.Name != s.peer.Name {
			continue
		}
		switch {
		case old.peer.Incarnation == s.peer.Incarnation:
			if old.portID == s.portID {
				old.fail("the peer's port began a new session", endByPeer)
			}
		// A verified key is one node. A mere name may be several: only a session that nothing is heard of gives way.
		case old.peer.Key != "" || !old.hasPaths():
			old.fail("peer restarted", endRestarted)
		}
	}
}

func (s *Session) hasPaths() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.paths) > 0
}

func (n *Node) welcomeJoin(w *wire, h *hello) (*RefusedError, error) {
	n.mu.Lock()
	s := n.sessions[h.session]
	n.mu.Unlock()
	if s == nil || !s.peer.Inbound || s.reg.name != h.client || !ed25519.PublicKey(w.key).Equal(s.peerKey) && w.key != nil {
		return &RefusedError{RefusedNoSession, fmt.Sprintf("session %s is not known here", h.session)}, nil
	}
	bound := w.bound(h.nonce)
	if want := joinProof(s.secret, roleDials, bound, h.session, h.path); !hmac.Equal(h.proof[:], want[:]) {
		return &RefusedError{RefusedProof, "the proof of the session's secret is wrong"}, nil
	}
	higher, raised := s.reg.meet(h)
	if higher != 0 {
		return n.fences(), nil
	}
	if raised {
		s.reg.enforce() // this session too: it was opened with a lower one
	}
	rec, err := s.recordFor(h.path)
	if err != nil {
		return &RefusedError{RefusedLimit, err.Error()}, nil
	}
	a := n.helloFor(helloAccepted, s.reg, h.session, h.path)
	a.proof = joinProof(s.secret, roleAccepts, bound, h.session, h.path)
	if err := errors.Join(w.sendHello(a), w.establish()); err != nil {
		s.unplace(rec)
		return nil, err
	}
	select { // the peer may join as soon as it has read our answer, before its first path is one here
	case <-s.begun:
	case <-s.ctx.Done(): // or it came to nothing
		s.unplace(rec)
		return nil, errNoSession
	}
	_, err = s.addPath(w, rec, nil)
	if err == nil {
		s.heard(h.addrs, w.raw.RemoteAddr().String())
	}
	return nil, err
}

// fences is the refusal of a peer below the highest generation.
func (n *Node) fences() *RefusedError {
	return &RefusedError{RefusedFenced, n.conf.Name + " has seen a higher generation"}
}

// recordFor returns the record of an inbound path, the same one each time it joins, or takes a place for a new one.
func (s *Session) recordFor(id PathID) (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place(&record{id: id, state: PathAuthenticating})
}

// unplace gives back the place of a path that has never been up.
func (s *Session) unplace(rec *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec.stats().State == PathAuthenticating {
		s.dropRecord(rec.id)
	}
}
