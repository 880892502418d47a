package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// topology is three hosts of this test's own, built by scripts/netns/topo.sh: a
// source with three cables to a target and two to a backup. It is taken away
// with the test; what a crashed run has left is taken away by the next one.
type topology struct {
	t                testing.TB
	prefix           string
	src, tgt, bak    netHost
	toTarget, toBack []*cable
}

// netHost is a network namespace.
type netHost string

// cable joins an interface of the source with one of another host.
type cable struct {
	t         testing.TB
	near, far netHost
	nearIf    string
	farIf     string
	nearIP    string
	farIP     string
}

const topoScript = "../scripts/netns/topo.sh"

var (
	topologies atomic.Int32
	netnsOwner = sync.OnceValues(func() (net.Listener, error) { return net.Listen("unix", netnsLock(os.Getpid())) })
	netnsLeft  sync.Once
)

// netnsLock is a socket's name without a file, so that it is gone with its process: who can take it knows that the owner is dead.
func netnsLock(pid int) string { return fmt.Sprintf("@mirror-agent-netns-%d", pid) }

var netnsName = regexp.MustCompile(`(?m)^(mat(\d+)x\d+)-src\b`)

// removeDeadTopologies takes away what runs that were killed have left.
func removeDeadTopologies(t testing.TB) {
	t.Helper()
	for _, m := range netnsName.FindAllStringSubmatch(tool(t, "ip", "netns", "list"), -1) {
		pid, err := strconv.Atoi(m[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		l, err := net.Listen("unix", netnsLock(pid))
		if err != nil {
			continue // it runs
		}
		if out, err := topo(m[1], "down"); err != nil {
			t.Errorf("take away what process %d left: %v\n%s", pid, err, out)
		}
		l.Close()
	}
}

func topo(prefix, order string) (string, error) {
	return tryTool(30*time.Second, "env", "PFX="+prefix, topoScript, order)
}

func newTopology(t testing.TB) *topology {
	t.Helper()
	needRoot(t, "network namespaces")
	needTools(t, "ip", "nft", "ss", "tc", "nsenter")
	if _, err := netnsOwner(); err != nil {
		t.Fatal(err)
	}
	netnsLeft.Do(func() { removeDeadTopologies(t) })
	prefix := fmt.Sprintf("mat%dx%d", os.Getpid(), topologies.Add(1))
	n := &topology{t: t, prefix: prefix, src: netHost(prefix + "-src"), tgt: netHost(prefix + "-tgt"), bak: netHost(prefix + "-bak")}
	t.Cleanup(func() {
		if out, err := topo(prefix, "down"); err != nil {
			t.Errorf("topo.sh down: %v\n%s", err, out)
		}
	})
	if out, err := topo(prefix, "up"); err != nil {
		t.Fatalf("topo.sh up: %v\n%s", err, out)
	}
	for i := 1; i <= 3; i++ {
		n.toTarget = append(n.toTarget, &cable{
			t: t, near: n.src, nearIf: fmt.Sprintf("t%d", i), nearIP: fmt.Sprintf("10.201.%d.1", i),
			far: n.tgt, farIf: fmt.Sprintf("s%d", i), farIP: fmt.Sprintf("10.201.%d.2", i),
		})
	}
	for i := 1; i <= 2; i++ {
		n.toBack = append(n.toBack, &cable{
			t: t, near: n.src, nearIf: fmt.Sprintf("b%d", i), nearIP: fmt.Sprintf("10.202.%d.1", i),
			far: n.bak, farIf: fmt.Sprintf("s%d", i), farIP: fmt.Sprintf("10.202.%d.3", i),
		})
	}
	return n
}

// run starts a program in the host's network and waits for it.
func (h netHost) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return tool(t, "nsenter", append([]string{"--net=" + h.path(), name}, args...)...)
}

func (h netHost) path() string { return "/run/netns/" + string(h) }

// inside is a command line that runs in the host's network; the process keeps its pid.
func (h netHost) inside(args ...string) []string {
	return append([]string{"nsenter", "--net=" + h.path()}, args...)
}

// addr is where the far end of the cable is reached.
func (c *cable) addr(port int) string { return net.JoinHostPort(c.farIP, strconv.Itoa(port)) }

func addrsOf(cables []*cable, port int) (l []string) {
	for _, c := range cables {
		l = append(l, c.addr(port))
	}
	return l
}

// direction of a fault.
type direction uint8

const (
	forth    direction = 1 // from the source
	back     direction = 2 // to the source
	bothWays           = forth | back
)

// silence makes packets vanish: each end stops hearing, no end is told. Each
// direction is dropped where it arrives, or TCP's sender would see the error.
func (c *cable) silence(d direction) {
	c.t.Helper()
	c.filter(c.far, c.farIf, d&forth != 0, "drop")
	c.filter(c.near, c.nearIf, d&back != 0, "drop")
}

// refuse answers whatever comes out of the cable with a reset.
func (c *cable) refuse() {
	c.t.Helper()
	c.filter(c.far, c.farIf, true, "meta l4proto tcp reject with tcp reset")
	c.filter(c.near, c.nearIf, true, "meta l4proto tcp reject with tcp reset")
}

// heal ends silence and refuse.
func (c *cable) heal() {
	c.t.Helper()
	c.filter(c.far, c.farIf, false, "")
	c.filter(c.near, c.nearIf, false, "")
}

func (c *cable) filter(h netHost, iface string, on bool, verdict string) {
	c.t.Helper()
	table := "inet cut_" + iface
	rules := fmt.Sprintf("add table %s\ndelete table %s\n", table, table)
	if on {
		rules += fmt.Sprintf("table %s { chain i { type filter hook input priority 0; iifname %q %s; }; }\n", table, iface, verdict)
	}
	nft(c.t, h, rules)
}

func nft(t testing.TB, h netHost, rules string) {
	t.Helper()
	out, err := tryTool(20*time.Second, "sh", "-c", `printf %s "$1" | nsenter --net="$2" nft -f -`, "sh", rules, h.path())
	if err != nil {
		t.Fatalf("nft in %s: %v\n%s\n%s", h, err, out, rules)
	}
}

// unplug takes the cable out at the source; the far end loses its carrier too.
func (c *cable) unplug() { c.t.Helper(); c.near.link(c.t, c.nearIf, "down") }
func (c *cable) plug()   { c.t.Helper(); c.near.link(c.t, c.nearIf, "up") }

func (h netHost) link(t testing.TB, iface, to string) {
	t.Helper()
	tool(t, "ip", "-n", string(h), "link", "set", iface, to)
}

// kill resets the connections that lead over the cable, as seen by the end of a
// host; it says how many there were.
func (c *cable) kill(port int) int {
	c.t.Helper()
	out := tool(c.t, "ss", "-N", string(c.near), "-HtnK", "state", "established", "dst", c.farIP, "dport", "=", strconv.Itoa(port))
	return len(strings.Fields(out)) / 4
}

// shape bounds what the source may send over the cable (and the far end too
// with bothWays), in Mbit/s; 0 ends it.
func (c *cable) shape(d direction, mbit int) {
	c.t.Helper()
	set := func(h netHost, iface string) {
		if mbit == 0 {
			tryTool(20*time.Second, "tc", "-n", string(h), "qdisc", "del", "dev", iface, "root")
			return
		}
		// A tenth of a second of the rate as the queue, as a cheap switch has it.
		limit := max(mbit*1_000_000/8/10, 64<<10)
		tool(c.t, "tc", "-n", string(h), "qdisc", "replace", "dev", iface, "root", "tbf", "rate", fmt.Sprintf("%dmbit", mbit),
			"burst", "128k", "limit", strconv.Itoa(limit))
	}
	if d&forth != 0 {
		set(c.near, c.nearIf)
	}
	if d&back != 0 {
		set(c.far, c.farIf)
	}
}

// ifCounters is what an interface has carried.
type ifCounters struct{ rx, tx uint64 }

func (h netHost) counters(t testing.TB, iface string) ifCounters {
	t.Helper()
	var l []struct {
		Stats struct {
			RX, TX struct{ Bytes uint64 }
		} `json:"stats64"`
	}
	out := tool(t, "ip", "-n", string(h), "-s", "-j", "link", "show", "dev", iface)
	if err := json.Unmarshal([]byte(out), &l); err != nil || len(l) != 1 {
		t.Fatalf("ip -s link: %v\n%s", err, out)
	}
	return ifCounters{l[0].Stats.RX.Bytes, l[0].Stats.TX.Bytes}
}

// carried is what the cable has taken in both directions, in bytes.
func (c *cable) carried() uint64 {
	c.t.Helper()
	n := c.near.counters(c.t, c.nearIf)
	return n.rx + n.tx
}

// socket is an established TCP connection as ss shows it.
type socket struct{ local, peer string }

// sockets lists the host's established connections whose peer has one of the
// addresses of a cable.
func (h netHost) sockets(t testing.TB, cables []*cable) (l []socket) {
	t.Helper()
	for line := range strings.Lines(tool(t, "ss", "-N", string(h), "-Htn", "state", "established")) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		for _, c := range cables {
			if host, _, err := net.SplitHostPort(f[3]); err == nil && (host == c.farIP || host == c.nearIP) {
				l = append(l, socket{f[2], f[3]})
			}
		}
	}
	return l
}

