package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-agent/mirror/drill"
)

// moveFile writes a drill's file with one check.
func moveFile(t testing.TB, kind drill.Kind, check string) string {
	t.Helper()
	dir := shortDir(t)
	text := fmt.Sprintf("label: it\nkind: %s\nreport: %s\nwait: 30s\nback: 1m\nchecks:\n- {name: check, run: %q}\n", kind, dir, check)
	path := filepath.Join(dir, "drill.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a *agent) moveArgs(m *testMirror, config string, more ...string) []string {
	return append([]string{"drill", "run", "--config", config, "--key", m.path(a.name, "key"), "--control", a.control, "--json", "--yes"}, more...)
}

// move runs a drill to its end and returns what it reports.
func (a *agent) move(m *testMirror, config string, more ...string) drill.Report {
	a.t.Helper()
	res := runAgentWithin(a.t, 2*time.Minute, a.moveArgs(m, config, more...)...)
	return a.reported(config, res.stdout, res.stderr, res.code)
}

// reported reads the report that was printed, and makes sure that the signed file is the same, and has a page.
func (a *agent) reported(config, stdout, stderr string, code int) (r drill.Report) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Moved == nil {
		a.t.Fatalf("exit status %d: %s%s", code, stdout, stderr)
	}
	if (code == 0) != (r.Result == drill.Passed) {
		a.t.Errorf("exit status %d, %s", code, r.Summary())
	}
	path := filepath.Join(filepath.Dir(config), r.FileName())
	file, err := os.ReadFile(path + ".json")
	if err != nil {
		a.t.Fatal(err)
	}
	if saved, _, err := drill.Decode(file); err != nil || saved.Summary() != r.Summary() {
		a.t.Errorf("the file says %s (%v), printed was %s", saved.Summary(), err, r.Summary())
	}
	if page, err := os.ReadFile(path + ".html"); err != nil || !strings.Contains(string(page), string(r.Kind)) {
		a.t.Errorf("the page lacks its kind (%v)", err)
	}
	a.t.Logf("%s on %s: %s", r.Kind, a.name, r.Summary())
	return r
}

