package dataport

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"
)

// Session is one incarnation of a port's connection to one target, seen from either side: ordered exactly-once delivery
// in both directions over whatever paths it has. It ends for good: there is no resuming into another one.
// All methods may be called by several goroutines.
//
// Lock order: Port.mu, Node.mu, Session.mu, then the leaves Registration.mu and record.mu.
type Session struct {
	id      SessionID
	node    *Node
	reg     *Registration
	port    *Port // nil: inbound
	portID  uint64
	peer    PeerInfo
	peerKey ed25519.PublicKey // nil over plain TCP
	secret  [32]byte
	sched   Scheduler
	maxMsg  int     // largest message the peer takes
	packer  *packer // nil: nothing is packed

	history    [16]byte // with generation: what the side that dials said when it opened the session
	generation uint64

	cancel context.CancelFunc
	ctx    context.Context // ends with the session
	handed context.Context // the same, for OnMessage: knows its session
	born   time.Duration
	begun  chan struct{} // closed by start
	done   chan struct{} // closed by end
	tasks  tasks

	mu    sync.Mutex // guards everything below, and the paths' fields
	paths []*path    // Active, Standby, Suspect and Draining
	recs  []*record  // of these and of the reserved ones
	gone  []PathID   // removed: dialling, the peer is still to be told; accepting, they may not come back
	ended bool
	err   error

	news    addrList // the newest that the peer said about its addresses
	newsVia string   // on a path with this remote address

	lastLife time.Duration // last sign of life on any path
	lastTick time.Duration

	out   sending
	in    receiving
	loads []PathLoad // scratch of dispatch
	ready []*path    // scratch of dispatch
	probe *path      // scratch of dispatch: may have a copy of the next new frame

	mostActive int         // how many paths carry data, 0: all
	candidates []candidate // scratch of elect
	elected    []bool      // scratch of elect

	counts Stats

	limitTimer *time.Timer // nil until the bandwidth limit first held something back
	throttled  bool        // it does so now
}

// sessionSetup is what a handshake settled.
type sessionSetup struct {
	id         SessionID
	port       *Port
	portID     uint64
	peer       PeerInfo
	peerKey    ed25519.PublicKey
	secret     [32]byte
	sched      Scheduler
	mostActive int // 0: as the scheduler says
	maxMessage uint32
	credit     uint64
	history    [16]byte
	generation uint64
	news       addrList
	newsVia    string

	compression Compression
	unpacks     packSet // the peer does
}

func newSession(n *Node, r *Registration, u sessionSetup) *Session {
	if u.sched == nil {
		u.sched = LeastCompletion()
	}
	s := &Session{
		id: u.id, node: n, reg: r, port: u.port, portID: u.portID, peer: u.peer, peerKey: u.peerKey, secret: u.secret,
		sched: u.sched, maxMsg: int(u.maxMessage), begun: make(chan struct{}), done: make(chan struct{}), mostActive: mostActive(u.mostActive, u.sched),
		packer:  newPacker(n.codec, u.compression, u.unpacks),
		history: u.history, generation: u.generation, news: u.news, newsVia: u.newsVia,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.handed = context.WithValue(s.ctx, handedBy{}, s)
	s.lastLife = n.clock.now()
	s.lastTick, s.born = s.lastLife, s.lastLife
	s.out = sending{next: 1, base: 1, peerConsumed: 1, credit: u.credit, calls: map[uint64]*call{}}
	s.in = receiving{next: 1, end: 1, consumed: 1, held: map[uint64]*inFrame{}, places: map[placeKey]*assembly{}, claimed: map[uint64]*assembly{}, granted: uint64(n.conf.ReceiveWindowBytes), wake: make(chan struct{}, 1)}
	return s
}

// start lets the session live. Its first path is added right after.
func (s *Session) start() {
	close(s.begun)
	s.tasks.start(s.deliver)
	s.tasks.start(s.keepAlive)
}

// hasBegun reports whether start was called.
func (s *Session) hasBegun() bool {
	select {
	case <-s.begun:
		return true
	default:
		return false
	}
}

// young reports whether the session began so recently that its end is a failed attempt to have one.
func (s *Session) young() bool { return s.node.clock.now()-s.born < s.node.conf.Timing.PathDownAfter }

// dials reports whether this side opened the session: then it decides about standby and removal.
func (s *Session) dials() bool { return s.port != nil }

// ID returns the session's id, the same on both sides.
func (s *Session) ID() SessionID { return s.id }

// Peer says who is on the other side.
func (s *Session) Peer() PeerInfo { return s.peer }

// Done is closed when the session has ended, and before any call or receipt fails for that reason.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns nil while the session lives, then why it ended (wraps ErrSessionLost).
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stats returns a snapshot.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.counts
	st.QueuedBytes = s.out.used
	sent := s.packer.stats()
	sent.ReceivedPacked, sent.ReceivedUnpacked = st.Compression.ReceivedPacked, st.Compression.ReceivedUnpacked
	st.Compression = sent
	st.BufferedBytes = int(s.in.cost - s.in.consumedCost)
	for _, r := range s.recs {
		st.Paths = append(st.Paths, r.stats())
	}
	return st
}

