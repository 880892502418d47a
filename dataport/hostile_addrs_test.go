package dataport

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func sendAddrs(t *testing.T, c net.Conn, id SessionID, body []byte) {
	t.Helper()
	h := header{typ: frameAddrs, session: id, client: clientID("test"), ack: 1, consumed: 1, payload: uint32(len(body)), payloadHash: sumOf(body)}
	b := make([]byte, headerBytes)
	h.encode(b)
	if _, err := c.Write(append(b, body...)); err != nil {
		t.Fatal(err)
	}
}

// A list that cannot be one ends the session of who sent it; what was known before stays.
func TestAddressesThatAreNone(t *testing.T) {
	many := addrList{9, slices.Repeat([]string{"10.0.0.1:7000"}, maxAddrs)}.append(nil)
	many[8]++ // one more than there may be
	many = append(many, many[9:9+2+13]...)
	for name, body := range map[string][]byte{
		"nothing":              {},
		"garbage":              []byte("GET / HTTP/1.1\r\n\r\n, and something more"),
		"too many":             many,
		"too long":             addrList{9, []string{strings.Repeat("x", maxAddrBytes)}}.append(nil)[:100],
		"without version":      addrList{0, []string{"10.0.0.1:7000"}}.append(nil),
		"with a tail":          append(addrList{9, []string{"10.0.0.1:7000"}}.append(nil), 0),
		"an address of 64 KiB": append(addrList{9, nil}.append(nil)[:8], 1, 255, 255),
	} {
		t.Run(name, func(t *testing.T) {
			n := plainNode(t, nil)
			c, id := dialHello(t, n)
			s := n.sessionsOf(nil)[0]
			before := s.PeerAddrs() // of its hello
			sendAddrs(t, c, id, body)
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the session goes on")
			}
			if err := s.Err(); !strings.Contains(err.Error(), "broke the protocol: addresses") {
				t.Errorf("it ended for another reason: %v", err)
			}
			if got := s.PeerAddrs(); len(before) == 0 || !slices.Equal(got, before) {
				t.Errorf("known: %v, before %v", got, before)
			}
		})
	}
}

// Frames of different paths overtake each other: the newest list stays, whichever comes last.
func TestAnOlderListComesLate(t *testing.T) {
	n := plainNode(t, nil)
	c, id := dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	sendAddrs(t, c, id, addrList{5, []string{"10.0.0.5:7000"}}.append(nil))
	sendAddrs(t, c, id, addrList{3, []string{"10.0.0.3:7000"}}.append(nil))
	sendAddrs(t, c, id, addrList{5, []string{"10.0.0.55:7000"}}.append(nil))
	// A ping behind them: its pong says that they were taken.
	h := header{typ: framePing, session: id, client: clientID("test"), seq: 77, ack: 1, consumed: 1, payloadHash: xxhashOfNothing}
	b := make([]byte, headerBytes)
	h.encode(b)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for h.typ != framePong {
		if _, err := readFull(c, b); err != nil {
			t.Fatal(err)
		}
		if err := h.decode(b, 1<<20); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(c, make([]byte, h.payload)); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.PeerAddrs(); !slices.Equal(got, []string{"10.0.0.5:7000"}) {
		t.Errorf("the list is %v, want that of version 5", got)
	}
}

func readFull(c net.Conn, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = c.Read(b[n:])
		n += m
	}
	return n, err
}

