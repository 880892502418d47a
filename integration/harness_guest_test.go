package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd"
	"mirror-agent/dataport/dataporttest"
)

// poweredGuest is a virtual machine with agents in it, whose power can be cut. QEMU is killed, so what only its page cache had is gone;
// its disks are in this process's memory and behave like disks with a cache of their own (blockdev.Power): what the guest wrote and
// did not flush is there in part.
type poweredGuest struct {
	t       *testing.T
	dir     string
	rng     *rand.Rand
	power   *blockdev.Power
	disks   []*blockdev.Memory
	servers []*nbd.Server  // of the disks
	args    []string       // a command line for each agent
	forward map[int]string // of ports of the guest: where they are on this machine
	cmd     *exec.Cmd
	ended   chan struct{}

	mu      sync.Mutex // guards below
	console strings.Builder
}

const (
	guestIP      = "10.0.2.15"
	guestHost    = "10.0.2.2" // this machine's loopback, as the guest sees it
	guestShell   = 9000
	guestControl = 9001 // and up: the control sockets of its agents

	// guestLimit bounds an order in the guest; in software emulation beside other tests a program takes seconds to start.
	guestLimit = 4 * time.Minute

	// guestCached is how often a cut tries to find something in the guest's page cache only.
	guestCached = 20

	// guestRelayVar makes the test's binary the guest's relay: PORT:SOCKET,…
	guestRelayVar = "MIRROR_AGENT_GUEST_RELAY"
)

// newPoweredGuest makes a machine with one disk, by which cut sees that it was one.
func newPoweredGuest(t *testing.T) *poweredGuest {
	t.Helper()
	needVM(t)
	g := &poweredGuest{t: t, dir: shortDir(t), rng: newRand(t), power: blockdev.NewPower(), forward: map[int]string{guestShell: freePort(t, "127.0.0.1")}}
	g.disk(1<<20, "")
	return g
}

// disk gives the guest one more, with what a file holds; it is the name that it has there.
func (g *poweredGuest) disk(size int64, file string) string {
	g.t.Helper()
	d := blockdev.NewMemory(size, g.power)
	i := len(g.disks)
	g.disks = append(g.disks, d)
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			g.t.Fatal(err)
		}
		const piece = 64 << 10
		for off := 0; off < len(b); off += piece {
			p := b[off:min(off+piece, len(b))]
			if bytes.Count(p, []byte{0}) == len(p) {
				continue
			}
			if _, err := d.WriteAt(p, int64(off)); err != nil {
				g.t.Fatal(err)
			}
		}
		if err := d.Sync(); err != nil {
			g.t.Fatal(err)
		}
	}
	l, err := nbd.Listen(g.diskAddr(i))
	if err != nil {
		g.t.Fatal(err)
	}
	s := nbd.NewServer(nbd.Options{}, nbd.Export{Device: d})
	g.servers = append(g.servers, s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	g.t.Cleanup(func() {
		s.Close()
		<-served
	})
	return fmt.Sprintf("/dev/vd%c", 'a'+i)
}

func (g *poweredGuest) diskAddr(i int) string {
	return "unix:" + filepath.Join(g.dir, "disk"+strconv.Itoa(i))
}

// save writes what a disk holds to a file, sparsely.
func (g *poweredGuest) save(name, file string) {
	g.t.Helper()
	d := g.disks[name[len(name)-1]-'a']
	size, err := d.Size()
	if err != nil {
		g.t.Fatal(err)
	}
	writeFile(g.t, file, "")
	truncate(g.t, file, size)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); ; {
		start, end, err := d.NextData(off)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			g.t.Fatal(err)
		}
		p := make([]byte, end-start)
		if _, err := d.ReadAt(p, start); err != nil {
			g.t.Fatal(err)
		}
		if _, err := f.WriteAt(p, start); err != nil {
			g.t.Fatal(err)
		}
		off = end
	}
}

// agentIn makes the next agent of the guest look like one of this machine to who commands it.
func (g *poweredGuest) agentIn(name string, args []string) *agent {
	g.t.Helper()
	i := len(g.args)
	g.args = append(g.args, strings.Join(args, " "))
	addr := freePort(g.t, "127.0.0.1")
	g.forward[guestControl+i] = addr
	a := &agent{t: g.t, name: name, control: filepath.Join(g.dir, strconv.Itoa(i)+".ctl")}
	l, err := net.Listen("unix", a.control)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	go relay(l, "tcp", addr)
	return a
}

// relay takes whoever connects to an address.
func relay(l net.Listener, network, addr string) error {
	for {
		in, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer in.Close()
			out, err := net.Dial(network, addr)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				io.Copy(out, in)
				out.(interface{ CloseWrite() error }).CloseWrite()
			}()
			io.Copy(in, out)
		}()
	}
}

// guestRelayMain runs in the guest: its ports lead to its agents' control sockets.
func guestRelayMain() int {
	failed := make(chan error)
	for pair := range strings.SplitSeq(os.Getenv(guestRelayVar), ",") {
		port, socket, _ := strings.Cut(pair, ":")
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			fmt.Println("relay:", err)
			return 1
		}
		go func() { failed <- relay(l, "unix", socket) }()
	}
	fmt.Println("relay:", <-failed)
	return 1
}