// countTCP begins to count the TCP packets that the source sends over cables, in
// a namespace that is asked for it once; packetsCounted reads it.
func (n *topology) countTCP(cables []*cable) {
	n.t.Helper()
	var names []string
	for _, c := range cables {
		names = append(names, strconv.Quote(c.nearIf))
	}
	nft(n.t, n.src, fmt.Sprintf("table inet watch { counter spoken { }; chain o { type filter hook output priority 0; oifname { %s } meta l4proto tcp counter name spoken; }; }\n",
		strings.Join(names, ", ")))
}

func (n *topology) packetsCounted() (packets int) {
	n.t.Helper()
	out := n.src.run(n.t, "nft", "list", "counter", "inet", "watch", "spoken")
	i := strings.Index(out, "packets ")
	if i < 0 {
		n.t.Fatalf("no counter: %s", out)
	}
	if _, err := fmt.Sscan(out[i+len("packets "):], &packets); err != nil {
		n.t.Fatal(err)
	}
	return packets
}

// shaped is how much a cable's shaper at the source has let through, in bytes,
// and whether something waits in it now.
func (c *cable) shaped() (sent uint64, backlog bool) {
	c.t.Helper()
	var l []struct {
		Bytes   uint64
		Backlog uint64
	}
	out := tool(c.t, "tc", "-n", string(c.near), "-s", "-j", "qdisc", "show", "dev", c.nearIf)
	if err := json.Unmarshal([]byte(out), &l); err != nil || len(l) == 0 {
		c.t.Fatalf("tc -s qdisc: %v\n%s", err, out)
	}
	return l[0].Bytes, l[0].Backlog > 0
}

// fairClock counts the time in which this machine let a process run: a gap
// between two of its ticks counts as no more than two. A bound of the product
// is measured with it, so that a starved machine proves nothing against it.
type fairClock struct {
	ran  atomic.Int64
	stop chan struct{}
}

const fairTick = 5 * time.Millisecond

func startFairClock(t testing.TB) *fairClock {
	f := &fairClock{stop: make(chan struct{})}
	t.Cleanup(func() { close(f.stop) })
	go func() {
		tick := time.NewTicker(fairTick)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-f.stop:
				return
			case now := <-tick.C:
				f.ran.Add(int64(min(now.Sub(last), 2*fairTick)))
				last = now
			}
		}
	}()
	return f
}

func (f *fairClock) now() time.Duration { return time.Duration(f.ran.Load()) }
