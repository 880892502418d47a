package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// agent is one mirror-agent process and what it needs to be started again.
type agent struct {
	t       testing.TB
	name    string   // for messages: source, target, backup
	args    []string // of the command, without --control
	control string
	device  string
	nbd     string // unix:PATH; where it serves while it is primary
	listen  []string
	log     string // all that it ever printed

	patience time.Duration // more of it for all that is waited for

	// For an agent in a host of its own: the command it is started by, the program there and its control socket as
	// it sees it, when they are not those of here.
	inside                 []string
	program, controlWithin string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait
}

// shortDir makes a directory whose paths fit into a unix socket's address
// (108 bytes); t.TempDir may be longer than that.
func shortDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "ma")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// newAgent prepares a process that keeps its files in dir/name.*; args begin
// with the command (source, target, run).
func newAgent(t testing.TB, dir, name string, args ...string) *agent {
	t.Helper()
	a := &agent{
		t: t, name: name, args: args,
		control: filepath.Join(dir, name+".ctl"),
		log:     filepath.Join(dir, name+".log"),
	}
	t.Cleanup(func() {
		a.kill()
		if _, err := os.Stat(a.log); err == nil && t.Failed() {
			t.Logf("log of %s:\n%s", name, tail(a.log, 12<<10))
		}
		if raceBinary() && strings.Contains(tail(a.log, 1<<20), "DATA RACE") {
			t.Errorf("%s: the race detector found something:\n%s", name, tail(a.log, 12<<10))
		}
	})
	return a
}

func tail(path string, n int64) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if int64(len(b)) > n {
		b = append([]byte("…"), b[int64(len(b))-n:]...)
	}
	return string(b)
}

// start runs the process; it must not be running.
func (a *agent) start() {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd != nil {
		a.t.Fatalf("%s runs already", a.name)
	}
	f, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	bin, control := a.program, a.controlWithin
	if bin == "" {
		bin, control = program(a.t), a.control
	}
	args := append(append([]string{}, a.args...), "--control", control)
	line := append(append(slices.Clone(a.inside), bin), args...)
	cmd := exec.Command(line[0], line[1:]...)
	fmt.Fprintf(f, "--- %s mirror-agent %s\n", time.Now().Format("15:04:05.000"), strings.Join(args, " "))
	cmd.Stdout, cmd.Stderr = f, f
	// A test binary that dies takes its agents along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		a.t.Fatalf("start %s: %v", a.name, err)
	}
	ended := make(chan struct{})
	a.cmd, a.ended, a.err = cmd, ended, nil
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
		close(ended)
	}()
}

// pid of the running process, 0 when there is none.
func (a *agent) pid() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		return 0
	}
	return a.cmd.Process.Pid
}

func (a *agent) signal(s syscall.Signal) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		a.t.Fatalf("%s does not run", a.name)
	}
	if err := a.cmd.Process.Signal(s); err != nil {
		a.t.Fatalf("signal %s to %s: %v", s, a.name, err)
	}
}

// freeze stops the process as a hung host would look; thaw lets it go on.
func (a *agent) freeze() { a.t.Helper(); a.signal(syscall.SIGSTOP) }
func (a *agent) thaw()   { a.t.Helper(); a.signal(syscall.SIGCONT) }

// kill ends the process with SIGKILL, if it runs, and waits for its end.
func (a *agent) kill() {
	a.mu.Lock()
	cmd, ended := a.cmd, a.ended
	a.cmd = nil
	a.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	<-ended
}

// stop ends the process with SIGTERM, which has to be a clean end.
func (a *agent) stop() {
	a.t.Helper()
	a.signal(syscall.SIGTERM)
	if err := a.wait(20 * time.Second); err != nil {
		a.t.Fatalf("%s after SIGTERM: %v; exit status 0 is expected", a.name, err)
	}
}

// wait waits for the process to end by itself.
func (a *agent) wait(within time.Duration) error {
	a.t.Helper()
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	select {
	case <-ended:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.cmd = nil
		return a.err
	case <-time.After(within):
		a.t.Fatalf("%s is still running after %s", a.name, within)
		return nil
	}
}

// hasEnded says whether the process is gone by itself.
func (a *agent) hasEnded() bool {
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// command talks to this agent: mirror-agent ARGS --control SOCKET.
func (a *agent) command(args ...string) result {
	a.t.Helper()
	return runAgent(a.t, append(args, "--control", a.control)...)
}

// mustCommand is command with exit status 0.
func (a *agent) mustCommand(args ...string) string {
	a.t.Helper()
	r := a.command(args...)
	if r.code != 0 {
		a.t.Fatalf("%s: mirror-agent %s: exit status %d\n%s%s", a.name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// residentBytes is the process's resident memory.
func (a *agent) residentBytes() int64 {
	a.t.Helper()
	return residentBytes(a.t, a.pid())
}

func residentBytes(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatalf("VmRSS %q: %v", rest, err)
			}
		}
	}
	return kib << 10
}

// result of a program that ran to its end.
type result struct {
	stdout, stderr string
	code           int
}

// runAgent runs the binary to its end, at most 30 s.
func runAgent(t testing.TB, args ...string) result {
	t.Helper()
	return runAgentWithin(t, 30*time.Second, args...)
}

func runAgentWithin(t testing.TB, limit time.Duration, args ...string) result {
	t.Helper()
	bin := program(t) // building it does not count
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("mirror-agent %s: still running after %s\n%s%s", strings.Join(args, " "), limit, &out, &errs)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("mirror-agent %s: %v", strings.Join(args, " "), err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// freePort returns an address that nobody listens at and nobody else is given. It lies below the ports that the kernel gives to whoever
// connects: one of these would be somebody's by the time it is listened at, or while the one who listens there is killed and started again.
func freePort(t testing.TB, host string) string {
	t.Helper()
	for range lastPort - firstPort {
		addr := net.JoinHostPort(host, strconv.Itoa(firstPort+int(portsGiven.Add(1))%(lastPort-firstPort)))
		l, err := net.Listen("tcp", addr)
		if err == nil {
			l.Close()
			return addr
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatalf("no port from %d to %d is free on %s", firstPort, lastPort-1, host)
	return ""
}

const firstPort, lastPort = 20000, 32000

// portsGiven begins anywhere, so that two runs beside each other do not meet.
var portsGiven = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32N(lastPort - firstPort))
	return n
}()

// eventually waits for ok; at the deadline it fails with what ok said last.
func eventually(t testing.TB, within time.Duration, what string, ok func() (bool, string)) time.Duration {
	t.Helper()
	start := time.Now()
	pause := 10 * time.Millisecond
	for {
		done, last := ok()
		if done {
			return time.Since(start)
		}
		if time.Since(start) > within {
			t.Fatalf("not within %s: %s; last seen: %s", within, what, last)
		}
		time.Sleep(pause)
		pause = min(pause*3/2, 150*time.Millisecond)
	}
}
