package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd"
	"mirror-agent/blockdev/nbd/kerneltest"
)

// withKernel gives the app a fake driver of the kernel.
func withKernel(t *testing.T, a *testApp) *kerneltest.Kernel {
	t.Helper()
	fake := kerneltest.New(t.TempDir())
	t.Cleanup(fake.Close)
	a.kernel = func() (*nbd.Kernel, error) {
		return nbd.NewKernel(func() (nbd.Transport, error) { return fake.Dial(), nil }, fake.Root)
	}
	return fake
}

// servedNBD is an agent's NBD front that can be taken away.
func servedNBD(t *testing.T, address string) (*front, blockdev.Device) {
	t.Helper()
	f, mem := newFront(zerolog.Nop(), frontSecurity{}), blockdev.NewMemory(1<<20, nil)
	if _, err := f.Open(mem, "vol0", address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Abort)
	return f, mem
}

func TestAttachOnceAndDetach(t *testing.T) {
	a, agent := newTestApp(t), &fakeAgent{state: healthy()}
	fake := withKernel(t, a)
	address := "unix:" + filepath.Join(t.TempDir(), "n")
	servedNBD(t, address)
	agent.state.NBD.Address = address
	agentAt(t, a, "vol0", agent)
	for _, step := range []struct {
		args string
		code int
		want string
	}{
		{"detach /dev/nbd0", 1, "/dev/nbd0: nothing is attached to it; `lsblk`"},
		{"attach /dev/nbd0 --once", 0, "/dev/nbd0: attached to vol0 at " + address + ", 1.0 MiB, 4 connections\n"},
		{"attach /dev/nbd0 --once", 0, "/dev/nbd0: taken over, 1.0 MiB at " + address + ", 4 connections\n"},
		{"attach /dev/nbd0 --once --nbd " + address, 1, "in use: it is attached to mirror-agent:" + agent.state.UUID + "; choose another device, or end that with `mirror-agent detach /dev/nbd0`"},
		{"attach nbd1 --once --nbd " + address + " --connections 1", 0, "/dev/nbd1: attached to vol0 at " + address + ", 1.0 MiB, 1 connection\n"},
		{"attach /dev/nbd2 --once --export nosuch", 1, `there is no export "nosuch"`},
		{"attach /dev/nbd2 --once --nbd unix:/nonexistent", 1, "no NBD server answers at unix:/nonexistent"},
		{"detach /dev/nbd0", 0, "/dev/nbd0: detached\n"},
		{"detach nbd1", 0, "/dev/nbd1: detached\n"},
	} {
		code, stdout, stderr := a.exec(t, strings.Fields(step.args)...)
		if got := stdout + stderr; code != step.code || !strings.Contains(got, step.want) {
			t.Errorf("%s: code %d, %q\nwant %d, …%s…", step.args, code, got, step.code, step.want)
		}
		if code != 0 {
			oneErrorLine(t, stderr)
		}
	}
	agent.state.NBD.Address, agent.state.Role = "", "secondary"
	if code, _, stderr := a.exec(t, "attach", "/dev/nbd0"); code != 1 || !strings.Contains(stderr, "vol0 is secondary here and serves no NBD") {
		t.Errorf("on a target: %d %q", code, stderr)
	}
	fake.Unprivileged = true
	if code, _, stderr := a.exec(t, "attach", "/dev/nbd0", "--nbd", address); code != 1 || !strings.Contains(stderr, "only root (CAP_SYS_ADMIN) attach and detach; run it as root") {
		t.Errorf("not root: %d %q", code, stderr)
	}
	fake.NoDriver = true
	for _, command := range []string{"attach", "detach"} {
		code, _, stderr := a.exec(t, command, "/dev/nbd0")
		if code != 1 || !strings.Contains(stderr, "the kernel has no nbd driver") || !strings.Contains(stderr, "`modprobe nbd`") || !strings.Contains(stderr, "nbdfuse") {
			t.Errorf("%s without a driver: %d %q", command, code, stderr)
		}
		oneErrorLine(t, stderr)
	}
}

