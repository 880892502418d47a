package mirror

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/journal"
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
	announced() []string
	listen(address string) (string, error)
	unlisten(address string) error
	generation(mirror [16]byte, g journal.Generation)
	open(i int, addresses []string) error // begins to connect to follower i; nothing when that has begun
	shut(i int)                           // ends that; may take a moment
	suspend(on bool) error                // of all connections to followers
	session(i int) (link, uint64)         // the present one with follower i, or nil
	paths(i int) []PathStatus
	state(i int) string // of the connection to follower i, "" without one
	resetPath(i, id int) error
	removePath(i, id int) error
	setBandwidth(spec string) error
	setKeys(key ed25519.PrivateKey, peers []ed25519.PublicKey) error
	ask(ctx context.Context, addresses []string, question []byte) (answer []byte, err error) // of another member, see ballots.go
	network(i int) *NetworkStatus                                                            // of the connection to follower i; nil without one
	close() error
}

// portTransport is the real one: a node with one registration and, on a
// primary, a port for each follower that is fed. Who is fed, and who is the
// active target, is the agent's business and not the port's.
type portTransport struct {
	node *dataport.Node
	reg  *dataport.Registration
	asks *dataport.Registration // for what members ask each other; it has no generation, so nobody is refused there
	a    *Agent
	c    *Config

	mu        sync.Mutex             // guards all below
	ports     map[int]*dataport.Port // by the follower's index
	suspended bool
	bandwidth string
}

// registrationPrefix keeps the names of mirrors apart from other clients.
const registrationPrefix = "mirror/"

// openTransport begins to listen last: what comes in finds the agent with its
// transport, and who is below this volume's generation is refused from the first moment on.
func (a *Agent) openTransport(c *Config) error {
	dc := dataport.DefaultConfig()
	dc.Key, dc.Peers, dc.Insecure, dc.Log = c.Key, c.Peers, c.Insecure, c.Log
	dc.LocalAddrs, dc.Compression = c.Local, dataport.Compression(c.Compress)
	if c.NodeName != "" {
		dc.Name = c.NodeName
	}
	dc.Timing.UnreachableAfter = c.UnreachableAfter
	dc.Timing.PathDownAfter = min(c.PathDownAfter, c.UnreachableAfter*3/4)
	dc.Timing.SuspectAfter = min(dc.Timing.SuspectAfter, dc.Timing.PathDownAfter/2)
	dc.Timing.Heartbeat = min(dc.Timing.Heartbeat, dc.Timing.SuspectAfter/4)
	node, err := dataport.NewNode(dc)
	if err != nil {
		return err
	}
	t := &portTransport{node: node, a: a, c: c, bandwidth: c.Bandwidth, ports: map[int]*dataport.Port{}}
	if t.reg, err = node.Register(registrationPrefix+c.Name, portClient{a, t}); err != nil {
		return errors.Join(err, node.Close())
	}
	if t.asks, err = node.Register(asksPrefix+c.Name, askClient{a}); err != nil {
		return errors.Join(err, node.Close())
	}
	a.transport = t
	a.tellGeneration()
	for _, address := range c.Listen {
		if _, err := node.Listen(address); err != nil {
			return errors.Join(err, node.Close())
		}
	}
	return nil
}

func (t *portTransport) open(i int, addresses []string) error {
	t.mu.Lock() // until the port is known: its events ask for it
	defer t.mu.Unlock()
	if t.ports[i] != nil {
		return nil
	}
	limit, err := dataport.ParseBandwidth(t.bandwidth)
	if err != nil {
		return err
	}
	port, err := t.reg.Open(context.Background(), dataport.PortConfig{
		Target: addresses, Switch: dataport.Manual, UseAnnounced: t.c.Announced, ActivePaths: t.c.ActivePaths,
		Compression: dataport.Compression(t.c.Compress), Bandwidth: limit,
	})
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

func (t *portTransport) announced() []string { return t.node.Announced() }

func (t *portTransport) listen(address string) (string, error) { return t.node.Listen(address) }

func (t *portTransport) unlisten(address string) error {
	err := t.node.Unlisten(address)
	if errors.Is(err, dataport.ErrNotListening) {
		return fmt.Errorf("no %s among the addresses that are listened at (%s)", address, strings.Join(t.node.Addrs(), ", "))
	}
	return err
}

// generation has the port refuse who is below g, within this mirror: another
// one's numbers mean nothing here.
func (t *portTransport) generation(mirror [16]byte, g journal.Generation) {
	t.reg.SetHistory(mirror)
	t.reg.SetGeneration(portNumber(g))
}

// portNumber is a generation as the port compares it, portRank the way back.
func portNumber(g journal.Generation) uint64 { return uint64(g.Major)<<32 | uint64(g.Minor) }

func portRank(n uint64) journal.Generation {
	return journal.Generation{Major: uint32(n >> 32), Minor: uint32(n)}
}

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

func (t *portTransport) setBandwidth(spec string) error {
	limit, err := dataport.ParseBandwidth(spec)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ports) == 0 {
		return errNoTarget
	}
	t.bandwidth = spec
	for _, p := range t.ports {
		err = errors.Join(err, p.SetBandwidth(limit))
	}
	return err
}

