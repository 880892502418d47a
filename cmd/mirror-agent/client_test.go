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
	"time"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// fakeAgent answers the commands; it has one event and refuses a promotion
// without force.
type fakeAgent struct {
	state *mirror.Status
	calls []string
	asked int // how often about a failback
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

func (f *fakeAgent) Listen(_ context.Context, address string) (string, error) {
	f.state.Listen = append(f.state.Listen, address)
	return address, f.note("listen " + address)
}

func (f *fakeAgent) Unlisten(_ context.Context, address string) error {
	return f.note("unlisten " + address)
}

func (f *fakeAgent) SetBandwidth(_ context.Context, spec string) error {
	f.state.Network = &mirror.NetworkStatus{Compress: "zstd", InUse: "zstd", SentBytes: 400 << 20, SentPacked: 100 << 20, Bandwidth: spec}
	if spec != "none" {
		f.state.Network.BandwidthNow = 20e6
	}
	return f.note("bandwidth " + spec)
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

func (f *fakeAgent) RemoveMember(_ context.Context, who string) error {
	return f.note("member remove " + who)
}

func (f *fakeAgent) ResizeLog(_ context.Context, bytes int64) error {
	f.state.Log.SizeBytes = bytes - 8192
	return f.note("log resize " + strconv.FormatInt(bytes, 10))
}

func (f *fakeAgent) Verify(_ context.Context, o mirror.VerifyOptions) (mirror.VerifyReport, error) {
	f.state.Verify = verified()
	return mirror.VerifyReport{State: mirror.VerifyRunning, Target: "10.1.0.9:7400"}, f.note(fmt.Sprintf("verify %q %d %t %t", o.Repair, o.RateBytes, o.Direct, o.Resume))
}

func (f *fakeAgent) StopVerify(context.Context) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{State: mirror.VerifyStopped, Target: "10.1.0.9:7400", DoneBytes: 1 << 30, TotalBytes: 4 << 30}, f.note("verify stop")
}

func (f *fakeAgent) VerifyReport(context.Context) (mirror.VerifyReport, error) {
	if f.state.Verify == nil {
		return mirror.VerifyReport{}, mirror.ErrNoVerify
	}
	return *f.state.Verify, nil
}

func (f *fakeAgent) Scrub(context.Context) error { return f.note("scrub") }

func (f *fakeAgent) Window() (mirror.Window, error) {
	return mirror.Window{From: mirror.Point{LSN: 1 << 20, Time: testNow}, To: mirror.Point{LSN: 2 << 20, Time: testNow}}, nil
}

func (f *fakeAgent) StartDrill(_ context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error) {
	return aDrill(), f.note("drill " + o.At + " " + o.NBD)
}

func (f *fakeAgent) StopDrill(_ context.Context, id uint64, _ string) (mirror.DrillStatus, error) {
	d := aDrill()
	d.Running, d.Ended, d.Reason = false, testNow, "the drill was stopped"
	return d, f.note(fmt.Sprintf("drill stop %d", id))
}

func (f *fakeAgent) Drill() (mirror.DrillStatus, <-chan struct{}, bool) { return aDrill(), nil, true }

func aDrill() mirror.DrillStatus {
	return mirror.DrillStatus{
		ID: 3, Running: true, Point: mirror.Point{LSN: 2 << 20, Time: testNow}, Started: testNow.Add(-90 * time.Second),
		NBD: "unix:/run/mirror-agent/vol0.nbd.drill", SizeBytes: 64 << 30, ScratchBytes: 12 << 20, ScratchLimit: 20 << 30,
		RPOSeconds: 0.8, RPOBytes: 4096, OpenSeconds: 0.0042,
	}
}

// verified is a verify that found and repaired something.
func verified() *mirror.VerifyReport {
	return &mirror.VerifyReport{
		State: mirror.VerifyDone, Target: "10.1.0.9:7400", Started: ago(10 * time.Minute), Ended: ago(2 * time.Minute),
		TotalBytes: 64 << 30, DoneBytes: 64 << 30, ComparedBytes: 12 << 30, HoleBytes: 52 << 30, Exact: 17, FirstLSN: 4096, LastLSN: 8192,
		SourceRead: "page cache", TargetRead: "disk",
		DifferentBytes: 12288, RepairedBytes: 12288, Extents: 2,
		Differences: []mirror.Difference{
			{Offset: 1 << 20, Length: 8192, LSN: 5000, Kind: "differs", Repaired: "from the source"},
			{Offset: 3 << 20, Length: 4096, LSN: 6000, Kind: "unreadable on the target", Repaired: "from the source"},
		},
	}
}

func (f *fakeAgent) Demote(_ context.Context, o mirror.DemoteOptions) (mirror.DemoteResult, error) {
	return mirror.DemoteResult{Name: "vol0", DryRun: o.DryRun}, nil
}

func (f *fakeAgent) Promote(_ context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	if !o.Force && !o.Planned {
		return mirror.PromoteResult{}, errors.New("refused: the source was seen 0.2 s ago; end it first, or use --force")
	}
	var g *mirror.GivenUp
	if o.At != "" {
		g = &mirror.GivenUp{From: mirror.Point{LSN: 2048}, To: mirror.Point{LSN: 4096}, Bytes: 2048}
	}
	return mirror.PromoteResult{GivenUp: g, Generation: "4.0", LSN: 4096, NBD: o.NBD, Seconds: 0.21, DryRun: o.DryRun, Missing: mirror.Missing{Known: true, Source: "nyc1", Bytes: 3 << 20, Seconds: 4}}, f.note("promote")
}

func (f *fakeAgent) Failback(_ context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error) {
	r := mirror.FailbackResult{Home: "nyc1", Primary: "fra2", DryRun: o.DryRun}
	f.asked++
	if f.asked < 3 {
		r.Waiting, r.LagBytes = "nyc1 is catch-up", 3<<20
		return r, nil
	}
	r.Ready = true
	if o.DryRun {
		return r, nil
	}
	r.Generation, r.LSN, r.NBD, r.Seconds = "5.0", 8192, "unix:/x", 0.12
	return r, f.note(fmt.Sprintf("failback %g", o.LimitSeconds))
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
		{"listen list", 0, "", "10.1.0.5:7400"},
		{"listen list --json", 0, "", `"announced": [`},
		{"listen add 10.3.0.5:7400", 0, "listen 10.3.0.5:7400", "vol0: listening at 10.3.0.5:7400"},
		{"listen add 10.3.0.5:7400 --json", 0, "listen 10.3.0.5:7400", `"listen": [`},
		{"listen add nowhere", 2, "", `address "nowhere": give HOST:PORT`},
		{"listen remove 10.1.0.5:7400", 0, "unlisten 10.1.0.5:7400", "vol0: not listening at 10.1.0.5:7400 any more"},
		{"bandwidth 20MB/s", 0, "bandwidth 20MB/s", "vol0: bandwidth 20 MB/s now"},
		{"bandwidth 08:00-18:00=20MB/s,*=none", 0, "bandwidth 08:00-18:00=20MB/s,*=none", "20 MB/s now (08:00-18:00=20MB/s,*=none)"},
		{"bandwidth none", 0, "bandwidth none", "vol0: bandwidth not limited"},
		{"bandwidth none --json", 0, "bandwidth none", `"sent_packed_bytes": 104857600`},
		{"bandwidth", 0, "", "vol0: bandwidth not limited"},
		{"bandwidth 50", 2, "", "\"50\" is no rate: give one like 50MB/s"},
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
		{"member remove ams1", 0, "member remove ams1", "vol0: ams1 was removed"},
		{"member remove", 2, "", "missing argument HOST|ADDRESS|ID"},
		{"member list", 0, "", "never told"},
		{"log resize lots", 2, "", "size \"lots\": give a number with a unit"},
		{"verify", 0, `verify "" 0 false false`, "12,288 bytes in 2 places differed, all repaired"},
		{"verify --repair --rate 50MiB --direct", 0, `verify "source" 52428800 true false`, "1.0 MiB"},
		{"verify --repair=target --resume", 0, `verify "target" 0 false true`, "from the source"},
		{"verify --json", 0, `verify "" 0 false false`, `"state": "done"`},
		{"verify --background", 0, `verify "" 0 false false`, "vol0: verify of 10.1.0.9:7400 runs; mirror-agent verify --follow shows it"},
		{"verify --stop", 0, "verify stop", "vol0: verify of 10.1.0.9:7400 is stopped, 1.0 GiB of 4.0 GiB were compared; mirror-agent verify --resume goes on"},
		{"verify --show", 1, "", "no verify was run here yet: mirror-agent verify starts one"},
		{"verify --follow", 1, "", "no verify was run here yet"},
		{"verify --repair=mine", 2, "", `--repair "mine": choose source or target`},
		{"verify --rate fast", 2, "", `size "fast"`},
		{"verify --stop --repair", 2, "", "--stop goes with no other flag that orders something"},
		{"checkpoint list", 0, "", "go back to LSN 1048576 ("},
		{"drill start", 0, "drill  ", "drill 3 at LSN 2097152 (20"},
		{"drill start --at lsn:4096 --nbd unix:/x --json", 0, "drill lsn:4096 unix:/x", `"rpo_seconds": 0.8`},
		{"drill start --at noon", 2, "", `--at: point "noon": no time of RFC 3339; say a time like 2026-11-22T20:15:00Z, lsn:NUMBER or checkpoint:NAME`},
		{"drill start --at lsn:x", 2, "", `point "lsn:x"`},
		{"drill start --at checkpoint:", 2, "", `point "checkpoint:"`},
		{"drill start --scratch-size lots", 2, "", `--scratch-size: size "lots"`},
		{"drill start --nbd nowhere", 2, "", "--nbd: "},
		{"drill stop", 0, "drill stop 0", "drill 3 ended after 1 min 30 s; its scratch of 12 MiB is gone"},
		{"drill status", 0, "", "0.80 s and 4.0 KiB of log before the newest that is known"},
		{"drill status --json", 0, "", `"scratch_limit_bytes": 21474836480`},
		{"drill", 2, "", "name what to do: report, run, start, status, stop"},
		{"promote --at noon", 2, "", `--at: point "noon"`},
		{"promote --force --at lsn:2048", 0, "promote", "2048 bytes of log after LSN 2048 are given up, 0s up to LSN 4096"},
		{"scrub", 0, "scrub", "vol0: the log is being scrubbed"},
		{"promote", 1, "", "mirror-agent: refused: the source was seen 0.2 s ago; end it first, or use --force\n"},
		{"promote --force --nbd unix:/x", 0, "promote", "generation 4.0 at LSN 4096, after 0.21 s\n  nyc1 was last heard of 4s ago: 3.0 MiB of its log that it had then are missing; what it wrote since then is not known\n  clients connect to unix:/x   (nbdinfo 'nbd+unix:///?socket=/x')"},
		{"promote --force --dry-run --nbd unix:/x", 0, "promote", "promote would go on from LSN 4096 and serve at unix:/x; nothing was changed\n  nyc1 was last heard of"},
		{"promote --planned", 0, "promote", "generation 4.0 at LSN 4096"},
		{"promote --planned --limit 5s --dry-run", 0, "promote", "nothing was changed"},
		{"promote --planned --force", 2, "", "--planned and --force exclude each other"},
		{"promote --limit 5s", 2, "", "--limit is for --planned"},
		{"failback", 0, "failback 30", "nyc1 is catch-up, 3.0 MiB behind\nfra2 hands over to nyc1 ...\nnyc1 leads again: generation 5.0 at LSN 8192, after 0.12 s"},
		{"failback --limit 7s --json", 0, "failback 7", `"generation": "5.0"`},
		{"failback --dry-run", 0, "", "failback would wait: nyc1 is catch-up, 3.0 MiB behind; nothing was changed"},
		{"failback --limit 0s", 2, "", "must be positive"},
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
