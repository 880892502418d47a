package integration

import (
	"testing"
	"time"
)

// claimUnreachable silences every path to the target; nobody is told anything.
func claimUnreachable(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 2)
	set := x.settings()
	set.Auto = true
	x.source.open(set)
	x.source.untilPaths(2)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	clock := startFairClock(t)
	for _, c := range x.toTarget {
		c.silence(bothWays)
	}
	from := clock.now()
	x.backup.untilHanded(0, 1)
	took := clock.now() - from
	// 3 s make a target unreachable; the rest is for the detection's own beat, the connection and this test's eyes.
	const bound = 3*time.Second + 2*time.Second
	t.Logf("data reached the backup after %s; the threshold is 3 s", took.Round(time.Millisecond))
	if took > bound {
		t.Errorf("data reached the backup after %s, at most %s are allowed", took, bound)
	}
	x.backup.untilHanded(0, 100)
	x.source.unload(streamForth)
	for _, c := range x.toTarget {
		c.heal()
	}
	a := x.books.close(x.source, x.backup, x.target)
	t.Logf("ledgers: %+v", a)
}

// claimManual: the target falls silent; the client is told, and decides.
func claimManual(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 2)
	x.countTCP(x.toBack)
	x.source.open(x.settings())
	x.source.untilPaths(2)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	from := len(x.source.events())
	for _, c := range x.toTarget {
		c.silence(bothWays)
	}
	x.source.untilNamed(from, "TargetUnreachable")
	// What must not happen gets a while in which it could: as long again as it took to give the target up.
	clock := startFairClock(t)
	eventually(t, portLimit, "three more seconds", func() (bool, string) { return clock.now() >= 3*time.Second, "" })
	checkEqual(t, "packets sent to the backup before the client's order", x.packetsCounted(), 0)
	l := x.source.events()[from:]
	if l[len(l)-1].Kind != "TargetUnreachable" {
		t.Errorf("the client was told more than that the target is unreachable: %s", eventKinds(l))
	}
	from = len(x.source.events())
	x.source.do(portOrder{Do: "switch", To: 1})
	x.backup.untilHanded(0, 100)
	if l := x.source.events()[from:]; len(l) == 0 || l[0].Kind != "Switching" {
		t.Errorf("after the order: %s", eventKinds(l))
	}
	x.source.unload(streamForth)
	for _, c := range x.toTarget {
		c.heal()
	}
	t.Logf("ledgers: %+v", x.books.close(x.source, x.backup, x.target))
}
