package integration

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// claimEvents looks at exactly what the client's callback is told of each
// fault, and at what a callback may do.
func claimEvents(t *testing.T, _ *plays) {
	playEvents(t)
	playCallbacks(t)
}

// playEvents plays one fault after the other.
func playEvents(t *testing.T) {
	x := newTrio(t, 2, 2)
	x.source.open(x.settings())
	x.source.untilPaths(2)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 50)
	first, second := x.pathOver(0), x.pathOver(1)
	down1, up1, suspect1 := named("PathDown", first), named("PathUp", first), named("PathSuspect", first)
	down2, up2, suspect2 := named("PathDown", second), named("PathUp", second), named("PathSuspect", second)

	x.told(t, "a connection is killed", func(from int) {
		x.toTarget[0].kill(portNumber)
		x.source.untilNamed(from, up1)
	}, down1, up1)
	x.told(t, "the client resets a path", func(from int) {
		x.source.do(portOrder{Do: "reset", Path: second})
		x.source.untilNamed(from, up2)
	}, down2, up2)
	for _, d := range []direction{bothWays, forth, back} {
		x.told(t, fmt.Sprintf("silence, directions %d", d), func(from int) {
			x.toTarget[0].silence(d)
			x.source.untilNamed(from, down1)
			x.toTarget[0].heal()
			x.source.untilNamed(from, up1)
		}, suspect1, down1, up1)
	}
	x.told(t, "a cable is pulled out and put back soon", func(from int) {
		x.toTarget[1].unplug()
		x.source.untilNamed(from, suspect2)
		x.toTarget[1].plug()
		x.source.untilNamed(from, up2)
	}, suspect2, up2)
	x.told(t, "suspend and resume", func(from int) {
		x.source.do(portOrder{Do: "suspend"})
		x.source.do(portOrder{Do: "resume"})
		x.source.untilNamed(from, "Resumed")
	}, "Suspended", "Resumed")
	x.books.pull(x.source, x.target)
	x.told(t, "the target is started anew", func(from int) {
		x.target.kill()
		x.books.recover(x.target)
		x.target.node.Diary += "2"
		x.target.start()
		x.target.order(portOrder{Do: "register", Client: "vol"})
		x.source.untilNamed(from, "SessionUp")
		x.source.untilPaths(2)
	}, "PathDown", "PathDown", "PeerRestarted", "SessionDown", "PathUp", "SessionUp", "PathUp")
	x.told(t, "the target falls silent", func(from int) {
		x.target.signal(syscall.SIGSTOP)
		x.source.untilNamed(from, "TargetUnreachable")
	}, "PathSuspect", "PathSuspect", "PathDown", "PathDown", "SessionDown", "TargetUnreachable")
	x.told(t, "the client switches", func(from int) {
		x.source.do(portOrder{Do: "switch", To: 1})
		x.source.untilNamed(from, "SessionUp")
		x.source.untilPaths(2)
	}, "Switching", "PathUp", "Switched", "SessionUp", "PathUp")
	x.target.signal(syscall.SIGCONT)
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.target, x.backup))
	x.told(t, "the client closes the port", func(from int) {
		x.source.do(portOrder{Do: "close"})
		x.source.untilNamed(from, "PortClosed")
	}, "SessionDown", "PortClosed")
}

