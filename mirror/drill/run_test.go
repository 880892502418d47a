package drill

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mirror-agent/mirror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAgent has a view that is nothing but its life.
type fakeAgent struct {
	refuse error

	mu      sync.Mutex // guards all below
	held    int
	ended   chan struct{}
	reason  string
	stopped bool
}

func (a *fakeAgent) Status(context.Context) (mirror.Status, error) {
	return mirror.Status{Name: "vol0", Node: "fra2", Role: "secondary"}, nil
}

func (a *fakeAgent) Hold(context.Context, mirror.DrillOptions) (Hold, error) {
	if a.refuse != nil {
		return nil, a.refuse
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held++
	a.ended = make(chan struct{})
	return fakeHold{a}, nil
}

func (a *fakeAgent) end(reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stopped {
		a.stopped, a.reason = true, reason
		close(a.ended)
	}
}

type fakeHold struct{ a *fakeAgent }

func (h fakeHold) Started() mirror.DrillStatus {
	return mirror.DrillStatus{ID: 1, NBD: "unix:/x", Export: "vol0", Point: mirror.Point{LSN: 4096}, RPOSeconds: 0.5}
}

func (h fakeHold) Wait() (mirror.DrillStatus, error) {
	<-h.a.ended
	if h.a.reason == "" {
		return mirror.DrillStatus{}, io.ErrUnexpectedEOF
	}
	return mirror.DrillStatus{ID: 1, Reason: h.a.reason, ScratchBytes: 8192}, nil
}
func (h fakeHold) Stop(context.Context) error { h.a.end("stopped"); return nil }
func (h fakeHold) Close() error               { h.a.end(""); return nil }

func runner(a *fakeAgent) *Runner {
	return &Runner{Agent: a, Self: "/nonexistent", URI: func(address string, _ bool) string { return "nbd:" + address }}
}

func checks(t *testing.T, lines ...string) *Config {
	t.Helper()
	c := &Config{Device: None}
	for _, l := range lines {
		c.Checks = append(c.Checks, Check{Run: l})
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

func names(r *Report) (s []string) {
	for _, x := range r.Steps {
		how := "ok"
		if x.Error != "" {
			how = "failed"
		}
		s = append(s, x.Name+" "+how)
	}
	return s
}

func TestRun(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "ran")
	for _, c := range []struct {
		name   string
		config func(*Config)
		lines  []string
		result Result
		reason string
		steps  string
		rto    bool
	}{
		{"good", nil, []string{`test "$MIRROR_AGENT_DRILL_URI" = nbd:unix:/x && test $MIRROR_AGENT_DRILL_LSN = 4096`, "echo said"}, Passed, "", "ok,ok,ok,ok", true},
		{"bad", nil, []string{"false", "true"}, Failed, "false: exit status 1", "ok,failed,ok", false},
		{"bad, and on", func(c *Config) { c.KeepGoing = true }, []string{"false", "true"}, Failed, "false: exit status 1", "ok,failed,ok,ok", true},
		{"too long", func(c *Config) { c.Checks[0].Timeout = 50 * time.Millisecond }, []string{"sleep 1000"}, Failed, "no end after 50ms (timeout)", "ok,failed,ok", false},
		{"not to be ended", func(c *Config) { c.Checks[0].Timeout = 50 * time.Millisecond }, []string{"trap '' TERM; sleep 1000 & wait; sleep 1000"}, Failed, "timeout", "ok,failed,ok", false},
		{"cleanup", func(c *Config) { c.Cleanup = []Check{{Name: "tidy", Run: "touch " + marker, Timeout: time.Minute}} }, []string{"false"}, Failed, "false", "ok,failed,ok,ok", false},
		{"bad cleanup", func(c *Config) { c.Cleanup = []Check{{Name: "tidy", Run: "false", Timeout: time.Minute}} }, []string{"true"}, Failed, "tidy: exit status 1", "ok,ok,failed,ok", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &fakeAgent{}
			config := checks(t, c.lines...)
			if c.config != nil {
				c.config(config)
			}
			r, err := runner(a).Run(t.Context(), config, mirror.DrillOptions{At: "lsn:4096"})
			if err != nil {
				t.Fatal(err)
			}
			var how []string
			for _, n := range names(r) {
				how = append(how, n[strings.LastIndex(n, " ")+1:])
			}
			if r.Result != c.result || !strings.Contains(r.Reason, c.reason) || (r.RTOSeconds != nil) != c.rto || strings.Join(how, ",") != c.steps {
				t.Fatalf("%s %q, RTO %v, %v", r.Result, r.Reason, r.RTOSeconds, names(r))
			}
			if !a.stopped || r.RPOSeconds != 0.5 || r.Asked != "lsn:4096" || r.ScratchBytes != 8192 || len(r.Samples) == 0 {
				t.Fatalf("stopped %t, %+v", a.stopped, r)
			}
		})
	}
	if _, err := os.Stat(marker); err != nil {
		t.Fatal("the cleanup did not run")
	}
}

// TestRun_interrupted: an interrupted drill takes everything back, also what a check has left running.
func TestRun_interrupted(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if b, err := os.ReadFile(pid); err == nil && len(b) > 0 {
				cancel(errors.New("interrupt received"))
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	a := &fakeAgent{}
	r, err := runner(a).Run(ctx, checks(t, "sleep 1000 & echo $! > "+pid, "sleep 1000"), mirror.DrillOptions{})
	if err != nil || r.Result != Interrupted || r.Reason != "interrupt received" || !a.stopped {
		t.Fatalf("%+v: %v", r, err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	gone(t, strings.TrimSpace(string(b)))
}

func gone(t *testing.T, pid string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %s is left", pid)
		}
	}
}

// TestRun_viewEnds: when the daemon ends the view, the drill ends and says the daemon's reason.
func TestRun_viewEnds(t *testing.T) {
	for _, reason := range []string{"the scratch is full", ""} {
		a := &fakeAgent{}
		n := runner(a)
		n.Tell = func(s Step) {
			if s.Name == "open a writable view" {
				time.AfterFunc(20*time.Millisecond, func() { a.end(reason) })
			}
		}
		r, err := n.Run(t.Context(), checks(t, "sleep 1000"), mirror.DrillOptions{})
		want := reason
		if want == "" {
			want = "unexpected EOF"
		}
		if err != nil || r.Result != Failed || !strings.Contains(r.Reason, want) {
			t.Fatalf("%+v: %v", r, err)
		}
	}
}

// TestRun_refused: nothing is begun.
func TestRun_refused(t *testing.T) {
	a := &fakeAgent{refuse: errors.New("refused: a drill runs")}
	if r, err := runner(a).Run(t.Context(), checks(t, "true"), mirror.DrillOptions{}); r != nil || !errors.Is(err, a.refuse) {
		t.Fatalf("%+v: %v", r, err)
	}
	c := checks(t, "true")
	c.Device, c.Mount = Auto, "/nowhere/at/all"
	if _, err := runner(&fakeAgent{}).Run(t.Context(), c, mirror.DrillOptions{}); err == nil || !strings.Contains(err.Error(), "mount: ") {
		t.Fatal(err)
	}
}

// TestUndertaker: it takes everything back, the last first and twice, when its parent is gone, and nothing when all was done.
func TestUndertaker(t *testing.T) {
	for _, c := range []struct {
		name, want string
		end        func(u *undertaker) error
	}{
		{"done", "", (*undertaker).dismiss},
		{"gone", "second's\nfirst\nsecond's\nfirst\n", func(u *undertaker) error { return errors.Join(u.told.Close(), u.cmd.Wait()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "back")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			u, err := newUndertaker()
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"first", "second's"} {
				if err := u.tell("sh", "-c", `echo "$1" >> "$2"`, "-", word, file); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.end(u); err != nil && c.name == "done" {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil || string(got) != c.want {
				t.Fatalf("%q (%v), wanted %q", got, err, c.want)
			}
		})
	}
}

// TestOutput: the end of what a command printed is kept, as text.
func TestOutput(t *testing.T) {
	out, err := run(t.Context(), "/bin/sh", "-c", `head -c 100000 /dev/zero | tr '\0' a; printf '\377end'`)
	if err != nil || len(out) > maxOutput+10 || !strings.HasSuffix(out, "\uFFFDend") || !strings.HasPrefix(out, "…") {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
	if _, err := run(t.Context(), "/bin/sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: why") {
		t.Fatal(err)
	}
	exit := (*exec.ExitError)(nil)
	if _, err := run(t.Context(), "/bin/sh", "-c", "kill -9 $$"); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatal(err)
	}
}
