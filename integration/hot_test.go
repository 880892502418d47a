package integration

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// hotMirror is a source with a target and a hot backup, all in sync.
func hotMirror(t *testing.T, journal string, args ...string) *testMirror {
	t.Helper()
	if journal == "" {
		journal = "512MiB" // half of it is kept for who comes back: more than the load writes meanwhile on a fast disk
	}
	m := newMirror(t, layout{backup: true, journal: journal, sourceArgs: append([]string{"--backups", "hot"}, args...)})
	m.start()
	m.source.untilFed("backup")
	m.untilAcquainted()
	return m
}

// resyncs are the reasons of all resyncs but those of empty followers, in the agent's present life.
func (a *agent) resyncs() (reasons []string) {
	a.t.Helper()
	for line := range strings.Lines(a.mustCommand("events", "--json")) {
		var e struct{ Kind, Target, Text string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			a.t.Fatalf("event %q: %v", line, err)
		}
		if e.Kind == "follower-resync" && !strings.Contains(e.Text, "is empty") {
			reasons = append(reasons, e.Target+": "+e.Text)
		}
	}
	return reasons
}

// activeInSync: the mirror is in sync and the follower of that kind is the one whose word counts.
func activeInSync(kind string) func(*status) bool {
	return func(s *status) bool {
		f := s.follower(kind)
		return s.State == "in sync" && f.Active && f.State == streaming
	}
}

// untilFed waits until the first follower of a kind is streaming, active or not.
func (a *agent) untilFed(kind string) status {
	a.t.Helper()
	return a.until(startLimit, kind+" is fed", func(s *status) bool { return s.follower(kind).State == streaming })
}

// untilFedAll waits until it has everything as well.
func (a *agent) untilFedAll(kind string) {
	a.t.Helper()
	a.until(startLimit, kind+" has everything", func(s *status) bool {
		f := s.follower(kind)
		return f.State == streaming && f.LagBytes == 0 && f.Durable == s.Log.Head
	})
}

// TestHotSwitch: under load the target is killed; the hot backup counts within the time that a silent target is given, and
// nothing is copied. The target comes back, catches up from the log and is not active before it is ordered.
func TestHotSwitch(t *testing.T) {
	for _, by := range []string{"auto", "manual"} {
		t.Run(by, func(t *testing.T) {
			m := hotMirror(t, "", "--switch", by)
			l := newLedger(baseSeed, m.size)
			c := m.source.dial(startLimit)
			ld := l.startLoad(c, newRand(t), 8, 10)
			ld.untilAnswered(t, 300)
			m.target.kill()
			killed := time.Now()
			if by == "manual" {
				m.source.mustCommand("switch", "backup")
			}
			m.source.until(10*time.Second, "the backup counts", activeInSync("backup"))
			t.Logf("without a follower that counts for %s at most", time.Since(killed).Round(time.Millisecond))
			ld.untilAnswered(t, 200)
			m.target.start()
			s := m.source.untilFed("target")
			if s.follower("target").Active {
				t.Error("the flow went back by itself")
			}
			m.source.mustCommand("switch", "primary")
			m.source.until(10*time.Second, "the target counts", activeInSync("target"))
			m.source.untilFed("backup")
			if why := m.source.resyncs(); len(why) > 0 {
				t.Errorf("resyncs: %q", why)
			}
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			if err := l.verify(c.read, allAcked); err != nil {
				t.Fatal(err)
			}
			c.close()
			m.source.untilFedAll("target")
			m.source.untilFedAll("backup")
			m.source.stop() // sends off both
			m.target.stop()
			m.backup.stop()
			sameFile(t, m.source.device, m.target.device)
			sameFile(t, m.source.device, m.backup.device)
		})
	}
}

// TestHotRounds: target and hot backup are killed and started again in turn, under load; the flow goes to the other one each
// time, and no block is ever copied. At the end all three are the same.
func TestHotRounds(t *testing.T) {
	m := hotMirror(t, "", "--unreachable-after", "1s", "--path-down-after", "500ms")
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 20)
	for range 3 {
		for _, r := range []struct {
			dies     *agent
			kind     string
			other    string
			switchTo string
		}{{m.target, "target", "backup", "backup"}, {m.backup, "backup", "target", "primary"}} {
			ld.untilAnswered(t, 50)
			r.dies.kill()
			m.source.mustCommand("switch", r.switchTo)
			m.source.until(10*time.Second, r.other+" counts", activeInSync(r.other))
			ld.untilAnswered(t, 50)
			r.dies.start()
			m.source.untilFed(r.kind)
		}
	}
	if why := m.source.resyncs(); len(why) > 0 {
		t.Errorf("resyncs: %q", why)
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.untilFedAll("target")
	m.source.untilFedAll("backup")
	m.source.stop()
	m.target.stop()
	m.backup.stop()
	sameFile(t, m.source.device, m.target.device)
	sameFile(t, m.source.device, m.backup.device)
}

