package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxOutput = 16 << 10 // kept of a command, its end
	killAfter = 5 * time.Second
)

// command is one that runs in a process group of its own, with its output in a file: what it leaves running does not hold
// anybody up. It does not outlive this process.
type command struct {
	cmd   *exec.Cmd
	out   *os.File
	ended chan struct{} // closed when it has
	err   error         // of its end, from then on
}

// nameless opens a temporary file that goes with this process, at whatever moment that is killed: it never has a name where the
// filesystem can do that (O_TMPFILE).
func nameless() (*os.File, error) {
	if fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		return os.NewFile(uintptr(fd), "output of a drill"), nil
	}
	out, err := os.CreateTemp("", "mirror-agent-drill-*.out")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(out.Name()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

func newCommand(name string, args ...string) (*command, error) {
	out, err := nameless()
	if err != nil {
		return nil, err
	}
	c := &command{cmd: exec.Command(name, args...), out: out, ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return c, nil
}

// start starts it; its process group is known then.
func (c *command) start() error {
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that started it for the end of this process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.ended)
		}
	}()
	if err := <-started; err != nil {
		return errors.Join(err, c.out.Close())
	}
	return nil
}

// wait returns when it has ended, or was killed because ctx is over: then the error is ctx's cause.
func (c *command) wait(ctx context.Context) (output string, err error) {
	defer c.out.Close()
	select {
	case <-c.ended:
		err = c.err
	case <-ctx.Done():
		c.signal(syscall.SIGTERM)
		timer := time.NewTimer(killAfter)
		defer timer.Stop()
		select {
		case <-c.ended:
		case <-timer.C:
			c.signal(syscall.SIGKILL)
			<-c.ended
		}
		c.signal(syscall.SIGKILL) // what it left
		err = context.Cause(ctx)
	}
	return c.output(), err
}

// signal goes to all of its group.
func (c *command) signal(s syscall.Signal) { _ = syscall.Kill(-c.cmd.Process.Pid, s) }

func (c *command) output() string {
	n, err := c.out.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, min(n, maxOutput))
	if _, err := c.out.ReadAt(b, n-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	s := string(bytes.ToValidUTF8(b, []byte(string(utf8.RuneError))))
	if n > maxOutput {
		s = "…" + s
	}
	return s
}

// run runs a command to its end and returns what it printed.
func run(ctx context.Context, name string, args ...string) (string, error) {
	c, err := newCommand(name, args...)
	if err != nil {
		return "", err
	}
	if err := c.start(); err != nil {
		return "", err
	}
	out, err := c.wait(ctx)
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out))
	}
	return out, nil
}
