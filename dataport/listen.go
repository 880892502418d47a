package dataport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// listens is where a node listens, and what of it the peers are told.
type listens struct {
	version atomic.Uint64 // of list: grows with every change; changed with mu held

	mu     sync.Mutex // leaf: guards the fields below
	closed bool
	open   []*listener
	list   []string
	host   []netip.Prefix // the addresses of this host with their subnets, as last seen
}

type listener struct {
	net.Listener
	asked string // the address as it was given
	seen  bool   // the host has had this address: when it loses it, peers are not sent there
}

// Listen has the node listen at one more address (HOST:PORT, port 0: any that is free) and returns it with the port that
// it has. An IPv4 wildcard (0.0.0.0) is for IPv4 only, an IPv6 one ([::]) and an empty host for both. Peers are told at once.
func (n *Node) Listen(addr string) (string, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", fmt.Errorf("dataport: listen address %q: %w (want HOST:PORT)", addr, err)
	}
	c, err := n.conf.ListenFunc(addr)
	if err != nil {
		return "", fmt.Errorf("dataport: listen on %s: %w: another process may have this address, or the host does not; choose another one", addr, err)
	}
	l := &listener{Listener: c, asked: addr}
	n.listens.mu.Lock()
	if n.listens.closed {
		n.listens.mu.Unlock()
		_ = l.Close()
		return "", ErrClosed
	}
	n.listens.open = append(n.listens.open, l)
	n.tasks.start(func() { n.acceptFrom(l) })
	n.listens.mu.Unlock()
	n.tellPeers()
	return l.Addr().String(), nil
}

// Unlisten ends listening at an address, as it was given to Listen or as Addrs shows it. Peers are told; paths that came
// in by it stay until the peer drains them.
func (n *Node) Unlisten(addr string) error {
	n.listens.mu.Lock()
	i := slices.IndexFunc(n.listens.open, func(l *listener) bool { return l.asked == addr || l.Addr().String() == addr })
	if i < 0 {
		n.listens.mu.Unlock()
		return fmt.Errorf("unlisten %s: %w", addr, ErrNotListening)
	}
	l := n.listens.open[i]
	n.listens.open = slices.Delete(n.listens.open, i, i+1)
	n.listens.mu.Unlock()
	err := l.Close()
	n.tellPeers()
	return err
}

// Addrs returns the addresses the node listens on; port 0 is resolved.
func (n *Node) Addrs() []string {
	n.listens.mu.Lock()
	defer n.listens.mu.Unlock()
	addrs := make([]string, 0, len(n.listens.open))
	for _, l := range n.listens.open {
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// Announced returns the addresses that peers are told, at most 12: those of Addrs, and for a wildcard the unicast
// addresses of this host instead; without those that this host has lost.
func (n *Node) Announced() []string { return slices.Clone(n.listens.announced().list) }

func (a *listens) announced() addrList {
	a.mu.Lock()
	defer a.mu.Unlock()
	return addrList{a.version.Load(), a.list} // list is replaced, never changed
}

// tellPeers works out what is announced and tells every session's peer when it is something else.
func (n *Node) tellPeers() {
	if !n.listens.update() {
		return
	}
	for _, s := range n.sessionsOf(nil) {
		s.spread()
	}
}

func (a *listens) update() (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	add := func(text string) {
		if len(list) < maxAddrs && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	for _, l := range a.open { // what was named comes before what a wildcard stands for: the list is bounded
		at, err := netip.ParseAddrPort(l.Addr().String())
		if err == nil && at.Addr().IsUnspecified() {
			continue
		}
		here := err == nil && a.hasLocked(at.Addr())
		if l.seen = l.seen || here; here || !l.seen {
			add(l.Addr().String())
		}
	}
	for _, l := range a.open {
		if at, err := netip.ParseAddrPort(l.Addr().String()); err == nil && at.Addr().IsUnspecified() {
			for _, ip := range unicast(a.host, at.Addr().Is4()) {
				add(netip.AddrPortFrom(ip, at.Port()).String())
			}
		}
	}
	if slices.Equal(list, a.list) {
		return false
	}
	a.list = list
	a.version.Add(1)
	return true
}

// unicast returns the addresses of a host that others may reach it at. Link-local and loopback ones only where there is
// nothing better, and link-local IPv6 never: it means nothing without an interface, which is the peer's own affair.
func unicast(host []netip.Prefix, only4 bool) (l []netip.Addr) {
	for _, fits := range []func(netip.Addr) bool{
		func(a netip.Addr) bool { return a.IsGlobalUnicast() },
		func(a netip.Addr) bool { return a.Is4() && a.IsLinkLocalUnicast() },
		netip.Addr.IsLoopback,
	} {
		for _, p := range host {
			if a := p.Addr(); fits(a) && (a.Is4() || !only4) {
				l = append(l, a)
			}
		}
		if len(l) > 0 {
			break
		}
	}
	return l
}

func (a *listens) hasLocked(ip netip.Addr) bool {
	ip = ip.Unmap()
	return slices.ContainsFunc(a.host, func(p netip.Prefix) bool { return p.Addr() == ip })
}

func (a *listens) isOwn(ip netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hasLocked(ip)
}

// hostAddrs returns the addresses of this host's interfaces.
func hostAddrs() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	l := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			l = append(l, p)
		}
	}
	return l, nil
}

