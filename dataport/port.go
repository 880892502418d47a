package dataport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// SwitchMode says who starts a switch-over.
type SwitchMode uint8

// The switch modes.
const (
	Manual SwitchMode = iota // the client is told and calls Switch; nothing goes to a backup before
	Auto                     // the port goes to the next backup by itself; never back
)

func (m SwitchMode) String() string {
	if m == Auto {
		return "auto"
	}
	return "manual"
}

// PortConfig says where a port connects to.
type PortConfig struct {
	// Target has the addresses (HOST:PORT) of one host: at least one path to each.
	Target []string
	// Backups are further targets, in order, each with the addresses of one host.
	Backups [][]string
	Switch  SwitchMode
	// Scheduler spreads frames over the paths. Nil: LeastCompletion.
	Scheduler Scheduler
	// ActivePaths is how many paths carry data at once; the others stand by, connected and watched, and take over at
	// the moment one of these is suspect or lost. 0: as many as the Scheduler says, else all.
	ActivePaths int
	// Paths is how many paths to keep, when more than the target has addresses: they go round the addresses.
	Paths int
	// UseAnnounced: also connect to the addresses that the target's node says it listens on, so that one seed address suffices.
	// Paths to them come and go with the addresses; those to Target stay.
	UseAnnounced bool
	// Compression of what the port sends. "": none. The other direction is the peer's choice.
	Compression Compression
	// Bandwidth limits what the port sends; Port.SetBandwidth changes it.
	Bandwidth Bandwidth
}

// Validate says what is wrong with the configuration.
func (c *PortConfig) Validate() error {
	for i, addrs := range append([][]string{c.Target}, c.Backups...) {
		name := "target"
		if i > 0 {
			name = fmt.Sprintf("backup %d", i)
		}
		if len(addrs) == 0 {
			return fmt.Errorf("dataport: %s has no address: want HOST:PORT[,HOST:PORT…]", name)
		}
		for _, a := range addrs {
			if _, _, err := net.SplitHostPort(a); err != nil {
				return fmt.Errorf("dataport: %s address %q: %w (want HOST:PORT)", name, a, err)
			}
		}
	}
	if c.Switch > Auto {
		return fmt.Errorf("dataport: switch mode %d is neither manual nor auto", c.Switch)
	}
	if c.ActivePaths < 0 {
		return fmt.Errorf("dataport: %d active paths: want 0 (all) or more", c.ActivePaths)
	}
	return c.Compression.validate()
}

// Port connects a client to one target at a time, out of an ordered list, over several paths. It stays the same handle
// over path losses, new sessions and switch-overs, until Close. All methods may be called by several goroutines and from callbacks.
type Port struct {
	reg   *Registration
	node  *Node
	conf  PortConfig
	id    uint64
	tasks tasks
	done  chan struct{} // closed by Close
	well  atomic.Int32  // active and standby paths of the session, kept by the session
	limit limiter

	mu       sync.Mutex // guards the fields below; see the lock order at Session
	targets  [][]string
	index    int
	epoch    int // grows with every switch: what belongs to an older one is void
	slots    []*slot
	lastPath PathID
	sess     *Session
	opening  *opening      // a slot is opening a session; the others wait for change, or take over
	overtook int           // how often in a row one did so
	change   chan struct{} // closed and replaced when sess, opening or epoch changes
	lastLife time.Duration // without a session: when waiting for one began
	declared bool          // TargetUnreachable was told
	machine  portMachine
	since    time.Time
	reason   string
	refused  string         // last PeerRefused told
	arrived  int            // target of the last session
	peers    map[int]uint64 // last incarnation by target
	sessions uint64
	fenced   uint64 // the generation that fences it, 0: none

	known   map[int]peerIdentity // who the targets turned out to be
	news    chan struct{}        // capacity 1: look at what the peer announces
	shunned map[string]bool      // announced addresses that the client does not want
}

