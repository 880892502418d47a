package integration

import (
	"strings"
	"testing"
)

// unapplied is a mirror whose logs, on both sides, hold promised records that are not applied: neither applies anything by itself. Both
// sides were killed.
func unapplied(t *testing.T) (m *testMirror, l *ledger, at uint64) {
	t.Helper()
	m = newMirror(t, layout{sourceArgs: []string{"--sync-interval", "1h", "--start-wait", "3s"}, targetArgs: []string{"--sync-interval", "1h"}})
	m.start()
	l = newLedger(9, m.size)
	load := func() {
		t.Helper()
		c := m.source.dial(startLimit)
		ld := l.startLoad(c, newRand(t), 4, 8)
		ld.untilAnswered(t, 600)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		c.close()
	}
	load()
	m.source.untilLevel("target")
	m.source.kill()
	m.source.start() // in a new generation: the target notes it, and with it what it has promised by now
	m.source.untilLevel("target")
	s := m.target.mustStatus()
	at = s.Log.Applied + (s.Log.Durable-s.Log.Applied)/2
	if at == s.Log.Applied {
		t.Fatalf("nothing is unapplied at the target: %s", s.brief())
	}
	load()
	m.source.untilLevel("target")
	if src := m.source.mustStatus(); src.Log.Applied >= at {
		t.Fatalf("nothing is unapplied at the source: %s", src.brief())
	}
	m.source.kill()
	m.target.kill()
	return m, l, at
}

// rotAt flips a bit of the log at an LSN.
func (m *testMirror) rotAt(name string, lsn uint64) {
	m.t.Helper()
	const ringStart, ring = 8192, 64<<20 - 8192
	flip(m.t, m.path(name, "journal"), int64(ringStart+lsn%ring))
}

// TestRotRepairedFromPeer: a bit of the log flips in what was promised and is not applied, on either side. It is fetched from
// the other one; until then a target cannot be promoted, and a source does not serve.
func TestRotRepairedFromPeer(t *testing.T) {
	t.Run("target", func(t *testing.T) {
		m, l, at := unapplied(t)
		m.rotAt("target", at)
		before := hashes(t, m.dir)[m.path("target", "journal")]
		m.target.start()
		m.target.untilState("damaged", "target.journal", "LSN", "not promotable")
		if r := m.target.command("promote"); r.code != 1 || !strings.Contains(r.stderr, "--force") || !strings.Contains(r.stderr, "LSN") {
			t.Errorf("promote on a damaged log: exit status %d: %s", r.code, r.stderr)
		}
		checkEqual(t, "journal after a refused promotion", fileHash(t, m.path("target", "journal")), before)
		m.target.kill()
		checkEqual(t, "journal after a kill while damaged", fileHash(t, m.path("target", "journal")), before)
		m.target.start()
		m.source.start()
		m.source.untilLevel("target")
		m.target.until(startLimit, "is whole again", func(s *status) bool { return s.State == streaming })
		if e := m.target.mustCommand("events", "--json"); !strings.Contains(e, `"repaired"`) {
			t.Errorf("no event of the repair:\n%s", e)
		}
		m.source.kill()
		m.target.until(startLimit, "is promotable", func(*status) bool { return m.target.command("promote").code == 0 })
		c := m.target.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatal(err)
		}
		c.close()
		m.target.stop()
	})
	t.Run("target, both devices in the end", func(t *testing.T) {
		m, _, at := unapplied(t)
		m.rotAt("target", at)
		m.target.start()
		m.source.start()
		m.source.untilLevel("target")
		m.stopLevel("target")
	})
	t.Run("source", func(t *testing.T) {
		m, l, at := unapplied(t)
		m.rotAt("source", at)
		m.target.start()
		m.target.untilUp()
		m.source.start()
		c := m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatal(err)
		}
		c.close()
		if e := m.source.mustCommand("events", "--json"); !strings.Contains(e, `"repaired"`) {
			t.Errorf("no event of the repair:\n%s", e)
		}
		m.stopLevel("target")
	})
	t.Run("both in different places", func(t *testing.T) {
		m, l, at := unapplied(t)
		m.rotAt("source", at)
		m.rotAt("target", at+64<<10)
		m.target.start()
		m.target.untilUp()
		m.source.start()
		c := m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatal(err)
		}
		c.close()
		m.stopLevel("target")
	})
	t.Run("both in the same place", func(t *testing.T) {
		m, l, at := unapplied(t)
		m.rotAt("source", at)
		m.rotAt("target", at)
		m.target.start()
		m.target.untilState("damaged", "target.journal")
		before := hashes(t, m.dir)
		code, stderr := tryStart(t, m)
		checkEqual(t, "exit status", code, 1)
		checkOneLine(t, stderr, "source.journal", "LSN", "damaged too", "--target")
		t.Log(tailLine(stderr))
		m.target.kill()
		after := hashes(t, m.dir)
		for _, f := range []string{"source.journal", "source.img", "target.journal", "target.img"} {
			name, ext, _ := strings.Cut(f, ".")
			checkEqual(t, f, after[m.path(name, ext)], before[m.path(name, ext)])
		}
		// The way out that the line names: a copy that is good.
		m.rotAt("target", at)
		m.target.start()
		m.target.untilUp()
		m.source.start()
		c := m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatal(err)
		}
		c.close()
		m.stopLevel("target")
	})
	t.Run("forced promotion", func(t *testing.T) {
		m, l, at := unapplied(t)
		m.rotAt("target", at)
		m.target.start()
		m.target.untilState("damaged", "LSN")
		m.target.mustCommand("promote", "--force")
		c := m.target.dial(startLimit)
		if err := l.verify(c.read, allSettled); err != nil {
			t.Fatalf("not a state the device ever had: %v", err)
		}
		c.close()
		m.target.kill()
		m.target.start()
		m.target.dial(startLimit).close()
		if g := m.target.mustStatus().Generation; !strings.HasPrefix(g, "2.") {
			t.Errorf("generation %s", g)
		}
		m.target.stop()
	})
}

// TestRotBeyondSourcesLog: the source's log does not reach back to what has rotted at the target: it is resynced.
func TestRotBeyondSourcesLog(t *testing.T) {
	m := newMirror(t, layout{journal: "16MiB", sourceArgs: []string{"--start-wait", "3s"}, targetArgs: []string{"--sync-interval", "1h"}})
	m.start()
	c := m.source.dial(startLimit)
	fill := func(b byte, n int) {
		t.Helper()
		p := []byte(strings.Repeat(string(rune(b)), 64<<10))
		for i := range n {
			if err := c.write(int64(i*len(p))%m.size, p, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
	}
	fill('a', 16)
	m.source.untilLevel("target")
	c.close()
	m.source.kill()
	m.source.start()
	m.source.untilLevel("target")
	s := m.target.mustStatus()
	at := s.Log.Applied + (s.Log.Durable-s.Log.Applied)/2
	m.target.kill()
	const ringStart, ring = 8192, 16<<20 - 8192
	flip(t, m.path("target", "journal"), int64(ringStart+at%ring))
	c = m.source.dial(startLimit)
	fill('b', 512)
	c.close()
	m.target.start()
	m.source.untilLevel("target")
	if e := m.source.mustCommand("events", "--json"); !strings.Contains(e, "follower-resync") {
		t.Errorf("it was not resynced:\n%s", e)
	}
	m.target.until(startLimit, "is whole again", func(s *status) bool { return s.State == streaming })
	m.stopLevel("target")
}