// boot starts it; its agents run a little later.
func (g *poweredGuest) boot() {
	g.t.Helper()
	self, err := os.Executable()
	if err != nil {
		g.t.Fatal(err)
	}
	// What else is tested meanwhile comes first: a guest takes all that a processor has.
	cmd := exec.Command("nice", "-n", "5", bootScript, "nbd://127.0.0.1:1/none", "../scripts/vm/guest-power.sh",
		"AGENT="+filepath.Base(program(g.t)), fmt.Sprintf("AGENTS=%d", len(g.args)), "RELAY="+guestRelayVar, "PROGRAM="+filepath.Base(self))
	for i, a := range g.args {
		cmd.Args = append(cmd.Args, fmt.Sprintf("ARGS%d=%s", i, a), fmt.Sprintf("PORT%d=%d", i, guestControl+i))
	}
	network := "user"
	for port, addr := range g.forward {
		network += fmt.Sprintf(",hostfwd=tcp:%s-:%d", addr, port)
	}
	var disks []string
	for i := range g.disks {
		disks = append(disks, "nbd:"+g.diskAddr(i))
	}
	os.Remove(g.pidFile())
	cmd.Env = append(cmd.Environ(), "FILES="+program(g.t)+" "+self, "NET="+network, "DISKS="+strings.Join(disks, " "),
		"BINS=busybox", "MODS=virtio_pci virtio_net virtio_blk", "MEM=1024", "SMP=1", "QEXTRA=-pidfile "+g.pidFile(), "TIMEOUT=1200")
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
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.mu.Lock()
			fmt.Fprintln(&g.console, s.Text())
			g.mu.Unlock()
		}
		cmd.Wait()
	}()
	g.t.Cleanup(func() {
		select {
		case <-ended:
		default:
			syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
			<-ended
		}
		if g.t.Failed() {
			g.t.Logf("the guest's console:\n%s", g.said())
		}
	})
}

func (g *poweredGuest) pidFile() string { return filepath.Join(g.dir, "pid") }

func (g *poweredGuest) said() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return tailText(g.console.String(), 8<<10)
}

// ready waits until it takes orders.
func (g *poweredGuest) ready() {
	g.t.Helper()
	g.order("true")
}

// order has a line executed in the guest, and its answer. It may be executed more than once: on a busy machine the guest's network gives
// up a connection that it is slow to take.
func (g *poweredGuest) order(line string) (out string) {
	g.t.Helper()
	eventually(g.t, guestLimit, "the guest does: "+line, func() (bool, string) {
		g.t.Helper()
		select {
		case <-g.ended:
			g.t.Fatalf("the guest has ended:\n%s", g.said())
		default:
		}
		var err error
		out, err = g.run(line)
		return err == nil, fmt.Sprintf("%v\n%s\nand it said:\n%s", err, out, g.said())
	})
	return out
}

// cut takes its power, and silences the cables of what runs in it; before is called last. At that time its page cache must have held
// something that is gone: else this was no power cut.
func (g *poweredGuest) cut(before func(), cables ...*dataporttest.Proxy) {
	g.t.Helper()
	g.tell(0, "synced", ",fsync")
	// Its kernel may write it back at any time: what has reached the disk already proves nothing, and another block has to.
	cached := 0
	for p := []byte("cached"); string(p) == "cached"; {
		if cached++; cached > guestCached {
			g.t.Fatalf("the guest writes back at once: its page cache held nothing at %d attempts", guestCached)
		}
		g.tell(cached, "cached", "")
		if _, err := g.disks[0].ReadAt(p, int64(cached)*4096); err != nil {
			g.t.Fatal(err)
		}
	}
	b, err := os.ReadFile(g.pidFile())
	if err != nil {
		g.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		g.t.Fatal(err)
	}
	before()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		g.t.Fatal(err)
	}
	for _, c := range cables {
		c.Blackhole(true)
	}
	<-g.ended
	for i, s := range g.servers {
		eventually(g.t, startLimit, "nothing more reaches its disks", func() (bool, string) {
			n := s.Stats().Connections
			return n == 0, fmt.Sprintf("disk %d: %d connections", i, n)
		})
	}
	g.power.Restore(g.rng)
	for block, want := range map[int]string{0: "synced", cached: strings.Repeat("\x00", 6)} {
		p := make([]byte, 6)
		if _, err := g.disks[0].ReadAt(p, int64(block)*4096); err != nil {
			g.t.Fatal(err)
		}
		checkEqual(g.t, fmt.Sprintf("block %d after the cut", block), string(p), want)
	}
}

// tell has a word written to a block of the guest's first disk, and read there. guest-power.sh holds that disk open; else the last one
// to close it would have it synced.
func (g *poweredGuest) tell(block int, word, conv string) {
	g.t.Helper()
	out := g.order(fmt.Sprintf("echo %s | dd of=/dev/vda bs=4k seek=%d conv=notrunc%s; dd if=/dev/vda bs=4k skip=%d count=1", word, block, conv, block))
	if !strings.Contains(out, word) {
		g.t.Fatalf("the guest's first disk does not have %q:\n%s", word, out)
	}
}

// end ends its agents cleanly, and it.
func (g *poweredGuest) end() {
	g.t.Helper()
	if out, err := g.run("touch /tmp/end"); err != nil { // it may have ended before it could say so
		g.t.Logf("touch /tmp/end: %v\n%s", err, out)
	}
	select {
	case <-g.ended:
	case <-time.After(guestLimit):
		g.t.Fatalf("the guest does not end:\n%s", g.said())
	}
	if !g.cmd.ProcessState.Success() {
		g.t.Fatalf("no clean end in the guest:\n%s", g.said())
	}
}

// run has a line executed in the guest.
func (g *poweredGuest) run(line string) (string, error) {
	conn, err := net.DialTimeout("tcp", g.forward[guestShell], 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(guestLimit))
	if _, err := fmt.Fprintf(conn, "{ %s; } 2>&1; echo DONE; exit\n", line); err != nil {
		return "", err
	}
	out, err := io.ReadAll(conn)
	if err == nil && !strings.HasSuffix(string(out), "DONE\n") {
		err = fmt.Errorf("the guest's shell answers %q", out)
	}
	return string(out), err
}
