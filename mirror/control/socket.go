package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketMode       = 0o600
	maxSocketPath    = 107 // sun_path of unix(7) without its final zero
	probeSocketAfter = 2 * time.Second
)

// Listen opens the control socket at path with mode 0600. The socket of a
// dead agent is removed; a live agent's is refused with ErrInUse, and any
// other file at path is refused too. The socket goes away when the listener
// is closed.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("control socket %s: %d bytes, at most %d are possible; choose a shorter --control", path, len(path), maxSocketPath)
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The mode of the socket before bind(2) is the mode of the file that bind
	// creates: there is no moment in which others could connect.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		if err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) }); err != nil {
			return err
		}
		return chmodErr
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w; choose another --control", path, plain(err))
	}
	return l, nil
}

// lockDir keeps two agents that start at the same moment from both taking
// the same socket for stale: the lock is held while one looks and binds.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("control socket's directory %s: %w; create it or choose another --control", dir, plain(err))
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("control socket's directory %s: lock: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket %s: %w", path, plain(err))
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket %s: a file that is no socket is in the way; remove it or choose another --control", path)
	}
	c, err := net.DialTimeout("unix", path, probeSocketAfter)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("control socket %s: %w; stop that one or choose another --name or --control", path, ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("control socket %s of a dead agent: %w", path, plain(err))
		}
		return nil
	case errors.Is(err, syscall.EAGAIN): // its queue is full: it lives
		return fmt.Errorf("control socket %s: %w; stop that one or choose another --name or --control", path, ErrInUse)
	}
	return fmt.Errorf("control socket %s: %w; choose another --control", path, plain(err))
}

// plain takes the path and the system call's name out of an error whose
// message is about to name the path itself.
func plain(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
