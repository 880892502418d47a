package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// background runs a daemon until stop is called, which returns its exit
// status and what it said on stderr.
func background(t *testing.T, a *testApp, args ...string) (stop func() (int, string)) {
	t.Helper()
	// A process of its own: its streams are not those of the commands.
	d := &testApp{app: a.app, vars: a.vars}
	d.stdout, d.stderr = &d.out, &d.err
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	go func() {
		c := d.run(ctx, args)
		if c != exitDone {
			t.Logf("the daemon ended with %d: %s", c, d.err.String())
		}
		code <- c
	}()
	stopped := false
	stop = func() (int, string) {
		stopped = true
		cancel()
		return <-code, d.err.String()
	}
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	return stop
}

// askUntil polls status until ok.
func askUntil(t *testing.T, a *testApp, ok func(*mirror.Status) bool, args ...string) mirror.Status {
	t.Helper()
	var st mirror.Status
	var stderr string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); wait(t.Context(), pollPause) {
		var out string
		if _, out, stderr = a.exec(t, append([]string{"status", "--json"}, args...)...); out == "" {
			continue
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatal(err)
		}
		if ok(&st) {
			return st
		}
	}
	t.Fatalf("the state never came; the last one: %+v; %s", st, stderr)
	return st
}

func TestDaemonServesEndsAndStartsAgain(t *testing.T) {
	a := newTestApp(t)
	dir := t.TempDir()
	nbd := "unix:" + filepath.Join(dir, "nbd")
	args := []string{
		"source", "--name", "vol0", "--device", filepath.Join(dir, "dev"), "--size", "16MiB", "--journal-size", "16MiB",
		"--nbd", nbd, "--start-wait", "0", "--log-format", "json",
	}
	serving := func(st *mirror.Status) bool { return st.NBD.Address == nbd }
	stop := background(t, a, args...)
	askUntil(t, a, serving)

	want := bytes.Repeat([]byte{0xab}, 8192)
	c := dial(t, nbd)
	if _, err := c.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if st := askUntil(t, a, serving); st.Role != "primary" || st.NBD.Writes != 1 || st.NBD.Connections != 1 {
		t.Errorf("%+v", st)
	}
	// A second agent of the name must not come near.
	if code, _, stderr := a.exec(t, args...); code != exitFailed || !strings.Contains(stderr, "in use by a running agent") {
		t.Errorf("second: code %d, %s", code, stderr)
	}
	if code, said := stop(); code != exitDone || !strings.Contains(said, `"ended cleanly"`) {
		t.Errorf("end: code %d, %s", code, said)
	}
	if code, _, _ := a.exec(t, "status"); code != exitFailed {
		t.Errorf("status of an ended agent: code %d", code)
	}

	stop = background(t, a, args...)
	askUntil(t, a, serving)
	got := make([]byte, len(want))
	if _, err := dial(t, nbd).ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a restart: %v, or other bytes", err)
	}
	if code, said := stop(); code != exitDone {
		t.Errorf("end: code %d, %s", code, said)
	}
}

func TestDaemonFailsWithOneLine(t *testing.T) {
	a := newTestApp(t)
	dir := t.TempDir()
	code, _, stderr := a.exec(t, "source", "--name", "vol0", "--device", filepath.Join(dir, "missing"), "--nbd", "unix:"+filepath.Join(dir, "nbd"))
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	oneErrorLine(t, stderr)
	// Its socket is gone too: the next start is not in its way.
	if left, _ := filepath.Glob(filepath.Join(a.socketDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
