package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// fakeAgent answers the commands; it has one event and refuses a promotion
// without force.
type fakeAgent struct {
	state *mirror.Status
	calls []string
}

func (f *fakeAgent) Status() mirror.Status { return *f.state }
func (f *fakeAgent) Events(after uint64) ([]mirror.Event, <-chan struct{}) {
	if after >= 1 {
		return nil, nil
	}
	return []mirror.Event{{Sequence: 1, Time: testNow, Kind: "path-down", Target: "10.1.0.9:7400", Path: "2", Text: "no frame for 1.0 s"}}, nil
}

func (f *fakeAgent) note(call string) error {
	f.calls = append(f.calls, call)
	return nil
}

func (f *fakeAgent) SetMode(_ context.Context, m mirror.Mode) error {
	f.state.Mode = string(m)
	return f.note("mode " + string(m))
}
func (f *fakeAgent) Switch(_ context.Context, to string) error { return f.note("switch " + to) }
func (f *fakeAgent) Suspend(context.Context) error             { return f.note("suspend") }
func (f *fakeAgent) Resume(context.Context) error              { return f.note("resume") }
func (f *fakeAgent) ResetPath(_ context.Context, target string, id int) error {
	return f.note("reset " + target + " " + string(rune('0'+id)))
}

func (f *fakeAgent) RemovePath(_ context.Context, target string, id int) error {
	return f.note(fmt.Sprintf("remove %s %d", target, id))
}

func (f *fakeAgent) Resize(_ context.Context, size int64) (int64, error) {
	f.state.Device.SizeBytes = size
	return size, f.note(fmt.Sprintf("resize %d", size))
}

func (f *fakeAgent) CreateCheckpoint(_ context.Context, name string) (mirror.Checkpoint, error) {
	return mirror.Checkpoint{Name: name, LSN: 4096, Time: testNow}, f.note("checkpoint " + name)
}

func (f *fakeAgent) Checkpoints(context.Context) ([]mirror.Checkpoint, error) {
	return []mirror.Checkpoint{{Name: "noon", LSN: 4096, Time: testNow}}, nil
}

func (f *fakeAgent) ResizeLog(_ context.Context, bytes int64) error {
	f.state.Log.SizeBytes = bytes - 8192
	return f.note("log resize " + strconv.FormatInt(bytes, 10))
}

func (f *fakeAgent) Promote(_ context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	if !o.Force {
		return mirror.PromoteResult{}, errors.New("refused: the source was seen 0.2 s ago; end it first, or use --force")
	}
	return mirror.PromoteResult{Generation: "4.0", LSN: 4096, NBD: o.NBD, Seconds: 0.21}, f.note("promote")
}

