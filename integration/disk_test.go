package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tinyFilesystem is a filesystem of a few MiB that a test fills up and empties.
type tinyFilesystem struct {
	t   testing.TB
	dir string
}

func newTinyFilesystem(t testing.TB, size int64) *tinyFilesystem {
	t.Helper()
	needRoot(t, "a filesystem to fill up")
	needTools(t, "mkfs.ext4", "mount", "losetup")
	base := shortDir(t)
	image := filepath.Join(base, "fs.img")
	writeFile(t, image, "")
	truncate(t, image, size)
	tool(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image)
	fs := &tinyFilesystem{t: t, dir: filepath.Join(base, "m")}
	if err := os.Mkdir(fs.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", loop) })
	mountAt(t, loop, fs.dir)
	return fs
}

func (fs *tinyFilesystem) ballast() string { return filepath.Join(fs.dir, "ballast") }

// fill leaves about keep bytes free.
func (fs *tinyFilesystem) fill(keep int64) {
	fs.t.Helper()
	f, err := os.OpenFile(fs.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fs.t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(fs.dir, &st); err != nil {
		fs.t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-keep); err != nil {
		fs.t.Fatalf("fill %s: %v", fs.dir, err)
	}
}

// free empties it again.
func (fs *tinyFilesystem) free() {
	fs.t.Helper()
	if err := os.Remove(fs.ballast()); err != nil {
		fs.t.Fatal(err)
	}
}

// flag replaces the value of a flag that the agent is started with.
func (a *agent) flag(name, value string) {
	for i, arg := range a.args {
		if arg == name {
			a.args[i+1] = value
			return
		}
	}
	a.t.Fatalf("%s has no flag %s", a.name, name)
}

// hasAlarm says whether an alarm of this name is raised, with a reason and a next step.
func (s *status) hasAlarm(name string) bool {
	for _, x := range s.Alarms {
		if x.Name == name && x.Reason != "" && x.NextStep != "" {
			return true
		}
	}
	return false
}

// untilState waits for a state that gives its reason and a next step, also as an alarm, in explain and as an event.
func (a *agent) untilState(state string, words ...string) {
	a.t.Helper()
	s := a.until(40*time.Second, "is "+state, func(s *status) bool { return s.State == state && s.hasAlarm(state) })
	explained := a.mustCommand("explain")
	for _, w := range words {
		if !strings.Contains(s.Reason+" "+s.NextStep, w) {
			a.t.Errorf("%s: %q does not say %q: %s; next: %s", a.name, state, w, s.Reason, s.NextStep)
		}
		if !strings.Contains(explained, w) {
			a.t.Errorf("%s: explain does not say %q:\n%s", a.name, w, explained)
		}
	}
	if e := a.mustCommand("events", "--json"); !strings.Contains(e, state) {
		a.t.Errorf("%s: no event of %q:\n%s", a.name, state, e)
	}
	a.t.Logf("%s: %s: %s; next: %s", a.name, state, s.Reason, s.NextStep)
}

// TestDeviceFilesystemFull: the backing device is sparse and its filesystem full, on either side, each also killed in that
// state. The mirror goes on: what is written stays in the log, and when there is space again it is applied without being told.
func TestDeviceFilesystemFull(t *testing.T) {
	for _, c := range []struct {
		side string
		kill bool
	}{{"source", false}, {"source", true}, {"target", false}, {"target", true}} {
		name := c.side
		if c.kill {
			name += " killed"
		}
		t.Run(name, func(t *testing.T) {
			fs := newTinyFilesystem(t, 40<<20)
			m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "3s"}})
			bad := m.source
			if c.side == "target" {
				bad = m.target
			}
			bad.device = filepath.Join(fs.dir, "dev.img")
			bad.flag("--device", bad.device)
			m.start()
			fs.fill(256 << 10)
			conn := m.source.dial(startLimit)
			l := newLedger(5, m.size)
			r := newRand(t)
			ld := l.startLoad(conn, r, 8, 8)
			ld.untilAnswered(t, 800)
			bad.untilState("device full", "no space left on device", bad.device, "free space")
			if c.side == "target" {
				m.source.until(20*time.Second, "says that the target's device is full", func(s *status) bool { return s.hasAlarm("target-device-full") })
			}
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			if err := l.verify(conn.read, allAcked); err != nil {
				t.Fatalf("while the device is full: %v", err)
			}
			if c.kill {
				conn.close()
				bad.kill()
				bad.start()
				bad.untilState("device full", "no space left on device")
				m.source.untilStreaming("target")
				conn = m.source.dial(startLimit)
				if err := l.verify(conn.read, allAcked); err != nil {
					t.Fatalf("killed while the device was full: %v", err)
				}
			}
			fs.free()
			bad.until(40*time.Second, "goes on by itself", func(s *status) bool { return s.State != "device full" && !s.hasAlarm("device full") })
			if err := l.verify(conn.read, allAcked); err != nil {
				t.Fatalf("after there was space: %v", err)
			}
			conn.close()
			m.stopLevel("target")
		})
	}
}

