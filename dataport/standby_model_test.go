package dataport_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// TestPathsOfASession: paths are lost, reset, removed, added and fall silent in any order while both sides send. Each
// client gets what the other side sent, in order and once; what is told of each path makes sense; and once the network is
// well again both sides have the same paths in the same states, as many active as wanted, and nothing is reserved.
func TestPathsOfASession(t *testing.T) {
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		if runs++; raceEnabled && runs > 10 { // a race shows in few; the order of things is what the others are for
			return
		}
		most := rapid.IntRange(0, 2).Draw(rt, "active")
		steps := rapid.SliceOfN(rapid.IntRange(0, 8), 5, 25).Draw(rt, "steps")
		at := rapid.SliceOfN(rapid.IntRange(0, 2), len(steps), len(steps)).Draw(rt, "at")
		waits := rapid.SliceOfN(rapid.IntRange(0, 300), len(steps), len(steps)).Draw(rt, "waits ms")
		synctest.Test(t, func(*testing.T) { runPaths(rt, most, steps, at, waits) })
	})
}

func runPaths(rt *rapid.T, most int, steps, at, waits []int) {
	w := newSpareWorld(rt, 3, func(_ *dataport.Config, c *dataport.PortConfig) { c.ActivePaths = most })
	defer w.close()
	for i, step := range steps {
		addr := w.addrs[at[i]]
		paths := w.port.Stats().Paths
		id := paths[at[i]%len(paths)].ID
		switch step {
		case 0, 1:
			w.net.Cut(addr)
		case 2:
			w.net.Blackhole(addr, dataporttest.Direction(1+i%3))
		case 3:
			w.net.Blackhole(addr, 0)
		case 4:
			w.net.Delay(addr, time.Duration(waits[i])*time.Millisecond/4)
		case 5:
			_ = w.port.ResetPath(id) // perhaps it is on its way out
		case 6, 7:
			_ = w.port.RemovePath(id) // but not the last one
		case 8:
			_, _ = w.port.AddPath("", addr) // but not more than there may be
		}
		time.Sleep(time.Duration(waits[i]) * time.Millisecond)
	}
	for _, a := range w.addrs {
		w.net.Blackhole(a, 0)
		w.net.Delay(a, 0)
	}
	w.there.finish()
	w.back.finish()
	time.Sleep(20 * time.Second)
	w.there.check(rt, "there", w.target, w.sess, append([]int{0}, w.there.sent...))
	w.back.check(rt, "back", w.source, w.sess, w.back.sent)
	for side, l := range map[string]*list{"source": w.source, "target": w.target} {
		checkPathEvents(rt, side, l.events, w.sess)
		checkPathEvents(rt, side, l.events, w.peer)
	}
	if w.sess.Err() != nil {
		return // all paths were silent for too long
	}
	paths := w.port.Stats().Paths
	here, there := states(paths), states(w.peer.Stats().Paths)
	want := len(paths)
	if most > 0 {
		want = min(want, most)
	}
	if here != there || strings.Count(here, " active") != want || strings.Count(here, " standby") != len(paths)-want {
		rt.Fatalf("paths here %s, there %s; want %d active\n%v\n%v", here, there, want, w.source.events, w.target.events)
	}
	if s := w.port.State(); s != dataport.PortConnected {
		rt.Fatalf("port is %v with paths %s", s, here)
	}
}

// checkPathEvents: what may follow what, of one path of one session.
func checkPathEvents(rt *rapid.T, side string, events []dataport.Event, s *dataport.Session) {
	const up, standby, suspect, draining, down = dataport.PathUp, dataport.PathIsStandby, dataport.PathSuspect, dataport.PathIsDraining, dataport.PathDown
	follows := map[dataport.EventKind][]dataport.EventKind{
		0:        {up, standby, suspect, draining, down}, // the beginning was forgotten
		up:       {standby, suspect, draining, down},
		standby:  {up, suspect, draining, down},
		suspect:  {up, standby, draining, down},
		draining: {down},
		down:     {up, standby},
	}
	last, removed := map[dataport.PathID]dataport.EventKind{}, map[dataport.PathID]bool{}
	for _, e := range events {
		if e.Session != s || e.Path == 0 || e.Kind == dataport.PeerRefused {
			continue
		}
		before, seen := last[e.Path]
		ok := slices.Contains(follows[before], e.Kind) || !seen && e.Kind != 0
		if !ok || removed[e.Path] {
			rt.Fatalf("%s: %v of path %d after %v, removed %v\n%v", side, e.Kind, e.Path, before, removed[e.Path], fmt.Sprint(events))
		}
		last[e.Path] = e.Kind
		removed[e.Path] = e.Kind == down && (before == draining || strings.HasPrefix(e.Reason, "removed"))
	}
}
