package dataport

import (
	"net"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// caller is a connection that knows where it comes from and nothing else.
type caller struct {
	net.Conn
	from string
}

func (c *caller) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.from), 4711))
}

func from(ip string) *caller { return &caller{from: ip} }

func TestDoorOneHostCannotFillIt(t *testing.T) {
	d := newDoor(8, 3)
	for range 1000 {
		d.admit(from("192.0.2.1"))
	}
	if len(d.waiting) != 3 {
		t.Fatalf("a host has %d places of 3", len(d.waiting))
	}
	for _, ip := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"} {
		if out := d.admit(from(ip)); len(out) > 0 {
			t.Errorf("%s puts %v out, there is room", ip, out)
		}
	}
	if out := d.admit(from("192.0.2.7")); len(out) != 1 || out[0].(*caller).from != "192.0.2.1" {
		t.Errorf("the one to go is %v, want one of the host that has the most", out)
	}
	// One host is a whole /64, and an address within IPv6 is the one within IPv4.
	d = newDoor(8, 3)
	for range 4 {
		d.admit(from("2001:db8::1"))
		d.admit(from("2001:db8::2:1"))
		d.admit(from("::ffff:192.0.2.1"))
		d.admit(from("192.0.2.1"))
	}
	if len(d.waiting) != 6 || len(d.hosts) != 2 {
		t.Errorf("%d connections of %d hosts", len(d.waiting), len(d.hosts))
	}
}

// What came first does not hold its place against what comes later, nor the other way round.
func TestDoorIsFairWithinAHost(t *testing.T) {
	stayed := 0
	for range 2000 {
		d := newDoor(64, 16)
		for range 16 {
			d.admit(from("192.0.2.1"))
		}
		real := from("192.0.2.1")
		d.admit(real)
		for range 10 { // as many as come while it authenticates
			d.admit(from("192.0.2.1"))
		}
		if _, ok := d.waiting[real]; ok {
			stayed++
		}
	}
	if stayed < 850 || stayed > 1250 { // (15/16)¹⁰ is 0.52
		t.Errorf("of 2000 times it stayed %d", stayed)
	}
}

func TestDoorKeepsPlacesForFriends(t *testing.T) {
	d := newDoor(8, 4)
	d.befriend(from("198.51.100.1"))
	for i := range 200 {
		d.admit(from(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String()))
	}
	friend := from("198.51.100.1")
	if out := d.admit(friend); len(out) > 0 {
		t.Errorf("a friend puts %v out: it has a place of its own", out)
	}
	for i := range 200 {
		d.admit(from(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String()))
	}
	if _, ok := d.waiting[friend]; !ok {
		t.Error("strangers put a friend out")
	}
	for i := range maxFriends { // and the oldest friend is forgotten
		d.befriend(from(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()))
	}
	if len(d.friends) != maxFriends || len(d.recent) != maxFriends {
		t.Errorf("%d friends, %d in order", len(d.friends), len(d.recent))
	}
	if _, ok := d.friends[hostOf(friend.RemoteAddr())]; ok {
		t.Error("the oldest friend is still there")
	}
}

// Whatever comes and goes: the bounds hold, the counts are right, and the newest connection always gets its place.
func TestDoorBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, perHost := rapid.IntRange(1, 6).Draw(t, "most"), rapid.IntRange(1, 4).Draw(t, "per host")
		d := newDoor(most, perHost)
		var all []*caller
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 7).Draw(t, "host"))}).String()
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				d.befriend(from(ip))
			case 1:
				if len(all) > 0 {
					d.leave(all[rapid.IntRange(0, len(all)-1).Draw(t, "who")])
				}
			default:
				c := from(ip)
				all = append(all, c)
				outs := d.admit(c)
				if _, ok := d.waiting[c]; !ok {
					t.Fatal("the newest got no place")
				}
				for _, out := range outs {
					if _, ok := d.waiting[out]; ok {
						t.Fatal("who has to go still waits")
					}
				}
			}
			kinds, hosts := map[bool]int{}, map[netip.Prefix]int{}
			for _, p := range d.waiting {
				kinds[p.friend]++
				hosts[p.host]++
			}
			if kinds[true] > most || kinds[false] > most || len(hosts) != len(d.hosts) {
				t.Fatalf("%d friends and %d strangers of %d, %d hosts and %d counted", kinds[true], kinds[false], most, len(hosts), len(d.hosts))
			}
			for h, n := range hosts {
				if n > perHost || d.hosts[h] != n {
					t.Fatalf("%v has %d places of %d, %d counted", h, n, perHost, d.hosts[h])
				}
			}
		}
	})
}
