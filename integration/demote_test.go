package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// TestDemote: the source writes on alone and dies, the target is promoted and written to. The old source is told, exports what
// only it had, becomes a target, and is brought in sync by what differs: both devices are equal, and the export has what was dropped.
// Until then it can be promoted by force to its own old state.
func TestDemote(t *testing.T) {
	back := freePort(t, "127.0.0.1")
	m := newMirror(t, layout{journal: "512MiB", sourceArgs: []string{"--start-wait", "3s"}, targetArgs: []string{"--target", back, "--announced=false"}})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 300)
	m.toTarget[0].Blackhole(true)
	ld.untilAnswered(t, 1500) // most of it alone
	m.source.kill()
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	device := []string{"--device", m.path("source", "img"), "--journal", m.path("source", "journal")}
	demote := func(args ...string) result {
		return runAgent(t, append(append([]string{"demote"}, device...), args...)...)
	}

	if r := demote(); r.code != 1 || !strings.Contains(r.stderr, "no other host has fenced") {
		t.Errorf("a source that nobody has replaced was demoted: %+v", r)
	}
	m.promoteTarget()
	c = m.target.dial(startLimit)
	newer := newLedger(baseSeed+1, m.size)
	nl := newer.startLoad(c, newRand(t), 8, 20)
	nl.untilAnswered(t, 500)

	m.toTarget[0].Blackhole(false)
	m.source.start()
	m.source.until(20*time.Second, "the old source is fenced", func(s *status) bool { return s.State == "fenced" })
	if r := demote(); r.code != 1 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("a volume in use was demoted: %+v", r)
	}
	m.source.stop()
	if r := demote("--dry-run"); r.code != 0 || !strings.Contains(r.stdout, "was written here only") {
		t.Errorf("dry run: %+v", r)
	}
	r := demote("--json")
	var d mirror.DemoteResult
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.code != 0 || d.Export == nil || !d.Complete || !d.Fenced || !d.Exact {
		t.Fatalf("%+v (%v)", r, err)
	}
	if r := demote(); r.code != 1 || !strings.Contains(r.stderr, "secondary already") {
		t.Errorf("demoted twice: %+v", r)
	}
	out := runAgent(t, "log", "inspect", d.Export.Path)
	if found, _ := filepath.Glob(filepath.Join(m.dir, "divergence-*")); len(found) != 1 || out.code != 0 || !strings.Contains(out.stdout, "excerpt of mirror "+mirrorName) || d.Export.Records < 1000 {
		t.Errorf("the export %+v: %v\n%s%s", d.Export, found, out.stdout, out.stderr)
	}

	public := func(name string) string {
		return strings.TrimSpace(runAgent(t, "keygen", "--show", "--key", m.path(name, "key")).stdout)
	}
	rejoin := func(listen string) *agent {
		return m.agent("source", append([]string{
			"target", "--name", mirrorName, "--listen", listen, "--nbd", "unix:" + m.path("source", "nbd"),
			"--key", m.path("source", "key"), "--peer-key", public("target"),
		}, device...)...)
	}
	lonely := rejoin(freePort(t, "127.0.0.1"))
	lonely.start()
	lonely.untilUp()
	if r := lonely.command("promote"); r.code != 1 || !strings.Contains(r.stderr, "was given up") {
		t.Errorf("promoted before it was in sync: %+v", r)
	}
	lonely.stop()
	old := rejoin(back)
	old.start()
	m.target.untilStreaming("target")
	nl.untilAnswered(t, 200)
	if err := nl.stop(); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.target.untilLevel("target")
	s := m.target.mustStatus()
	if x := s.follower("target").Resynced; x == nil || x.All {
		t.Errorf("it came back by %+v", x)
	}
	m.target.stop()
	old.stop()
	sameFile(t, m.target.device, m.path("source", "img"))
}
