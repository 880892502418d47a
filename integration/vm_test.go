package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
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

// guestJob is a run of a script of scripts/vm in Debian's kernel, with our binary.
type guestJob struct {
	uri    string // of the export that the script gets
	script string
	vars   []string // NAME=VALUE for the script
	files  []string // programs that the guest gets besides
	inside []string // a command that QEMU is started by, such as one that enters a network

	// onLine is told each line of the console. One that begins with hostOrder is answered when it returns; the guest may wait for that.
	onLine func(line string)
}

// hostOrder begins what a guest's script asks of the host.
const hostOrder = "HOST: "

// runGuest is a job of a few words.
func runGuest(t *testing.T, uri, script string, onLine func(line string), files ...string) string {
	t.Helper()
	return guestJob{uri: uri, script: script, onLine: onLine, files: files}.run(t)
}

// run returns the console of a script that went well.
func (j guestJob) run(t *testing.T) string {
	t.Helper()
	line := append(slices.Clone(j.inside), bootScript, j.uri, filepath.Join("../scripts/vm", j.script))
	line = append(line, j.vars...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(cmd.Environ(), "FILES="+strings.Join(append(slices.Clone(j.files), program(t)), " "), fmt.Sprintf("TIMEOUT=%d", int(vmLimit.Seconds())))
	// A process group of its own: when the test ends early, QEMU ends with the script.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
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
		j.onLine(s.Text())
		if strings.HasPrefix(s.Text(), hostOrder) {
			io.WriteString(in, "done\n") // a guest that is gone is seen by its end
		}
	}
	err = cmd.Wait()
	ended = true
	if err != nil {
		t.Fatalf("%s: %v\n%s", j.script, err, tailText(console.String(), 8<<10))
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
// does not miss anything that its filesystems want; what they trim takes no room on either host
// any more, and what they wrote is on the target as well. Without its module the way out is said.
func TestKernelFilesystems(t *testing.T) {
	m, uri := vmMirror(t, layout{size: 320 << 20, insecure: true})
	filled, trims, looked := map[*agent]int64{}, uint64(0), 0
	console := runGuest(t, uri, "guest-filesystems.sh", func(line string) {
		order, fs, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), hostOrder), " ")
		if !strings.HasPrefix(line, hostOrder) {
			return
		}
		m.source.untilLevel("target")
		for _, a := range []*agent{m.source, m.target} {
			a.untilApplied()
			took := takenBytes(t, a.device)
			switch order {
			case "filled":
				filled[a] = took
			case "trimmed":
				// 16 MiB were removed; meanwhile the filesystem writes on its own: its journal, for the first time, and tables.
				if took > filled[a]-4<<20 {
					t.Errorf("%s: the device of the %s takes %d bytes after fstrim, %d before", fs, a.name, took, filled[a])
				}
				looked++
			}
		}
		if s := m.source.mustStatus(); order == "trimmed" {
			if s.NBD.Trims == trims {
				t.Errorf("%s: fstrim trimmed nothing, %d as before", fs, trims)
			}
			trims = s.NBD.Trims
		}
	})
	checkEqual(t, "devices looked at after fstrim", looked, 6)
	passed(t, console, "ext4", "xfs", "btrfs", "nbd-client")
	for _, want := range []string{
		"/dev/nbd0: attached to " + mirrorName, "320 MiB, 4 connections", "write back", "queue/fua 1", "backend mirror-agent:",
		"/dev/nbd0: mounted at /mnt; end that first",
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the guest never said %q\n%s", want, tailText(console, 8<<10))
		}
	}
	for _, command := range []string{"attach", "detach"} {
		_, said, _ := strings.Cut(console, "without a module: "+command+": ")
		said, _, _ = strings.Cut(said, "\n")
		for _, want := range []string{"exit status 1: mirror-agent: ", "the kernel has no nbd driver", "`modprobe nbd`", "nbdfuse -C 4"} {
			if !strings.Contains(said, want) {
				t.Errorf("%s without the module does not say %q: %s", command, want, said)
			}
		}
	}
	if s := m.source.mustStatus(); s.NBD.Flushes == 0 || s.NBD.Writes == 0 || s.NBD.Connections != 0 {
		t.Errorf("status counts %+v", s.NBD)
	}
	m.stopLevel("target")
	tool(t, "fsck.ext4", "-fn", m.target.device) // the last filesystem, on the other side
}