// midMove starts a drill, sends it a signal in its check, which would go on for ever, and waits for its end.
func (a *agent) midMove(m *testMirror, kind drill.Kind, s syscall.Signal, while func(), more ...string) (config, stdout, stderr string) {
	a.t.Helper()
	there := filepath.Join(shortDir(a.t), "there")
	config = moveFile(a.t, kind, "touch "+there+"; sleep 1000")
	cmd := exec.Command(program(a.t), a.moveArgs(m, config, more...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	eventually(a.t, time.Minute, "the drill is at its check", func() (bool, string) {
		select {
		case <-ended:
			a.t.Fatalf("it has ended: %s%s", &out, &errs)
		default:
		}
		_, err := os.Stat(there)
		return err == nil, ""
	})
	while()
	if err := cmd.Process.Signal(s); err != nil {
		a.t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		_ = cmd.Process.Kill()
		a.t.Fatalf("it goes on after %s", s)
	}
	return config, out.String(), errs.String()
}

// TestDrillSwitchOver: under load the flow goes to the hot backup and back, also when a check fails, by SIGINT, and when the
// drill is killed and somebody else brings it back. Writes go on all the time, and nothing is copied.
func TestDrillSwitchOver(t *testing.T) {
	m := hotMirror(t, "")
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 300)
	as := func() {
		t.Helper()
		m.source.until(startLimit, "as before", activeInSync("target"))
		m.source.untilFed("backup")
		ld.untilAnswered(t, 100)
	}
	toBackup := fmt.Sprintf("mirror-agent status --control %s --json | grep -q '\"active_target\": \"%s\"'", m.source.control, m.toBackup[0].Addr())
	toBackup = strings.Replace(toBackup, "mirror-agent", program(t), 1)
	r := m.source.move(m, moveFile(t, drill.SwitchOver, toBackup))
	if r.Result != drill.Passed || r.Moved.To != m.toBackup[0].Addr() || r.Moved.ReplicationSeconds == nil || r.Moved.Clients != 1 || len(r.Samples) == 0 {
		t.Errorf("%+v, %+v", r, r.Moved)
	}
	as()
	r = m.source.move(m, moveFile(t, drill.SwitchOver, "exit 3"))
	if r.Result != drill.Failed || !strings.Contains(r.Reason, "exit status 3") || r.Moved.Stranded {
		t.Errorf("%+v", r)
	}
	as()
	on := func() { ld.untilAnswered(t, 100); m.source.until(startLimit, "at the backup", activeInSync("backup")) }
	config, out, errs := m.source.midMove(m, drill.SwitchOver, syscall.SIGINT, on)
	if r = m.source.reported(config, out, errs, 1); r.Result != drill.Interrupted || r.Reason != "interrupt received" || r.Moved.Stranded {
		t.Errorf("%+v", r)
	}
	as()
	m.source.midMove(m, drill.SwitchOver, syscall.SIGKILL, on)
	m.source.until(startLimit, "at the backup still", activeInSync("backup"))
	if out := m.source.mustCommand("explain"); !strings.Contains(out, "mirror-agent switch primary") {
		t.Errorf("explain does not say how the flow goes back:\n%s", out)
	}
	m.source.mustCommand("switch", "primary")
	as()
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
	m.source.untilFedAll("backup")
	m.source.untilFedAll("target")
	m.stopLevel("target")
	m.backup.stop()
	sameFile(t, m.source.device, m.backup.device)
}

// TestDrillSwitchOver_cold: a cold backup is refused unless that is allowed; then it gets what it lacks, and the flow goes back.
func TestDrillSwitchOver_cold(t *testing.T) {
	m := newMirror(t, layout{backup: true})
	m.start()
	config := moveFile(t, drill.SwitchOver, "true")
	if r := runAgent(t, m.source.moveArgs(m, config)...); r.code != 1 || !strings.Contains(r.stderr, "is cold") {
		t.Errorf("%+v", r)
	}
	if s := m.source.mustStatus(); s.ActiveTarget != m.toTarget[0].Addr() {
		t.Fatalf("a drill that was refused moved the flow: %s", s.brief())
	}
	if r := m.source.move(m, config, "--cold"); r.Result != drill.Passed {
		t.Errorf("%+v", r)
	}
	m.source.until(startLimit, "as before", activeInSync("target"))
}

// oneLead: one of the two leads, which is the one, and the other follows.
func (m *testMirror) oneLead(lead, other *agent) {
	m.t.Helper()
	lead.leads("target")
	other.until(startLimit, "follows", func(s *status) bool { return s.Role == "secondary" && s.State == "streaming" })
	if other.serves() {
		m.t.Fatal("both serve")
	}
}

// TestDrillFailover: the lead goes to the target and home again, also when a check fails and by SIGTERM. Killed, it leaves one that
// leads, and a drill of the kind failback, on either host, ends it; a check that fails there gives the lead back. All that was
// answered, on either host, is there, and nothing is copied.
func TestDrillFailover(t *testing.T) {
	m := newMirror(t, layout{paths: 2})
	m.start()
	l := newLedger(baseSeed, m.size)
	write := func(on *agent) {
		t.Helper()
		c := on.dial(startLimit)
		ld := l.startLoad(c, newRand(t), 8, 20)
		ld.untilAnswered(t, 100)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("on the %s: %v", on.name, err)
		}
		c.close()
		on.until(startLimit, "has no clients", func(s *status) bool { return s.NBD.Connections == 0 })
	}
	as := func() { t.Helper(); m.oneLead(m.source, m.target); write(m.source); m.source.leads("target") }
	write(m.source)

	check := "test $MIRROR_AGENT_DRILL_KIND = failover && nbdinfo --size \"$MIRROR_AGENT_DRILL_URI\""
	r := m.target.move(m, moveFile(t, drill.Failover, check))
	if r.Result != drill.Passed || r.RPOBytes != 0 || r.Newest.LSN == 0 || r.RTOSeconds == nil || *r.RTOSeconds < r.Moved.HandoverSeconds || r.Moved.Written != 0 || r.Moved.ReplicationSeconds == nil {
		t.Errorf("%+v, %+v", r, r.Moved)
	}
	as()
	if r = m.target.move(m, moveFile(t, drill.Failover, "exit 3")); r.Result != drill.Failed || r.Moved.Stranded {
		t.Errorf("%+v", r)
	}
	as()
	config, out, errs := m.target.midMove(m, drill.Failover, syscall.SIGTERM, func() { m.oneLead(m.target, m.source); write(m.target) })
	if r = m.target.reported(config, out, errs, 1); r.Result != drill.Interrupted || r.Moved.Stranded || r.Moved.Written == 0 {
		t.Errorf("%+v, %+v", r, r.Moved)
	}
	as()
	for _, on := range []*agent{m.source, m.target} {
		m.target.midMove(m, drill.Failover, syscall.SIGKILL, func() {})
		m.oneLead(m.target, m.source)
		write(m.target)
		for _, a := range []*agent{m.source, m.target} {
			if out := a.mustCommand("explain"); !strings.Contains(out, "mirror-agent failback") {
				t.Errorf("explain on the %s does not say how the lead goes home:\n%s", a.name, out)
			}
		}
		if r := runAgent(t, m.target.moveArgs(m, config)...); r.code != 1 || !strings.Contains(r.stderr, "--kind failback") {
			t.Errorf("a failover of a host that leads: %+v", r)
		}
		m.target.leads("target")
		if r = on.move(m, moveFile(t, drill.Failback, "exit 3")); r.Result != drill.Failed || r.Moved.Stranded || r.Moved.BackSeconds == nil {
			t.Errorf("%+v, %+v", r, r.Moved)
		}
		m.oneLead(m.target, m.source)
		write(m.target)
		if r = on.move(m, moveFile(t, drill.Failback, "true")); r.Result != drill.Passed || r.RPOBytes != 0 || r.Newest.LSN == 0 || r.RTOSeconds == nil {
			t.Errorf("%+v, %+v", r, r.Moved)
		}
		as()
	}
	for _, a := range []*agent{m.source, m.target} {
		if why := a.resyncs(); len(why) > 0 {
			t.Errorf("resyncs: %q", why)
		}
	}
	m.stopLevel("target")
}