// agentAt serves f at the app's default place under name.
func agentAt(t *testing.T, a *testApp, name string, f *fakeAgent) {
	t.Helper()
	path := a.socketOf(name)
	if err := a.makeSocketDir(path); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(f, control.DefaultOptions())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
}

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		call string
		want string // on stdout, or on stderr when the code is not 0
	}{
		{"status", 0, "", "vol0   primary · in sync · flush"},
		{"status --json", 0, "", `"active_target": "10.1.0.9:7400"`},
		{"status --name vol0", 0, "", "no alarms"},
		{"explain", 0, "", "vol0 (primary): in sync"},
		{"explain --json", 0, "", `"choices": []`},
		{"events", 0, "", "path-down             10.1.0.9:7400 path 2  no frame for 1.0 s"},
		{"events --json", 0, "", `"kind":"path-down"`},
		{"events --after 1", 0, "", ""},
		{"mode async", 0, "mode async", "vol0: mode async: a FLUSH is answered when it is durable here; without"},
		{"suspend", 0, "suspend", "suspended; the targets fall behind"},
		{"resume --json", 0, "resume", `"name": "vol0"`},
		{"switch", 0, "switch backup", "data flows to"},
		{"switch primary", 0, "switch primary", "data flows to"},
		{"switch 10.3.0.9:7400", 0, "switch 10.3.0.9:7400", "data flows to"},
		{"path list", 0, "", "10.2.0.5:50001"},
		{"path list --json", 0, "", `"rtt_us": 840`},
		{"path reset 2", 0, "reset 10.1.0.9:7400 2", "path 2 is built anew"},
		{"path remove 2", 0, "remove 10.1.0.9:7400 2", "path 2 is closed when everything on it is acknowledged"},
		{"path remove 1 --target 10.3.0.9:7400", 0, "remove 10.3.0.9:7400 1", "path 1"},
		{"path reset 1 --target 10.3.0.9:7400", 0, "reset 10.3.0.9:7400 1", "path 1"},
		{"resize 200GiB", 0, "resize 214748364800", "vol0: the device has 200 GiB (214748364800 bytes)"},
		{"resize", 0, "resize 0", "vol0: the device has"},
		{"resize 0", 2, "", "must be more than 0"},
		{"resize lots", 2, "", "size \"lots\": give a number with a unit"},
		{"checkpoint create noon", 0, "checkpoint noon", "checkpoint noon at LSN 4096"},
		{"checkpoint create", 2, "", "NAME"},
		{"checkpoint list", 0, "", "noon   4096"},
		{"checkpoint list --json", 0, "", `"name": "noon"`},
		{"log resize 96MiB", 0, "log resize 100663296", "vol0: the log has 96 MiB now"},
		{"log resize 8GiB --json", 0, "log resize 8589934592", `"size_bytes": 8589926400`},
		{"log resize lots", 2, "", "size \"lots\": give a number with a unit"},
		{"promote", 1, "", "mirror-agent: refused: the source was seen 0.2 s ago; end it first, or use --force\n"},
		{"promote --force --nbd unix:/x", 0, "promote", "generation 4.0 at LSN 4096, after 0.21 s\n  clients connect to unix:/x   (nbdinfo 'nbd+unix:///?socket=/x')"},
		{"promote --force --json", 0, "promote", `"generation": "4.0"`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			a, f := newTestApp(t), &fakeAgent{state: healthy()}
			agentAt(t, a, "vol0", f)
			code, stdout, stderr := a.exec(t, strings.Fields(tt.args)...)
			got := stdout
			if tt.code != 0 {
				got = stderr
			}
			if code != tt.code || !strings.Contains(got, tt.want) {
				t.Errorf("code %d\nstdout %s\nstderr %s\nwant %d and …%s…", code, stdout, stderr, tt.code, tt.want)
			}
			if calls := strings.Join(f.calls, ","); calls != tt.call {
				t.Errorf("the agent was told %q, want %q", calls, tt.call)
			}
		})
	}
}

func TestWhichAgent(t *testing.T) {
	a := newTestApp(t)
	vol0, vol1 := &fakeAgent{state: healthy()}, &fakeAgent{state: healthy()}
	vol1.state.Name = "vol1"
	agentAt(t, a, "vol0", vol0)
	// The socket of a dead agent is no choice.
	l, err := net.Listen("unix", a.socketOf("dead"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if code, out, stderr := a.exec(t, "status"); code != 0 || !strings.HasPrefix(out, "vol0 ") {
		t.Errorf("the only live one: %d %q %q", code, out, stderr)
	}
	agentAt(t, a, "vol1", vol1)
	if code, _, stderr := a.exec(t, "status"); code != 1 || !strings.Contains(stderr, "several mirrors run here: vol0, vol1; choose one with --name") {
		t.Errorf("two: %d %q", code, stderr)
	}
	if code, out, _ := a.exec(t, "status", "--name", "vol1"); code != 0 || !strings.HasPrefix(out, "vol1 ") {
		t.Errorf("--name: %d %q", code, out)
	}
	a.vars["MIRROR_AGENT_CONTROL"] = a.socketOf("vol0")
	if _, out, _ := a.exec(t, "status"); !strings.HasPrefix(out, "vol0 ") {
		t.Errorf("environment: %q", out)
	}
	if _, out, _ := a.exec(t, "status", "--name", "vol1"); !strings.HasPrefix(out, "vol1 ") {
		t.Errorf("a flag comes before the environment: %q", out)
	}
	if _, out, _ := a.exec(t, "status", "--control", a.socketOf("vol1"), "--name", "vol0"); !strings.HasPrefix(out, "vol1 ") {
		t.Errorf("--control comes before --name: %q", out)
	}
}

func TestSocketDir(t *testing.T) {
	a := newTestApp(t)
	if got, want := a.socketOf("v"), filepath.Join(a.vars["XDG_RUNTIME_DIR"], "mirror-agent", "v.sock"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	delete(a.vars, "XDG_RUNTIME_DIR")
	if got := a.socketDir(); got != filepath.Join(os.TempDir(), "mirror-agent-1000") {
		t.Errorf("without XDG_RUNTIME_DIR: %q", got)
	}
	a.uid = 0
	if got := a.socketOf("v"); got != "/run/mirror-agent/v.sock" {
		t.Errorf("root: %q", got)
	}
}