// TestStagingFilesystemFull: a target that needs a resync has no space for it. It says so, is left alone for longer and
// longer, stays what it was, and is resynced by itself once there is space.
func TestStagingFilesystemFull(t *testing.T) {
	fs := newTinyFilesystem(t, 100<<20)
	m := newMirror(t, layout{size: 48 << 20, journal: "16MiB"})
	m.target.flag("--journal", filepath.Join(fs.dir, "t.journal"))
	m.start()
	conn := m.source.dial(startLimit)
	p := make([]byte, 1<<20)
	write := func(fill byte) {
		t.Helper()
		for i := range p {
			p[i] = fill + byte(i>>12)
		}
		for off := int64(0); off < m.size; off += int64(len(p)) {
			if err := conn.write(off, p, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	m.source.untilLevel("target")
	before := m.target.mustStatus().Log.Head
	m.target.kill()
	fs.fill(2 << 20)
	write(101) // 48 MiB: more than the source's log of 16 MiB reaches back
	m.target.start()
	m.target.untilState("resync held", "no space left on device", "t.journal.staging", "free space", "can be promoted")
	m.source.until(40*time.Second, "says why the target is not resynced", func(s *status) bool {
		return strings.Contains(s.Reason, "no space left on device")
	})
	if head := m.target.mustStatus().Log.Head; head != before {
		t.Errorf("the target's log moved from %d to %d without a resync", before, head)
	}
	m.target.kill()
	m.target.start()
	m.target.untilState("resync held", "no space left on device")
	fs.free()
	m.source.until(90*time.Second, "the target is resynced", func(s *status) bool {
		f := s.follower("target")
		return f.State == streaming && f.Active
	})
	m.target.until(20*time.Second, "is not held any more", func(s *status) bool { return s.State == streaming })
	conn.close()
	m.stopLevel("target")
}

// TestJournalFilesystemFull: the journal's space is its own from the start, so a full filesystem is nothing to it.
func TestJournalFilesystemFull(t *testing.T) {
	fs := newTinyFilesystem(t, 40<<20)
	m := newMirror(t, layout{journal: "16MiB"})
	for _, a := range []*agent{m.source, m.target} {
		a.flag("--journal", filepath.Join(fs.dir, a.name+".journal"))
	}
	m.start()
	fs.fill(0)
	conn := m.source.dial(startLimit)
	l := newLedger(6, m.size)
	ld := l.startLoad(conn, newRand(t), 4, 8)
	ld.untilAnswered(t, 6000) // 24 MiB: around the ring
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(conn.read, allAcked); err != nil {
		t.Fatal(err)
	}
	conn.close()
	if s := m.source.mustStatus(); s.State != "in sync" {
		t.Errorf("the source is %s", s.brief())
	}
	m.stopLevel("target")
}

// TestKernelWritebackFails: a real kernel's fdatasync fails under the agent, which stops, and after a restart does not take
// for durable what only the page cache has (G9).
func TestKernelWritebackFails(t *testing.T) {
	needVM(t)
	needTools(t, "dmsetup")
	dmsetup, err := exec.LookPath("dmsetup")
	if err != nil {
		t.Fatal(err)
	}
	console := runGuest(t, "nbd://127.0.0.1:1/none", "guest-disk.sh", func(string) {}, dmsetup)
	passed(t, console, "stopped", "disk")
}