// untilApplied waits until the device alone has all that the log has when it is asked first.
func (a *agent) untilApplied() {
	a.t.Helper()
	var head uint64
	a.until(40*time.Second, "applied everything", func(s *status) bool {
		if head == 0 {
			head = s.Log.Head
		}
		return s.Log.Applied >= head
	})
}

// takenBytes is what a file takes on its filesystem: its size without its holes.
func takenBytes(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestKernelRestart: the agent is killed while the guest streams, fsyncs and trims, on each filesystem; on one of them it is killed twice and
// ended by SIGTERM once. Writers, fsync and fstrim wait; no filesystem sees an error; nothing is lost, here and on the target.
func TestKernelRestart(t *testing.T) {
	for _, tt := range []struct {
		filesystem string
		ends       []string
		check      []string // of the filesystem's own tool, for a file
	}{
		{"ext4", []string{"kill", "kill", "term"}, []string{"fsck.ext4", "-fn"}},
		{"xfs", []string{"kill"}, []string{"xfs_repair", "-n", "-f"}},
		{"btrfs", []string{"kill"}, []string{"btrfs", "check"}},
	} {
		t.Run(tt.filesystem, func(t *testing.T) {
			m, uri := vmMirror(t, layout{size: 320 << 20, insecure: true})
			var ends []string
			console := guestJob{
				uri: uri, script: "guest-restart.sh", vars: []string{"FILESYSTEM=" + tt.filesystem, "ENDS=" + strings.Join(tt.ends, " ")},
				onLine: func(line string) {
					order, ok := strings.CutPrefix(strings.TrimSpace(line), hostOrder)
					switch {
					case !ok:
						if strings.Contains(line, "PASS") {
							t.Log(line)
						}
					case order == "start":
						m.source.start()
					default:
						s := m.source.mustStatus()
						if s.NBD.Connections != 4 || s.NBD.Trims == 0 || s.NBD.Flushes == 0 {
							t.Errorf("before the end: %+v; 4 connections are attached, and have trimmed and flushed", s.NBD)
						}
						ends = append(ends, order)
						if order == "kill" {
							m.source.kill()
						} else {
							m.source.stop()
						}
					}
				},
			}.run(t)
			for i, end := range tt.ends {
				passed(t, console, fmt.Sprintf("%s restart %d (%s)", tt.filesystem, i+1, end))
			}
			passed(t, console, tt.filesystem+" check")
			checkEqual(t, "ends", strings.Join(ends, " "), strings.Join(tt.ends, " "))
			if n := strings.Count(console, "links renewed"); n < len(tt.ends) {
				t.Errorf("links were renewed %d times\n%s", n, tailText(console, 8<<10))
			}
			m.stopLevel("target")
			tool(t, tt.check[0], append(tt.check[1:], m.target.device)...)
		})
	}
}

// TestKernelZombie: the agent stands still, and the kernel sends what is not answered again on other connections. When the agent goes on, the first
// copies are still in its sockets: none of them is applied after a later write of the same block was answered.
func TestKernelZombie(t *testing.T) {
	m, uri := vmMirror(t, layout{insecure: true})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	thaws := 0
	console := guestJob{
		uri: uri, script: "guest-zombie.sh", files: []string{self},
		vars: []string{"OVERWRITE=" + overwriteVar, "PROGRAM=" + filepath.Base(self), "STILL=3 3 10"},
		onLine: func(line string) {
			switch strings.TrimSpace(line) {
			case hostOrder + "freeze":
				m.source.freeze()
			case hostOrder + "thaw":
				m.source.thaw()
				thaws++
			}
		},
	}.run(t)
	passed(t, console, "zombie")
	checkEqual(t, "thaws", thaws, 3)
	if strings.Contains(console, "given up: 0") || !strings.Contains(console, "links renewed") {
		t.Errorf("the kernel has given no connection up: nothing was sent twice\n%s", tailText(console, 8<<10))
	}
	m.stopLevel("target")
	f, err := os.Open(m.target.device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, ledgerBlock)
	for b := range overwriteBlocks {
		if _, err := f.ReadAt(p, int64(b)*ledgerBlock); err != nil {
			t.Fatal(err)
		}
		n, whole := overwritten(p)
		if want := fmt.Sprintf("block %d: %d was answered last\n", b, n); !whole || n == 0 || !strings.Contains(console, want) {
			t.Errorf("block %d holds %d (whole: %v), which is not what was answered last\n%s", b, n, whole, tailText(console, 4<<10))
		}
	}
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
