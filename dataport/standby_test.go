package dataport_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// spareWorld is a memWorld with a port of its own configuration, and traffic in both directions.
type spareWorld struct {
	*memWorld
	there, back *flow
	sess, peer  *dataport.Session
}

// inSpareWorld runs f in a bubble, with the events of the beginning forgotten, and compares both sides' lists afterwards.
func inSpareWorld(t *testing.T, paths int, change func(*dataport.Config, *dataport.PortConfig), f func(t *testing.T, w *spareWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newSpareWorld(t, paths, change)
		defer w.close()
		f(t, w)
		w.there.finish()
		w.back.finish()
		time.Sleep(10 * time.Second)
		if w.sess.Err() != nil || w.port.Session() != w.sess {
			t.Fatalf("the session ended: %v\n%v", w.sess.Err(), w.source.events)
		}
		w.there.check(t, "there", w.target, w.sess, append([]int{0}, w.there.sent...))
		w.back.check(t, "back", w.source, w.sess, w.back.sent)
		if len(w.there.sent) < 20 || len(w.back.sent) < 20 {
			t.Fatalf("%d and %d messages only", len(w.there.sent), len(w.back.sent))
		}
	})
}

// inOpenWorld is the same for what ends the session.
func inOpenWorld(t *testing.T, f func(t *testing.T, w *spareWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newSpareWorld(t, 2, nil)
		defer w.close()
		f(t, w)
	})
}

func newSpareWorld(t fatal, paths int, change func(*dataport.Config, *dataport.PortConfig)) *spareWorld {
	net := dataporttest.NewNet()
	w := &spareWorld{memWorld: &memWorld{net: net, source: newList(), target: newList()}}
	for i := range paths {
		w.addrs = append(w.addrs, fmt.Sprintf("target:%d", i+1))
	}
	pc := dataport.PortConfig{Target: w.addrs}
	tc, sc := memConfig(net, "target", w.addrs...), memConfig(net, "source")
	if change != nil {
		change(&tc, &pc)
		change(&sc, &pc)
	}
	var reg *dataport.Registration
	for _, side := range []struct {
		c dataport.Config
		l *list
	}{{tc, w.target}, {sc, w.source}} {
		n, err := dataport.NewNode(side.c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes = append(w.nodes, n)
		if reg, err = n.Register("test", side.l); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.port, err = reg.Open(context.Background(), pc); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // the bubble's clock
	if _, err := w.port.Call(context.Background(), pattern(0, 8)); err != nil {
		t.Fatal(err)
	}
	w.sess, w.peer = w.port.Session(), w.target.last
	sizes := []int{100, 9000, 3000, 40_000, 20}
	w.there, w.back = startFlow(w.sess, sizes, 1), startFlow(w.peer, sizes, 0)
	time.Sleep(time.Second)
	w.source.forget()
	w.target.forget()
	return w
}

// fatal is a *testing.T or a *rapid.T.
type fatal interface {
	Fatal(...any)
	Fatalf(string, ...any)
}

func newList() *list { return &list{got: map[dataport.SessionID][]int{}} }

func (l *list) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = nil
}

// story is the events as "PathUp 1, PathDown 2".
func (l *list) story() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s []string
	for _, e := range l.events {
		s = append(s, fmt.Sprintf("%v %d", e.Kind, e.Path))
	}
	return strings.Join(s, ", ")
}

func (l *list) event(k dataport.EventKind) (e dataport.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == k {
			return e
		}
	}
	return e
}

func states(paths []dataport.PathStats) string {
	slices.SortFunc(paths, func(a, b dataport.PathStats) int { return int(a.ID) - int(b.ID) })
	var s []string
	for _, p := range paths {
		s = append(s, fmt.Sprintf("%d %v", p.ID, p.State))
	}
	return strings.Join(s, ", ")
}

func (w *spareWorld) expect(t *testing.T, source, target string) {
	t.Helper()
	if got := w.source.story(); got != source {
		t.Errorf("source: %s\n  want: %s", got, source)
	}
	if got := w.target.story(); got != target {
		t.Errorf("target: %s\n  want: %s", got, target)
	}
}

func (w *spareWorld) expectStates(t *testing.T, source, target string) {
	t.Helper()
	if got := states(w.port.Stats().Paths); got != source {
		t.Errorf("paths of the port: %s, want %s", got, source)
	}
	if got := states(w.peer.Stats().Paths); got != target {
		t.Errorf("paths of the target: %s, want %s", got, target)
	}
}

// expectReserved demands that these paths are reserved on both sides; the side that dials may be trying one right now.
func (w *spareWorld) expectReserved(t *testing.T, ids ...dataport.PathID) {
	t.Helper()
	for side, paths := range map[string][]dataport.PathStats{"port": w.port.Stats().Paths, "session": w.sess.Stats().Paths, "target": w.peer.Stats().Paths} {
		n := 0
		for _, p := range paths {
			if !slices.Contains(ids, p.ID) {
				continue
			}
			n++
			trying := side != "target" && (p.State == dataport.PathDialing || p.State == dataport.PathAuthenticating)
			if p.State != dataport.PathReserved && !trying || p.Reason == "" || p.BytesSent == 0 {
				t.Errorf("%s: path %+v", side, p)
			}
		}
		if n != len(ids) {
			t.Errorf("%s: paths %+v", side, paths)
		}
	}
}

