package integration

import (
	"testing"
	"time"
)

// claimReset: a logical connection that cannot communicate is reset, in each of
// the ways there are; both ledgers hold.
func claimReset(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 0)
	x.source.open(x.settings())
	x.source.untilPaths(2)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	x.target.load(steadyBack(streamBack))
	session := x.source.view().Session
	p := x.pathOver(0)
	for _, f := range []struct {
		name    string
		on, off func()
	}{
		{"by RST at our end", func() { checkEqual(t, "connections killed", x.toTarget[0].kill(portNumber), 1) }, func() {}},
		{"by RST from the network", x.toTarget[0].refuse, x.toTarget[0].heal},
		{"by silence", func() { x.toTarget[0].silence(bothWays) }, x.toTarget[0].heal},
		{"by a cable pulled out", x.toTarget[0].unplug, x.toTarget[0].plug},
		{"by RST, and the acknowledgements of what had arrived are lost too", func() { x.killUnread() }, func() {}},
		{"by ResetPath", func() { x.source.do(portOrder{Do: "reset", Path: p}) }, func() {}},
	} {
		from, socket := len(x.source.events()), x.source.view().path(p).Local
		handed, here := x.target.view().Handed, x.source.view().Handed
		f.on()
		x.source.untilNamed(from, named("PathDown", p))
		x.target.untilHanded(handed, 50)
		x.source.untilHanded(here, 50)
		f.off()
		x.source.untilNamed(from, named("PathUp", p))
		v := x.source.untilPaths(2)
		if v.path(p).Local == socket {
			t.Errorf("%s: the path has the same connection as before: %s", f.name, socket)
		}
		checkEqual(t, f.name+": session", v.Session, session)
		handed = x.target.view().Handed
		x.target.untilHanded(handed, 100)
	}
	for range 20 { // whether something was under way is chance
		if x.target.view().Duplicates > 0 {
			break
		}
		from := len(x.source.events())
		x.killUnread()
		x.source.untilNamed(from, named("PathUp", p))
		x.source.untilPaths(2)
	}
	x.source.unload(streamForth)
	x.target.unload(streamBack)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "messages lost", a.Lost, 0)
	if n := x.source.view().path(p).Resent + x.source.view().path(x.pathOver(1)).Resent; n == 0 {
		t.Error("no frame ever went out a second time: the faults did not bite")
	}
	twice := x.target.view().Duplicates
	if twice == 0 {
		t.Error("no frame ever came twice: nothing was there to be dropped")
	}
	t.Logf("ledgers: %+v, %d frames came twice and were dropped", a, twice)
}

// killUnread kills all connections after a moment in which no acknowledgement came
// back: what was under way goes out again, and it is there already.
func (x *trio) killUnread() {
	x.t.Helper()
	for _, c := range x.toTarget {
		c.silence(back)
	}
	time.Sleep(100 * time.Millisecond) // what TCP may send without an answer arrives
	for _, c := range x.toTarget {
		c.kill(portNumber)
	}
	for _, c := range x.toTarget {
		c.heal()
	}
}
