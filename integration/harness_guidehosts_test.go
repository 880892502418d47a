package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guideHost is a host of the guide: a name, a network, and directories of its own, held by a process that sleeps.
type guideHost struct {
	t    testing.TB
	g    *guide
	name string
	pid  int
	env  []string // of everything that runs there
	disk string   // what is /srv there
}

// hostScript makes the directories of a host: $1 a place for its changes, $2 its name, $3 its disk, $4 the program.
const hostScript = `hostname "$2"
mount -t tmpfs tmpfs "$1" || exit 77
for d in etc var/lib; do
	u=$1/${d#*/}
	mkdir -p "$u.upper" "$u.work"
	mount -t overlay overlay -o "lowerdir=/$d,upperdir=$u.upper,workdir=$u.work" "/$d" || exit 77
done
for d in run usr/local/bin root mnt; do mount -t tmpfs tmpfs "/$d" || exit 77; done
rm -rf /etc/mirror-agent /var/lib/mirror-agent
mkdir -p /etc/mirror-agent
mount --bind "$3" /srv
cp "$4" /usr/local/bin/mirror-agent
ip link set lo up
touch /run/ready
exec sleep infinity`

// newGuideHost starts a host. env are settings that the guide leaves at their defaults.
func newGuideHost(t testing.TB, g *guide, name string, env ...string) *guideHost {
	t.Helper()
	h := &guideHost{t: t, g: g, name: name, disk: shortDir(t), env: append(os.Environ(), append([]string{"NO_COLOR=1", "HOME=/root", "XDG_CONFIG_HOME=", "XDG_RUNTIME_DIR="}, env...)...)}
	cmd := exec.Command("unshare", "--mount", "--uts", "--net", "sh", "-ec", hostScript, "sh", shortDir(t), name, h.disk, program(t))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	h.pid = cmd.Process.Pid
	eventually(t, 20*time.Second, name+" is up", func() (bool, string) {
		select {
		case <-done:
			if cmd.ProcessState.ExitCode() == 77 {
				t.Skip("needs a machine that lets root have mounts of its own: " + out.String())
			}
			t.Fatalf("%s: %s", name, &out)
		default:
		}
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/ready", h.pid))
		return err == nil, "not yet"
	})
	return h
}

// join lays a cable between two hosts; the addresses are of one /24.
func (h *guideHost) join(other *guideHost, iface, own, theirs string) {
	h.t.Helper()
	tool(h.t, "ip", "link", "add", iface, "netns", strconv.Itoa(h.pid), "type", "veth", "peer", "name", iface, "netns", strconv.Itoa(other.pid))
	h.sh("ip addr add " + own + "/24 dev " + iface + " && ip link set " + iface + " up")
	other.sh("ip addr add " + theirs + "/24 dev " + iface + " && ip link set " + iface + " up")
}

func (h *guideHost) command(line string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(h.pid), "--mount", "--uts", "--net", "--root", "sh", "-c", "cd /root; "+line)
	cmd.Env = h.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// try runs a line of shell to its end.
