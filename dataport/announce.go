package dataport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// How the addresses of a node get to its peers. Every hello carries the list that is true when it is sent, so a new
// path or session is told by itself; a change goes out on every path of every session (frameAddrs), and a path that dies
// before it has carried it is told by the hello that brings it back. Frames of different paths overtake each other: the
// list has a version that grows while the node lives, and a session takes no older one.
//
// A port with UseAnnounced keeps a path to each of its peer's addresses beside those that were configured. What a peer
// says may be wrong, or malicious as far as its key allows: names are not resolved, addresses that cannot lead to
// another host are dropped (see usable), and such a path joins the session it was announced in, or opens one to the very
// node that announced it, never to another. Until it has been up once its failures concern nobody: they are in its stats.

// addrList is a node's addresses. version 0: nothing was told yet.
type addrList struct {
	version uint64
	list    []string
}

func (a addrList) append(b []byte) []byte {
	return appendList(binary.LittleEndian.AppendUint64(b, a.version), a.list)
}

func (r *reader) addrs() addrList { return addrList{version: r.u64(), list: r.list()} }

func decodeAddrs(b []byte) (addrList, error) {
	r := &reader{b: b}
	a := r.addrs()
	if r.bad || len(r.b) != 0 || a.version == 0 {
		return a, fmt.Errorf("%w: addresses in %d bytes that do not fit", ErrProtocol, len(b))
	}
	return a, nil
}

// heardFrom takes what the peer says about its addresses on a path to or from via. s.mu is held.
func (s *Session) heardFrom(a addrList, via string) {
	if a.version <= s.news.version {
		return
	}
	s.news, s.newsVia = a, via
	if s.port != nil {
		s.port.newsDue()
	}
}

func (s *Session) heard(a addrList, via string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heardFrom(a, via)
}

// PeerAddrs returns where the peer says that it listens, as it says it.
func (s *Session) PeerAddrs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.news.list)
}

// spread has every path tell the peer what it has not been told yet.
func (s *Session) spread() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.paths {
		p.poke()
	}
}

// addrsDue returns the list that this path has not carried yet. s.mu is held.
func (p *path) addrsDue() []byte {
	if p.told == p.s.node.listens.version.Load() {
		return nil
	}
	a := p.s.node.listens.announced()
	p.told = a.version
	return a.append(nil)
}

// usable returns the addresses of a peer that may lead to it, in one form and each once: no names, nothing unspecified
// or multicast; what means this host or this cable (loopback, link-local, our own addresses) only when the path that
// brought the list is of that kind too.
func (n *Node) usable(list []string, via string) (l []string) {
	from, _ := netip.ParseAddrPort(via)
	near := from.Addr().Unmap()
	same := near.IsLoopback() || n.listens.isOwn(near)
	for _, text := range list {
		a, err := netip.ParseAddrPort(text)
		ip := a.Addr().Unmap()
		switch {
		case err != nil || a.Port() == 0 || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		case ip.IsLoopback() && !same, ip.IsLinkLocalUnicast() && !near.IsLinkLocalUnicast(), n.listens.isOwn(ip) && !same:
		default:
			if t := netip.AddrPortFrom(ip, a.Port()).String(); !slices.Contains(l, t) {
				l = append(l, t)
			}
		}
	}
	return l
}

// plainAddr brings an address into the form of usable; what is not an IP and a port stays.
func plainAddr(text string) string {
	if a, err := netip.ParseAddrPort(text); err == nil {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
	}
	return text
}

// newsDue has the port look at its peer's addresses. Any lock may be held.
func (p *Port) newsDue() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// follow keeps the paths of a port in step with its peer's addresses. It has its own goroutine: removing a path may take
// a while, and must not hold up the path that brought the news.
func (p *Port) follow() {
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-p.news:
		}
		// A peer that changes its mind all the time gets us to dial so often and no oftener.
		select {
		case <-p.done:
			return
		case <-pace.C:
		}
		pace.Reset(p.node.conf.Timing.BackoffMin)
		for _, id := range p.takeNews() {
			_ = p.RemovePath(id) // the last one stays
		}
	}
}

