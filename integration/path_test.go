package integration

import (
	"testing"
	"time"
)

// TestPathCut takes one path of two away in mid-stream, first loudly, then
// silently: nothing is lost, and no FLUSH waits for long.
func TestPathCut(t *testing.T) {
	m := newMirror(t, layout{paths: 2})
	m.start()
	m.source.until(startLimit, "both paths are active", func(s *status) bool { return activePaths(s) >= 2 })
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 10)
	ld.untilAnswered(t, 300)
	if n := m.toTarget[0].Carried(3); n == 0 || m.toTarget[1].Carried(3) == 0 {
		t.Errorf("bytes carried: %d and %d; both paths should carry data", n, m.toTarget[1].Carried(3))
	}
	for _, fault := range []struct {
		name    string
		on, off func()
	}{
		{"reset", func() { m.toTarget[0].Refuse(true); m.toTarget[0].Cut() }, func() { m.toTarget[0].Refuse(false) }},
		{"silent", func() { m.toTarget[1].Blackhole(true) }, func() { m.toTarget[1].Blackhole(false); m.toTarget[1].Cut() }},
		{"stalled", func() { m.toTarget[0].Freeze(true) }, func() { m.toTarget[0].Freeze(false) }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			fault.on()
			m.source.until(10*time.Second, "one path is down", func(s *status) bool { return activePaths(s) == 1 })
			if s := m.source.mustStatus(); s.follower("target").State != streaming {
				t.Errorf("one of two paths is down and the target does not stream: %s", s.brief())
			}
			ld.untilAnswered(t, 500)
			fault.off()
			m.source.until(20*time.Second, "both paths are active again", func(s *status) bool { return activePaths(s) >= 2 })
			ld.untilAnswered(t, 200)
		})
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	slowest := time.Duration(ld.slowest.Load())
	t.Logf("slowest FLUSH over all faults: %s", slowest)
	if slowest > 5*time.Second {
		t.Errorf("a FLUSH waited %s although a path was there all the time", slowest)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestAllPathsLost takes both paths away for longer than the target may be
// silent, and gives them back: the target catches up by itself.
func TestAllPathsLost(t *testing.T) {
	m := newMirror(t, layout{paths: 2})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 20)
	ld.untilAnswered(t, 100)
	for _, p := range m.toTarget {
		p.Blackhole(true)
	}
	m.source.until(8*time.Second, "target is out of sync", func(s *status) bool { return s.follower("target").State != streaming })
	ld.untilAnswered(t, 1000)
	for _, p := range m.toTarget {
		p.Blackhole(false)
		p.Cut()
	}
	m.source.untilStreaming("target")
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

func activePaths(s *status) (n int) {
	f := s.follower("target")
	for _, p := range f.Paths {
		if p.State == "active" {
			n++
		}
	}
	return n
}