// playCallbacks shows what a callback may do.
func playCallbacks(t *testing.T) {
	x := newTrio(t, 2, 2)
	x.source.open(x.settings())
	x.source.untilPaths(2)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 50)

	// A slow one, for longer than it takes to give a target up: it delays no heartbeat and no message.
	seen := len(x.target.events())
	session := x.source.view().Session
	from := len(x.source.events())
	x.source.do(portOrder{Do: "rule", Rule: &eventRule{Kind: "PathDown", Do: "sleep", For: 4 * time.Second}})
	x.source.do(portOrder{Do: "reset", Path: x.pathOver(0)})
	clock := startFairClock(t)
	for clock.now() < 4*time.Second {
		x.target.untilHanded(x.target.view().Handed, 50)
	}
	x.source.untilNamed(from, named("PathUp", x.pathOver(0)))
	checkEqual(t, "session after a slow callback", x.source.view().Session, session)
	for _, e := range x.target.events()[seen:] {
		if e.Kind != "PathDown" && e.Kind != "PathUp" && e.Kind != "PathSuspect" {
			t.Errorf("while the source's callback was slow the target was told: %s (%s)", e.Kind, e.Reason)
		}
	}

	// One that switches, and one that closes the port.
	x.source.do(portOrder{Do: "rule", Rule: &eventRule{Kind: "TargetUnreachable", Do: "switch"}})
	for _, c := range x.toTarget {
		c.silence(bothWays)
	}
	x.backup.untilHanded(0, 50)
	checkEqual(t, "target after the callback's switch", x.source.view().Index, 1)
	for _, c := range x.toTarget {
		c.heal()
	}
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.target, x.backup))
	x.source.do(portOrder{Do: "rule", Rule: &eventRule{Kind: "PathDown", Do: "close"}})
	from = len(x.source.events())
	x.toBack[0].kill(portNumber)
	x.source.untilNamed(from, "PortClosed")
	wantError(t, x.source, portOrder{Do: "send"}, "closed")
}

// told plays a fault and compares what the source's callback was told.
func (x *trio) told(t *testing.T, what string, fault func(from int), want ...string) {
	t.Helper()
	from := len(x.source.events())
	fault(from)
	l := x.source.events()[from:]
	if got := asTold(l, want); !slices.Equal(got, want) {
		t.Errorf("%s: told %v\nwant %v\nin full: %s", what, got, want, eventKinds(l))
	}
}

// asTold names events as want does: with their paths, or without when either
// path may be first. A suspicion that is over before anything else happens to its
// path is left out unless it is all that is wanted of it: a busy machine suspects
// a path for a moment, and that is no fault.
func asTold(l []eventLine, want []string) (names []string) {
	anonymous := slices.Contains(want, "PathUp") || slices.Contains(want, "PathDown")
	all := func(void map[int]bool) (names []string) {
		for i, e := range l {
			switch {
			case void[i]:
			case anonymous:
				names = append(names, e.Kind)
			default:
				names = append(names, named(e.Kind, e.Path))
			}
		}
		return names
	}
	if names = all(nil); slices.Equal(names, want) {
		return names
	}
	suspected, void := map[uint32]int{}, map[int]bool{}
	for i, e := range l {
		if at, ok := suspected[e.Path]; ok && e.Kind == "PathUp" && e.Reason == "heard again" {
			void[at], void[i] = true, true
		}
		delete(suspected, e.Path)
		if e.Kind == "PathSuspect" {
			suspected[e.Path] = i
		}
	}
	return all(void)
}

// named is an event of one path.
func named(kind string, path uint32) string {
	if path == 0 {
		return kind
	}
	return fmt.Sprintf("%s%d", kind, path)
}

// untilNamed waits for an event, of a path or by its kind alone, after the first from.
func (u *user) untilNamed(from int, name string) {
	u.t.Helper()
	eventually(u.t, portLimit, u.name+"/"+u.client+": event "+name, func() (bool, string) {
		l := u.events()
		l = l[min(from, len(l)):]
		return slices.ContainsFunc(l, func(e eventLine) bool { return e.Kind == name || named(e.Kind, e.Path) == name }), eventKinds(l)
	})
}

// pathOver is the id of the path over a cable to the target.
func (x *trio) pathOver(i int) uint32 {
	x.t.Helper()
	for _, p := range x.source.view().Paths {
		if hostOf(p.Remote) == x.toTarget[i].farIP {
			return p.ID
		}
	}
	x.t.Fatalf("no path over cable %d", i+1)
	return 0
}
