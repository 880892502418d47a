package dataport

import (
	"math/rand/v2"
	"net"
	"net/netip"
)

// door bounds the connections that have not said yet who they are, and sees to it that a flood of them does not keep a
// peer out. It is guarded by the node's mutex; a host is an IPv4 address or an IPv6 /64.
//
//   - A host may have perHost of them. One more takes the place of one of its own, at random: a handshake takes
//     milliseconds and has good chances to live that long, while those that were there first would hold on to their
//     places for the whole of their deadline.
//   - Strangers may have most of them together. Then a new one takes the place of one of the host that has the most.
//   - Hosts that a peer has come from before, proved by its key, have as many places again for themselves.
type door struct {
	most, perHost int
	waiting       map[net.Conn]doorPlace
	hosts         map[netip.Prefix]int // how many wait, by host
	friends       map[netip.Prefix]struct{}
	recent        []netip.Prefix // the friends, the newest last
}

type doorPlace struct {
	host   netip.Prefix
	friend bool
}

const maxFriends = 256

func newDoor(most, perHost int) door {
	return door{
		most: most, perHost: perHost, waiting: map[net.Conn]doorPlace{}, hosts: map[netip.Prefix]int{}, friends: map[netip.Prefix]struct{}{},
	}
}

// hostOf returns the host of an address; what is no IP address (a network in memory) is all one host.
func hostOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // bits fit
	return p
}

// admit lets c wait and returns the connections that have to go for it: none, one, or two when the host became a friend
// while others of its connections waited among the strangers.
func (d *door) admit(c net.Conn) (outs []net.Conn) {
	p := doorPlace{host: hostOf(c.RemoteAddr())}
	_, p.friend = d.friends[p.host]
	for {
		same := 0
		for _, q := range d.waiting {
			if q.friend == p.friend {
				same++
			}
		}
		var out net.Conn
		switch {
		case d.hosts[p.host] >= d.perHost:
			out = d.oneOf(p.host)
		case same >= d.most:
			out = d.oneOf(d.largest(p.friend))
		default:
			d.waiting[c] = p
			d.hosts[p.host]++
			return outs
		}
		d.leave(out)
		outs = append(outs, out)
	}
}

// largest returns the host that has the most places of one kind; of several, any one.
func (d *door) largest(friend bool) (found netip.Prefix) {
	has := map[netip.Prefix]int{}
	for _, p := range d.waiting {
		if p.friend == friend {
			has[p.host]++
		}
	}
	most, ties := 0, 0
	for host, n := range has {
		if n > most {
			most, ties = n, 0
		}
		if n == most {
			if ties++; rand.IntN(ties) == 0 {
				found = host
			}
		}
	}
	return found
}

func (d *door) oneOf(host netip.Prefix) (found net.Conn) {
	seen := 0
	for c, p := range d.waiting {
		if p.host != host {
			continue
		}
		if seen++; rand.IntN(seen) == 0 {
			found = c
		}
	}
	return found
}

// leave ends c's wait, however it ended. It may be called again.
func (d *door) leave(c net.Conn) {
	p, ok := d.waiting[c]
	if !ok {
		return
	}
	delete(d.waiting, c)
	if d.hosts[p.host]--; d.hosts[p.host] == 0 {
		delete(d.hosts, p.host)
	}
}

// befriend notes that a peer has proved its key from c's host. Of too many friends the oldest is forgotten. Connections
// of the host that wait right now stay among the strangers.
func (d *door) befriend(c net.Conn) {
	host := hostOf(c.RemoteAddr())
	if _, ok := d.friends[host]; ok {
		return
	}
	d.friends[host] = struct{}{}
	if d.recent = append(d.recent, host); len(d.recent) > maxFriends {
		delete(d.friends, d.recent[0])
		d.recent = d.recent[1:]
	}
}
