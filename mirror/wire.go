package mirror

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync"

	"mirror-agent/dataport"
)

// This file is the only one that knows the data port: it turns its sessions
// into links and its events into calls of the agent.

// sessionLink is a dataport session as a link.
type sessionLink struct{ *dataport.Session }

func (l sessionLink) Send(ctx context.Context, parts ...[]byte) (receipt, error) {
	r, err := l.Session.Send(ctx, parts...)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (l sessionLink) Peer() string {
	p := l.Session.Peer()
	if p.Name != "" {
		return p.Name
	}
	return p.Target
}

// transport is what the agent asks of the data port.
type transport interface {
	addresses() []string
	open(i int, addresses []string) error // begins to connect to follower i; nothing when that has begun
	shut(i int)                           // ends that; may take a moment
	suspend(on bool) error                // of all connections to followers
	session(i int) (link, uint64)         // the present one with follower i, or nil
	paths(i int) []PathStatus
	resetPath(i, id int) error
	removePath(i, id int) error
	close() error
}

// portTransport is the real one: a node with one registration and, on a
// primary, a port for each follower that is fed. Who is fed, and who is the
// active target, is the agent's business and not the port's.
type portTransport struct {
	node *dataport.Node
	reg  *dataport.Registration
	a    *Agent
	c    *Config

	mu        sync.Mutex             // guards all below
	ports     map[int]*dataport.Port // by the follower's index
	suspended bool
}

// registrationPrefix keeps the names of mirrors apart from other clients.
const registrationPrefix = "mirror/"

func newPortTransport(c *Config, a *Agent) (*portTransport, error) {
	dc := dataport.DefaultConfig()
	dc.Listen, dc.Key, dc.Peers, dc.Insecure, dc.Log = c.Listen, c.Key, c.Peers, c.Insecure, c.Log
	dc.LocalAddrs = c.Local
	if c.NodeName != "" {
		dc.Name = c.NodeName
	}
	dc.Timing.UnreachableAfter = c.UnreachableAfter
	dc.Timing.PathDownAfter = min(c.PathDownAfter, c.UnreachableAfter*3/4)
	dc.Timing.SuspectAfter = min(dc.Timing.SuspectAfter, dc.Timing.PathDownAfter/2)
	dc.Timing.Heartbeat = min(dc.Timing.Heartbeat, dc.Timing.SuspectAfter/4)
	node, err := dataport.NewNode(dc)
	if err != nil {
		return nil, err
	}
	t := &portTransport{node: node, a: a, c: c, ports: map[int]*dataport.Port{}}
	if t.reg, err = node.Register(registrationPrefix+c.Name, portClient{a, t}); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return t, nil
}

func (t *portTransport) open(i int, addresses []string) error {
	t.mu.Lock() // until the port is known: its events ask for it
	defer t.mu.Unlock()
	if t.ports[i] != nil {
		return nil
	}
	port, err := t.reg.Open(context.Background(), dataport.PortConfig{Target: addresses, Switch: dataport.Manual, ActivePaths: t.c.ActivePaths})
	if err != nil {
		return err
	}
	t.ports[i] = port
	if t.suspended {
		return port.Suspend()
	}
	return nil
}

func (t *portTransport) shut(i int) {
	t.mu.Lock()
	p := t.ports[i]
	delete(t.ports, i)
	t.mu.Unlock()
	if p != nil {
		_ = p.Close()
	}
}

func (t *portTransport) port(i int) *dataport.Port {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ports[i]
}

// follower says whose port p is, -1 when it is nobody's any more.
func (t *portTransport) follower(p *dataport.Port) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, o := range t.ports {
		if o == p {
			return i
		}
	}
	return -1
}

func (t *portTransport) addresses() []string { return t.node.Addrs() }

var errNotConnected = errors.New("there is no connection to this host: status shows the paths that there are")

var errNoTarget = errors.New("no target is configured: give --target HOST:PORT")

