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

	"golang.org/x/sys/unix"
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
	for _, program := range []string{"nbdfuse", "fusermount3"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed (Debian: nbdfuse, fuse3)", program)
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
		if err := u.tell(self, "detach", path); err != nil {
			return nil, err
		}
		if _, err := run(ctx, self, "attach", path, "--nbd", address, "--export", export, "--once", "--dead-conn-timeout", "1s"); err != nil {
			return nil, err
		}
		return &device{path: path, free: func(ctx context.Context) error {
			_, err := run(ctx, self, "detach", path)
			return err
		}}, nil
	}
}

// attachFuse shows the export as a file by nbdfuse and puts a loop device over it.
func attachFuse(ctx context.Context, u *undertaker, uri string) (_ *device, err error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("mirror-agent-drill-%d", os.Getpid()))
	if err := u.tell("rmdir", dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
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
	if err := u.tell("fusermount3", "-u", "-z", dir); err != nil {
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
		if ended := <-over; err != nil {
			return fmt.Errorf("%w (%w)", err, ended)
		}
		return nil
	})
	if err := appears(ctx, file, over); err != nil {
		return nil, err
	}
	loop, path, err := loopOver(file)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(context.Context) error { return loop.Close() })
	return &device{path: path, free: free}, nil
}

// loopOver makes a loop device of a file. The kernel takes it back when nobody has it open or mounted any more, so it goes
// with this process.
func loopOver(file string) (loop *os.File, path string, err error) {
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", fmt.Errorf("a free loop device: %w", err)
		}
		path = fmt.Sprintf("/dev/loop%d", n)
		if loop, err = os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return nil, "", err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
		})
		if err == nil {
			return loop, path, nil
		}
		if err = errors.Join(err, loop.Close()); !errors.Is(err, unix.EBUSY) { // somebody else took it
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil, "", errors.New("no loop device is free for long enough")
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
	if err := u.tell("umount", "-l", dir); err != nil {
		return nil, err
	}
	if err := u.tell(endDaemons(dir, "KILL")...); err != nil {
		return nil, err
	}
	if _, err := run(ctx, "mount", args...); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return leave(ctx, dir) }, nil
}

// mountable says why nothing can be mounted at a directory.
func mountable(dir string) error {
	var here, above unix.Stat_t
	if err := unix.Stat(dir, &here); err != nil || here.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("mount: %s is no directory: make it first", dir)
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if here.Dev != above.Dev || here.Ino == above.Ino {
		return fmt.Errorf("mount: something is mounted at %s: choose another directory", dir)
	}
	return nil
}
