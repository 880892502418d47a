package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tool runs a program to its end and returns what it printed; a failure ends
// the test.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(2*time.Minute, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryTool(limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// background runs a program beside the test; the cleanup ends it.
func background(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		late.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, &out)
		}
	})
	return cmd
}

// fioJob is what fio reports of one direction.
type fioJob struct {
	IOPS     float64 `json:"iops"`
	TotalIOs int64   `json:"total_ios"`
}

// fioArgs are the arguments of a job on an agent's NBD address.
func fioArgs(addr string, args ...string) []string {
	return append([]string{"--name=t", "--ioengine=nbd", "--uri=" + nbdURI(addr), "--output-format=json", "--randrepeat=0", "--verify_state_save=0"}, args...)
}

// fio runs a job to its end.
func fio(t testing.TB, addr string, args ...string) (read, write fioJob) {
	t.Helper()
	return parseFio(t, tool(t, "fio", fioArgs(addr, args...)...))
}

// parseFio reads fio's report of one job that went well.
func parseFio(t testing.TB, out string) (read, write fioJob) {
	t.Helper()
	i := strings.IndexByte(out, '{')
	if i < 0 {
		t.Fatalf("fio printed no JSON: %s", out)
	}
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write fioJob
		}
	}
	if err := json.NewDecoder(strings.NewReader(out[i:])).Decode(&report); err != nil {
		t.Fatalf("fio's report: %v\n%s", err, out)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		t.Fatalf("fio failed:\n%s", out)
	}
	return report.Jobs[0].Read, report.Jobs[0].Write
}

// loopDevice makes a block device of an NBD address without a kernel NBD
// client: nbdfuse shows it as a file, losetup as a device. O_DIRECT on the loop
// device, or reads would come from the page cache and never reach the server.
// detach takes it away; it may be called once, the cleanup does what is left.
func loopDevice(t testing.TB, addr string) (dev string, detach func()) {
	t.Helper()
	return loopDeviceFrom(t, nil, addr)
}

// fuseFile is an NBD address as a file, as long as the test runs.
func fuseFile(t testing.TB, inside []string, addr string) string {
	t.Helper()
	dir := shortDir(t)
	mount := filepath.Join(dir, "m")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(mount, "nbd")
	line := append(slices.Clone(inside), "nbdfuse", "-C", "4", file, nbdURI(addr))
	background(t, line[0], line[1:]...)
	eventually(t, startLimit, "nbdfuse shows its file", func() (bool, string) {
		st, err := os.Stat(file)
		if err != nil {
			return false, err.Error()
		}
		return st.Size() > 0, "an empty file"
	})
	return file
}

// loopDeviceFrom is loopDevice with a command that nbdfuse is started by, such as one that enters a host.
func loopDeviceFrom(t testing.TB, inside []string, addr string) (dev string, detach func()) {
	t.Helper()
	file := fuseFile(t, inside, addr)
	mount := filepath.Dir(file)
	dev = strings.TrimSpace(tool(t, "losetup", "--direct-io=on", "-f", "--show", file))
	detached := false
	detach = func() {
		if detached {
			return
		}
		detached = true
		if out, err := tryTool(30*time.Second, "losetup", "-d", dev); err != nil {
			t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
		}
		// The kernel frees the device a moment later, or when a namespace that was made meanwhile has ended; nbdfuse is busy until then.
		eventually(t, workLimit, dev+" is free", func() (bool, string) {
			out, err := tryTool(10*time.Second, "losetup", "-n", "-O", "BACK-FILE", dev)
			return err != nil || strings.TrimSpace(out) == "", out
		})
		if out, err := tryTool(30*time.Second, "fusermount3", "-u", mount); err != nil {
			t.Errorf("fusermount3 -u: %v\n%s", err, out)
		}
	}
	t.Cleanup(detach)
	return dev, detach
}