func (t *portTransport) suspend(on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.suspended = on
	var err error
	for _, p := range t.ports {
		if on {
			err = errors.Join(err, p.Suspend())
		} else {
			err = errors.Join(err, p.Resume())
		}
	}
	return err
}

func (t *portTransport) resetPath(i, id int) error {
	if p := t.port(i); p != nil {
		return p.ResetPath(dataport.PathID(id))
	}
	return errNotConnected
}

func (t *portTransport) removePath(i, id int) error {
	if p := t.port(i); p != nil {
		return p.RemovePath(dataport.PathID(id))
	}
	return errNotConnected
}

func (t *portTransport) session(i int) (link, uint64) {
	if p := t.port(i); p != nil {
		if s := p.Session(); s != nil {
			return sessionLink{s}, uint64(s.ID())
		}
	}
	return nil, 0
}

func (t *portTransport) paths(i int) []PathStatus {
	p := t.port(i)
	if p == nil {
		return nil
	}
	return pathStatus(p.Stats().Paths)
}

// linkPaths are the paths of a session that came in.
func linkPaths(l link) []PathStatus {
	if s, ok := l.(sessionLink); ok {
		return pathStatus(s.Stats().Paths)
	}
	return nil
}

// linkAlive: a path of the session is heard right now.
func linkAlive(l link) bool {
	s, ok := l.(sessionLink)
	if !ok {
		return true
	}
	for _, p := range s.Stats().Paths {
		if p.State == dataport.PathActive || p.State == dataport.PathStandby {
			return true
		}
	}
	return false
}

// shownKey is this node's public key as peers configure it.
func shownKey(c *Config) string {
	return dataport.FormatPublicKey(c.Key.Public().(ed25519.PublicKey))
}

func pathStatus(ps []dataport.PathStats) []PathStatus {
	out := make([]PathStatus, 0, len(ps))
	for _, p := range ps {
		out = append(out, PathStatus{
			ID: int(p.ID), Local: p.Local, Remote: p.Remote, State: p.State.String(), RTTMicros: p.RTT.Microseconds(),
			BytesSent: p.BytesSent, BytesReceived: p.BytesReceived, ResentFrames: p.ResentFrames, Reason: p.Reason, Since: p.Since,
		})
	}
	return out
}

func (t *portTransport) close() error {
	t.reg.Close() // and every port
	return t.node.Close()
}

// portClient hands what the port says to the agent.
type portClient struct {
	a *Agent
	t *portTransport
}

func (c portClient) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) {
	return c.a.onMessage(ctx, sessionLink{m.Session}, uint64(m.Session.ID()), m.Session.Peer().Inbound, m.Payload)
}

func (c portClient) OnEvent(e dataport.Event) {
	x := portEvent{text: e.Reason, target: e.Target, follower: -1}
	if e.Port != nil {
		x.follower = c.t.follower(e.Port)
	}
	if e.Path != 0 {
		x.path = int(e.Path)
	}
	if e.Session != nil {
		x.link, x.session, x.inbound = sessionLink{e.Session}, uint64(e.Session.ID()), e.Session.Peer().Inbound
	}
	kind, ok := portEventKinds[e.Kind]
	if !ok {
		return
	}
	x.kind = kind
	c.a.onPortEvent(x)
}

var portEventKinds = map[dataport.EventKind]portEventKind{
	dataport.PathUp: portPathUp, dataport.PathSuspect: portPathSuspect, dataport.PathDown: portPathDown,
	dataport.PathIsStandby: portPathStandby, dataport.PathIsDraining: portPathDraining,
	dataport.SessionUp: portSessionUp, dataport.SessionDown: portSessionDown,
	dataport.TargetUnreachable: portUnreachable,
	dataport.PeerRestarted:     portPeerRestarted, dataport.PeerRefused: portPeerRefused,
	dataport.Suspended: portSuspended, dataport.Resumed: portResumed,
}
