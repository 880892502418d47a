package dataport

import (
	"context"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"
)

// still is a node whose own timers stay out of the test: a heartbeat an hour, everything else in hours above.
func still(t *testing.T) (*Node, net.Conn, *Session) {
	t.Helper()
	n := plainNode(t, func(c *Config) {
		c.Timing.Heartbeat, c.Timing.SuspectAfter, c.Timing.PathDownAfter, c.Timing.UnreachableAfter = time.Hour, 4*time.Hour, 10*time.Hour, 20*time.Hour
	})
	c, _ := dialHello(t, n)
	return n, c, n.sessionsOf(nil)[0]
}

func (s *Session) stateOfFirst() PathState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.paths) == 0 {
		return PathLost
	}
	return s.paths[0].state
}

// A machine that lets every heartbeat wait for its turn: as long as the peer is heard there is no alarm, and when it is
// dead there is one all the same, later by what the machine was late.
func TestStarvedHeartbeats(t *testing.T) {
	for _, row := range []struct {
		name  string
		every time.Duration // the ticks come, instead of every hour
		down  time.Duration // PathDown of a dead peer
	}{
		{"punctual", time.Hour, 10 * time.Hour},
		{"a little late counts as punctual", 2 * time.Hour, 10 * time.Hour},
		{"late", 3 * time.Hour, 30 * time.Hour},      // of 3 hours 2 are given back
		{"very late", 7 * time.Hour, 70 * time.Hour}, // of 7 hours 6
	} {
		t.Run(row.name, func(t *testing.T) {
			n, _, s := still(t)
			s.mu.Lock()
			p := s.paths[0]
			s.mu.Unlock()
			at := n.clock.now()
			p.heard.Store(int64(at))
			s.mu.Lock()
			s.lastTick, s.lastLife, p.srtt = at, at, 1
			s.mu.Unlock()
			for range 50 {
				at += row.every
				p.heard.Store(int64(at - row.every/2)) // the peer's frame waits in the socket, and is read
				if reason := s.tick(at); reason != "" || s.stateOfFirst() != PathActive {
					t.Fatalf("alarm although the peer is heard: %q, path %v", reason, s.stateOfFirst())
				}
			}
			heard := at
			p.heard.Store(int64(heard))
			for s.stateOfFirst() != PathLost && at < heard+1000*time.Hour {
				at += row.every
				s.tick(at)
			}
			if d := at - heard; d < row.down || d >= row.down+row.every {
				t.Errorf("a dead peer's path is down after %v, want %v", d, row.down)
			}
		})
	}
}