// Which addresses of a peer are dialled at all.
func TestUsableAddresses(t *testing.T) {
	n := plainNode(t, func(c *Config) {
		c.HostAddrs = func() ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("2001:db8::1/64")}, nil
		}
	})
	for _, row := range []struct {
		name, via string
		list      string
		want      string
	}{
		{"plain ones", "10.1.0.9:7400", "10.1.0.9:7400 10.2.0.9:7400 [2001:db8::9]:7400", "10.1.0.9:7400 10.2.0.9:7400 [2001:db8::9]:7400"},
		{"twice, in two forms", "10.1.0.9:7400", "10.1.0.9:7400 10.1.0.9:7400 [::ffff:10.1.0.9]:7400 [2001:DB8:0::9]:1 [2001:db8::9]:1", "10.1.0.9:7400 [2001:db8::9]:1"},
		{"names and garbage", "10.1.0.9:7400", "nyc:7400 localhost:22 10.1.0.9 :7400 10.1.0.9:http 10.1.0.9:99999 \x00 ::1:7400", ""},
		{"port 0", "10.1.0.9:7400", "10.1.0.9:0", ""},
		{"not one host", "10.1.0.9:7400", "0.0.0.0:7400 [::]:7400 224.0.0.1:7400 [ff02::1]:7400 255.255.255.255:7400 [::ffff:0.0.0.0]:7400", ""},
		{"this host, from elsewhere", "10.1.0.9:7400", "127.0.0.1:7400 127.9.9.9:7400 [::1]:7400 10.1.0.1:7400 [2001:db8::1]:7400 [::ffff:127.0.0.1]:7400", ""},
		{"this host, from itself", "127.0.0.1:7400", "127.0.0.1:7401 10.1.0.1:7400", "127.0.0.1:7401 10.1.0.1:7400"},
		{"this host, by its own address", "10.1.0.1:7400", "127.0.0.1:7401 10.1.0.1:7401", "127.0.0.1:7401 10.1.0.1:7401"},
		{"this cable, from elsewhere", "10.1.0.9:7400", "169.254.1.1:7400 [fe80::1]:7400 [fe80::1%eth0]:7400", ""},
		{"this cable, from there", "169.254.1.1:7400", "169.254.1.2:7400", "169.254.1.2:7400"},
		{"by a path without an IP", "target:1", "127.0.0.1:7400 10.2.0.9:7400", "10.2.0.9:7400"},
	} {
		if got := n.usable(strings.Fields(row.list), row.via); strings.Join(got, " ") != row.want {
			t.Errorf("%s: %v, want %s", row.name, got, row.want)
		}
	}
}

// A refusal that claims to fence, and does not, is a refusal like any other.
func TestAFenceThatIsNone(t *testing.T) {
	n := plainNode(t, nil)
	r := n.client("test")
	p := &Port{reg: r, change: make(chan struct{})}
	for name, row := range map[string]struct {
		own, told uint64
		history   byte
		code      RefuseCode
	}{
		"lower":             {5, 4, 0, RefusedFenced},
		"equal":             {5, 5, 0, RefusedFenced},
		"none":              {5, 0, 0, RefusedFenced},
		"another history":   {5, 9, 1, RefusedFenced},
		"another refusal":   {5, 9, 0, RefusedLimit},
		"we do not use any": {0, 9, 0, RefusedFenced},
	} {
		r.fence = fencing{own: row.own, seen: row.own}
		a := &hello{kind: helloRefused, code: row.code, generation: row.told, history: [16]byte{row.history}}
		if p.refusedBy(a) || r.fence.seen != row.own {
			t.Errorf("%s: fenced", name)
		}
	}
}

// Addresses may come and go for years in one session: a path that is removed gives its place back.
func TestPathNumbersDoNotRunOut(t *testing.T) {
	n := plainNode(t, func(c *Config) { c.MaxPaths = 2 })
	_, _ = dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	for id := PathID(2); id < 10*maxGone; id++ {
		if _, err := s.recordFor(id); err != nil {
			t.Fatalf("path %d: %v", id, err)
		}
		s.mu.Lock()
		s.peerGone(s.paths[0], id)
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recs) > 1 || len(s.gone) > maxGone || s.recs[0].id != 1 {
		t.Errorf("%d records, the first is of path %d", len(s.recs), s.recs[0].id)
	}
}

// A peer may join as soon as it has read our answer, before its first path is one here: it is the second all the same.
func TestAJoinWaitsForTheFirstPath(t *testing.T) {
	n := plainNode(t, nil)
	id := SessionID(randomID())
	s := newSession(n, n.client("test"), sessionSetup{id: id, maxMessage: 1 << 20, peer: PeerInfo{Name: "early", Inbound: true}})
	n.mu.Lock()
	n.sessions[id] = s
	n.mu.Unlock()
	connect := func() (*wire, net.Conn) {
		c, err := net.Dial("tcp", n.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		w, err := n.secure(t.Context(), c, true)
		if err != nil {
			t.Fatal(err)
		}
		return w, c
	}
	w, _ := connect()
	h := n.helloFor(helloJoin, nil, id, 2)
	h.client, h.incarnation = "test", randomID()
	h.proof = joinProof(s.secret, roleDials, w.bound(h.nonce), id, 2)
	if _, err := w.ask(h); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // for one that does not wait to be seen; one that does passes without it too
	if s.hasPaths() {
		t.Error("the second path is here before the first")
	}
	first, _ := connect()
	if _, err := s.addPath(first, &record{id: 1}, s.start); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(s.Stats().Paths) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the second path never came")
		}
	}
}