// Open makes a port. It returns at once and connects in the background; events tell how that goes. ctx only guards the call itself.
func (r *Registration) Open(ctx context.Context, c PortConfig) (*Port, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &Port{
		reg: r, node: r.node, conf: c, id: randomID(), done: make(chan struct{}), change: make(chan struct{}),
		targets: append([][]string{c.Target}, c.Backups...), peers: map[int]uint64{}, known: map[int]peerIdentity{},
		news: make(chan struct{}, 1), shunned: map[string]bool{}, since: time.Now(), lastLife: r.node.clock.now(),
	}
	p.limit.set(c.Bandwidth, time.Now())
	nodeClosed := r.node.isClosed()
	p.mu.Lock() // until its goroutines run: who closes it waits for them
	defer p.mu.Unlock()
	r.mu.Lock()
	closing := r.closing || nodeClosed
	if !closing {
		r.ports[p] = struct{}{}
	}
	r.mu.Unlock()
	if closing {
		return nil, ErrClosed
	}
	p.startSlots()
	p.tasks.start(p.supervise)
	if c.UseAnnounced {
		p.tasks.start(p.follow)
	}
	return p, nil
}

// Send queues a message on the current session; ErrNotConnected when there is none. See Session.Send.
func (p *Port) Send(ctx context.Context, parts ...[]byte) (*Receipt, error) {
	s, err := p.current()
	if err != nil {
		return nil, err
	}
	return s.Send(ctx, parts...)
}

// Call sends a message on the current session and waits for the reply. See Session.Call.
func (p *Port) Call(ctx context.Context, parts ...[]byte) ([]byte, error) {
	s, err := p.current()
	if err != nil {
		return nil, err
	}
	return s.Call(ctx, parts...)
}

func (p *Port) current() (*Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.machine.base == PortIsClosed:
		return nil, ErrClosed
	case p.fenced != 0:
		return nil, ErrFenced
	case p.sess == nil:
		return nil, ErrNotConnected
	}
	return p.sess, nil
}

// Session returns the current session, nil when there is none.
func (p *Port) Session() *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sess
}

// State returns the port's state.
func (p *Port) State() PortState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stateLocked()
}

func (p *Port) stateLocked() PortState {
	in := portAllPathsUp
	if int(p.well.Load()) < p.kept(nil) {
		in = portPathMissing
	}
	p.step(in, "")
	return p.machine.state()
}

// kept counts the paths that are to be up, but for one: all but those on their way out, and those to announced addresses
// from the first time that they were. p.mu is held.
func (p *Port) kept(but *slot) (n int) {
	for _, sl := range p.slots {
		if sl != but && !sl.removed && !sl.rec.unproven() {
			n++
		}
	}
	return n
}

// step feeds the state machine.
func (p *Port) step(in portInput, reason string) {
	if p.machine.on(in) {
		p.since, p.reason = time.Now(), reason
	}
}

// Target returns the index of the current target (0 primary, 1… backups) and its first address.
func (p *Port) Target() (int, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index, p.targets[p.index][0]
}

// Stats returns a snapshot.
func (p *Port) Stats() PortStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := PortStats{State: p.stateLocked(), Since: p.since, Reason: p.reason, Target: p.targets[p.index][0], Index: p.index, Sessions: p.sessions, Fenced: p.fenced}
	st.Bandwidth = p.limit.stats(time.Now())
	for _, sl := range p.slots {
		if path := sl.rec.stats(); !sl.removed || path.State == PathDraining {
			st.Paths = append(st.Paths, path)
		}
	}
	if p.sess != nil {
		st.Session = p.sess.Stats()
	}
	return st
}

// Switch moves the data flow to target to (0 primary, 1… backups, -1 the next in the list). The session ends, what it
// still holds fails with ErrSessionLost, and a new one begins when the other target answers. It returns when the switch
// has begun; events tell how it goes on.
func (p *Port) Switch(ctx context.Context, to int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.machine.base == PortIsClosed {
		return ErrClosed
	}
	if p.fenced != 0 {
		return fmt.Errorf("switch: generation %d: %w", p.fenced, ErrFenced)
	}
	if to == -1 {
		to = p.index + 1
	}
	switch {
	case to < 0 || to >= len(p.targets):
		return fmt.Errorf("switch to %d: %w: it has a primary (0) and %d backups", to, ErrUnknownTarget, len(p.targets)-1)
	case to == p.index:
		return fmt.Errorf("switch to %d (%s): %w", to, p.targets[to][0], ErrAlreadyCurrent)
	}
	p.switchTo(to, "asked by the client")
	return nil
}

