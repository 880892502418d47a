package integration

import (
	"testing"
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
	x.source.unload(streamForth)
	x.target.unload(streamBack)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "messages lost", a.Lost, 0)
	if n := x.source.view().path(p).Resent + x.source.view().path(x.pathOver(1)).Resent; n == 0 {
		t.Error("no frame ever went out a second time: the faults did not bite")
	}
	t.Logf("ledgers: %+v, %d frames came twice and were dropped", a, x.target.view().Duplicates)
}
