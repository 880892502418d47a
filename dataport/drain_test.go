package dataport_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// What a drained path held is acknowledged on it: nothing goes out twice, in either direction.
func TestDrainResendsNothing(t *testing.T) {
	inSpareWorld(t, 3, nil, func(t *testing.T, w *spareWorld) {
		w.net.Delay(w.addrs[0], 40*time.Millisecond) // so that something is always under way
		time.Sleep(time.Second)
		resent := func() (n uint64) {
			for _, s := range []*dataport.Session{w.sess, w.peer} {
				st := s.Stats()
				n += st.DuplicateFrames
				for _, p := range st.Paths {
					n += p.ResentFrames
				}
			}
			return n
		}
		before, start := resent(), time.Now()
		if err := w.port.RemovePath(1); err != nil {
			t.Fatal(err)
		}
		if got := states(w.port.Stats().Paths); got != "1 draining, 2 active, 3 active" {
			t.Errorf("paths %s", got)
		}
		if s := w.port.State(); s != dataport.PortConnected {
			t.Errorf("port is %v: a path that was removed is no loss", s)
		}
		time.Sleep(2 * time.Second)
		if n := resent() - before; n != 0 {
			t.Errorf("%d frames were sent again or arrived twice", n)
		}
		w.expect(t, "PathIsDraining 1, PathDown 1", "PathIsDraining 1, PathDown 1")
		w.expectStates(t, "2 active, 3 active", "2 active, 3 active")
		down := w.source.event(dataport.PathDown)
		if d := down.Time.Sub(start); down.Reason != "removed" || d < 80*time.Millisecond || d > 400*time.Millisecond {
			t.Errorf("%v after %v: a round trip is 80 ms", down, d)
		}
		if e := w.target.event(dataport.PathDown); e.Reason != "removed by the peer" {
			t.Errorf("target: %v", e)
		}
	})
}

func TestDrainStory(t *testing.T) {
	for _, row := range []struct {
		name           string
		fault          func(w *spareWorld)
		source, target string // "": one of several orders
		why            string
	}{
		{"path is dead", func(w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Both) }, "PathIsDraining 1, PathDown 1", "", "removed: "},
		{"path is dead there", func(w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Forward) }, "PathIsDraining 1, PathDown 1", "", "removed: "},
		{"path is dead back", func(w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Backward) }, "PathIsDraining 1, PathDown 1", "PathIsDraining 1, PathDown 1", "removed: "},
		{"path is reset meanwhile", func(w *spareWorld) { w.net.Cut(w.addrs[0]) }, "PathIsDraining 1, PathDown 1", "PathDown 1", "removed: "},
		{"session has no other path", func(w *spareWorld) { w.net.Refuse(w.addrs[1], true); w.net.Cut(w.addrs[1]) }, "", "", "removed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inSpareWorld(t, 2, nil, func(t *testing.T, w *spareWorld) {
				w.net.Delay(w.addrs[0], 20*time.Millisecond)
				time.Sleep(100 * time.Millisecond)
				start := time.Now()
				if row.name != "path is reset meanwhile" {
					row.fault(w)
				}
				if err := w.port.RemovePath(1); err != nil {
					t.Fatal(err)
				}
				if row.name == "path is reset meanwhile" {
					row.fault(w)
				}
				time.Sleep(1200 * time.Millisecond)
				w.net.Refuse(w.addrs[1], false)
				time.Sleep(5 * time.Second)
				if row.source == "" {
					row.source = w.source.story()
				}
				if row.target == "" {
					row.target = w.target.story()
				}
				w.expect(t, row.source, row.target)
				w.expectStates(t, "2 active", "2 active")
				for _, l := range []*list{w.source, w.target} {
					down := w.source.event(dataport.PathDown)
					for _, e := range l.events {
						if e.Kind == dataport.PathDown && e.Path == 1 {
							down = e
						}
					}
					if d := down.Time.Sub(start); d > 1200*time.Millisecond || l == w.source && !strings.HasPrefix(down.Reason, row.why) {
						t.Errorf("%v after %v", down, d)
					}
				}
			})
		})
	}
}

// The place of a lost path stays taken, on both sides, until it comes back or is removed.
func TestReservedPlace(t *testing.T) {
	two := func(c *dataport.Config, _ *dataport.PortConfig) {
		if c.Name == "target" {
			c.MaxPaths = 2
		}
	}
	inSpareWorld(t, 2, two, func(t *testing.T, w *spareWorld) {
		sent := w.port.Stats().Paths[0].BytesSent
		w.net.Refuse(w.addrs[0], true)
		w.net.Cut(w.addrs[0])
		time.Sleep(3 * time.Second)
		w.expectReserved(t, 1)
		w.expect(t, "PathDown 1", "PathDown 1")
		if s := w.port.State(); s != dataport.PortDegraded {
			t.Errorf("port is %v", s)
		}
		other, err := w.port.AddPath("", w.addrs[1])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if e := w.source.event(dataport.PeerRefused); e.Path != other || !strings.Contains(e.Reason, "as many paths") {
			t.Errorf("a third path took the place of a reserved one: %v", w.source.story())
		}
		w.net.Refuse(w.addrs[0], false)
		time.Sleep(5 * time.Second)
		w.expect(t, "PathDown 1, PeerRefused 3, PathUp 1", "PathDown 1, PathUp 1")
		if p := w.port.Stats().Paths[0]; p.ID != 1 || p.BytesSent <= sent {
			t.Errorf("the counters of path 1 began anew: %+v, before %d", p, sent)
		}
		// Lost again, and now removed: the peer gives the place to the one that wants it.
		w.net.Refuse(w.addrs[0], true)
		w.net.Cut(w.addrs[0])
		time.Sleep(time.Second)
		if err := w.port.RemovePath(1); err != nil {
			t.Fatal(err)
		}
		if err := w.port.RemovePath(1); !errors.Is(err, dataport.ErrUnknownPath) && err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Second)
		w.expectStates(t, "2 active, 3 active", "2 active, 3 active")
		w.expect(t, "PathDown 1, PeerRefused 3, PathUp 1, PathDown 1, PathUp 3", "PathDown 1, PathUp 1, PathDown 1, PathUp 3")
	})
}

