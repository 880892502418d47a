package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestJournalDiskFails: the disk under the log of either side returns EIO, at a write or, through the page cache, at an fdatasync only.
// That side stops and says why and the way out; on a mended disk it goes on with all that was promised.
func TestJournalDiskFails(t *testing.T) {
	const journal = 64 << 20
	for _, side := range []string{"source", "target"} {
		for _, at := range []string{"write", "sync"} {
			t.Run(side+" "+at, func(t *testing.T) {
				disk := newFailingDisk(t, shortDir(t), journal)
				// No anchor by the clock: it is an fdatasync for a FLUSH or for the source that fails.
				m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "3s", "--sync-interval", "1h"}, targetArgs: []string{"--sync-interval", "1h"}})
				bad, file, kept, said := m.source, disk.file, allAcked, "bytes at"
				if side == "target" {
					bad = m.target
				}
				if at == "sync" { // of what was answered only the target has all
					file, kept = loopOver(t, disk.file), allFlushed
					said = "sync " + file
				}
				bad.flag("--journal", file)
				bad.args = append(bad.args, "--state-dir", m.dir)
				m.start()
				conn := m.source.dial(startLimit)
				l := newLedger(7, m.size)
				ld := l.startLoad(conn, newRand(t), 4, 8)
				ld.untilAnswered(t, 400)
				disk.fail()
				bad.untilState("failed", "journal failed", said, file, "input/output error", "mend the disk of the journal, then restart the agent")
				if side == "target" {
					m.source.until(portLimit, "has lost its target", func(s *status) bool { return s.State != "in sync" && s.NextStep != "" })
					ld.untilAnswered(t, 100)
				}
				if err := ld.stop(); (err != nil) != (side == "source") {
					t.Fatalf("writes while the log of the %s fails: %v", side, err)
				}
				conn.close()
				disk.mend() // as the next step says; else the kernel tells the next one who syncs of what is long over
				bad.kill()
				bad.start()
				m.source.untilStreaming("target")
				conn = m.source.dial(startLimit)
				if err := l.verify(conn.read, kept); err != nil {
					t.Fatal(err)
				}
				conn.close()
				m.stopLevel("target")
			})
		}
	}
}

// loopOver is a file as a block device with a page cache, as long as the test runs.
func loopOver(t testing.TB, file string) string {
	t.Helper()
	needTools(t, "losetup")
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", dev) })
	return dev
}

// fillUp leaves not one block.
func (fs *tinyFilesystem) fillUp() {
	fs.t.Helper()
	fs.fill(256 << 10)
	f, err := os.OpenFile(fs.ballast(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		fs.t.Fatal(err)
	}
	defer f.Close()
	for p := make([]byte, 4096); err == nil; {
		if _, err = f.Write(p); err == nil {
			err = f.Sync()
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		fs.t.Fatal(err)
	}
}

// TestStateFilesystemFull: what lies beside the log of a source has no space. The mirror goes on; what a target lacks cannot be marked, so
// that target is compared whole and is told why, also after a kill. With space again the blocks that it lacks are enough.
func TestStateFilesystemFull(t *testing.T) {
	fs := newTinyFilesystem(t, 40<<20)
	m := newMirror(t, layout{size: 48 << 20, journal: "16MiB", sourceArgs: []string{"--state-dir", fs.dir, "--start-wait", "3s"}})
	m.start()
	m.source.untilLevel("target")
	conn := m.source.dial(startLimit)
	l := newLedger(8, m.size)
	away := func(meanwhile func()) *status {
		t.Helper()
		m.target.kill()
		ld := l.startLoad(conn, newRand(t), 4, 8)
		ld.untilAnswered(t, 6000) // 24 MiB: more than the log reaches back
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		meanwhile()
		if err := l.verify(conn.read, allAcked); err != nil {
			t.Fatal(err)
		}
		m.target.start()
		s := m.source.untilStreaming("target")
		if s.follower("target").Resynced == nil {
			t.Fatalf("the target was not resynced: %s", s.brief())
		}
		return &s
	}
	compared := func(s *status, all bool, words ...string) {
		t.Helper()
		r := s.follower("target").Resynced
		checkEqual(t, "all of the target was compared", r.All, all)
		for _, w := range words {
			if !strings.Contains(r.Reason, w) {
				t.Errorf("the reason of the resync does not say %q: %s", w, r.Reason)
			}
		}
	}
	goesOn := func() {
		t.Helper()
		if s := m.source.mustStatus(); s.State != "degraded" || s.NextStep == "" {
			t.Errorf("the source is %s; next: %s", s.brief(), s.NextStep)
		}
	}
	untold := func(words ...string) {
		t.Helper()
		goesOn()
		s := m.source.mustStatus()
		i := slices.IndexFunc(s.Alarms, func(a alarm) bool { return a.Name == "tracking-lost" })
		if i < 0 || s.Alarms[i].NextStep == "" {
			t.Fatalf("no word of what cannot be marked: %v", s.Alarms)
		}
		for _, w := range words {
			if !strings.Contains(s.Alarms[i].Reason, w) {
				t.Errorf("the alarm does not say %q: %s", w, s.Alarms[i].Reason)
			}
		}
	}
	told := func(s *status) *status {
		t.Helper()
		if slices.ContainsFunc(s.Alarms, func(a alarm) bool { return a.Name == "tracking-lost" }) {
			t.Errorf("the alarm is still there: %v", s.Alarms)
		}
		return s
	}
	fs.fillUp()
	compared(told(away(func() { untold(filepath.Join(fs.dir, mirrorName+".dirty."), "no space left on device") })), true, "could not be marked", filepath.Join(fs.dir, mirrorName+".dirty."), "no space left on device")
	compared(away(func() {
		untold()
		conn.close()
		m.source.kill()
		m.source.start()
		conn = m.source.dial(startLimit)
		untold("could not be kept track of")
	}), true, "could not be kept track of")
	fs.free()
	compared(away(goesOn), false)
	conn.close()
	m.stopLevel("target")
}
