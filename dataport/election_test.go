package dataport

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestElect(t *testing.T) {
	const a, sb, su, dr = PathActive, PathStandby, PathSuspected, PathDraining
	for _, row := range []struct {
		name string
		in   []candidate
		most int
		want string // ids, in order
	}{
		{"nobody", nil, 1, ""},
		{"all of them", []candidate{{1, sb, false}, {2, sb, false}}, 0, "12"},
		{"the first one", []candidate{{2, sb, false}, {1, sb, false}}, 1, "1"},
		{"who returns pushes nobody out", []candidate{{1, sb, false}, {2, a, false}}, 1, "2"},
		{"suspect: the next takes over", []candidate{{1, su, false}, {2, sb, false}, {3, sb, false}}, 1, "2"},
		{"draining: the next takes over", []candidate{{1, dr, false}, {2, sb, false}}, 1, "2"},
		{"one too many", []candidate{{1, a, false}, {2, a, false}, {3, sb, false}}, 1, "1"},
		{"two of three", []candidate{{1, su, false}, {2, a, false}, {3, sb, false}}, 2, "23"},
		{"the peer asks", []candidate{{1, a, true}, {2, sb, false}}, 0, "2"},
		{"the peer asks for none: one", []candidate{{1, su, false}, {2, sb, true}, {3, sb, true}}, 0, "2"},
		{"and that one stays", []candidate{{1, sb, true}, {2, a, true}}, 0, "2"},
		{"only suspects", []candidate{{1, su, false}, {2, su, true}}, 0, ""},
	} {
		got := ""
		for i, ok := range elect(row.in, row.most, nil) {
			if ok {
				got += string('0' + rune(row.in[i].id))
			}
		}
		if got != row.want {
			t.Errorf("%s: elected %q, want %q", row.name, got, row.want)
		}
	}
}

// TestElectionHolds: what everybody else relies on, for any set of paths.
func TestElectionHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		states := []PathState{PathActive, PathStandby, PathSuspected, PathDraining}
		all := make([]candidate, rapid.IntRange(0, 6).Draw(rt, "paths"))
		for i := range all {
			all[i] = candidate{PathID(i + 1), rapid.SampledFrom(states).Draw(rt, "state"), rapid.Bool().Draw(rt, "asked")}
		}
		most := rapid.IntRange(0, 4).Draw(rt, "most")
		got := elect(all, most, nil)
		well, wanted, n := 0, 0, 0
		for i, c := range all {
			if c.state.well() {
				well++
				if !c.asked {
					wanted++
				}
			}
			if got[i] {
				n++
				if !c.state.well() || c.asked && wanted > 0 {
					rt.Fatalf("elected %+v of %+v", c, all)
				}
			}
		}
		want := wanted
		if most > 0 {
			want = min(most, wanted)
		}
		if wanted == 0 {
			want = min(well, 1)
		}
		if n != want {
			rt.Fatalf("%d elected of %+v, at most %d: want %d", n, all, most, want)
		}
		// Nothing flaps: after what was elected has come true, another election changes nothing.
		for i := range all {
			in := pathRest
			if got[i] {
				in = pathActivate
			}
			all[i].state, _ = all[i].state.next(in)
		}
		for i, ok := range elect(all, most, nil) {
			if ok != got[i] {
				rt.Fatalf("the second election of %+v differs", all)
			}
		}
	})
}

// TestPathMachine: whatever comes, a path stays within its picture, stop always ends it, and data is carried only by
// one that was authenticated, connected since, and elected.
func TestPathMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, authenticated, draining := PathIdle, false, false
		for _, in := range rapid.SliceOf(rapid.Uint8Range(0, uint8(pathInputEnd)-1)).Draw(rt, "inputs") {
			before := s
			next, changed := s.next(pathInput(in))
			if changed != (next != s) {
				rt.Fatalf("%v on %d: %v, changed %v", s, in, next, changed)
			}
			s = next
			switch pathInput(in) {
			case pathAuthenticated:
				authenticated = authenticated || changed
			case pathDrain:
				draining = draining || changed
			case pathFailed, pathStop:
				if before.live() || s == PathIdle {
					authenticated, draining = false, false
				}
			}
			if s.live() && !authenticated {
				rt.Fatalf("%v without authentication", s)
			}
			if draining && s != PathDraining {
				rt.Fatalf("draining became %v by %d", s, in)
			}
			if before == PathActive && s == PathReserved || before == PathAuthenticating && s == PathActive {
				rt.Fatalf("%v became %v at once", before, s)
			}
		}
		if end, _ := s.next(pathStop); end != PathIdle {
			rt.Fatalf("%v survives stop", s)
		}
	})
}

// A peer's clock of any offset, and words that lay in queues.
func TestWhenAPeerSaidSo(t *testing.T) {
	const ms = time.Millisecond
	for name, offset := range map[string]time.Duration{"same": 0, "ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			e := ear{gap: 100 * ms}
			ping := func(said, now time.Duration) bool {
				e.hark(now)
				return e.believes(now, said+offset, 200*ms)
			}
			for at := 50 * ms; at <= 1000*ms; at += 50 * ms {
				e.hark(at)
				if got := ping(at-10*ms, at); got != (at >= 200*ms) { // no trouble since the beginning of time
					t.Fatalf("%v: believed %v", at, got)
				}
			}
			// The link stands still until 1500; then all comes at once, said at any time before.
			for said := 1040 * ms; said < 1500*ms; said += 50 * ms {
				if ping(said, 1500*ms) {
					t.Fatalf("a word of %v is believed at 1.5 s", said)
				}
			}
			// What comes slowly out of a long queue is as old as before.
			if ping(1490*ms, 1590*ms) || ping(1540*ms, 1680*ms) {
				t.Fatal("a word from the queue is believed")
			}
			for at := 1700 * ms; at < 3000*ms; at += 50 * ms {
				if got := ping(at-10*ms, at); !got {
					t.Fatalf("%v: a new word is not believed", at)
				}
			}
		})
	}
}

// A machine that was suspended is late for ever; that may cost two periods of belief and no more.
func TestPeerClockFollowsASuspendedMachine(t *testing.T) {
	var c peerClock
	for now := time.Second; now < time.Minute; now += 50 * time.Millisecond {
		stamp := now
		if now > 10*time.Second {
			stamp -= 5 * time.Second
		}
		said := c.said(now, stamp)
		if now > 10*time.Second+2*clockPeriod && said != now {
			t.Fatalf("%v: said at %v", now, said)
		}
	}
}
