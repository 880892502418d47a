package integration

import (
	"testing"
	"time"
)

// TestPromoteInMode: the source is killed and its cable cut in the same moment; the promoted target has what the mode says:
// every write that was answered in receive and durable.
func TestPromoteInMode(t *testing.T) {
	for _, mode := range []string{"receive", "durable"} {
		t.Run(mode, func(t *testing.T) {
			m := newMirror(t, layout{sourceArgs: []string{"--mode", mode}})
			m.start()
			l := newLedger(baseSeed, m.size)
			c := m.source.dial(startLimit)
			m.toTarget[0].Delay(2 * time.Millisecond)
			ld := l.startLoad(c, newRand(t), 16, 0) // nothing is ever flushed
			ld.untilAnswered(t, 1500)
			m.toTarget[0].Blackhole(true) // what is under way dies with the host
			time.Sleep(5 * time.Millisecond)
			m.source.kill()
			m.toTarget[0].Delay(0)
			m.toTarget[0].Blackhole(false)
			if err := ld.join(); err != nil {
				t.Fatal(err)
			}
			m.promoteTarget()
			c = m.target.dial(startLimit)
			if err := l.verify(c.read, allAcked); err != nil {
				t.Fatalf("on the promoted target: %v", err)
			}
			c.close()
		})
	}
}

// TestModeUnderLoad: the mode is changed again and again under load; at the end in receive: what was answered then is at the target.
func TestModeUnderLoad(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 16, 50)
	for range 3 {
		for _, mode := range []string{"receive", "async", "durable", "flush", "async", "receive"} {
			m.source.mustCommand("mode", mode)
			ld.untilAnswered(t, 100)
		}
	}
	m.toTarget[0].Blackhole(true)
	m.source.kill()
	m.toTarget[0].Blackhole(false)
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.promoteTarget()
	c = m.target.dial(startLimit)
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatalf("on the promoted target: %v", err)
	}
	c.close()
}

// promoteTarget orders the promotion until the target no longer hears its source.
func (m *testMirror) promoteTarget() {
	m.t.Helper()
	m.promote(m.target)
}