// A reserved place is one in a session that lives.
func TestReservedEndsWithTheSession(t *testing.T) {
	inSpareWorld(t, 2, nil, func(t *testing.T, w *spareWorld) {
		for _, a := range w.addrs {
			w.net.Refuse(a, true)
			w.net.Cut(a)
		}
		time.Sleep(time.Second)
		w.expectReserved(t, 1, 2)
		for _, a := range w.addrs {
			w.net.Refuse(a, false)
		}
		time.Sleep(3 * time.Second)
		w.expectStates(t, "1 active, 2 active", "1 active, 2 active")
	})
	inOpenWorld(t, func(t *testing.T, w *spareWorld) {
		for _, a := range w.addrs {
			w.net.Refuse(a, true)
			w.net.Cut(a)
		}
		time.Sleep(5 * time.Second)
		if w.sess.Err() == nil || w.peer.Err() == nil {
			t.Fatal("the session lives without a path")
		}
		for _, p := range w.port.Stats().Paths {
			if p.State != dataport.PathBackoff && p.State != dataport.PathDialing {
				t.Errorf("path %d is %v, its session is over", p.ID, p.State)
			}
		}
		for _, p := range append(w.sess.Stats().Paths, w.peer.Stats().Paths...) {
			if p.State == dataport.PathReserved {
				t.Errorf("path %d is reserved in a session that is over", p.ID)
			}
		}
		w.there.finish()
		w.back.finish()
	})
}

// A path that works, but too slowly for what it holds, is closed after PathDownAfter; the rest goes out elsewhere.
func TestDrainIsBounded(t *testing.T) {
	inSpareWorld(t, 2, nil, func(t *testing.T, w *spareWorld) {
		w.net.Delay(w.addrs[0], 600*time.Millisecond)
		time.Sleep(5 * time.Second) // the round trip of 1.2 s is learnt
		w.source.forget()
		w.target.forget()
		start := time.Now()
		if err := w.port.RemovePath(1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		w.expect(t, "PathIsDraining 1, PathDown 1", w.target.story())
		down := w.source.event(dataport.PathDown)
		if d := down.Time.Sub(start); d < 900*time.Millisecond || d > 1100*time.Millisecond || !strings.HasPrefix(down.Reason, "removed: not all of it") {
			t.Errorf("%v after %v", down, d)
		}
		w.expectStates(t, "2 active", "2 active")
		if s := w.target.story(); !strings.HasSuffix(s, "PathDown 1") {
			t.Errorf("target: %s", s)
		}
	})
}

// A write that is stuck in a dead path holds up no receipt of what it carries, once another path has delivered that; nor is
// that a reason to give the path up before it counts as down.
func TestBlockedPathHoldsUpNoReceipt(t *testing.T) {
	wide := func(c *dataport.Config, pc *dataport.PortConfig) {
		c.SendWindowBytes, c.ReceiveWindowBytes = 8<<20, 8<<20
		pc.Scheduler = dataport.RoundRobin() // or all goes where it arrives at once
	}
	inSpareWorld(t, 2, wide, func(t *testing.T, w *spareWorld) {
		w.net.Delay(w.addrs[0], time.Hour) // nothing is lost, nothing comes, and its queue fills
		w.there.finish()
		start := time.Now()
		for i := range 30 {
			b := pattern(len(w.there.sent)+1, 100_000)
			r, err := w.sess.Send(t.Context(), b)
			if err != nil {
				t.Fatal(i, err)
			}
			w.there.sent, w.there.receipts = append(w.there.sent, len(w.there.sent)+1), append(w.there.receipts, r)
		}
		for _, r := range w.there.receipts {
			if err := r.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("the last receipt came after %v", d)
		}
		time.Sleep(2 * time.Second)
		suspect, down := w.source.event(dataport.PathSuspect), w.source.event(dataport.PathDown)
		if d := down.Time.Sub(suspect.Time); !strings.HasPrefix(down.Reason, "silent") || d < 700*time.Millisecond || d > 900*time.Millisecond {
			t.Errorf("%v, and after %v %v", suspect, d, down)
		}
		w.net.Delay(w.addrs[0], 0)
	})
}
