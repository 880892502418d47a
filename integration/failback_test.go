package integration

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"mirror-agent/mirror"
)

// planned promotes a target while its source lives.
func (m *testMirror) planned(a *agent) {
	m.t.Helper()
	a.until(startLimit, "is fed", func(s *status) bool { return s.Role == "secondary" && s.State == "streaming" })
	a.mustCommand("promote", "--planned")
}

// leads waits until the agent is primary and its follower of a kind has everything.
func (a *agent) leads(kind string) {
	a.t.Helper()
	a.until(startLimit, "leads, in sync", func(s *status) bool {
		return s.Role == "primary" && s.State == "in sync" && s.follower(kind).State == streaming
	})
}

// TestFailback: under load the lead goes to the target, which is written to, and home again; the agents run on all the time,
// nothing that was answered is lost, nothing is copied, and both devices are equal.
func TestFailback(t *testing.T) {
	for _, where := range []string{"at home", "on the other host"} {
		t.Run(where, func(t *testing.T) {
			m := newMirror(t, layout{paths: 2})
			m.start()
			l := newLedger(baseSeed, m.size)
			write := func(on *agent, while func()) {
				t.Helper()
				c := on.dial(startLimit)
				ld := l.startLoad(c, newRand(t), 8, 20)
				ld.untilAnswered(t, 500)
				while()
				if err := ld.join(); err != nil {
					t.Fatal(err)
				}
			}
			write(m.source, func() { m.planned(m.target) })
			s := m.source.mustStatus()
			if s.Role != "secondary" || s.NBD.Address != "" {
				t.Fatalf("the old source: %s, serves at %q", s.brief(), s.NBD.Address)
			}
			c := m.target.dial(startLimit)
			if err := l.verify(c.read, allAcked); err != nil {
				t.Fatalf("on the target: %v", err)
			}
			c.close()
			m.target.leads("target")
			if r := m.source.command("promote"); r.code != 1 || !strings.Contains(r.stderr, "promote --planned") {
				t.Errorf("promoted beside a primary that lives: %+v", r)
			}
			on := m.source
			if where != "at home" {
				on = m.target
			}
			write(m.target, func() {
				if out := on.mustCommand("failback", "--dry-run"); !strings.Contains(out, "nothing was changed") {
					t.Errorf("dry run: %s", out)
				}
				var r mirror.FailbackResult
				if err := json.Unmarshal([]byte(on.mustCommand("failback", "--json")), &r); err != nil || r.Generation != "3.0" || !r.Ready {
					t.Errorf("failback: %+v (%v)", r, err)
				}
			})
			m.source.leads("target")
			if r := on.command("failback"); r.code != 1 || !strings.Contains(r.stderr, "is primary already") {
				t.Errorf("failback at home: %+v", r)
			}
			c = m.source.dial(startLimit)
			ld := l.startLoad(c, newRand(t), 8, 20)
			ld.untilAnswered(t, 300)
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			if err := l.verify(c.read, allAcked); err != nil {
				t.Fatalf("at home: %v", err)
			}
			c.close()
			for _, a := range []*agent{m.source, m.target} {
				if why := a.resyncs(); len(why) > 0 {
					t.Errorf("resyncs: %q", why)
				}
			}
			m.stopLevel("target")
		})
	}
}

// TestPlannedBackup: the hot backup follows whoever leads, although nobody told the target of it; all three are equal at the end.
func TestPlannedBackup(t *testing.T) {
	m := hotMirror(t, "64MiB")
	l := newLedger(baseSeed, m.size)
	for _, next := range []*agent{m.target, m.backup, m.source} {
		lead := m.source
		for _, a := range []*agent{m.target, m.backup} {
			if a.mustStatus().Role == "primary" {
				lead = a
			}
		}
		lead.until(startLimit, "feeds both", feedsBoth)
		m.target.knows(m, m.backup)
		m.backup.knows(m, m.target)
		c := lead.dial(startLimit)
		ld := l.startLoad(c, newRand(t), 8, 20)
		ld.untilAnswered(t, 300)
		m.planned(next)
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}
		c = next.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("on %s: %v", next.name, err)
		}
		c.close()
		next.until(startLimit, "feeds both", feedsBoth)
	}
	m.source.untilFedAll("target")
	m.source.untilFedAll("backup")
	for _, a := range []*agent{m.source, m.target, m.backup} {
		if why := a.resyncs(); len(why) > 0 {
			t.Errorf("resyncs: %q", why)
		}
	}
	m.source.stop()
	m.target.stop()
	m.backup.stop()
	sameFile(t, m.source.device, m.target.device)
	sameFile(t, m.source.device, m.backup.device)
}

// knows waits until an agent, when it follows, has kept where another one is reached: as that one says, or as its source was told.
func (a *agent) knows(m *testMirror, o *agent) {
	a.t.Helper()
	cables := m.toTarget
	if o == m.backup {
		cables = m.toBackup
	}
	a.until(startLimit, "knows where "+o.name+" listens", func(s *status) bool {
		b, err := os.ReadFile(m.path(a.name, "journal") + ".members")
		return s.Role == "primary" || err == nil && (strings.Contains(string(b), o.listen[0]) || strings.Contains(string(b), cables[0].Addr()))
	})
}

// feedsBoth: two followers are streaming.
func feedsBoth(s *status) bool {
	n := 0
	for _, f := range s.Followers {
		if f.State == streaming {
			n++
		}
	}
	return s.Role == "primary" && n == 2
}
