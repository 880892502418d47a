package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"mirror-agent/mirror"
)

func TestSparkline(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want string
	}{
		{nil, ""},
		{[]float64{0, 0, 0}, "▁▁▁"},
		{[]float64{0, 1, 2, 3, 4, 5, 6, 7}, "▁▂▃▄▅▆▇█"},
		{[]float64{0.001, 1000}, "▁█"},
		{[]float64{-1, 5}, "▁█"},
	} {
		if got := sparkline(tt.in); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.in, got, tt.want)
		}
	}
}

// Two looks at a mirror that works: rates, the RPO's course, what is left of a catch-up and of a resync.
func TestRenderWatch(t *testing.T) {
	var b strings.Builder
	var p past
	var before *mirror.Status
	for i, rpo := range []float64{0.1, 0.4, 3.2, 0.2} {
		now := testNow.Add(time.Duration(i) * 2 * time.Second)
		st := healthy()
		f := &st.Followers[0]
		f.RPOSeconds = rpo
		for j := range f.Paths {
			f.Paths[j].BytesSent += uint64(i) * uint64(j+1) * 4 << 20
		}
		st.Followers[1].State, st.Followers[1].Hot, st.Followers[1].Durable = "catch-up", true, 1
		st.Followers[1].LagBytes = uint64(100-10*i) << 20
		v := view{now: now, before: before, beforeTime: now.Add(-2 * time.Second), past: &p}
		p.add(st, now)
		if i == 3 {
			v.status(&b, st)
		}
		before = st
	}
	b.WriteString("--- a resync\n")
	st, now := resyncing(), testNow.Add(2*time.Second)
	earlier := resyncing()
	st.Followers[0].Resync.DoneBytes += 200 << 20
	view{now: now, before: earlier, beforeTime: testNow}.status(&b, st)
	golden(t, "watch.txt", b.String())
}

func TestPast_bounded(t *testing.T) {
	var p past
	for i := range 3 * pastSamples {
		st := healthy()
		st.Followers[0].RPOSeconds = float64(i)
		p.add(st, testNow)
	}
	s := p.rpo["10.1.0.9:7400"]
	if len(s) != pastSamples || s[0] != 2*pastSamples || s[len(s)-1] != 3*pastSamples-1 {
		t.Errorf("%d samples from %v to %v", len(s), s[0], s[len(s)-1])
	}
	if len(p.rpo) != 1 {
		t.Errorf("a follower that has nothing has an RPO: %v", p.rpo)
	}
}

// A screen is drawn over the one before, nothing wraps and nothing scrolls.
func TestDraw(t *testing.T) {
	a := newTestApp(t)
	a.redraw, a.size = true, func() (int, int) { return 20, 5 }
	a.draw("short\n\x1b[32m" + strings.Repeat("wide ", 10) + "\x1b[0m\n3\n4\n5\n6\n")
	out := a.out.String()
	if !strings.HasPrefix(out, ansi.CursorHomePosition) || !strings.HasSuffix(out, ansi.EraseScreenBelow) {
		t.Errorf("%q", out)
	}
	lines := strings.Split(strings.TrimSuffix(ansi.Strip(out), "\n"), "\n")
	if want := []string{"short", "wide wide wide wide…", "3", "… 3 more lines"}; strings.Join(lines, "|") != strings.Join(want, "|") {
		t.Errorf("%q, want %q", lines, want)
	}
	if n := strings.Count(out, ansi.EraseLineRight); n != len(lines) {
		t.Errorf("%d of %d lines are cleared to their end", n, len(lines))
	}
}

// watchFor runs status --watch until it has said so many times what is looked for.
func watchFor(t *testing.T, a *testApp, what string, times int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	w := &countingWriter{what: what, times: times, done: cancel}
	a.stdout = w
	defer func() { a.stdout = &a.out }()
	if code := a.run(ctx, append([]string{"status", "--watch", "--interval", "5ms"}, args...)); code != exitDone {
		t.Errorf("ended with %d: %s", code, a.err.String())
	}
	if w.found < times {
		t.Errorf("%q was said %d times, want %d, in %q", what, w.found, times, w.all.String())
	}
	return w.all.String()
}

// countingWriter is written by one goroutine, and read when that has ended.
type countingWriter struct {
	what         string
	times, found int
	done         func()
	all          strings.Builder
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.found += strings.Count(string(p), w.what); w.found >= w.times {
		w.done()
	}
	return w.all.Write(p)
}

func TestWatch(t *testing.T) {
	a := newTestApp(t)
	agentAt(t, a, "vol0", &fakeAgent{state: healthy()})
	plain := watchFor(t, a, "\n", 3)
	for line := range strings.Lines(plain) {
		if strings.Contains(line, "\x1b") || !strings.Contains(line, "vol0  primary in sync") || !strings.Contains(line, "RPO") {
			t.Errorf("not a plain line: %q", line)
		}
	}
	n := 0
	for line := range strings.Lines(watchFor(t, a, "\n", 3, "--json")) {
		var st mirror.Status
		if err := json.Unmarshal([]byte(line), &st); err != nil || st.Name != "vol0" {
			t.Errorf("%v in %q", err, line)
		}
		n++
	}
	if n < 3 {
		t.Errorf("%d lines of JSON", n)
	}
	a.redraw, a.size = true, func() (int, int) { return 120, 40 }
	screens := watchFor(t, a, ansi.EraseScreenBelow, 3)
	if !strings.HasPrefix(screens, ansi.HideCursor+ansi.EraseEntireScreen) || !strings.HasSuffix(screens, ansi.ShowCursor) {
		t.Errorf("the cursor is not hidden and shown again: %q", screens)
	}
	if !strings.Contains(screens, "▁▁   0.0 ms at most") {
		t.Errorf("no sparkline: %q", screens)
	}
}

// events --follow shows what is there, then what comes, each once, and ends with the agent.
func TestEventsFollow(t *testing.T) {
	a := newTestApp(t)
	dir := t.TempDir()
	stop := background(t, a, "source", "--name", "vol0", "--device", dir+"/dev", "--size", "16MiB", "--journal-size", "16MiB", "--nbd", "unix:"+dir+"/nbd", "--start-wait", "0")
	askUntil(t, a, func(st *mirror.Status) bool { return st.NBD.Address != "" })
	f := &testApp{app: a.app, vars: a.vars}
	w := &countingWriter{what: `"mode is async`, times: 1, done: func() {
		// It has seen what was ordered while it followed.
		go stop()
	}}
	f.stdout, f.stderr = w, &f.err
	done := make(chan int, 1)
	go func() { done <- f.run(context.Background(), []string{"events", "--follow", "--json"}) }()
	if code, _, stderr := a.exec(t, "mode", "async"); code != exitDone {
		t.Fatal(stderr)
	}
	select {
	case code := <-done:
		if code != exitFailed || !strings.Contains(f.err.String(), "the agent has ended") {
			t.Errorf("%d, %s", code, f.err.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it follows an agent that is not there")
	}
	last := uint64(0)
	for line := range strings.Lines(w.all.String()) {
		var e mirror.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Sequence != last+1 {
			t.Errorf("%v, after %d: %s", err, last, line)
		}
		last = e.Sequence
	}
	if last < 2 {
		t.Errorf("only %d events", last)
	}
}
