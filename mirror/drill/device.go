package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// device is the view as a block device of this host.
type device struct {
	path string
	free func(context.Context) error
}

// choose says what Auto comes to here, or why what was asked for cannot be.
func choose(m Means, mount bool) (Means, error) {
	noKernel, noFuse := whyNotKernel(), whyNotFuse()
	switch m {
	case Kernel:
		return Kernel, noKernel
	case Fuse:
		return Fuse, noFuse
	case None:
		return None, nil
	}
	switch {
	case noKernel == nil:
		return Kernel, nil
	case noFuse == nil:
		return Fuse, nil
	case mount:
		return None, fmt.Errorf("mount: there is no way to a block device here: kernel: %w; fuse: %w", noKernel, noFuse)
	}
	return None, nil
}

var errNotRoot = errors.New("it takes root")

func whyNotKernel() error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	if _, err := os.Stat("/sys/block/nbd0"); err != nil {
		return errors.New("the kernel's NBD driver is not loaded (modprobe nbd)")
	}
	return nil
}

func whyNotFuse() error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	for _, program := range []string{"nbdfuse", "losetup", "fusermount3"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed (Debian: nbdfuse, fuse3, util-linux)", program)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return errors.New("there is no /dev/fuse here")
	}
	return nil
}

// attach makes a device of the export at address. self is this program.
func attach(ctx context.Context, m Means, u *undertaker, self, address, export, uri string) (*device, error) {
	if m == Kernel {
		return attachKernel(ctx, u, self, address, export)
	}
	return attachFuse(ctx, u, uri)
}

// attachKernel takes the first device of the kernel that is free.
func attachKernel(ctx context.Context, u *undertaker, self, address, export string) (*device, error) {
	for i := 0; ; i++ {
		dir := fmt.Sprintf("/sys/block/nbd%d", i)
		if _, err := os.Stat(dir); err != nil {
			return nil, errors.New("all devices of the kernel's NBD client are in use")
		}
		if _, err := os.Stat(dir + "/pid"); err == nil {
			continue
		}
		path := fmt.Sprintf("/dev/nbd%d", i)
		if _, err := run(ctx, self, "attach", path, "--nbd", address, "--export", export, "--once", "--dead-conn-timeout", "1s"); err != nil {
			return nil, err
		}
		d := &device{path: path, free: func(ctx context.Context) error {
			_, err := run(ctx, self, "detach", path)
			return err
		}}
		return d, u.tell(self, "detach", path)
	}
}

// attachFuse shows the export as a file by nbdfuse and puts a loop device over it.
func attachFuse(ctx context.Context, u *undertaker, uri string) (_ *device, err error) {
	dir, err := os.MkdirTemp("", "mirror-agent-drill-")
	if err != nil {
		return nil, err
	}
	var undo []func(context.Context) error
	free := func(ctx context.Context) (err error) {
		for len(undo) > 0 {
			last := len(undo) - 1
			err = errors.Join(err, undo[last](ctx))
			undo = undo[:last]
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, free(context.WithoutCancel(ctx)))
		}
	}()
	undo = append(undo, func(context.Context) error { return os.Remove(dir) })
	if err := u.tell("rmdir", dir); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "nbd")
	fuse, err := newCommand("nbdfuse", "-C", "4", file, uri)
	if err != nil {
		return nil, err
	}
	if err := fuse.start(); err != nil {
		return nil, err
	}
	over := make(chan error, 1)
	end, kill := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		out, err := fuse.wait(end)
		over <- fmt.Errorf("nbdfuse ended: %w: %s", err, strings.TrimSpace(out))
	}()
	undo = append(undo, func(ctx context.Context) error {
		_, err := run(ctx, "fusermount3", "-u", dir)
		if err != nil {
			_, err = run(ctx, "fusermount3", "-u", "-z", dir)
		}
		kill()
		<-over
		return err
	})
	if err := errors.Join(u.tell("kill", "-9", "--", fmt.Sprint(-fuse.cmd.Process.Pid)), u.tell("fusermount3", "-u", "-z", dir)); err != nil {
		return nil, err
	}
	if err := appears(ctx, file, over); err != nil {
		return nil, err
	}
	out, err := run(ctx, "losetup", "--direct-io=on", "-f", "--show", file)
	if err != nil {
		return nil, err
	}
	loop := strings.TrimSpace(out)
	undo = append(undo, func(ctx context.Context) error {
		_, err := run(ctx, "losetup", "-d", loop)
		return err
	})
	return &device{path: loop, free: free}, u.tell("losetup", "-d", loop)
}

// appears waits for the file that nbdfuse shows.
func appears(ctx context.Context, file string, over chan error) error {
	for {
		var st syscall.Stat_t
		if err := syscall.Stat(file, &st); err == nil && st.Size > 0 {
			return nil
		}
		select {
		case err := <-over:
			over <- err // who takes it back waits for it too
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// mountAt mounts dev and returns what unmounts it.
func mountAt(ctx context.Context, u *undertaker, dev, dir, options string) (unmount func(context.Context) error, err error) {
	args := []string{dev, dir}
	if options != "" {
		args = []string{"-o", options, dev, dir}
	}
	if _, err := run(ctx, "mount", args...); err != nil {
		return nil, err
	}
	unmount = func(ctx context.Context) error {
		_, err := run(ctx, "umount", dir)
		if err != nil { // somebody is in there still
			_, lazy := run(ctx, "umount", "-l", dir)
			err = errors.Join(err, lazy)
		}
		return err
	}
	return unmount, u.tell("umount", "-l", dir)
}
