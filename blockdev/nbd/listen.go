package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// Listen listens at "unix:PATH" or "HOST:PORT", or takes a socket that systemd has opened: "systemd:NAME", or "systemd:" when
// it is the only one (see systemd.socket(5), FileDescriptorName). The unix socket has mode 0600 from the start. The socket file of a server
// that is gone is removed; when one answers there, or the path is something else than a socket, that is an error.
func Listen(addr string) (net.Listener, error) {
	if name, ok := strings.CutPrefix(addr, "systemd:"); ok {
		l, err := activated(name)
		if err != nil {
			return nil, fmt.Errorf("listen for NBD at %s: %w", addr, err)
		}
		return l, nil
	}
	path, unix := strings.CutPrefix(addr, "unix:")
	if !unix {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for NBD at %s: %w", addr, err)
		}
		return l, nil
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen for NBD at %s: %w", addr, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Linux takes the mode of the file from the unbound socket, so there is no moment at which others may connect.
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for NBD at %s: %w", addr, err)
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return errors.New("there is a file that is not a socket; remove it or choose another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return errors.New("another server listens there; stop it or choose another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("is the socket in use? %w", err)
	}
	return os.Remove(path)
}

// passed are the sockets that systemd gave the process. They are kept open, so that a listener that was closed can be had
// again.
var passed = sync.OnceValue(func() []*os.File { return activation.Files(true) })

// activated returns a listener of the socket with that name.
func activated(name string) (net.Listener, error) {
	files := passed()
	var names []string
	for _, f := range files {
		if f.Name() == name || name == "" && len(files) == 1 {
			return net.FileListener(f)
		}
		names = append(names, f.Name())
	}
	switch {
	case len(files) == 0:
		return nil, errors.New("systemd passed no socket; start it by a .socket unit")
	case name == "":
		return nil, fmt.Errorf("systemd passed several sockets, name one of %s", strings.Join(names, ", "))
	default:
		return nil, fmt.Errorf("systemd passed no socket of that name, but %s", strings.Join(names, ", "))
	}
}
