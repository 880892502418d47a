package integration

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// atEvent kills or cuts when an agent tells of an event whose text contains words: as soon as `events --follow` has shown it.
func (a *agent) atEvent(words string, do func()) (done chan struct{}) {
	a.t.Helper()
	cmd := exec.Command(program(a.t), "events", "--follow", "--json", "--control", a.control)
	out, err := cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), words) {
				do()
				break
			}
		}
		_ = cmd.Process.Kill()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}()
	return done
}

// serves says whether an agent answers NBD clients now.
func (a *agent) serves() bool {
	c, err := dialNBD(a.nbd, mirrorName)
	if err != nil {
		return false
	}
	c.close()
	return true
}

// TestPlannedKill: real agents are killed, or cut from each other, when they tell that they have come to a step of a handover.
// Never do both serve; in the end one leads (promoted by hand where nobody does), and has all that was answered.
func TestPlannedKill(t *testing.T) {
	for _, c := range []struct {
		name  string
		on    string // whose event
		words string
		do    string
	}{
		{"the source is killed when it has closed its front", "source", "all requests were answered", "kill source"},
		{"the source is killed when it is a secondary", "source", "secondary from LSN", "kill source"},
		{"the target is killed when the source is a secondary", "source", "secondary from LSN", "kill target"},
		{"the target is killed when it is told", "target", "has handed over at LSN", "kill target"},
		{"the target is killed when it was promoted", "target", "primary of generation", "kill target"},
		{"both are killed when the source is a secondary", "source", "secondary from LSN", "kill both"},
		{"the cable is cut when the source has closed its front", "source", "all requests were answered", "cut"},
		{"the cable is cut when the source is a secondary", "source", "secondary from LSN", "cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "2s"}, targetArgs: []string{"--start-wait", "2s"}})
			m.start()
			l := newLedger(baseSeed, m.size)
			conn := m.source.dial(startLimit)
			ld := l.startLoad(conn, newRand(t), 8, 20)
			ld.untilAnswered(t, 200)
			on := map[string]*agent{"source": m.source, "target": m.target}[c.on]
			var killed []*agent
			hit := on.atEvent(c.words, func() {
				switch c.do {
				case "cut":
					m.toTarget[0].Blackhole(true)
				case "kill both":
					killed = []*agent{m.source, m.target}
				case "kill source":
					killed = []*agent{m.source}
				case "kill target":
					killed = []*agent{m.target}
				}
				for _, a := range killed {
					a.kill()
				}
			})
			r := m.target.command("promote", "--planned", "--limit", "6s")
			t.Logf("promote --planned: %d %s%s", r.code, r.stdout, r.stderr)
			select {
			case <-hit:
			case <-time.After(startLimit):
				t.Fatal("the event was not seen")
			}
			if err := ld.join(); err != nil {
				t.Fatal(err)
			}
			if m.source.serves() && m.target.serves() {
				t.Fatal("both serve")
			}
			m.toTarget[0].Blackhole(false)
			for _, a := range killed {
				a.start() // with the command line that it had
			}
			lead, other := m.whoLeads()
			conn = lead.dial(startLimit)
			if err := l.verify(conn.read, allAcked); err != nil {
				t.Fatalf("on the %s: %v", lead.name, err)
			}
			lead.leads("target")
			ld = l.startLoad(conn, newRand(t), 8, 20)
			ld.untilAnswered(t, 100)
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			if other.serves() {
				t.Fatal("both serve")
			}
			conn.close()
			if why := append(m.source.resyncs(), m.target.resyncs()...); len(why) > 0 {
				t.Errorf("resyncs: %q", why)
			}
			lead.untilLevel("target")
			lead.stop()
			other.stop()
			sameFile(t, m.source.device, m.target.device)
		})
	}
}

// whoLeads waits until one of the two leads and the other one does not; where both say that nobody does, the target is promoted.
func (m *testMirror) whoLeads() (lead, other *agent) {
	m.t.Helper()
	promoted := false
	eventually(m.t, startLimit, "one leads", func() (bool, string) {
		s, err1 := m.source.status()
		t, err2 := m.target.status()
		if err1 != nil || err2 != nil {
			return false, "no answer yet"
		}
		said := "source " + s.brief() + "; target " + t.brief()
		switch {
		case s.Role == "primary" && t.Role == "primary":
			m.t.Fatalf("both lead: %s", said)
		case s.State == "handed over" && t.State == "waiting" && !promoted:
			if s.NextStep == "" || !strings.Contains(t.NextStep, "promote") {
				m.t.Errorf("no way on is told: %q and %q", s.NextStep, t.NextStep)
			}
			r := m.target.command("promote")
			promoted = r.code == 0
			return false, r.stderr
		case s.Role == "primary" && s.NBD.Address != "" && t.State == "streaming":
			lead, other = m.source, m.target
		case t.Role == "primary" && t.NBD.Address != "" && s.State == "streaming":
			lead, other = m.target, m.source
		}
		return lead != nil, said
	})
	return lead, other
}