func activeBackup(_ *dataport.Config, c *dataport.PortConfig) { c.Scheduler = dataport.ActiveBackup() }

func TestStandbyCarriesNoData(t *testing.T) {
	for name, change := range map[string]func(*dataport.Config, *dataport.PortConfig){
		"active-backup": activeBackup,
		"ActivePaths":   func(_ *dataport.Config, c *dataport.PortConfig) { c.ActivePaths = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			inSpareWorld(t, 3, change, func(t *testing.T, w *spareWorld) {
				time.Sleep(10 * time.Second)
				w.expect(t, "", "")
				const want = "1 active, 2 standby, 3 standby"
				w.expectStates(t, want, want)
				if s := w.port.State(); s != dataport.PortConnected {
					t.Errorf("port is %v", s)
				}
				for _, side := range [][]dataport.PathStats{w.port.Stats().Paths, w.peer.Stats().Paths} {
					for _, p := range side {
						// 12 s of pings and pongs at 20 a second are 50 KiB; the messages are 6 MiB.
						if small := p.BytesSent < 100<<10; small != (p.ID != 1) {
							t.Errorf("path %d sent %d bytes", p.ID, p.BytesSent)
						}
					}
				}
			})
		})
	}
}

func TestStandbyStory(t *testing.T) {
	const returned = "1 standby, 2 active, 3 standby"
	for _, row := range []struct {
		name           string
		fault, mend    func(t *testing.T, w *spareWorld)
		source, target string
		after          string // states on both sides
	}{
		{
			"active path is reset", func(_ *testing.T, w *spareWorld) { w.net.Cut(w.addrs[0]) }, nil,
			"PathDown 1, PathUp 2, PathIsStandby 1", "", returned, // over there the word on path 2 may come first
		},
		{
			"ResetPath", func(t *testing.T, w *spareWorld) {
				if err := w.port.ResetPath(1); err != nil {
					t.Error(err)
				}
			}, nil,
			"PathDown 1, PathUp 2, PathIsStandby 1", "", returned, // over there the word on path 2 may come first
		},
		{
			"active path falls silent", func(_ *testing.T, w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Both) }, mend(0),
			"PathSuspect 1, PathUp 2, PathDown 1, PathIsStandby 1", "", returned,
		},
		{
			"active path is dead one way", func(_ *testing.T, w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Forward) }, mend(0),
			"PathSuspect 1, PathUp 2, PathDown 1, PathIsStandby 1", "PathSuspect 1, PathUp 2, PathDown 1, PathIsStandby 1", returned,
		},
		{
			"or the other way", func(_ *testing.T, w *spareWorld) { w.net.Blackhole(w.addrs[0], dataporttest.Backward) }, mend(0),
			"PathSuspect 1, PathUp 2, PathDown 1, PathIsStandby 1", "", returned,
		},
		{
			"active path is late for a moment", func(_ *testing.T, w *spareWorld) { w.net.Delay(w.addrs[0], 350*time.Millisecond) },
			func(_ *testing.T, w *spareWorld) { w.net.Delay(w.addrs[0], 0) },
			"PathSuspect 1, PathUp 2, PathIsStandby 1", "", returned,
		},
		{
			"standby falls silent", func(_ *testing.T, w *spareWorld) { w.net.Blackhole(w.addrs[1], dataporttest.Both) }, mend(1),
			"PathSuspect 2, PathDown 2, PathIsStandby 2", "PathSuspect 2, PathDown 2, PathIsStandby 2", "1 active, 2 standby, 3 standby",
		},
		{
			"standby is reset", func(_ *testing.T, w *spareWorld) { w.net.Cut(w.addrs[1]) }, nil,
			"PathDown 2, PathIsStandby 2", "PathDown 2, PathIsStandby 2", "1 active, 2 standby, 3 standby",
		},
		{
			"active path is removed", func(t *testing.T, w *spareWorld) {
				if err := errors.Join(w.port.RemovePath(1), w.port.RemovePath(1)); err != nil {
					t.Error(err)
				}
			}, nil,
			"PathUp 2, PathIsDraining 1, PathDown 1", "PathUp 2, PathIsDraining 1, PathDown 1", "2 active, 3 standby",
		},
		{
			"standby is removed", func(t *testing.T, w *spareWorld) {
				if err := w.port.RemovePath(3); err != nil {
					t.Error(err)
				}
			}, nil,
			"PathIsDraining 3, PathDown 3", "PathIsDraining 3, PathDown 3", "1 active, 2 standby",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			inSpareWorld(t, 3, activeBackup, func(t *testing.T, w *spareWorld) {
				start := time.Now()
				row.fault(t, w)
				time.Sleep(5 * time.Second / 2)
				if row.mend != nil {
					row.mend(t, w)
					time.Sleep(5 * time.Second)
				}
				if row.target == "" { // two words on two paths: their order is free, what was told of each path is not
					row.target = w.target.story()
					w.checkTakeover(t)
				}
				w.expect(t, row.source, row.target)
				w.expectStates(t, row.after, row.after)
				if s := w.port.State(); s != dataport.PortConnected {
					t.Errorf("port is %v", s)
				}
				// The same moment: nothing comes between the loss and the takeover.
				for _, l := range []*list{w.source, w.target} {
					suspect, up := l.event(dataport.PathSuspect), l.event(dataport.PathUp)
					if d := up.Time.Sub(suspect.Time); suspect.Path == 1 && (d > time.Millisecond || up.Time.Sub(start) > 400*time.Millisecond) {
						t.Errorf("taken over %v after the suspicion, %v after the fault", d, up.Time.Sub(start))
					}
				}
			})
		})
	}
}