// hostPause is how often the host's addresses are looked at. Looking costs one question to the kernel (some 50 µs);
// netlink would tell a change at once, but a path across an address that went away takes PathDownAfter anyway to be
// known as lost, it differs on every system, and what it says has to be read again in full after an overrun.
const hostPause = time.Second

func (n *Node) watchHost() {
	t := time.NewTicker(hostPause)
	defer t.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-t.C:
			n.lookAtHost()
		}
	}
}

// lookAtHost takes the host's addresses as they are now. When they have changed the peers are told, and paths that wait
// try again at once.
func (n *Node) lookAtHost() {
	host, err := n.conf.HostAddrs()
	if err != nil {
		n.conf.Log.Warn().Err(err).Msg("addresses of this host")
		return // what was known stays
	}
	host = slices.Clone(host)
	for i, p := range host {
		host[i] = netip.PrefixFrom(p.Addr().Unmap().WithZone(""), p.Bits())
	}
	slices.SortFunc(host, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	n.listens.mu.Lock()
	same := slices.Equal(host, n.listens.host)
	n.listens.host = host
	n.listens.mu.Unlock()
	if same {
		return
	}
	n.tellPeers()
	for _, p := range n.ports() {
		p.mu.Lock()
		for _, sl := range p.slots {
			if !sl.well() {
				sl.hurry()
			}
		}
		p.mu.Unlock()
		p.newsDue()
	}
}

func (n *Node) ports() (l []*Port) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.clients {
		l = append(l, r.portsNow()...)
	}
	return l
}

// from returns the local address for a connection to remote: of LocalAddrs one whose subnet holds it, else, and among
// several, they take turns. Those that the host has not got just now are left out. "": the kernel chooses.
func (n *Node) from(remote string, turn int) string {
	locals := n.conf.LocalAddrs
	if len(locals) == 0 {
		return ""
	}
	at, err := netip.ParseAddrPort(remote)
	to := at.Addr().Unmap()
	n.listens.mu.Lock()
	host := n.listens.host
	n.listens.mu.Unlock()
	var here, kin, near []string
	for _, text := range locals {
		ip, e := netip.ParseAddr(text)
		subnet, ok := subnetOf(host, ip.Unmap())
		if e != nil || !ok {
			continue
		}
		here = append(here, text)
		if err == nil && ip.Unmap().Is4() == to.Is4() {
			kin = append(kin, text)
			if subnet.Contains(to) {
				near = append(near, text)
			}
		}
	}
	for _, l := range [][]string{near, kin, here} {
		if len(l) > 0 {
			return l[turn%len(l)]
		}
	}
	return locals[turn%len(locals)] // the error of binding it says more than silence
}

func subnetOf(host []netip.Prefix, ip netip.Addr) (netip.Prefix, bool) {
	if ip.Is4() && ip.IsLoopback() { // all of 127.0.0.0/8 is there, though one address of it is listed
		return netip.PrefixFrom(ip, 8), true
	}
	for _, p := range host {
		if p.Addr() == ip {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func listenTCP(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	network := "tcp"
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		network = "tcp4" // else the wildcard of IPv4 would be one of both
	}
	return net.Listen(network, addr)
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
		c = n.fit(c)
		n.mu.Lock()
		if n.closed {
			n.mu.Unlock()
			_ = c.Close()
			continue
		}
		outs := n.door.admit(c)
		n.tasks.start(func() { n.serve(c) })
		n.mu.Unlock()
		for _, out := range outs {
			_ = out.Close()
		}
	}
}
