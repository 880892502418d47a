package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// TestSwitchAuto: the target dies, and data reaches the backup within the
// threshold (3 s) and 2 s more, with no word of anybody.
func TestSwitchAuto(t *testing.T) {
	m := newMirror(t, layout{paths: 2, backup: true, sourceArgs: []string{"--switch", "auto"}})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 200)
	noWordTo(t, m.toBackup)
	m.target.kill()
	killed := time.Now()
	eventually(t, 6*time.Second, "data reaches the backup", func() (bool, string) {
		return m.toBackup[0].Carried(dataporttest.Forward)+m.toBackup[1].Carried(dataporttest.Forward) > 4096, "nothing"
	})
	took := time.Since(killed)
	t.Logf("data reached the backup %s after the target's death", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("data reached the backup after %s, at most 5 s are allowed", took)
	}
	m.source.untilStreaming("backup")
	checkEqual(t, "active target", m.source.mustStatus().ActiveTarget, m.toBackup[0].Addr())
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("backup")
}

// TestSwitchManual: the target dies; the operator is told, and nothing is sent
// to the backup before he orders it. Later he orders the way back.
func TestSwitchManual(t *testing.T) {
	m := newMirror(t, layout{paths: 2, backup: true, sourceArgs: []string{"--switch", "manual"}})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 200)
	m.target.kill()
	m.source.until(8*time.Second, "target counts as unreachable", func(s *status) bool {
		return s.follower("target").State == "down" && len(s.Alarms) > 0
	})
	if out := m.source.mustCommand("events", "--json"); !strings.Contains(out, "unreachable") {
		t.Errorf("the events do not tell that the target is unreachable:\n%s", out)
	}
	if out := m.source.mustCommand("explain"); !strings.Contains(out, "switch backup") {
		t.Errorf("explain does not name the way out, switch backup:\n%s", out)
	}
	ld.untilAnswered(t, 200) // on-loss: continue
	noWordTo(t, m.toBackup)
	m.source.mustCommand("switch", "backup")
	m.source.untilStreaming("backup")
	ld.untilAnswered(t, 200)

	m.target.start()
	m.target.untilUp()
	m.source.mustCommand("switch", "primary")
	m.source.untilStreaming("target")
	ld.untilAnswered(t, 200)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// noWordTo: no connection was ever made over these cables.
func noWordTo(t testing.TB, cables []*dataporttest.Proxy) {
	t.Helper()
	for _, p := range cables {
		if _, ever := p.Connections(); ever != 0 {
			t.Errorf("%d connections were made to the backup before the switch", ever)
		}
	}
}

// TestPromote: the source is gone, the target takes its place with all that was
// flushed (G2, G4); the old source then does not serve any more (G5).
func TestPromote(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "3s"}})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)

	r := m.target.command("promote")
	if r.code != 1 || m.target.mustStatus().Role != "secondary" {
		t.Errorf("promote beside a live source: exit status %d, it has to be refused\n%s%s", r.code, r.stdout, r.stderr)
	}
	checkOneLine(t, r.stderr, "--force")
	if r := m.target.command("promote", "--dry-run"); r.code != 1 || !strings.Contains(r.stderr, "alive") {
		t.Errorf("a dry run beside a live source does not say that it would be refused: %+v", r)
	}

	// On a slow link much is under way at any time: what was flushed must not be.
	m.toTarget[0].Delay(10 * time.Millisecond)
	ld := l.startLoad(c, newRand(t), 16, 10)
	ld.untilAnswered(t, 1500)
	m.toTarget[0].Blackhole(true) // what is under way dies with the host
	time.Sleep(5 * time.Millisecond)
	m.source.kill()
	m.toTarget[0].Delay(0)
	m.toTarget[0].Blackhole(false)
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	ordered := time.Now()
	eventually(t, 10*time.Second, "a dry run is accepted", func() (bool, string) {
		r := m.target.command("promote", "--dry-run")
		return r.code == 0 && strings.Contains(r.stdout, "was last heard of") && strings.Contains(r.stdout, "nothing was changed"), r.stdout + r.stderr
	})
	if role := m.target.mustStatus().Role; role != "secondary" {
		t.Fatalf("a dry run has made the target %s", role)
	}
	eventually(t, 10*time.Second, "promote is accepted", func() (bool, string) {
		r := m.target.command("promote")
		return r.code == 0, r.stderr
	})
	c = m.target.dial(startLimit)
	if err := c.read(0, make([]byte, ledgerBlock)); err != nil {
		t.Fatal(err)
	}
	t.Logf("first read %s after the first order to promote", time.Since(ordered).Round(time.Millisecond))
	if err := l.verify(c.read, allFlushed); err != nil {
		t.Fatalf("on the promoted target: %v", err)
	}
	if err := l.settle(c.read); err != nil {
		t.Fatal(err)
	}
	checkEqual(t, "role", m.target.mustStatus().Role, "primary")

	// It is a full source now: it is written to, ends, and comes back as one.
	ld = l.startLoad(c, newRand(t), 4, 20)
	ld.untilAnswered(t, 200)

	m.source.start()
	m.staysShut(8 * time.Second)
	if err := ld.stop(); err != nil {
		t.Errorf("the new primary while the old one came back: %v", err)
	}
	c.close()
	m.target.kill()
	m.target.start()
	c = m.target.dial(startLimit)
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatalf("promoted target after a kill: %v", err)
	}
	c.close()
}

// staysShut: the old source, started again, serves nobody; it may end with a
// word, stay and say why, or follow the new one.
func (m *testMirror) staysShut(long time.Duration) {
	m.t.Helper()
	for start := time.Now(); time.Since(start) < long; time.Sleep(50 * time.Millisecond) {
		if c, err := dialNBD(m.source.nbd, mirrorName); err == nil {
			c.close()
			m.t.Fatal("the old source serves although another primary was promoted")
		}
		if m.source.hasEnded() {
			if err := m.source.wait(time.Second); err == nil {
				m.t.Error("the old source ended with status 0; it was refused")
			}
			said, _ := os.ReadFile(m.source.log)
			if !strings.Contains(string(said), "generation") {
				m.t.Errorf("the old source ended without a word on the generation:\n%s", said)
			}
			return
		}
	}
	s := m.source.mustStatus()
	if s.Role == "secondary" { // it had nothing that the other lacked, and follows
		return
	}
	m.t.Logf("the old source says: %s, next: %s", s.brief(), s.NextStep)
	if !strings.Contains(s.State+s.Reason, "generation") && !strings.Contains(s.State, "fenced") {
		m.t.Errorf("the old source does not say why it does not serve: %s", s.brief())
	}
}