// A sequence never wraps: the side that sends ends the session long before, the side that receives refuses.
func TestSequencesDoNotWrap(t *testing.T) {
	_, _, s := still(t)
	s.mu.Lock()
	s.out.next, s.out.base = maxSequence-1, maxSequence-1
	s.mu.Unlock()
	if _, err := s.Send(context.Background(), []byte("the last")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(context.Background(), []byte("one too many")); !errors.Is(err, ErrSessionLost) || !strings.Contains(err.Error(), "used up") {
		t.Errorf("send: %v", err)
	}
	if s.Err() == nil {
		t.Error("the session lives")
	}
	for _, seq := range []uint64{math.MaxUint64, math.MaxUint64 - 1, math.MaxUint64 - 2, 0} {
		n, c, s := still(t)
		s.mu.Lock()
		s.in.next, s.in.end, s.in.consumed = math.MaxUint64-2, math.MaxUint64-2, math.MaxUint64-2
		s.mu.Unlock()
		h := header{typ: frameData, flags: flagFirst | flagLast, session: s.id, client: clientID("test"), seq: seq, ack: 1, consumed: 1, payloadHash: xxhashOfNothing}
		b := make([]byte, headerBytes)
		h.encode(b)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		closedBy(t, c, 3*time.Second)
		if got := s.Stats(); got.MessagesReceived > 0 {
			t.Errorf("sequence %d was taken: %+v", seq, got)
		}
		s.mu.Lock()
		if s.in.next < math.MaxUint64-2 {
			t.Errorf("after sequence %d the next is %d", seq, s.in.next)
		}
		s.mu.Unlock()
		_ = n.Close()
	}
}

// Credit at its extremes: none, just enough, all there is, and back to less.
func TestCreditExtremes(t *testing.T) {
	for _, row := range []struct {
		name        string
		credit      uint64
		sizes, want []int // frames cut
	}{
		{"none", 0, []int{1}, nil},
		{"one too few", frameCost + 9, []int{10}, nil},
		{"just enough", frameCost + 10, []int{10}, []int{10}},
		{"an empty message", frameCost, []int{0}, []int{0}},
		{"not even an empty one", frameCost - 1, []int{0}, nil},
		{"a big one in parts", frameCost + minCutBytes, []int{1 << 20}, []int{minCutBytes}},
		{"too little for a worthwhile part", frameCost + minCutBytes - 1, []int{1 << 20}, nil},
		{"2^63", 1 << 63, []int{100, 200}, []int{100, 200}},
		{"all there is", math.MaxUint64, []int{100, 200}, []int{100, 200}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, _, s := still(t)
			s.mu.Lock()
			s.out.credit, s.maxMsg = row.credit, 1<<20
			s.mu.Unlock()
			for _, size := range row.sizes {
				if _, err := s.Send(context.Background(), make([]byte, size)); err != nil {
					t.Fatal(err)
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			var got []int
			for i := range s.out.frames.len() {
				got = append(got, s.out.frames.at(i).n)
			}
			if len(got) != len(row.want) {
				t.Fatalf("frames of %v bytes, want %v", got, row.want)
			}
			for i, n := range row.want {
				if got[i] != n {
					t.Errorf("frames of %v bytes, want %v", got, row.want)
				}
			}
			if s.out.spent > s.out.credit {
				t.Errorf("spent %d of %d", s.out.spent, s.out.credit)
			}
			// Credit never shrinks, whatever an old frame says.
			if err := s.acknowledged(&header{ack: 1, consumed: 1, credit: 0}); err != nil || s.out.credit != row.credit {
				t.Errorf("%v, credit %d", err, s.out.credit)
			}
		})
	}
}

// A message is put together of its own fragments in their order, or not at all: every way to break that ends the session.
func TestFragmentsMustFollow(t *testing.T) {
	fragment := func(seq uint64, flags frameFlags, offset, n, message uint32) header {
		return header{typ: frameData, flags: flags, seq: seq, offset: offset, payload: n, message: message}
	}
	first := fragment(1, flagFirst, 0, 8, 24)
	for name, next := range map[string]header{
		"a first one again":      fragment(2, flagFirst, 0, 8, 24),
		"a hole":                 fragment(2, flagLast, 16, 8, 24),
		"the same place":         fragment(2, 0, 4, 8, 24),
		"of another length":      fragment(2, flagLast, 8, 8, 16),
		"of another call":        {typ: frameData, flags: 0, seq: 2, offset: 8, payload: 8, message: 24, call: 7},
		"a reply in a message":   {typ: frameReply, flags: 0, seq: 2, offset: 8, payload: 8, message: 24},
		"a whole one in between": fragment(2, flagFirst|flagLast, 0, 8, 8),
	} {
		t.Run(name, func(t *testing.T) {
			_, c, s := still(t)
			for _, h := range []header{first, next} {
				payload := make([]byte, h.payload)
				h.session, h.client, h.ack, h.consumed, h.payloadHash = s.id, clientID("test"), 1, 1, sumOf(payload)
				b := make([]byte, headerBytes)
				h.encode(b)
				_, _ = c.Write(append(b, payload...))
			}
			closedBy(t, c, 3*time.Second)
			if err := s.Err(); err == nil || !strings.Contains(err.Error(), "does not follow") {
				t.Errorf("session: %v", err)
			}
		})
	}
}

// Who answers to the name but does not know the session's secret is nobody's target, for the first path and for others.
func TestAnswerNeedsTheProof(t *testing.T) {
	for _, joins := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n := plainNode(t, nil)
		impostor := plainNode(t, nil)
		asked := make(chan helloKind, 64)
		served := make(chan struct{})
		go func() {
			defer close(served)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w, _ := impostor.secure(context.Background(), c, false)
				var h hello
				if w.readHello(&h) == nil {
					a := impostor.helloFor(helloAccepted, nil, h.session, h.path)
					a.secret, a.proof = random32(), random32()
					_ = w.sendHello(a)
					asked <- h.kind
				}
				_ = c.Close()
			}
		}()
		conf, want := PortConfig{Target: []string{l.Addr().String()}}, helloOpen
		if joins {
			conf.Target, want = append([]string{impostor.Addrs()[0]}, conf.Target...), helloJoin
		}
		p, err := n.clients["test"].Open(context.Background(), conf)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 3; {
			if <-asked == want {
				i++
			}
		}
		st := p.Stats()
		if reason := st.Paths[len(st.Paths)-1].Reason; !strings.Contains(reason, "proof is wrong") {
			t.Errorf("joins %v: the path says %q", joins, reason)
		}
		if !joins && st.Sessions > 0 {
			t.Errorf("%d sessions with an impostor", st.Sessions)
		}
		_ = p.Close()
		_ = l.Close()
		<-served
	}
}
