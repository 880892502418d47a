package integration

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// vmLimit bounds one virtual machine; in software emulation on two busy cores a test
// takes a minute.
const vmLimit = 170 * time.Second

const bootScript = "../scripts/vm/boot.sh"

// prepareVM fetches the kernel and builds the guest's files, once. Why that
// cannot be is for a skip; anything else is an error.
var prepareVM = sync.OnceValues(func() (missing string, err error) {
	out, err := tryTool(5*time.Minute, bootScript, "--prepare")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 77 {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return lines[len(lines)-1], nil
	}
	if err != nil {
		return "", fmt.Errorf("%s --prepare: %w\n%s", bootScript, err, out)
	}
	return "", nil
})

// runGuest boots Debian's kernel with our binary and runs a script of
// scripts/vm in it, which gets the export of uri. onLine is told each line
// of the console. files are programs that the guest gets besides. It returns the
// console.
func runGuest(t *testing.T, uri, script string, onLine func(line string), files ...string) string {
	t.Helper()
	return runGuestInside(t, nil, uri, script, onLine, files...)
}

// runGuestInside is runGuest with a command that QEMU is started by, such as one that enters a network.
func runGuestInside(t *testing.T, inside []string, uri, script string, onLine func(line string), files ...string) string {
	t.Helper()
	line := append(slices.Clone(inside), bootScript, uri, filepath.Join("../scripts/vm", script))
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(cmd.Environ(), "FILES="+strings.Join(append(files, program(t)), " "), fmt.Sprintf("TIMEOUT=%d", int(vmLimit.Seconds())))
	// A process group of its own: when the test ends early, QEMU ends with the script.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(vmLimit+time.Minute, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	ended := false
	t.Cleanup(func() {
		late.Stop()
		if !ended {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		}
	})
	var console strings.Builder
	for s := bufio.NewScanner(out); s.Scan(); {
		fmt.Fprintln(&console, s.Text())
		onLine(s.Text())
	}
	err = cmd.Wait()
	ended = true
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, tailText(console.String(), 8<<10))
	}
	return console.String()
}

func tailText(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

func needVM(t *testing.T) {
	t.Helper()
	missing, err := prepareVM()
	if err != nil {
		t.Fatal(err)
	}
	if missing != "" {
		t.Skip("needs a virtual machine: " + missing)
	}
}

// vmMirror is a mirror that a guest can reach.
func vmMirror(t *testing.T, lay layout) (m *testMirror, uri string) {
	t.Helper()
	needVM(t)
	address := freePort(t, "127.0.0.1")
	lay.sourceArgs = append(lay.sourceArgs, "--nbd", address)
	m = newMirror(t, lay)
	m.source.nbd = address
	m.start()
	return m, fmt.Sprintf("nbd://%s/%s", address, mirrorName)
}

// passed checks that the guest said of each part that it went well.
func passed(t *testing.T, console string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(console, "PASS "+p) {
			t.Errorf("the guest never said PASS %s\n%s", p, tailText(console, 8<<10))
		}
	}
}

// TestKernelFilesystems: the real kernel attaches over several connections and
// does not miss anything that its filesystems want; what they wrote is on the
// target as well.
func TestKernelFilesystems(t *testing.T) {
	m, uri := vmMirror(t, layout{size: 320 << 20, insecure: true})
	console := runGuest(t, uri, "guest-filesystems.sh", func(string) {})
	passed(t, console, "ext4", "xfs", "btrfs", "nbd-client")
	for _, want := range []string{
		"/dev/nbd0: attached to " + mirrorName, "320 MiB, 4 connections", "write back", "queue/fua 1", "backend mirror-agent:",
		"/dev/nbd0: mounted at /mnt; end that first",
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the guest never said %q\n%s", want, tailText(console, 8<<10))
		}
	}
	if s := m.source.mustStatus(); s.NBD.Flushes == 0 || s.NBD.Writes == 0 || s.NBD.Connections != 0 {
		t.Errorf("status counts %+v", s.NBD)
	}
	m.stopLevel("target")
	tool(t, "fsck.ext4", "-fn", m.target.device) // the last filesystem, on the other side
}

// TestKernelRestart: the agent goes away while the guest writes, killed twice and
// ended by SIGTERM once. Writers and fsync wait; no filesystem sees an error;
// nothing is lost.
func TestKernelRestart(t *testing.T) {
	m, uri := vmMirror(t, layout{size: 256 << 20, insecure: true})
	ends := map[string]int{}
	attached := func() {
		if n := m.source.mustStatus().NBD.Connections; n != 4 {
			t.Errorf("%d connections before the end, 4 are attached", n)
		}
	}
	console := runGuest(t, uri, "guest-restart.sh", func(line string) {
		switch order := strings.TrimSpace(line); order {
		case "HOST: kill":
			attached()
			m.source.kill()
			ends[order]++
		case "HOST: term":
			attached()
			m.source.stop()
			ends[order]++
		case "HOST: start":
			m.source.start()
		}
	})
	passed(t, console, "restart 1 (kill)", "restart 2 (kill)", "restart 3 (term)", "fsck")
	checkEqual(t, "kills", ends["HOST: kill"], 2)
	checkEqual(t, "clean ends", ends["HOST: term"], 1)
	if n := strings.Count(console, "links renewed"); n < 3 {
		t.Errorf("links were renewed %d times\n%s", n, tailText(console, 8<<10))
	}
	m.stopLevel("target")
	tool(t, "fsck.ext4", "-fn", m.target.device)
}

// TestKernelLocal: an agent in the guest, attached over a unix socket and found by
// name and by its control socket. It is ended by SIGTERM under a mounted filesystem
// and serves elsewhere after it; in the end it stays away for too long.
func TestKernelLocal(t *testing.T) {
	needVM(t)
	console := runGuest(t, "nbd://127.0.0.1:1/none", "guest-local.sh", func(string) {})
	passed(t, console, "grown", "local", "expired")
	for _, want := range []string{
		"/dev/nbd0: attached to small at unix:/run/small.nbd, 48 MiB, 4 connections",
		"/dev/nbd0: attached to small at 127.0.0.1:10810, 64 MiB, 4 connections",
		"I/O error, dev nbd0", // of the time that was too long
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the guest never said %q\n%s", want, tailText(console, 8<<10))
		}
	}
}