func (h *guideHost) try(line string) (out string, code int) {
	h.t.Helper()
	cmd := h.command(line)
	cmd.WaitDelay = time.Second
	late := time.AfterFunc(toolTimeout, func() { cmd.Process.Kill() })
	defer late.Stop()
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		h.t.Fatalf("%s: %s: %v", h.name, line, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func (h *guideHost) sh(line string) string {
	h.t.Helper()
	out, code := h.try(line)
	if code != 0 {
		h.t.Fatalf("%s# %s: exit status %d\n%s", h.name, line, code, out)
	}
	return out
}

// does carries out a command of the guide and compares what it prints. What the guide shows to be refused is refused.
func (h *guideHost) does(begin string) { h.t.Helper(); h.doesBut(begin, nil) }

func (h *guideHost) doesBut(begin string, drop func(string) bool) {
	h.t.Helper()
	s := h.g.take(h.name, begin)
	h.carriesOut(s, drop)
}

func (h *guideHost) carriesOut(s *guideStep, drop func(string) bool) {
	h.t.Helper()
	want := 0
	for _, l := range s.shown {
		if strings.HasPrefix(l, "mirror-agent: ") || strings.HasPrefix(l, "FAIL ") {
			want = 1
		}
	}
	out, code := h.try(h.g.said(s.command))
	h.t.Logf("%s# %s\n%s", h.name, s.command, out)
	if code != want {
		h.t.Fatalf("README.md:%d: %s# %s: exit status %d, not %d\n%s", s.line, h.name, s.command, code, want, out)
	}
	if err := differ(s.shown, strings.Split(h.g.shown(out), "\n"), drop); err != nil {
		h.t.Errorf("README.md:%d: %s# %s: %v", s.line, h.name, s.command, err)
	}
}

// makesKey is a keygen of the guide: the key that it prints stands for the one that README.md shows.
func (h *guideHost) makesKey() {
	h.t.Helper()
	s := h.g.take(h.name, "mirror-agent keygen")
	if len(s.shown) != 1 || !keyWord.MatchString(s.shown[0]) {
		h.t.Fatalf("README.md:%d shows no key but %q", s.line, s.shown)
	}
	key := keyWord.FindString(h.sh(s.command))
	if key == "" {
		h.t.Fatalf("%s# %s prints no key", h.name, s.command)
	}
	h.g.keys[s.shown[0]] = key
}

// guideDaemon is an agent of the guide.
type guideDaemon struct {
	h    *guideHost
	line string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// runs starts a daemon of the guide. For its "…" stand the flags of one that ran before, which ends.
func (h *guideHost) runs(begin string, before ...*guideDaemon) *guideDaemon {
	h.t.Helper()
	line := h.g.said(h.g.take(h.name, begin).command)
	for _, d := range before {
		head, more, ok := strings.Cut(line, " … ")
		if !ok || !strings.HasPrefix(d.line, head) {
			h.t.Fatalf("%q is not %q with more flags", line, d.line)
		}
		line = d.line + " " + more
		d.stop()
	}
	d := &guideDaemon{h: h, line: line, log: filepath.Join(h.disk, "log")}
	h.t.Cleanup(func() {
		d.kill()
		if h.t.Failed() {
			h.t.Logf("%s said:\n%s", h.name, tail(d.log, 8<<10))
		}
	})
	d.start()
	return d
}

func (d *guideDaemon) start() {
	t := d.h.t
	t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = d.h.command("exec " + d.line)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done, cmd := make(chan struct{}), d.cmd
	d.done = done
	go func() { _ = cmd.Wait(); close(done) }()
	eventually(t, startLimit, d.h.name+" answers", func() (bool, string) {
		select {
		case <-done:
			t.Fatalf("%s# %s has ended:\n%s", d.h.name, d.line, tail(d.log, 4<<10))
		default:
		}
		out, code := d.h.try("mirror-agent status")
		return code == 0, out
	})
}

// stop ends it cleanly.
func (d *guideDaemon) stop() {
	d.h.t.Helper()
	if d.cmd == nil { // it was stopped before
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
		if code := d.cmd.ProcessState.ExitCode(); code != 0 {
			d.h.t.Fatalf("%s# %s: exit status %d after SIGTERM", d.h.name, d.line, code)
		}
	case <-time.After(startLimit):
		d.h.t.Fatalf("%s# %s does not end", d.h.name, d.line)
	}
	d.cmd = nil
}

func (d *guideDaemon) kill() {
	if d.cmd != nil {
		_ = d.cmd.Process.Kill()
		<-d.done
		d.cmd = nil
	}
}

// until waits for a state.
func (h *guideHost) until(what string, ok func(*status) bool) {
	h.t.Helper()
	eventually(h.t, startLimit, h.name+": "+what, func() (bool, string) {
		out, code := h.try("mirror-agent status --json")
		var s status
		if code != 0 || json.Unmarshal([]byte(out), &s) != nil {
			return false, out
		}
		return ok(&s), s.brief()
	})
}

// untilFed waits until the active follower is the one at an address, in sync, with everything.
func (h *guideHost) untilFed(address string) {
	h.t.Helper()
	h.until(address+" is in sync", func(s *status) bool {
		for _, f := range s.Followers {
			if strings.HasPrefix(f.Target, address) && f.Active {
				return f.State == streaming && f.LagBytes == 0
			}
		}
		return false
	})
}
