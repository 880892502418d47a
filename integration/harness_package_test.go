package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var packages struct {
	sync.Mutex
	built map[string]string
}

// newPackage makes a package of the program under test, as `make package` does; once for each version. It is a file
// like any other, on whatever medium.
func newPackage(t *testing.T, version string) string {
	t.Helper()
	needTools(t, "dpkg-deb", "gzip")
	packages.Lock()
	defer packages.Unlock()
	if file := packages.built[version]; file != "" {
		return file
	}
	if packages.built == nil {
		packages.built = map[string]string{}
	}
	packages.built[version] = buildPackage(t, filepath.Join(scratch, "package-"+version), version)
	return packages.built[version]
}

// buildPackage makes one in a folder.
func buildPackage(t *testing.T, out, version string) string {
	t.Helper()
	return packProgram(t, out, version, program(t))
}

// packProgram makes a package of a program.
func packProgram(t *testing.T, out, version, binary string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // the first one builds the tool
	defer cancel()
	cmd := exec.CommandContext(ctx, "../scripts/package/build.sh", out)
	cmd.Env = append(os.Environ(), "VERSION="+version, "BINARY="+binary, "GOARCH=")
	said, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			said = exit.Stderr
		}
		t.Fatalf("build.sh: %v\n%s", err, said)
	}
	return strings.TrimSpace(string(said))
}

// machine is a running systemd in a root of its own, which is this system's with all changes in memory.
type machine struct {
	t   *testing.T
	pid string // systemd's
}

// bootMachine starts one; files is /mnt in it. It ends with the test.
func bootMachine(t *testing.T, files string) *machine {
	t.Helper()
	needRoot(t, "namespaces, mounts")
	needTools(t, "unshare", "nsenter", "/lib/systemd/systemd", "ip")
	group := newGroup(t)
	cmd := exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs"; shift; exec unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --net "$@"`,
		"sh", group, "testdata/systemd-root.sh", t.TempDir(), files)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := filepath.Join(t.TempDir(), "systemd.log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended error
	done := make(chan struct{})
	go func() { ended = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("systemd said:\n%s", tail(log, 12<<10))
		}
	})
	m := &machine{t: t}
	eventually(t, 30*time.Second, "systemd runs", func() (bool, string) {
		select {
		case <-done:
			said := strings.TrimSpace(tail(log, 4<<10))
			if cmd.ProcessState.ExitCode() == 77 {
				t.Skip("needs a machine that lets root have namespaces and mounts of its own: " + said)
			}
			t.Fatalf("systemd has ended: %v\n%s", ended, said)
		default:
		}
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		m.pid = strings.TrimSpace(string(children))
		if m.pid == "" {
			return false, "no process yet"
		}
		out, err := m.try("systemctl", "is-active", "only.target")
		return err == nil, out
	})
	return m
}

// newGroup makes a cgroup for a machine, removed with all in it after the machine has ended.
func newGroup(t *testing.T) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		dir := filepath.Join(f[1], fmt.Sprintf("mirror-agent-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("needs a cgroup of its own: %v", err)
		}
		t.Cleanup(func() {
			eventually(t, 20*time.Second, "the machine's cgroups are empty", func() (bool, string) {
				out, err := tryTool(10*time.Second, "find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+")
				return err == nil, out
			})
		})
		return dir
	}
	t.Skip("needs cgroup2, which is not mounted here")
	return ""
}

func (m *machine) try(args ...string) (string, error) {
	return tryTool(5*time.Minute, "nsenter", append([]string{"--target", m.pid, "--all", "--root", "--wd"}, args...)...)
}

// run runs a program in the machine to its end, which has to be a good one.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// sh runs a line of shell.
func (m *machine) sh(line string) string {
	m.t.Helper()
	return m.run("sh", "-ec", line)
}

// shown is a property of a unit.
func (m *machine) shown(unit, property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "-p", property, unit))
}

// until waits for a property of a unit to hold a text.
func (m *machine) until(unit, property, want string) {
	m.t.Helper()
	eventually(m.t, startLimit, unit+": "+property+" says "+want, func() (bool, string) {
		got := m.shown(unit, property)
		return strings.Contains(got, want), got
	})
}