// takeNews starts paths to addresses that are new and returns those whose address has gone. The only path that is up
// stays until another one is: the peer may have stopped listening there, yet it still talks to us.
func (p *Port) takeNews() (gone []PathID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sess
	if s == nil || p.machine.base == PortIsClosed {
		return nil
	}
	s.mu.Lock()
	news, via := s.news, s.newsVia
	s.mu.Unlock()
	list := p.node.usable(news.list, via)
	for a := range p.shunned {
		if !slices.Contains(list, a) {
			delete(p.shunned, a)
		}
	}
	for _, sl := range p.slots {
		if !sl.announced || sl.removed || slices.Contains(list, sl.remote) && !p.configured(sl.remote) {
			continue
		}
		if sl.well() && !slices.ContainsFunc(p.slots, func(o *slot) bool { return o != sl && !o.removed && !slices.Contains(gone, o.rec.id) && o.well() }) {
			continue
		}
		sl.leaving = true
		gone = append(gone, sl.rec.id)
	}
	for _, a := range list {
		known := p.shunned[a] || p.configured(a) || slices.ContainsFunc(p.slots, func(sl *slot) bool { return !sl.removed && sl.remote == a })
		if !known && len(p.slots)-len(gone) < p.node.conf.MaxPaths {
			p.startAnnounced(a)
		}
	}
	return gone
}

// configured reports whether a path that was not announced leads to an address: by its name, or as it turned out.
func (p *Port) configured(addr string) bool {
	return slices.ContainsFunc(p.slots, func(sl *slot) bool {
		return !sl.announced && (plainAddr(sl.remote) == addr || plainAddr(sl.rec.stats().Remote) == addr)
	})
}

func (sl *slot) well() bool { return sl.rec.stats().State.well() }

// startAnnounced begins a path to an announced address. p.mu is held.
func (p *Port) startAnnounced(remote string) {
	rec := p.newRecord("", remote)
	rec.announced = true
	p.launch(&slot{remote: remote, rec: rec, announced: true})
}

// shun: a path to an announced address that the client removed does not come back by itself, until the address has
// been away. p.mu is held.
func (p *Port) shun(sl *slot) {
	if sl.announced && !sl.removed && !sl.leaving {
		p.shunned[sl.remote] = true
	}
}

// quietBackoff is how much longer an announced address that has never answered is left alone.
const quietBackoff = 15

// patience is the longest pause between two attempts of a path.
func (sl *slot) patience() time.Duration {
	most := sl.p.node.conf.Timing.BackoffMax
	if sl.rec.unproven() {
		most *= quietBackoff
	}
	return most
}

// peerIdentity is who answered at a target: its key, and over plain TCP no more than its name.
type peerIdentity struct{ name, key string }

var errElsewhere = errors.New("the address leads to another node")

// mayOpen: a session is opened where the configuration says, and at an announced address with the node that announced
// it: another one, a backup perhaps, has that address too. p.mu is held.
func (sl *slot) mayOpen(w *wire) bool {
	return !sl.announced || sl.p.known[sl.p.index].key == w.keyText()
}

// elsewhere: the answer that a session is not known came from another node than the session's. Of a restarted peer it
// cannot be told over plain TCP, so an announced address is not believed while the session is well.
func (sl *slot) elsewhere(s *Session, a *hello) bool {
	if a.incarnation == sl.p.node.incarnation {
		return true
	}
	return sl.announced && a.incarnation != s.peer.Incarnation && (a.name != s.peer.Name || s.peerKey == nil && s.hasPaths())
}

// dials notes where the connection that is being made comes from.
func (r *record) dials(local string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if local != "" {
		r.local = local
	}
}

// unproven: the peer told us of the address, and it has never been reached.
func (r *record) unproven() bool { return r.announced && !r.proved.Load() }
