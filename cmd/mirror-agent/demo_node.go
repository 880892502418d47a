package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

const (
	pollPause     = 20 * time.Millisecond
	endTimeout    = 15 * time.Second
	logTailLines  = 5
	maxLogTailLen = 64 << 10
)

// node is one agent of the demo: a process that the demo has started.
type node struct {
	name    string // source, target, backup
	dir     string
	log     string
	control string
	nbd     string
	client  *control.Client
	cmd     *exec.Cmd
	ended   chan struct{} // closed when the process has ended
}

// spawner starts processes from one thread that lives as long as it does: the
// kernel ends a child with Pdeathsig when the *thread* that started it ends.
type spawner struct {
	orders chan *exec.Cmd
	result chan error
}

func newSpawner() *spawner {
	s := &spawner{orders: make(chan *exec.Cmd), result: make(chan error)}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for cmd := range s.orders {
			s.result <- cmd.Start()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	s.orders <- cmd
	return <-s.result
}

// close ends the thread, and by that every child that is still there.
func (s *spawner) close() { close(s.orders) }

// newNode makes the node's directory; nothing runs yet.
func newNode(dir, name string) (*node, error) {
	n := &node{name: name, dir: filepath.Join(dir, name), log: filepath.Join(dir, name+".log")}
	n.control = filepath.Join(n.dir, "control.sock")
	n.nbd = "unix:" + filepath.Join(n.dir, "nbd.sock")
	n.client = control.NewClient(n.control)
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	return n, nil
}

// start runs "mirror-agent args…" as a process of its own group, so that
// Ctrl-C reaches the demo alone, which then ends its processes in order.
func (n *node) start(s *spawner, exe string, args []string) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.start(cmd); err != nil {
		return fmt.Errorf("start the %s: %w", n.name, err)
	}
	n.cmd, n.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // the state is read from cmd.ProcessState
	}(n.ended)
	return nil
}

// environment is this process's without settings of mirror-agent, which are
// not meant for the demo's agents.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, envPrefix+"_") {
			env = append(env, e)
		}
	}
	return env
}

func (n *node) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// kill ends the process as a crash would.
func (n *node) kill() time.Time {
	now := time.Now()
	_ = n.cmd.Process.Kill() // an error means that it has ended
	<-n.ended
	return now
}

// end asks the process to end cleanly and returns an error unless it does.
func (n *node) end() error {
	if n.cmd == nil {
		return nil
	}
	if !n.running() {
		return nil
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(endTimeout):
		n.kill()
		return fmt.Errorf("the %s did not end within %s of SIGTERM; it was killed", n.name, endTimeout)
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the %s ended with %s%s", n.name, n.cmd.ProcessState, n.tail())
	}
	return nil
}

// tail is the end of the node's log, for an error.
func (n *node) tail() string {
	f, err := os.Open(n.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLogTailLen {
		_, _ = f.Seek(-maxLogTailLen, 2)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil || b.Len() == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return "; its log ends: " + strings.Join(lines[max(len(lines)-logTailLines, 0):], " | ")
}

// status asks the node; an error when its process has ended.
func (n *node) status(ctx context.Context) (mirror.Status, error) {
	if !n.running() {
		return mirror.Status{}, fmt.Errorf("the %s has ended (%s)%s", n.name, n.cmd.ProcessState, n.tail())
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return n.client.Status(ctx)
}

// until polls the node until ok, and returns the state that was.
func (n *node) until(ctx context.Context, what string, ok func(*mirror.Status) bool) (mirror.Status, error) {
	var st mirror.Status
	for {
		var err error
		st, err = n.status(ctx)
		switch {
		case err == nil && ok(&st):
			return st, nil
		case err != nil && !n.running():
			return st, err
		}
		wait(ctx, pollPause)
		if ctx.Err() != nil {
			return st, fmt.Errorf("%s: %s; the %s says: %s%s", what, outOfTime(ctx), n.name, describe(&st), cause(err))
		}
	}
}

// outOfTime says why waiting ended.
func outOfTime(ctx context.Context) string {
	if why := context.Cause(ctx); !errors.Is(why, context.DeadlineExceeded) {
		return why.Error()
	}
	return "not within the time"
}

func cause(err error) string {
	var refused *control.RefusedError
	if err == nil || errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &refused) {
		return ""
	}
	return "; " + err.Error()
}

// describe is a state in a few words.
func describe(st *mirror.Status) string {
	if st.Name == "" {
		return "nothing"
	}
	s := st.State
	if st.Reason != "" {
		s += " (" + st.Reason + ")"
	}
	for i := range st.Followers {
		f := &st.Followers[i]
		s += fmt.Sprintf(", %s %s", f.Kind, f.State)
		if f.Reason != "" {
			s += " (" + f.Reason + ")"
		}
	}
	return s
}

// inSync tells whether data flows to an active follower of this kind.
func inSync(kind string) func(*mirror.Status) bool {
	return func(st *mirror.Status) bool {
		f := followerOf(st, kind)
		return f != nil && f.Active && f.State == "streaming"
	}
}

func followerOf(st *mirror.Status, kind string) *mirror.FollowerStatus {
	for i := range st.Followers {
		if st.Followers[i].Kind == kind {
			return &st.Followers[i]
		}
	}
	return nil
}

func activePaths(f *mirror.FollowerStatus) int {
	n := 0
	if f != nil {
		for _, p := range f.Paths {
			if p.State == "active" {
				n++
			}
		}
	}
	return n
}
