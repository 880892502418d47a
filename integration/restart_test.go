package integration

import (
	"os"
	"testing"
)

// TestCleanRestart: what a clean end leaves is the device alone, and both sides
// go on from it without copying anything.
func TestCleanRestart(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	for round := range 3 {
		c := m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ld := l.startLoad(c, newRand(t), 4, 20)
		ld.untilAnswered(t, 300)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		c.close()
		m.stopLevel("target")
		// The device alone is the volume.
		dev, err := os.Open(m.source.device)
		if err != nil {
			t.Fatal(err)
		}
		err = l.verify(func(off int64, p []byte) error { _, err := dev.ReadAt(p, off); return err }, allAcked)
		dev.Close()
		if err != nil {
			t.Fatalf("device after a clean end: %v", err)
		}
		m.target.start()
		m.source.start()
		s := m.source.untilStreaming("target")
		var sent uint64
		for _, p := range s.follower("target").Paths {
			sent += p.BytesSent
		}
		if sent > 2<<20 {
			t.Errorf("%d bytes were sent to a target that had everything", sent)
		}
	}
}