// event emits an event of this session. s.mu is held, so that the order of events is that of what they tell.
func (s *Session) event(k EventKind, id PathID, reason string) {
	s.reg.emit(Event{Kind: k, Port: s.port, Session: s, Path: id, Target: s.peer.Target, Reason: reason})
}

// fail ends the session from within and tells its port. No lock is held.
func (s *Session) fail(reason string, why endCause) {
	if s.end(reason, why) && s.port != nil {
		s.port.sessionEnded(s, reason, why)
	}
}

type endCause uint8

const (
	endQuietly     endCause = iota // the peer is told
	endUnreachable                 // no sign of life
	endByPeer                      // the peer closed it, or does not know it
	endRestarted                   // the peer has a new incarnation
	endProtocol                    // the peer broke the protocol
)

// end ends the session for good: events, receipts, calls, paths. It reports false when it had ended before. It waits
// for nothing; wait does.
func (s *Session) end(reason string, why endCause) bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.ended = true
	s.err = &SessionError{Session: s.id, Reason: reason}
	for _, r := range s.recs {
		r.over(reason)
	}
	for _, p := range s.paths {
		if why == endQuietly || why == endProtocol {
			p.closing = reason
			_ = p.w.raw.SetDeadline(time.Now().Add(goodbyeTime)) // also for a write that is blocked right now
			p.poke()
			continue
		}
		p.shut(why == endUnreachable)
	}
	s.paths = nil
	if s.hasBegun() { // else nobody was told that it is up
		if why == endRestarted {
			s.event(PeerRestarted, 0, reason)
		}
		s.event(SessionDown, 0, reason)
	}
	close(s.done) // before anything fails for it: who asks then why must find that it has ended
	s.failSending()
	s.dropReceived()
	if s.limitTimer != nil {
		s.limitTimer.Stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.node.dropSession(s)
	return true
}

// wait waits for all goroutines of an ended session, but for callbacks that are running.
func (s *Session) wait() { s.tasks.wait() }

// keepAlive is the session's heartbeat: it pings, watches the silence of every path and of the peer.
func (s *Session) keepAlive() {
	t := time.NewTicker(s.node.conf.Timing.Heartbeat)
	defer t.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-t.C:
		}
		if reason := s.tick(s.node.clock.now()); reason != "" {
			s.fail(reason, endUnreachable)
			return
		}
	}
}