func mend(i int) func(*testing.T, *spareWorld) {
	return func(_ *testing.T, w *spareWorld) { w.net.Blackhole(w.addrs[i], 0) }
}

// checkTakeover demands of the target that path 2 came up once and path 1 went and came back as a standby.
// Heard again, it may be up until the word that it is not needed arrives, which is as late as all else there.
func (w *spareWorld) checkTakeover(t *testing.T) {
	t.Helper()
	var one, two []string
	for _, e := range strings.Split(w.target.story(), ", ") {
		kind, path, _ := strings.Cut(e, " ")
		switch path {
		case "1":
			one = append(one, kind)
		case "2":
			two = append(two, kind)
		default:
			t.Errorf("target: event %s", e)
		}
	}
	if strings.Join(two, " ") != "PathUp" {
		t.Errorf("target, of path 2: %v", two)
	}
	if len(one) == 0 || one[len(one)-1] != "PathIsStandby" || strings.Contains(strings.ReplaceAll(strings.Join(one, " "), "PathSuspect PathUp PathIsStandby", ""), "PathUp") {
		t.Errorf("target, of path 1: %v", one)
	}
}

// Two of three carry data, and one that returns stands by.
func TestTwoOfThreeActive(t *testing.T) {
	two := func(_ *dataport.Config, c *dataport.PortConfig) {
		c.ActivePaths, c.Scheduler = 2, dataport.RoundRobin()
	}
	inSpareWorld(t, 3, two, func(t *testing.T, w *spareWorld) {
		before := states(w.port.Stats().Paths)
		if n := strings.Count(before, " active"); n != 2 || states(w.peer.Stats().Paths) != before {
			t.Fatalf("paths %s, at the target %s", before, states(w.peer.Stats().Paths))
		}
		w.net.Cut(w.addrs[0]) // 1 opened the session: it is active
		time.Sleep(5 * time.Second)
		w.expectStates(t, "1 standby, 2 active, 3 active", "1 standby, 2 active, 3 active")
		for _, p := range w.sess.Stats().Paths {
			if p.ID != 1 && p.BytesSent < 200<<10 {
				t.Errorf("path %d has sent %d bytes", p.ID, p.BytesSent)
			}
		}
	})
}

// All paths are lost and return: the session lives, and one path is active again, whichever.
func TestStandbyAllLostForAWhile(t *testing.T) {
	inSpareWorld(t, 2, activeBackup, func(t *testing.T, w *spareWorld) {
		for _, a := range w.addrs {
			w.net.Refuse(a, true)
			w.net.Cut(a)
		}
		time.Sleep(1500 * time.Millisecond)
		w.expectReserved(t, 1, 2)
		if s := w.port.State(); s != dataport.PortDegraded {
			t.Errorf("port is %v", s)
		}
		for _, a := range w.addrs {
			w.net.Refuse(a, false)
		}
		time.Sleep(10 * time.Second)
		got := states(w.port.Stats().Paths)
		if got != "1 active, 2 standby" && got != "1 standby, 2 active" || states(w.peer.Stats().Paths) != got {
			t.Errorf("paths %s, at the target %s", got, states(w.peer.Stats().Paths))
		}
	})
}

// The accepting side may want less than the other gives it, too.
func TestStandbyByTheTargetsOwnScheduler(t *testing.T) {
	own := func(c *dataport.Config, _ *dataport.PortConfig) { c.Scheduler = dataport.ActiveBackup() }
	inSpareWorld(t, 2, own, func(t *testing.T, w *spareWorld) {
		one, other, at := 1, 2, "1 active, 2 standby" // whichever was first opened the session
		if states(w.peer.Stats().Paths) != at {
			one, other, at = 2, 1, "1 standby, 2 active"
		}
		w.expectStates(t, "1 active, 2 active", at)
		w.net.Cut(w.addrs[one-1])
		time.Sleep(3 * time.Second)
		w.expect(t, fmt.Sprintf("PathDown %d, PathUp %d", one, one), fmt.Sprintf("PathDown %d, PathUp %d, PathIsStandby %d", one, other, one))
		if s := states(w.peer.Stats().Paths); !strings.Contains(s, fmt.Sprintf("%d active", other)) || strings.Count(s, " active") != 1 {
			t.Errorf("paths of the target: %s", s)
		}
	})
}
