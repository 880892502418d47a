package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// journalPartition makes a block device of some size.
func journalPartition(t *testing.T, bytes int64) string {
	t.Helper()
	file := filepath.Join(shortDir(t), "partition")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, bytes); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() {
		if out, err := tryTool(30*time.Second, "losetup", "-d", dev); err != nil {
			t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
		}
	})
	return dev
}

// TestJournalOnPartition has the source's log on a block device: made, killed,
// restarted, ended. A device with something in it is not touched, the sizes are
// checked, and the log cannot be resized.
func TestJournalOnPartition(t *testing.T) {
	needRoot(t, "losetup")
	needTools(t, "losetup")
	const bytes = 48 << 20
	dev := journalPartition(t, bytes)
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s", "--journal", dev, "--journal-size", fmt.Sprint(bytes)}})
	m.start()
	m.source.untilStreaming("target")
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	for round := range 3 {
		ld := l.startLoad(c, newRand(t), 4, 20)
		ld.untilAnswered(t, 300)
		m.source.kill()
		if err := ld.join(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		m.source.start()
		c = m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := l.settle(c.read); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.source.mustStatus().Log.SizeBytes; got != bytes-8192 {
		t.Errorf("the ring has %d bytes", got)
	}
	if r := m.source.command("log", "resize", "64MiB"); r.code != 1 || !strings.Contains(r.stderr, "block device") {
		t.Errorf("resize on a block device: %+v", r)
	}
	c.close()
	m.stopLevel("target")

	args := func(dev string, more ...string) []string {
		dir := shortDir(t)
		args := []string{
			"source", "--name", "other", "--device", filepath.Join(dir, "img"), "--size", "16MiB", "--journal", dev,
			"--nbd", "unix:" + filepath.Join(dir, "nbd"), "--insecure",
		}
		return append(args, more...)
	}
	fresh := func(dev string, more ...string) result {
		return runAgent(t, args(dev, append(more, "--control", filepath.Join(shortDir(t), "ctl"))...)...)
	}
	if r := fresh(dev); r.code != 1 || !strings.Contains(r.stderr, `belongs to mirror "vol0"`) {
		t.Errorf("the log of another mirror: %+v", r)
	}
	for _, at := range []int64{0, 1 << 20, bytes - 4096} {
		used := journalPartition(t, bytes)
		f, err := os.OpenFile(used, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		data := []byte(strings.Repeat("somebody's data ", min(bytes-int(at), 1<<20)/16))
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if r := fresh(used); r.code != 1 || !strings.Contains(r.stderr, "choose another --journal") {
			t.Errorf("a device with data at %d: %+v", at, r)
		}
	}
	small := journalPartition(t, 8<<20)
	if r := fresh(small); r.code != 1 || !strings.Contains(r.stderr, "the least is 16 MiB") {
		t.Errorf("a small device: %+v", r)
	}
	blank := journalPartition(t, bytes)
	if r := fresh(blank, "--journal-size", "32MiB"); r.code != 1 || !strings.Contains(r.stderr, "leave --journal-size out") {
		t.Errorf("a journal size that is not the device's: %+v", r)
	}
	a := newAgent(t, shortDir(t), "other", args(blank)...)
	a.start()
	if got := a.untilUp().Log.SizeBytes; got != bytes-8192 {
		t.Errorf("without --journal-size the ring has %d bytes", got)
	}
	a.stop()
}