// TestDrillFailover_clients: clients of the source are a reason to refuse; where they are allowed they lose their connection in
// the midst of their writes, and nothing that they were answered.
func TestDrillFailover_clients(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 200)
	config := moveFile(t, drill.Failover, "true")
	if r := runAgent(t, m.target.moveArgs(m, config)...); r.code != 1 || !strings.Contains(r.stderr, "has clients (1 NBD connections)") || !strings.Contains(r.stderr, "--with-clients") {
		t.Errorf("%+v", r)
	}
	if r := m.target.command("drill", "run", "--kind", "failover", "--key", m.path("target", "key")); r.code == 0 || m.target.mustStatus().Role != "secondary" {
		t.Errorf("it began without a word: %+v", r)
	}
	ld.untilAnswered(t, 200) // nothing was disturbed
	r := m.target.move(m, config, "--with-clients")
	if r.Result != drill.Passed || r.Moved.Clients != 1 || r.Moved.Written != 0 {
		t.Errorf("%+v, %+v", r, r.Moved)
	}
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.oneLead(m.source, m.target)
	c = m.source.dial(startLimit)
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestDrillFailover_restart: the agent that leads in a drill is killed and comes back: the way home is gone all the same.
func TestDrillFailover_restart(t *testing.T) {
	m := newMirror(t, layout{targetArgs: []string{"--start-wait", "2s"}, sourceArgs: []string{"--start-wait", "2s"}})
	m.start()
	l := newLedger(baseSeed, m.size)
	config, out, errs := m.target.midMove(m, drill.Failover, syscall.SIGINT, func() {
		m.oneLead(m.target, m.source)
		c := m.target.dial(startLimit)
		ld := l.startLoad(c, newRand(t), 8, 20)
		ld.untilAnswered(t, 200)
		m.target.kill()
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(500*time.Millisecond, m.target.start)
	})
	if r := m.target.reported(config, out, errs, 1); r.Result != drill.Interrupted || r.Moved.Stranded {
		t.Errorf("%+v, %+v", r, r.Moved)
	}
	m.oneLead(m.source, m.target)
	c := m.source.dial(startLimit)
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestDrillFailover_mount: the target mounts what it leads, as it would after a disaster: what the source had fsynced is there,
// what the check writes is there at home again, and whatever ends the drill, nothing stays mounted.
func TestDrillFailover_mount(t *testing.T) {
	needRoot(t, "loop devices and mounts")
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "fusermount3")
	m := newMirror(t, layout{size: 32 << 20, journal: "128MiB"})
	t.Setenv("TMPDIR", m.dir) // of what runs drills
	m.start()
	made := false
	home := func(do func(dir string)) { // with the filesystem at home
		t.Helper()
		dev, detach := loopDevice(t, m.source.nbd)
		dir := emptyDir(t)
		if !made {
			tool(t, "mkfs.ext4", "-q", "-F", dev)
			made = true
		}
		tool(t, "mount", dev, dir)
		do(dir)
		tool(t, "umount", dir)
		detach()
		m.source.until(startLimit, "has no clients", func(s *status) bool { return s.NBD.Connections == 0 })
	}
	home(func(dir string) { writeFile(t, filepath.Join(dir, "of-the-source"), "here") })
	for _, c := range []struct {
		name  string
		sig   syscall.Signal
		stays bool
	}{{"passes", 0, false}, {"SIGINT", syscall.SIGINT, false}, {"SIGKILL", syscall.SIGKILL, true}} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			mount, there, end := emptyDir(t), filepath.Join(dir, "there"), "sleep 1000"
			if c.sig == 0 {
				end = "true"
			}
			check := "grep -q here $MIRROR_AGENT_DRILL_MOUNT/of-the-source && echo back > $MIRROR_AGENT_DRILL_MOUNT/of-the-drill && sync && touch " + there + " && " + end
			config := filepath.Join(dir, "drill.yaml")
			writeFile(t, config, fmt.Sprintf("kind: failover\nreport: %s\nmount: %s\nback: 1m\nchecks:\n- {name: check, run: %q}\n", dir, mount, check))
			cmd := exec.Command(program(t), m.target.moveArgs(m, config)...)
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if c.sig != 0 {
				eventually(t, time.Minute, "the drill is at its check", func() (bool, string) {
					_, err := os.Stat(there)
					return err == nil, errs.String()
				})
				if err := cmd.Process.Signal(c.sig); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if c.sig != syscall.SIGKILL {
				if r := m.target.reported(config, out.String(), errs.String(), cmd.ProcessState.ExitCode()); r.Moved.Stranded || (r.Result == drill.Passed) != (c.sig == 0) || r.Moved.Written == 0 {
					t.Errorf("%+v, %+v", r, r.Moved)
				}
			}
			eventually(t, 30*time.Second, "nothing stays mounted", func() (bool, string) {
				b, err := os.ReadFile("/proc/mounts")
				left, _ := filepath.Glob(filepath.Join(m.dir, "mirror-agent-drill-*"))
				return err == nil && !strings.Contains(string(b), mount) && len(left) == 0, fmt.Sprint(left)
			})
			if c.stays {
				m.oneLead(m.target, m.source)
				m.target.until(startLimit, "has no clients", func(s *status) bool { return s.NBD.Connections == 0 })
				if r := m.source.move(m, moveFile(t, drill.Failback, "true")); r.Result != drill.Passed {
					t.Errorf("%+v", r)
				}
			}
			m.oneLead(m.source, m.target)
			home(func(dir string) {
				b, err := os.ReadFile(filepath.Join(dir, "of-the-drill"))
				if err != nil || string(b) != "back\n" {
					t.Errorf("what the drill wrote: %q (%v)", b, err)
				}
				if err := os.Remove(filepath.Join(dir, "of-the-drill")); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
	m.stopLevel("target")
}
