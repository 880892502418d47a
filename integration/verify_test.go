package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// verifyReport holds the fields of `verify --json` that the tests lean on.
type verifyReport struct {
	State          string `json:"state"`
	Reason         string `json:"reason"`
	DoneBytes      int64  `json:"done_bytes"`
	TotalBytes     int64  `json:"total_bytes"`
	ComparedBytes  int64  `json:"compared_bytes"`
	HoleBytes      int64  `json:"hole_bytes"`
	ExactBlocks    int64  `json:"exact_blocks"`
	DifferentBytes int64  `json:"different_bytes"`
	RepairedBytes  int64  `json:"repaired_bytes"`
	SourceRead     string `json:"source_read"`
	TargetRead     string `json:"target_read"`
	Differences    []struct {
		Offset, Length int64
		LSN            uint64
		Kind, Repaired string
	} `json:"differences"`
}

// verify runs `verify --json` to its end and returns the exit status with it.
func (a *agent) verify(args ...string) (r verifyReport, code int) {
	a.t.Helper()
	out := runAgentWithin(a.t, time.Minute, append([]string{"verify", "--json", "--control", a.control}, args...)...)
	if err := json.Unmarshal([]byte(out.stdout), &r); err != nil {
		a.t.Fatalf("verify %s: exit status %d: %v in %s%s", strings.Join(args, " "), out.code, err, out.stdout, out.stderr)
	}
	return r, out.code
}

// TestVerifyUnderFio: three verifies while fio writes all over the device, with flushes, find nothing; fio goes on meanwhile.
func TestVerifyUnderFio(t *testing.T) {
	needTools(t, "fio")
	m := newMirror(t, layout{size: 32 << 20, paths: 2})
	m.start()
	for _, args := range [][]string{
		{"--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--iodepth=16", "--fsync=32"},
		{"--rw=randwrite", "--bs=4k", "--iodepth=4", "--random_distribution=zipf:1.3", "--fsync=4"}, // the same blocks again and again
	} {
		args = append([]string{
			"--thread", "--size=32m", "--time_based", "--runtime=100",
			"--rate=,8m", // two cores are for all of this
		}, args...)
		cmd := exec.Command("fio", fioArgs(m.source.nbd, args...)...)
		cmd.Dir = t.TempDir()
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := sync.OnceFunc(func() {
			cmd.Process.Kill()
			_ = cmd.Wait()
		})
		t.Cleanup(end)
		writes := func() uint64 { return m.source.mustStatus().NBD.Writes }
		before := writes()
		m.source.until(startLimit, "fio writes", func(s *status) bool { return s.NBD.Writes > before+100 })
		exact := int64(0)
		for range 3 {
			before = writes()
			r, code := m.source.verify("--no-yield")
			if code != 0 || r.State != "done" || r.DifferentBytes != 0 || len(r.Differences) != 0 || r.ComparedBytes+r.HoleBytes != 32<<20 {
				t.Errorf("fio %v: exit status %d: %+v", args, code, r)
			}
			if writes() == before {
				t.Error("nothing was written meanwhile")
			}
			exact += r.ExactBlocks
		}
		if exact == 0 {
			t.Error("no block was written while it was compared: this tests nothing")
		}
		end()
		if t.Failed() {
			t.Logf("fio: %s", said.String())
		}
	}
	m.stopLevel("target")
}