func (p *Port) event(k EventKind, reason string) {
	p.reg.emit(Event{Kind: k, Port: p, Target: p.targets[p.index][0], Reason: reason})
}

// AddPath adds a path to the current target, from local ("" or an IP) to remote (HOST:PORT), and dials it.
func (p *Port) AddPath(local, remote string) (PathID, error) {
	if _, _, err := net.SplitHostPort(remote); err != nil {
		return 0, fmt.Errorf("add path to %q: %w (want HOST:PORT)", remote, err)
	}
	if local != "" && net.ParseIP(local) == nil {
		return 0, fmt.Errorf("add path from %q: not an IP", local)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.machine.base == PortIsClosed:
		return 0, ErrClosed
	case len(p.slots) >= p.node.conf.MaxPaths:
		return 0, fmt.Errorf("add path to %s: %w (%d)", remote, ErrTooManyPaths, len(p.slots))
	}
	return p.startSlot(local, remote).rec.id, nil
}

// RemovePath takes a path away for good. It returns when the path gets nothing more; it is closed when everything on it
// is acknowledged, in both directions, PathDownAfter later at the latest: then what it held goes out on the others. The
// last path stays. Removing one that is on its way out is no error.
func (p *Port) RemovePath(id PathID) error {
	p.mu.Lock()
	i := slices.IndexFunc(p.slots, func(s *slot) bool { return s.rec.id == id })
	if i < 0 {
		p.mu.Unlock()
		return fmt.Errorf("remove path %d: %w", id, ErrUnknownPath)
	}
	sl, s := p.slots[i], p.sess
	if !sl.removed && p.kept(sl) == 0 {
		p.mu.Unlock()
		return fmt.Errorf("remove path %d: it is the last one: close the port instead", id)
	}
	p.shun(sl)
	sl.removed = true
	p.mu.Unlock()
	if s != nil {
		s.drainPath(id, "removed")
	}
	sl.cancel()
	return nil
}

// ResetPath closes a path's connection and dials it again at once. Nothing is lost and nothing comes twice.
func (p *Port) ResetPath(id PathID) error {
	p.mu.Lock()
	i := slices.IndexFunc(p.slots, func(s *slot) bool { return s.rec.id == id && !s.removed })
	if i < 0 {
		p.mu.Unlock()
		return fmt.Errorf("reset path %d: %w", id, ErrUnknownPath)
	}
	p.slots[i].hurry()
	s := p.sess
	p.mu.Unlock()
	if s != nil {
		s.cutPath(id, "reset")
	}
	return nil
}

func (s *Session) cutPath(id PathID, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.paths {
		if q.id == id {
			s.losePath(q, reason)
			return
		}
	}
}

// Suspend holds messages back: Sends are accepted until the window is full, paths and session stay up, and the port
// does not switch by itself.
func (p *Port) Suspend() error { return p.hold(true) }

// Resume lets them go again.
func (p *Port) Resume() error { return p.hold(false) }

func (p *Port) hold(on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.machine.base == PortIsClosed {
		return ErrClosed
	}
	in, kind := portSuspend, Suspended
	if !on {
		in, kind = portResume, Resumed
	}
	if p.machine.suspended == on {
		return nil
	}
	p.step(in, "asked by the client")
	p.event(kind, "")
	if p.sess != nil {
		p.sess.hold(on)
	}
	p.changed()
	return nil
}

func (s *Session) hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.hold = on
	s.dispatch()
}

// Close ends the port: the peer is told, open receipts fail, PortClosed is its last event. It waits for its goroutines
// but not for callbacks. It may be called twice.
func (p *Port) Close() error {
	p.mu.Lock()
	first := p.machine.base != PortIsClosed
	s := p.sess
	if first {
		p.step(portClose, "closed by the client")
		p.epoch++
		if s != nil {
			s.end("port closed", endQuietly)
		}
		for _, sl := range p.slots {
			sl.cancel()
		}
		close(p.done)
		p.changed()
		p.event(PortClosed, "")
	}
	p.mu.Unlock()
	p.reg.mu.Lock()
	delete(p.reg.ports, p)
	p.reg.mu.Unlock()
	p.tasks.wait()
	if s != nil {
		s.wait()
	}
	return nil
}

var errVoid = errors.New("the port has moved on")