// TestHotPromoted: source and target die in one moment. The backup that was active has all that was flushed; one that was only
// fed has all that had reached it, a state that the source had. A target that is promoted instead meets the backup by its log.
func TestHotPromoted(t *testing.T) {
	t.Run("active", func(t *testing.T) {
		m := hotMirror(t, "")
		m.source.mustCommand("switch", "backup")
		l := newLedger(baseSeed, m.size)
		c := m.source.dial(startLimit)
		m.toBackup[0].Delay(5 * time.Millisecond) // much is under way at any time: what was flushed must not be
		ld := l.startLoad(c, newRand(t), 16, 10)
		ld.untilAnswered(t, 800)
		m.toBackup[0].Blackhole(true)
		m.source.kill()
		m.target.kill()
		m.toBackup[0].Delay(0)
		m.toBackup[0].Blackhole(false)
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}
		m.promoteAlone(m.backup)
		c = m.backup.dial(startLimit)
		if err := l.verify(c.read, allFlushed); err != nil {
			t.Fatalf("on the promoted backup: %v", err)
		}
		c.close()
	})
	t.Run("only fed", func(t *testing.T) {
		m := hotMirror(t, "")
		l := newLedger(baseSeed, m.size)
		c := m.source.dial(startLimit)
		ld := l.startLoad(c, newRand(t), 8, 10)
		ld.untilAnswered(t, 300)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		m.source.untilFedAll("backup")            // what was flushed until now is there
		ld = l.startLoad(c, newRand(t), 8, 0)     // nothing is flushed any more
		m.toBackup[0].Delay(5 * time.Millisecond) // it lags
		ld.untilAnswered(t, 800)
		m.toBackup[0].Blackhole(true)
		m.source.kill()
		m.target.kill()
		m.toBackup[0].Delay(0)
		m.toBackup[0].Blackhole(false)
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}
		m.promoteAlone(m.backup)
		c = m.backup.dial(startLimit)
		if err := l.verify(c.read, allFlushed); err != nil {
			t.Fatalf("on the promoted backup: %v", err)
		}
		c.close()
	})
	t.Run("the target, with the backup as its own", func(t *testing.T) {
		m := newMirror(t, layout{size: 64 << 20, backup: true, journal: "16MiB", sourceArgs: []string{"--backups", "hot"}})
		m.target.args = append(m.target.args, "--target", strings.Join(m.backup.listen, ","), "--local", "127.0.0.1")
		m.start()
		m.source.untilFed("backup")
		m.untilAcquainted()
		c := m.source.dial(startLimit)
		rng := newRand(t)
		hammer(t, c, rng, 0, 64<<20, 300)
		m.source.untilFedAll("backup")
		time.Sleep(1500 * time.Millisecond) // the others are told about once a second
		m.backup.kill()
		hammer(t, c, rng, 8<<20, 2<<20, 3*16<<20/(64<<10)) // more than any log holds
		m.source.untilFedAll("target")
		m.source.kill()
		m.promoteAlone(m.target)
		m.backup.start()
		m.target.untilLevel("target")
		why := m.target.resyncs()
		// It is reached where the old source did and where this target is told to; the second connection takes the place of the first,
		// perhaps in the middle of its resync.
		if len(why) == 0 || len(why) > 2 || slices.ContainsFunc(why, func(w string) bool { return !strings.Contains(w, "what changed since is copied") }) {
			t.Errorf("resyncs: %q", why)
		}
		m.target.stop()
		m.backup.stop()
		sameFile(t, m.target.device, m.backup.device)
	})
}

// promoteAlone promotes one of three members while both others are dead: without --force it has to be refused.
func (m *testMirror) promoteAlone(a *agent) {
	m.t.Helper()
	a.untilRefused("1 of the 3 members")
	a.mustCommand("promote", "--force")
}

// promote orders the promotion of a follower until it no longer hears its source.
func (m *testMirror) promote(a *agent) {
	m.t.Helper()
	eventually(m.t, 10*time.Second, "promote is accepted", func() (bool, string) {
		r := a.command("promote")
		return r.code == 0, r.stderr
	})
}

// TestHotSlow: a hot backup behind a link that is far too slow holds writers up for push-back at most, and not the target; it is
// resynced by bitmap when its link is better.
func TestHotSlow(t *testing.T) {
	m := newMirror(t, layout{size: 64 << 20, backup: true, journal: "16MiB", sourceArgs: []string{"--backups", "hot", "--mode", "async", "--push-back", "1s"}})
	m.start()
	m.source.untilFed("backup")
	m.source.untilFedAll("backup")
	c := m.source.dial(startLimit)
	m.toBackup[0].Rate(1 << 20)
	began := time.Now()
	hammer(t, c, newRand(t), 0, 64<<20, 4*16<<20/(64<<10))
	t.Logf("64 MiB written in %s", time.Since(began).Round(time.Millisecond))
	s := m.source.mustStatus()
	if f := s.follower("target"); !f.Active || f.State != streaming {
		t.Errorf("the target is %s", f.State)
	}
	m.said("writers outran it")
	if why := m.source.resyncs(); len(why) > 0 && strings.Contains(why[0], m.toTarget[0].Addr()) {
		t.Errorf("the target is resynced: %q", why)
	}
	m.toBackup[0].Rate(0)
	c.close()
	m.source.until(60*time.Second, "level again", func(s *status) bool {
		f := s.follower("backup")
		return f.State == streaming && f.LagBytes == 0 && f.DirtyBytes == 0
	})
	why := m.source.resyncs()
	for _, w := range why {
		if !strings.Contains(w, "what changed since is copied") {
			t.Errorf("resync: %s", w)
		}
	}
	if len(why) == 0 {
		t.Error("no resync")
	}
	m.source.stop()
	m.backup.stop()
	m.target.stop()
	sameFile(t, m.source.device, m.backup.device)
	sameFile(t, m.source.device, m.target.device)
}
