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

// manualStory: the target falls silent, and the client decides.
type manualStory struct {
	told        []eventLine // until the client was told
	packets     int         // sent to the backup before the order
	waited      time.Duration
	afterSwitch []eventLine
	handed      uint64
	account     account
}

func playManual(t *testing.T) *manualStory {
	x, s := newTrio(t, 2, 2), &manualStory{}
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
	clock := startFairClock(t)
	// What is not to happen needs a while in which it could: as long again as it took to give the target up.
	eventually(t, portLimit, "three more seconds", func() (bool, string) { return clock.now() >= 3*time.Second, "" })
	s.waited = clock.now()
	s.packets = x.packetsCounted()
	l := x.source.events()
	s.told = l[from:]
	from = len(l)
	x.source.do(portOrder{Do: "switch", To: 1})
	x.backup.untilHanded(0, 100)
	s.handed = x.backup.view().Handed
	s.afterSwitch = x.source.events()[from:]
	x.source.unload(streamForth)
	for _, c := range x.toTarget {
		c.heal()
	}
	s.account = x.books.close(x.source, x.backup, x.target)
	return s
}

func claimManual(t *testing.T, p *plays) {
	s := p.manual.of(t, playManual)
	if n := len(s.told); n == 0 || s.told[n-1].Kind != "TargetUnreachable" {
		t.Fatalf("the client was not told: %s", eventKinds(s.told))
	}
	checkEqual(t, "packets sent to the backup before the client's order", s.packets, 0)
	if len(s.afterSwitch) == 0 || s.afterSwitch[0].Kind != "Switching" {
		t.Errorf("after the order: %s", eventKinds(s.afterSwitch))
	}
	if s.handed < 100 {
		t.Errorf("the backup's client was handed %d messages", s.handed)
	}
	t.Logf("told, then nothing for %s; ledgers: %+v", s.waited.Round(time.Millisecond), s.account)
}
