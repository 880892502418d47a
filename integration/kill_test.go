package integration

import (
	"os/exec"
	"testing"
	"time"
)

const (
	toolTimeout = 3 * time.Minute
	startLimit  = 30 * time.Second
)

// TestKillSource kills the source in the middle of writes again and again: every
// answered write is there after the restart (G1), and the target goes on
// without a resync (G3).
func TestKillSource(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s"}})
	m.start()
	r := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	for round := range rounds(t, 50) {
		ld := l.startLoad(c, r, 1+r.IntN(16), []int{0, 1, 8, 50}[r.IntN(4)])
		ld.untilAnswered(t, int64(1+r.IntN(400)))
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond) // the moment of the kill is what is drawn
		m.source.kill()
		if err := ld.join(); err != nil {
			t.Fatalf("round %d: before the kill: %v", round, err)
		}
		m.source.start()
		c = m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: after the restart: %v", round, err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
	}
	c.close()
	issued, acked := l.counts()
	t.Logf("%d writes sent, %d answered", issued, acked)
	m.stopLevel("target")
}

// TestTermSource ends the source by SIGTERM in the middle of writes and flushes: a
// client with simple replies, as Linux is one, sees its connection end and no error;
// every answered write is there when the source is back.
func TestTermSource(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s"}})
	m.start()
	r := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	for round := range rounds(t, 10) {
		ld := l.startLoad(c, r, 1+r.IntN(16), []int{1, 8, 50}[r.IntN(3)])
		ld.untilAnswered(t, int64(1+r.IntN(400)))
		m.source.stop()
		if err := ld.join(); err != nil {
			t.Fatalf("round %d: a client was told of the end: %v", round, err)
		}
		m.source.start()
		c = m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: after the restart: %v", round, err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
	}
	c.close()
	issued, acked := l.counts()
	t.Logf("%d writes sent, %d answered", issued, acked)
	m.stopLevel("target")
}

// TestKillTarget kills the target while the source is written to: the
// application notices nothing but time, and the target catches up.
func TestKillTarget(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	r := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, r, 4, 40)
	for range rounds(t, 25) {
		ld.untilAnswered(t, int64(1+r.IntN(200)))
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		m.target.kill()
		m.target.start()
		m.source.untilStreaming("target")
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestKillBoth kills both at nearly the same time: they meet again by their
// logs, without a resync.
func TestKillBoth(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s"}})
	m.start()
	r := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	for round := range rounds(t, 25) {
		ld := l.startLoad(c, r, 4, 20)
		ld.untilAnswered(t, int64(1+r.IntN(200)))
		first, second := m.source, m.target
		if r.IntN(2) == 0 {
			first, second = second, first
		}
		first.kill()
		time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
		second.kill()
		if err := ld.join(); err != nil {
			t.Fatalf("round %d: before the kill: %v", round, err)
		}
		m.target.start()
		m.source.start()
		c = m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: after the restart: %v", round, err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
	}
	c.close()
	m.stopLevel("target")
}

// TestKillFio is the same oracle by somebody else: fio writes and remembers, the
// target is killed under it, the source after it, and fio reads all back.
func TestKillFio(t *testing.T) {
	needTools(t, "fio")
	m := newMirror(t, layout{size: 64 << 20})
	m.start()
	job := []string{
		"--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=64m", "--io_size=24m", "--norandommap=0", "--randseed=99",
		"--verify=crc32c", "--verify_backlog=0", "--rate_iops=3000",
	}
	type end struct {
		out string
		err error
	}
	done := make(chan end, 1)
	go func() {
		out, err := tryTool(2*time.Minute, "fio", fioArgs(m.source.nbd, append(job, "--do_verify=0")...)...)
		done <- end{out, err}
	}()
	for range 4 {
		time.Sleep(500 * time.Millisecond) // of fio's two seconds
		m.target.kill()
		m.target.start()
	}
	e := <-done
	if e.err != nil {
		t.Fatalf("fio: %v\n%s", e.err, e.out)
	}
	_, w := parseFio(t, e.out)
	m.source.kill()
	m.source.start()
	m.source.dial(startLimit).close()
	rd, _ := fio(t, m.source.nbd, append(job, "--verify_only", "--verify_fatal=1")...)
	t.Logf("fio wrote %d blocks and verified %d", w.TotalIOs, rd.TotalIOs)
	if w.TotalIOs == 0 || rd.TotalIOs != w.TotalIOs {
		t.Errorf("wrote %d blocks, verified %d", w.TotalIOs, rd.TotalIOs)
	}
	m.stopLevel("target")
}

// TestFrozen stops the target's process for longer than it may be silent, as a
// hung host would look, and lets it go on.
func TestFrozen(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 200)
	m.target.freeze()
	// on-loss: continue. The source goes on alone, also with FLUSH.
	m.source.until(8*time.Second, "target is out of sync", func(s *status) bool { return s.follower("target").State != streaming })
	ld.untilAnswered(t, 1000)
	if s := m.source.mustStatus(); len(s.Alarms) == 0 {
		t.Errorf("no alarm although the target is gone: %s", s.brief())
	}
	m.target.thaw()
	m.source.untilStreaming("target")
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// TestSecondOnSameDevice: two processes never have the same files open.
func TestSecondOnSameDevice(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	args := append([]string{}, m.source.args...)
	cmd := exec.Command(program(t), append(args, "--control", m.path("second", "ctl"))...)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("second process on the same files: %v, exit status 1 is expected\n%s", err, out)
	}
	checkOneLine(t, string(out), "in use")
	m.stopLevel("target")
}