// TestVerifyRepair: a byte of the target's device changes behind its back. The verify finds it and says so with its exit status,
// in the status and over a restart; the repair puts it right, and both devices are equal in the end.
func TestVerifyRepair(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(5, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 8)
	ld.untilAnswered(t, 800)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	m.source.untilLevel("target")
	if r, code := m.source.verify(); code != 0 || r.DifferentBytes != 0 {
		t.Fatalf("exit status %d: %+v", code, r)
	}
	head := m.source.mustStatus().Log.Head
	m.target.until(startLimit, "has applied everything", func(s *status) bool { return s.Log.Applied >= head })
	const at = 5<<20 + 12345
	flip(t, m.path("target", "img"), at)
	r, code := m.source.verify()
	if code != 1 || len(r.Differences) != 1 || r.Differences[0].Offset != at/4096*4096 || r.Differences[0].Length != 4096 || r.Differences[0].Kind != "differs" {
		t.Fatalf("exit status %d: %+v", code, r)
	}
	again := m.source.command("verify")
	if again.code != 1 || !strings.Contains(again.stdout, fmt.Sprint(at/4096*4096)) {
		t.Errorf("exit status %d: %s", again.code, again.stdout)
	}
	checkOneLine(t, again.stderr, "4096 bytes", "verify --repair")
	c.close()
	m.source.kill()
	m.source.start()
	m.source.untilLevel("target")
	s := m.source.mustStatus()
	if len(s.Alarms) != 1 || s.Alarms[0].Name != "verify-differs" || !strings.Contains(s.Alarms[0].NextStep, "--repair") {
		t.Errorf("alarms after a restart: %+v", s.Alarms)
	}
	if text := m.source.mustCommand("status"); !strings.Contains(text, "verify    ") || !strings.Contains(text, "4,096 bytes in 1 place differ") {
		t.Errorf("status:\n%s", text)
	}
	// Meanwhile an application is at work: it loses nothing by the repair.
	c = m.source.dial(startLimit)
	if err := l.settle(c.read); err != nil {
		t.Fatal(err)
	}
	ld = l.startLoad(c, newRand(t), 4, 8)
	ld.untilAnswered(t, 100)
	if r, code = m.source.verify("--repair"); code != 0 || r.RepairedBytes != 4096 && r.DifferentBytes != 0 {
		t.Errorf("exit status %d: %+v", code, r)
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if r, code = m.source.verify("--direct"); code != 0 || r.DifferentBytes != 0 || r.SourceRead != r.TargetRead {
		t.Errorf("after the repair: exit status %d: %+v", code, r)
	}
	if s := m.source.mustStatus(); len(s.Alarms) != 0 {
		t.Errorf("alarms after the repair: %+v", s.Alarms)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Error(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestVerifySourceKilled: kill the source in the middle of a repair of many blocks, again and again. It comes back, both sides go
// on from one log, and a repair that comes to its end leaves both equal.
func TestVerifySourceKilled(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	c := m.source.dial(startLimit)
	p := []byte(strings.Repeat("0123456789abcdef", 64<<10))
	for off := int64(0); off < m.size; off += int64(len(p)) {
		if err := c.write(off, p, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.untilLevel("target")
	head := m.source.mustStatus().Log.Head
	m.target.until(startLimit, "has applied everything", func(s *status) bool { return s.Log.Applied >= head })
	for off := int64(0); off < m.size; off += 20000 {
		flip(t, m.path("target", "img"), off)
	}
	for round := range 3 {
		m.source.mustCommand("verify", "--repair", "--background", "--rate", "8MiB")
		m.source.until(startLimit, "has repaired something", func(s *status) bool { return s.Verify != nil && s.Verify.RepairedBytes > 0 })
		m.source.kill()
		m.source.start()
		m.source.untilLevel("target")
		if s := m.source.mustStatus(); s.Verify == nil || s.Verify.State != "interrupted" {
			t.Errorf("round %d: %+v", round, s.Verify)
		}
	}
	if r, code := m.source.verify("--repair"); code != 0 || r.State != "done" {
		t.Errorf("exit status %d: %s %s", code, r.State, r.Reason)
	}
	if r, code := m.source.verify(); code != 0 || r.DifferentBytes != 0 {
		t.Errorf("exit status %d: %+v", code, r)
	}
	m.stopLevel("target")
}

// TestScrub: a bit of the log flips, on each side in turn, in what is applied; `scrub` finds it and mends it from the other side.
func TestScrub(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	c := m.source.dial(startLimit)
	for i := range 64 {
		if err := c.write(int64(i)<<16, []byte(strings.Repeat("scrub", 10000)), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.untilLevel("target")
	for _, a := range []*agent{m.source, m.target} {
		s := a.until(startLimit, "has applied everything", func(s *status) bool { return s.Log.Applied == s.Log.Head })
		m.rotAt(a.name, s.Log.Applied-1<<20)
		a.mustCommand("scrub")
		a.until(startLimit, "has mended it", func(s *status) bool { return s.Scrub != nil && s.Scrub.Mended == 1 && !s.Scrub.Running })
		if e := a.mustCommand("events"); !strings.Contains(e, "mended") {
			t.Errorf("%s: no event:\n%s", a.name, e)
		}
	}
	if n := m.source.mustStatus().Alarms; len(n) != 0 {
		t.Errorf("alarms: %+v", n)
	}
	m.stopLevel("target")
	left, err := filepath.Glob(filepath.Join(m.dir, "*.checks*"))
	if err != nil || len(left) != 2 {
		t.Errorf("kept: %v, %v", left, err)
	}
	for _, f := range left {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}
