package dataport

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Node is a process's identity, its listeners, its clients and sessions. All methods may be called by several goroutines.
type Node struct {
	conf        Config
	tls         *tls.Config // nil: plain TCP
	incarnation uint64
	clock       clock
	listeners   []net.Listener
	tasks       tasks

	mu       sync.Mutex // guards the fields below; see the lock order at Session
	closed   bool
	clients  map[string]*Registration
	sessions map[SessionID]*Session
	preAuth  map[net.Conn]struct{} // connections that have not said who they are
	ended    deque[*Session]       // ended, their goroutines perhaps not yet
}

// NewNode checks the configuration and listens. Peers are answered at once, and refused until their client registers.
func NewNode(c Config) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	n := &Node{
		conf: c, incarnation: randomID(), clock: clock{time.Now()},
		clients: map[string]*Registration{}, sessions: map[SessionID]*Session{}, preAuth: map[net.Conn]struct{}{},
	}
	if !c.Insecure {
		var err error
		if n.tls, err = tlsConfig(c.Key, c.Peers); err != nil {
			return nil, err
		}
	}
	if n.conf.Dial == nil {
		n.conf.Dial = dialTCP
	}
	listen := c.ListenFunc
	if listen == nil {
		listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	for _, addr := range c.Listen {
		l, err := listen(addr)
		if err != nil {
			for _, l := range n.listeners {
				_ = l.Close()
			}
			return nil, fmt.Errorf("dataport: listen on %s: %w: another process may have this address, or the host does not; choose another one", addr, err)
		}
		n.listeners = append(n.listeners, l)
	}
	for _, l := range n.listeners {
		n.tasks.start(func() { n.acceptFrom(l) })
	}
	return n, nil
}

func dialTCP(ctx context.Context, local, remote string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if local != "" {
		ip := net.ParseIP(local)
		if ip == nil {
			return nil, fmt.Errorf("local address %q is not an IP", local)
		}
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	return d.DialContext(ctx, "tcp", remote)
}

// Incarnation is random per process start: peers tell a restart by it.
func (n *Node) Incarnation() uint64 { return n.incarnation }

// Addrs returns the addresses the node listens on; port 0 is resolved.
func (n *Node) Addrs() []string {
	addrs := make([]string, 0, len(n.listeners))
	for _, l := range n.listeners {
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// Register makes a client known by a name, at most 64 bytes. Peers that open a port under the same name reach it.
func (n *Node) Register(name string, c Client) (*Registration, error) {
	if name == "" || len(name) > maxNameBytes {
		return nil, fmt.Errorf("dataport: register: a name has 1 to %d bytes, this one %d", maxNameBytes, len(name))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	for other, r := range n.clients {
		if other == name {
			return nil, fmt.Errorf("register %q: %w", name, ErrNameTaken)
		}
		if r.id == clientID(name) {
			return nil, fmt.Errorf("register %q: its hash is that of %q, choose another name: %w", name, other, ErrNameTaken)
		}
	}
	r := newRegistration(n, name, c)
	n.clients[name] = r
	return r, nil
}

func (n *Node) forget(r *Registration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.clients[r.name] == r {
		delete(n.clients, r.name)
	}
}

// sessionsOf returns the living sessions of r, or all when r is nil.
func (n *Node) sessionsOf(r *Registration) []*Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	var l []*Session
	for _, s := range n.sessions {
		if r == nil || s.reg == r {
			l = append(l, s)
		}
	}
	return l
}

func (n *Node) endSessions(r *Registration, reason string) {
	l := n.sessionsOf(r)
	for _, s := range l {
		s.end(reason, endQuietly)
	}
	for _, s := range l {
		s.wait()
	}
}

func (n *Node) dropSession(s *Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sessions[s.id] == s {
		delete(n.sessions, s.id)
		n.ended.push(s)
	}
	for n.ended.len() > 0 && n.ended.at(0).idle() {
		n.ended.pop()
	}
}

// idle reports whether all goroutines of an ended session have ended.
func (s *Session) idle() bool {
	s.tasks.mu.Lock()
	defer s.tasks.mu.Unlock()
	return s.tasks.n == 0
}

// Close ends everything: ports, sessions (their peers are told), listeners. It waits for all goroutines but those in a
// client's callback, and may be called twice, also by a callback.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	clients := make([]*Registration, 0, len(n.clients))
	for _, r := range n.clients {
		clients = append(clients, r)
	}
	for c := range n.preAuth {
		_ = c.Close()
	}
	n.mu.Unlock()
	for _, l := range n.listeners {
		_ = l.Close()
	}
	for _, r := range clients {
		r.Close()
	}
	n.endSessions(nil, "node closed")
	n.tasks.wait()
	n.mu.Lock()
	rest := n.ended
	n.ended = deque[*Session]{}
	n.mu.Unlock()
	for rest.len() > 0 {
		rest.pop().wait()
	}
	return nil
}

func (n *Node) acceptFrom(l net.Listener) {
	pause := time.Millisecond
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || n.isClosed() {
				return
			}
			n.conf.Log.Warn().Err(err).Str("listen", l.Addr().String()).Msg("accept")
			time.Sleep(pause) // out of descriptors, mostly: they come back
			pause = min(2*pause, 100*time.Millisecond)
			continue
		}
		pause = time.Millisecond
		n.mu.Lock()
		if n.closed || len(n.preAuth) >= n.conf.MaxPreAuth {
			n.mu.Unlock()
			_ = c.Close()
			continue
		}
		n.preAuth[c] = struct{}{}
		n.tasks.start(func() { n.serve(c) })
		n.mu.Unlock()
	}
}

func (n *Node) isClosed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}

// serve authenticates an accepted connection and makes it a path.
func (n *Node) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(n.conf.Timing.HandshakeTimeout))
	tuneSocket(c, n.userTimeout())
	err := n.welcome(c)
	if err != nil {
		letGo(c)
	}
	n.mu.Lock()
	delete(n.preAuth, c)
	n.mu.Unlock()
	if err != nil {
		_ = c.Close()
		if !n.isClosed() {
			n.conf.Log.Warn().Err(err).Str("remote", c.RemoteAddr().String()).Msg("connection refused")
		}
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
	case taken || h.maxMessage == 0:
		return &RefusedError{RefusedHello, "session id is in use, or no message size"}, nil
	case count >= n.conf.MaxSessions:
		return &RefusedError{RefusedLimit, fmt.Sprintf("this node has %d sessions, as many as it may", count)}, nil
	}
	u := sessionSetup{
		id: h.session, portID: h.port, peerKey: w.key, sched: n.conf.Scheduler, maxMessage: h.maxMessage, credit: h.credit,
		peer: PeerInfo{Name: h.name, Key: w.keyText(), Incarnation: h.incarnation, Target: w.raw.RemoteAddr().String(), Inbound: true},
	}
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
	ok := !n.closed && n.clients[h.client] == r && n.sessions[s.id] == nil && len(n.sessions) < n.conf.MaxSessions
	if ok {
		n.sessions[s.id] = s
	}
	n.mu.Unlock()
	if !ok {
		s.cancel()
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
	_, err = s.addPath(w, rec, nil)
	return nil, err
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
