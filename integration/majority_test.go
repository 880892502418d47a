package integration

import (
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// threeMembers is a source with a target and a hot backup, all of which know each other.
func threeMembers(t *testing.T, followerArgs ...string) *testMirror {
	t.Helper()
	m := newMirror(t, layout{backup: true, journal: "64MiB", sourceArgs: []string{"--backups", "hot", "--start-wait", "20s", "--node", "nyc1"}, targetArgs: followerArgs})
	m.target.args = append(m.target.args, "--node", "fra2")
	m.backup.args = append(m.backup.args, "--node", "ams1")
	m.start()
	m.source.untilFed("backup")
	m.untilAcquainted()
	return m
}

// untilAcquainted waits until all three know each other: a member that was not told the list yet is promoted by an operator's word.
func (m *testMirror) untilAcquainted() {
	m.t.Helper()
	for _, a := range []*agent{m.source, m.target, m.backup} {
		a.untilMembers(3)
	}
}

// untilMembers waits until the agent knows n members.
func (a *agent) untilMembers(n int) {
	a.t.Helper()
	eventually(a.t, startLimit, a.name+" knows the members", func() (bool, string) {
		r := a.command("member", "list")
		return r.code == 0 && strings.Count(r.stdout, "\n") == n+1, r.stdout
	})
}

// untilRefused orders a promotion until it is refused with certain words.
func (a *agent) untilRefused(words ...string) {
	a.t.Helper()
	eventually(a.t, 20*time.Second, "promote is refused", func() (bool, string) {
		r := a.command("promote")
		if r.code == 0 {
			a.t.Fatalf("%s was promoted\n%s", a.name, r.stdout)
		}
		for _, w := range words {
			if !strings.Contains(r.stderr, w) {
				return false, r.stderr
			}
		}
		return r.code == 1, r.stderr
	})
}

// TestMajority: of three members the source is killed. The one that is behind is refused, with the name of the other one; that one
// is promoted with all that was flushed. The old source meets only the one that gave its word, and is fenced.
func TestMajority(t *testing.T) {
	m := threeMembers(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 10)
	ld.untilAnswered(t, 200)
	m.backup.kill()
	ld.untilAnswered(t, 400)
	m.source.kill()
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.target.untilRefused("1 of the 3 members", "2 are needed", "ams1 cannot be asked")
	m.backup.start()
	m.backup.untilRefused("fra2 is ahead", "promote it instead")
	m.promote(m.target)
	m.backup.untilRefused("fra2, the source, is alive") // it is fed by the new primary
	c = m.target.dial(startLimit)
	if err := l.verify(c.read, allFlushed); err != nil {
		t.Fatalf("on the promoted target: %v", err)
	}
	c.close()
	m.target.stop()
	m.source.start()
	m.source.until(20*time.Second, "the old source is fenced by the backup's word", func(s *status) bool {
		// Where the backup can show that this volume has nothing of its own it waits for the new primary already.
		return s.State == "fenced" && strings.Contains(s.Reason, "2.0") || s.Role == "secondary" && s.State == "rejoining"
	})
}

// TestMajorityApart: a member that is cut off from the others cannot be promoted, however long; the others can.
func TestMajorityApart(t *testing.T) {
	m := threeMembers(t)
	apart := func(cables []*dataporttest.Proxy, on bool) {
		for _, p := range cables {
			p.Blackhole(on)
		}
	}
	apart(m.toTarget, true) // and the way of the backup to it leads there too
	m.target.until(20*time.Second, "no source is heard", func(s *status) bool { return s.State == "waiting" })
	m.target.untilRefused("ams1 is fed by nyc1, which is alive")
	if s := m.source.mustStatus(); s.Role != "primary" || s.Generation != "1.0" {
		t.Fatalf("the source is %s of generation %s", s.Role, s.Generation)
	}
	m.backup.kill()
	m.target.untilRefused("1 of the 3 members")
	if s := m.target.mustStatus(); s.Role != "secondary" || s.Generation != "1.0" {
		t.Fatalf("the target is %s of generation %s", s.Role, s.Generation)
	}
	apart(m.toTarget, false)
	m.source.untilStreaming("target") // nothing of that has fenced the source
}

// TestMajorityTwice: two orders at one moment on two members: one becomes primary, the other is refused.
func TestMajorityTwice(t *testing.T) {
	m := threeMembers(t)
	m.source.untilFedAll("target")
	m.source.untilFedAll("backup")
	m.source.kill()
	for _, a := range []*agent{m.target, m.backup} {
		a.until(20*time.Second, "no source is heard", func(s *status) bool { return s.State == "waiting" })
	}
	var wg sync.WaitGroup
	results := make([]result, 2)
	for i, a := range []*agent{m.target, m.backup} {
		wg.Go(func() { results[i] = a.command("promote") })
	}
	wg.Wait()
	// The one that lost was asked while the other took over, or is fed by it already.
	refusal := results[0].stderr + results[1].stderr
	if results[0].code+results[1].code != 1 ||
		!strings.Contains(refusal, "is primary of generation") && !strings.Contains(refusal, ", the source, is alive") {
		t.Fatalf("%+v", results)
	}
	primaries := 0
	for _, a := range []*agent{m.target, m.backup} {
		if a.mustStatus().Role == "primary" {
			primaries++
		}
	}
	if primaries != 1 {
		t.Fatalf("%d primaries", primaries)
	}
}

// TestMemberRemove: a member that is gone for good is taken off the list, on the source, and on a target that has lost it.
func TestMemberRemove(t *testing.T) {
	m := threeMembers(t)
	if r := m.source.command("member", "remove", "ams1"); r.code != 1 || !strings.Contains(r.stderr, "in sync right now") {
		t.Fatalf("%+v", r)
	}
	m.backup.kill()
	if r := m.target.command("member", "remove", "ams1"); r.code != 1 || !strings.Contains(r.stderr, "give the order there") {
		t.Fatalf("%+v", r)
	}
	m.source.kill()
	m.target.untilRefused("1 of the 3 members")
	if out := m.target.mustCommand("member", "remove", "ams1"); !strings.Contains(out, "2 members") {
		t.Fatal(out)
	}
	m.target.mustCommand("promote")
	m.target.dial(startLimit).close()
}