// tick does one heartbeat at now. It returns a reason when the peer counts as unreachable.
func (s *Session) tick(now time.Duration) string {
	t := s.node.conf.Timing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return ""
	}
	// When this very tick is late the whole process stood still (SIGSTOP, starved of CPU): what the peer sent meanwhile
	// may lie unread in our sockets. It gets the same time again.
	if late := now - s.lastTick - t.Heartbeat; late > t.Heartbeat {
		s.lastLife = min(now, s.lastLife+late)
		for _, p := range s.paths {
			p.grant(now, late)
		}
	}
	s.lastTick = now
	for i := len(s.paths) - 1; i >= 0; i-- { // backwards: checkPath may remove the path
		p := s.paths[i]
		s.checkPath(p, now)
	}
	for _, p := range s.paths {
		s.lastLife = max(s.lastLife, p.heardAt())
		p.pingDue = true
		p.poke()
		p.judge(now)
		p.interrupt(now)
	}
	s.tellGone()
	s.rescue(now, false)
	s.dispatch()
	if silence := now - s.lastLife; silence >= t.UnreachableAfter {
		return fmt.Sprintf("no sign of life for %v on any path", silence.Round(time.Millisecond))
	}
	return ""
}

// checkPath moves a path between Active, Suspect and Down by what was heard on it. s.mu is held.
func (s *Session) checkPath(p *path, now time.Duration) {
	t := s.node.conf.Timing
	silence := now - p.heardAt()
	if silence >= t.PathDownAfter {
		s.lastLife = max(s.lastLife, p.heardAt())
		s.losePath(p, fmt.Sprintf("silent for %v", silence.Round(time.Millisecond)))
		return
	}
	silent := p.deaf || silence >= p.patience()
	p.silent = silent && !p.deaf // what is deaf to us is not silent: else both would wait for the other's word
	switch {
	case p.state == PathDraining:
		if silent {
			s.pathsChanged() // what it holds goes elsewhere
		}
		s.checkDrain(p, now)
	case silent:
		if p.state.well() {
			reason := fmt.Sprintf("silent for %v", silence.Round(time.Millisecond))
			if p.deaf {
				reason = "peer hears nothing on this path"
			}
			s.shift(p, pathSilent, reason)
			s.event(PathSuspect, p.id, reason)
			s.pathsChanged()
		}
	case s.shift(p, pathHeard, ""):
		s.elect(p, "heard again")
		s.pathsChanged()
	}
}

// addPath takes an authenticated connection as a path. A path of the same id that is still there is replaced: the
// peer would not dial again if it were any good, and a reserved one is filled. It reports false when the session has ended. before runs between the PathUp event and the first frame.
func (s *Session) addPath(w *wire, rec *record, before func()) (*path, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, s.err
	}
	for _, old := range s.paths {
		if old.id == rec.id {
			s.losePath(old, "replaced by a new connection")
			break
		}
	}
	rec, err := s.place(rec)
	if err != nil {
		return nil, err
	}
	p := newPath(s, w, rec)
	s.paths = append(s.paths, p)
	s.lastLife = max(s.lastLife, s.node.clock.now())
	rec.connected(w)
	s.elect(p, "")
	if before != nil {
		before()
	}
	s.tasks.start(p.writeLoop)
	s.tasks.start(p.readLoop)
	s.pathsChanged()
	return p, nil
}

// losePath takes a path out and closes it. s.mu is held.
func (s *Session) losePath(p *path, reason string) {
	in := pathFailed
	if p.state == PathDraining {
		in, reason = pathStop, "removed: "+reason
	}
	if s.takeOut(p, in, reason) {
		p.shut(true)
	}
}

// pathsChanged goes through what depends on the set of usable paths. s.mu is held.
func (s *Session) pathsChanged() {
	s.elect(nil, "")
	active, well := 0, 0
	for _, p := range s.paths {
		if p.state == PathActive {
			active++
		}
		if p.state.well() {
			well++
		}
	}
	for _, p := range s.paths {
		if p.stuck() && active > 0 {
			s.reclaim(p)
		}
	}
	s.askAck(nil)
	s.dispatch()
	if s.port != nil {
		s.port.pathsChanged(well)
	}
}

// pathFailed is called by a path's goroutines when their connection broke. No lock is held.
func (s *Session) pathFailed(p *path, err error) {
	s.mu.Lock()
	s.losePath(p, err.Error())
	s.mu.Unlock()
	p.shut(true)
}