func (t *portTransport) setKeys(key ed25519.PrivateKey, peers []ed25519.PublicKey) error {
	if err := t.node.SetKey(key); err != nil {
		return err
	}
	return t.node.SetPeers(peers)
}

func (t *portTransport) network(i int) *NetworkStatus {
	p := t.port(i)
	if p == nil {
		return nil
	}
	st := p.Stats()
	n := networkStatus(st.Session.Compression)
	n.Bandwidth, n.BandwidthNow = st.Bandwidth.Limit.String(), st.Bandwidth.BytesPerSecond
	return n
}

// linkNetwork is the same of a session that came in.
func linkNetwork(l link) *NetworkStatus {
	if s, ok := l.(sessionLink); ok {
		return networkStatus(s.Stats().Compression)
	}
	return nil
}

func networkStatus(c dataport.CompressionStats) *NetworkStatus {
	n := &NetworkStatus{
		Compress: string(c.Mode), InUse: string(c.InUse), SentBytes: c.BytesBefore, SentPacked: c.BytesAfter,
		ReceivedBytes: c.ReceivedUnpacked, ReceivedPacked: c.ReceivedPacked,
	}
	if n.InUse == "" {
		n.InUse = string(dataport.CompressNone)
	}
	return n
}

func validBandwidth(spec string) error {
	_, err := dataport.ParseBandwidth(spec)
	return err
}

func validCompress(s string) error {
	if s == "" {
		return nil
	}
	_, err := dataport.ParseCompression(s)
	return err
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

func (t *portTransport) state(i int) string {
	if p := t.port(i); p != nil {
		return p.Stats().State.String()
	}
	return ""
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
	return publicText(c.Key)
}

func publicText(k ed25519.PrivateKey) string {
	return dataport.FormatPublicKey(k.Public().(ed25519.PublicKey))
}

func pathStatus(ps []dataport.PathStats) []PathStatus {
	out := make([]PathStatus, 0, len(ps))
	for _, p := range ps {
		out = append(out, PathStatus{
			ID: int(p.ID), Local: p.Local, Remote: p.Remote, Announced: p.Announced, Unproven: p.Unproven, State: p.State.String(), RTTMicros: p.RTT.Microseconds(),
			BytesSent: p.BytesSent, BytesReceived: p.BytesReceived, ResentFrames: p.ResentFrames, Reason: p.Reason, Since: p.Since,
			Rate: p.Rate, UnackedBytes: p.UnackedBytes,
		})
	}
	return out
}

// asksPrefix is for what members ask each other beside the data flow.
const asksPrefix = "mirror-members/"

// ask connects to another member for one question.
func (t *portTransport) ask(ctx context.Context, addresses []string, question []byte) ([]byte, error) {
	p, err := t.asks.Open(ctx, dataport.PortConfig{Target: addresses, Switch: dataport.Manual})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for p.Session() == nil {
		why, failed := "", 0
		paths := p.Stats().Paths
		for _, s := range paths {
			why = cmp.Or(why, s.Reason)
			if s.State == dataport.PathBackoff { // tried, in vain
				failed++
			}
		}
		over := len(paths) > 0 && failed == len(paths)
		select {
		case <-again.C:
		case <-ctx.Done():
			over = true
		}
		if over {
			return nil, fmt.Errorf("no connection to %s%s", addresses[0], reasonSuffix(why))
		}
	}
	return p.Call(ctx, question)
}

// askClient answers what other members ask.
type askClient struct{ a *Agent }

func (c askClient) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) {
	if !m.Session.Peer().Inbound {
		return nil, nil
	}
	return c.a.onAsked(ctx, m.Payload)
}

func (askClient) OnEvent(dataport.Event) {}

func (t *portTransport) close() error {
	t.asks.Close()
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
	x := portEvent{text: e.Reason, target: e.Target, follower: -1, by: e.By, generation: e.Generation}
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
	dataport.Suspended: portSuspended, dataport.Resumed: portResumed, dataport.Fenced: portFenced,
}
