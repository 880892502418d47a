package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// poweredGuest is a virtual machine with agents on disks of its own, whose power
// can be cut: what only its page cache had is gone then, and the disks' files are as they are.
type poweredGuest struct {
	t       testing.TB
	disks   []string
	args    []string       // a command line for each agent
	forward map[int]string // of ports of the guest: where they are on this machine
	pidFile string
	cmd     *exec.Cmd
	ended   chan struct{}

	mu      sync.Mutex // guards below
	console strings.Builder
}

// guestLimit bounds an order in the guest; in software emulation beside other tests a program takes seconds to start.
const guestLimit = 2 * time.Minute

const (
	guestShell = 9000
	guestIP    = "10.0.2.15"
	guestHost  = "10.0.2.2" // this machine's loopback, as the guest sees it
)

func newPoweredGuest(t *testing.T) *poweredGuest {
	t.Helper()
	needVM(t)
	return &poweredGuest{t: t, forward: map[int]string{guestShell: freePort(t, "127.0.0.1")}, pidFile: filepath.Join(shortDir(t), "pid")}
}

// boot starts it and waits until its agents run.
func (g *poweredGuest) boot() {
	g.t.Helper()
	cmd := exec.Command(bootScript, "nbd://127.0.0.1:1/none", "../scripts/vm/guest-power.sh", fmt.Sprintf("AGENTS=%d", len(g.args)))
	for i, a := range g.args {
		cmd.Args = append(cmd.Args, fmt.Sprintf("ARGS%d=%s", i, a))
	}
	network := "user"
	for port, addr := range g.forward {
		network += fmt.Sprintf(",hostfwd=tcp:%s-:%d", addr, port)
	}
	// The host has no part in the power cut: what reached a virtual disk is on it.
	var disks []string
	for _, d := range g.disks {
		disks = append(disks, d+",cache=unsafe")
	}
	os.Remove(g.pidFile)
	cmd.Env = append(cmd.Environ(), "FILES="+program(g.t), "NET="+network, "DISKS="+strings.Join(disks, " "),
		"QEXTRA=-pidfile "+g.pidFile, "TIMEOUT=600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	ended := make(chan struct{})
	g.cmd, g.ended = cmd, ended
	ready := make(chan struct{})
	go func() {
		defer close(ended)
		once := sync.OnceFunc(func() { close(ready) })
		for s := bufio.NewScanner(out); s.Scan(); {
			g.mu.Lock()
			fmt.Fprintln(&g.console, s.Text())
			g.mu.Unlock()
			if strings.TrimSpace(s.Text()) == "READY" {
				once()
			}
		}
		cmd.Wait()
	}()
	g.t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		<-ended
		if g.t.Failed() {
			g.t.Logf("the guest's console:\n%s", g.said())
		}
	})
	select {
	case <-ready:
	case <-ended:
		g.t.Fatalf("the guest ended before its agents ran:\n%s", g.said())
	case <-time.After(vmLimit):
		g.t.Fatalf("the guest's agents do not run:\n%s", g.said())
	}
	eventually(g.t, vmLimit, "the guest takes orders", func() (bool, string) {
		r := g.run("true")
		return r.code == 0, r.stderr
	})
}

func (g *poweredGuest) said() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return tailText(g.console.String(), 8<<10)
}

// cut ends it as a power cut does.
func (g *poweredGuest) cut() {
	g.t.Helper()
	b, err := os.ReadFile(g.pidFile)
	if err != nil {
		g.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		g.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		g.t.Fatal(err)
	}
	<-g.ended
}

// end ends its agents cleanly, and it.
func (g *poweredGuest) end() {
	g.t.Helper()
	if r := g.run("touch /tmp/end"); r.code != 0 {
		g.t.Fatalf("no order reaches the guest: %+v", r)
	}
	select {
	case <-g.ended:
	case <-time.After(vmLimit):
		g.t.Fatalf("the guest does not end:\n%s", g.said())
	}
	if !g.cmd.ProcessState.Success() {
		g.t.Fatalf("no clean end in the guest:\n%s", g.said())
	}
}

// run has a line executed in the guest.
func (g *poweredGuest) run(line string) result {
	failed := func(err error) result { return result{stderr: "the guest's shell: " + err.Error(), code: 1} }
	conn, err := net.DialTimeout("tcp", g.forward[guestShell], 5*time.Second)
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(guestLimit))
	if _, err := fmt.Fprintf(conn, "%s 2>&1; echo \"STATUS $?\"; exit\n", line); err != nil {
		return failed(err)
	}
	out, err := io.ReadAll(conn)
	if err != nil {
		return failed(err)
	}
	said, status, ok := strings.Cut(string(out), "STATUS ")
	code, err := strconv.Atoi(strings.TrimSpace(status))
	if !ok || err != nil {
		return failed(fmt.Errorf("%q", out))
	}
	return result{stdout: said, stderr: said, code: code}
}

// agentIn makes an agent of the guest look like one of this machine to who commands it.
func (g *poweredGuest) agentIn(t testing.TB, name string, i int) *agent {
	return &agent{t: t, name: name, via: func(args ...string) result {
		return g.run(fmt.Sprintf("mirror-agent %s --control /run/%d.ctl", strings.Join(args, " "), i))
	}}
}

// TestPowerCut: the cut takes what only the guest's page cache has, and nothing else.
func TestPowerCut(t *testing.T) {
	g := newPoweredGuest(t)
	disk := filepath.Join(shortDir(t), "disk")
	writeFile(t, disk, "")
	truncate(t, disk, 16<<20)
	g.disks = []string{disk}
	g.boot()
	for _, line := range []string{
		"sleep 1000 </dev/vda >/dev/null & true", // the last one to close it would have it synced
		"echo synced | dd of=/dev/vda bs=4k conv=fsync,notrunc",
		"echo cached | dd of=/dev/vda bs=4k seek=1 conv=notrunc",
		"test \"$(dd if=/dev/vda bs=4k skip=1 count=1 | head -c 6)\" = cached",
	} {
		if r := g.run(line); r.code != 0 {
			t.Fatalf("%s: %+v", line, r)
		}
	}
	g.cut()
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	checkEqual(t, "what was synced", string(b[:6]), "synced")
	checkEqual(t, "what was in the page cache", string(b[4096:4102]), strings.Repeat("\x00", 6))
}