func TestAttachUsage(t *testing.T) {
	a := newTestApp(t)
	for args, want := range map[string]string{
		"attach":                                 "missing argument DEV",
		"attach /dev/sda":                        `device "/dev/sda": give a whole device`,
		"attach /dev/nbd":                        "like /dev/nbd0",
		"attach /dev/nbd0p1":                     "like /dev/nbd0",
		"attach /dev/nbd007":                     "like /dev/nbd0",
		"attach nbd99999":                        "like /dev/nbd0",
		"detach loop0":                           "like /dev/nbd0",
		"attach nbd0 --connections 0":            "--connections 0: choose 1 to 64",
		"attach nbd0 --block-size 100":           "block size 100: choose 512",
		"attach nbd0 --block-size -1":            "choose 512",
		"attach nbd0 --timeout -1s":              "timeout is out of range",
		"attach nbd0 --nbd here":                 `address "here"`,
		"attach nbd0 --nbd 127.0.0.1:1 --name x": "leave out --control and --name",
		"attach nbd0 --log-format xml":           "unknown log format",
	} {
		code, _, stderr := a.exec(t, strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: code %d, %q; want …%s…", args, code, stderr, want)
		}
		oneErrorLine(t, stderr)
	}
}

func TestDetachInUse(t *testing.T) {
	a := newTestApp(t)
	fake := withKernel(t, a)
	address := "unix:" + filepath.Join(t.TempDir(), "n")
	servedNBD(t, address)
	if code, _, stderr := a.exec(t, "attach", "nbd0", "--once", "--nbd", address); code != 0 {
		t.Fatal(stderr)
	}
	proc := filepath.Join(fake.Root, "proc/self")
	if err := os.MkdirAll(proc, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "mountinfo"), []byte("36 1 43:0 / /srv/data rw - ext4 /dev/nbd0 rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := a.exec(t, "detach", "nbd0"); code != 1 || stderr != "mirror-agent: /dev/nbd0: mounted at /srv/data; end that first, or use --force\n" {
		t.Errorf("mounted: %d %q", code, stderr)
	}
	if code, _, stderr := a.exec(t, "detach", "nbd0", "--force"); code != 0 || fake.Connected(0) {
		t.Errorf("--force: %d %q", code, stderr)
	}
}

// The watch in the foreground: the agent goes away and comes back.
func TestAttachWatches(t *testing.T) {
	a, agent := newTestApp(t), &fakeAgent{state: healthy()}
	fake := withKernel(t, a)
	dir := t.TempDir()
	f, _ := servedNBD(t, "unix:"+dir+"/1")
	agent.state.NBD.Address = "unix:" + dir + "/1"
	agentAt(t, a, "vol0", agent)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() { code <- a.run(ctx, []string{"attach", "/dev/nbd0", "--connections", "2"}) }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not in time:", what)
			}
		}
	}
	wait("attached", func() bool { return fake.Connected(0) && fake.LiveLinks(0) == 2 })
	if err := fake.Write(0, []byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	wait("links dead", func() bool { return fake.LiveLinks(0) == 0 })
	wrote := make(chan error, 1)
	go func() { wrote <- fake.Write(0, []byte("during"), 4096) }()
	again := blockdev.NewMemory(1<<20, nil)
	if _, err := f.Open(again, "vol0", "unix:"+dir+"/1"); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Errorf("the write that waited: %v", err)
	}
	wait("links alive", func() bool { return fake.LiveLinks(0) == 2 })
	cancel()
	if c := <-code; c != 0 || !fake.Connected(0) {
		t.Errorf("ended with %d, attached %t", c, fake.Connected(0))
	}
	said := fmt.Sprint(a.out.String(), a.err.String())
	for _, want := range []string{"/dev/nbd0: attached to vol0", "links renewed", "/dev/nbd0: stays attached"} {
		if !strings.Contains(said, want) {
			t.Errorf("it never said %q:\n%s", want, said)
		}
	}
}
