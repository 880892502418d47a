package dataport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"mirror-agent/dataport/socket"
)

// Node is a process's identity, its listeners, its clients and sessions. All methods may be called by several goroutines.
type Node struct {
	conf        Config
	tls         *tls.Config // nil: plain TCP
	keys        *keyring    // nil: plain TCP
	incarnation uint64
	clock       clock
	codec       *codec
	unpacks     packSet // what peers may pack by
	tasks       tasks
	crowd       *socket.Crowd
	listens     listens
	stop        chan struct{} // closed by Close

	mu       sync.Mutex // guards the fields below; see the lock order at Session
	closed   bool
	clients  map[string]*Registration
	sessions map[SessionID]*Session
	door     door
	refusals refusals
	ended    deque[*Session] // ended, their goroutines perhaps not yet
}

// NewNode checks the configuration and listens. Peers are answered at once, and refused until their client registers.
func NewNode(c Config) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	n := &Node{
		conf: c, incarnation: randomID(), clock: clock{time.Now()}, codec: newCodec(), unpacks: packAll,
		clients: map[string]*Registration{}, sessions: map[SessionID]*Session{}, door: newDoor(c.MaxPreAuth, c.MaxPreAuthPerHost),
		stop: make(chan struct{}),
		// A receiver has the clients' callbacks to run beside: one that waits warm keeps a processor.
		crowd: socket.NewCrowd(max(1, runtime.NumCPU()/2), 0),
	}
	if !c.Insecure {
		var err error
		if n.keys, err = newKeyring(c.Key, c.Peers); err != nil {
			return nil, err
		}
		n.tls = n.keys.config()
	}
	if n.conf.HostAddrs == nil && n.conf.Dial == nil && n.conf.ListenFunc == nil {
		n.conf.HostAddrs = hostAddrs
	}
	if n.conf.Dial == nil {
		n.conf.Dial = dialTCP
	}
	if n.conf.ListenFunc == nil {
		n.conf.ListenFunc = listenTCP
	}
	if n.conf.HostAddrs != nil {
		n.lookAtHost()
	}
	for _, addr := range c.Listen {
		if _, err := n.Listen(addr); err != nil {
			_ = n.Close()
			return nil, err
		}
	}
	if n.conf.HostAddrs != nil {
		n.tasks.start(n.watchHost)
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

// client returns the registration of a name, or nil.
func (n *Node) client(name string) *Registration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.clients[name]
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
	if !n.closed {
		close(n.stop)
	}
	n.closed = true
	clients := make([]*Registration, 0, len(n.clients))
	for _, r := range n.clients {
		clients = append(clients, r)
	}
	for c := range n.door.waiting {
		_ = c.Close()
	}
	n.mu.Unlock()
	n.listens.mu.Lock()
	n.listens.closed = true
	for _, l := range n.listens.open {
		_ = l.Close()
	}
	n.listens.mu.Unlock()
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

func (n *Node) isClosed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}
