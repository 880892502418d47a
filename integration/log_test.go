package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLogResize makes the source's log larger and smaller under a load: the
// clients go on, the target stays in sync, and a kill afterwards loses nothing.
func TestLogResize(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s"}})
	m.start()
	m.source.untilStreaming("target")
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	for _, size := range []string{"128MiB", "16MiB", "48MiB"} {
		ld.untilAnswered(t, 100)
		m.source.mustCommand("log", "resize", size)
		ld.untilAnswered(t, 100)
	}
	m.target.mustCommand("log", "resize", "96MiB")
	if r := m.target.command("log", "resize", "32MiB"); r.code != 1 || !strings.Contains(r.stderr, "mirror-agent suspend") {
		t.Errorf("a log that is being fed was made smaller: %+v", r)
	}
	m.source.untilStreaming("target")
	if got := m.source.mustStatus().Log.SizeBytes; got != 48<<20-8192 {
		t.Errorf("the ring has %d bytes", got)
	}
	ld.untilAnswered(t, 100)
	m.source.kill()
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.source.start()
	c = m.source.dial(startLimit)
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	if got := m.source.mustStatus().Log.SizeBytes; got != 48<<20-8192 {
		t.Errorf("the ring has %d bytes after the restart", got)
	}
	c.close()
	m.stopLevel("target")
}

// TestKillDuringLogResize kills the source while its log moves to another file:
// either file is the log afterwards, whole, and the other one is gone.
func TestKillDuringLogResize(t *testing.T) {
	m := newMirror(t, layout{sourceArgs: []string{"--start-wait", "5s"}})
	m.start()
	r := newRand(t)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	journal := m.path("source", "journal")
	size := int64(64 << 20)
	seen := map[bool]int{}
	for round := range rounds(t, 12) {
		next := []int64{32 << 20, 64 << 20, 96 << 20}[r.IntN(3)]
		if next == size {
			next = 128 << 20
		}
		ld := l.startLoad(c, r, 4, 20)
		ld.untilAnswered(t, 50)
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.source.command("log", "resize", fmt.Sprint(next))
		}()
		eventually(t, startLimit, "the new journal is being written", func() (bool, string) {
			_, err := os.Stat(journal + ".new")
			now, statErr := os.Stat(journal)
			return err == nil || statErr == nil && now.Size() == next, fmt.Sprint(err)
		})
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond) // the moment of the kill is what is drawn
		m.source.kill()
		<-done
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
		st, err := os.Stat(journal)
		if err != nil || st.Size() != size && st.Size() != next {
			t.Fatalf("round %d: journal of %d bytes, %v; it had %d and was to have %d", round, st.Size(), err, size, next)
		}
		seen[st.Size() == next]++
		size = st.Size()
		left, _ := filepath.Glob(journal + ".*")
		left = slices.DeleteFunc(left, func(f string) bool { return f == journal+".electorate" }) // it belongs there
		if len(left) > 0 {
			t.Errorf("round %d: left behind: %v", round, left)
		}
	}
	c.close()
	t.Logf("old log %d times, new log %d times", seen[false], seen[true])
	m.stopLevel("target")
}

// TestLogInspect: the journal of a stopped source is looked at, that of a running one is refused; neither is changed.
func TestLogInspect(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 200)
	m.source.mustCommand("checkpoint", "create", "before-lunch")
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	log := m.path("source", "journal")
	if r := runAgent(t, "log", "inspect", log); r.code != 1 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("the journal of a running agent: %+v", r)
	}
	c.close()
	m.source.kill()
	before, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	r := runAgent(t, "log", "inspect", log)
	for _, want := range []string{"journal of mirror " + mirrorName, "not ended cleanly", "before-lunch", " writes of "} {
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("%q is missing:\n%s%s", want, r.stdout, r.stderr)
		}
	}
	if r := runAgent(t, "log", "inspect", "--records", log); r.code != 0 || strings.Count(r.stdout, " write ") < 200 {
		t.Errorf("the records are missing:\n%.2000s%s", r.stdout, r.stderr)
	}
	if r := runAgent(t, "log", "apply", log, m.path("target", "img")); r.code != 1 || !strings.Contains(r.stderr, "only excerpts") {
		t.Errorf("a whole journal was applied: %+v", r)
	}
	if after, err := os.ReadFile(log); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the journal was changed by looking at it (%v)", err)
	}
}
