package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// addressPath is a path as path list --json prints it.
type addressPath struct {
	ID        int    `json:"id"`
	Local     string `json:"local"`
	Remote    string `json:"remote"`
	Announced bool   `json:"announced"`
	State     string `json:"state"`
}

// hosts are a source and a target in namespaces of their own, with three cables between them.
type hosts struct {
	t   *testing.T
	dir string
	src string
	tgt string
}

func newHosts(t *testing.T) *hosts {
	t.Helper()
	needRoot(t, "network namespaces")
	needTools(t, "ip")
	prefix := fmt.Sprintf("mb%d", os.Getpid())
	topo := func(order string) (string, error) {
		return tryTool(time.Minute, "env", "PFX="+prefix, "../scripts/netns/topo.sh", order)
	}
	if out, err := topo("up"); err != nil {
		t.Fatalf("topo.sh up: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := topo("down"); err != nil {
			t.Errorf("topo.sh down: %v\n%s", err, out)
		}
	})
	return &hosts{t: t, dir: shortDir(t), src: prefix + "-src", tgt: prefix + "-tgt"}
}

// start starts a mirror's agent in a namespace.
func (h *hosts) start(namespace, command string, args ...string) {
	h.t.Helper()
	args = append([]string{
		"netns", "exec", namespace, program(h.t), command, "--name", mirrorName, "--device", filepath.Join(h.dir, command+".img"), "--size", "16MiB",
		"--nbd", "unix:" + filepath.Join(h.dir, command+".nbd"), "--control", h.control(command), "--insecure",
	}, args...)
	background(h.t, "ip", args...)
}

func (h *hosts) control(command string) string { return filepath.Join(h.dir, command+".ctl") }

func (h *hosts) order(command string, args ...string) result {
	h.t.Helper()
	return runAgent(h.t, append(args, "--control", h.control(command))...)
}

// paths waits until the source's paths to the target are up from and to these hosts, in the order of the remote ones:
// "LOCAL>REMOTE", with a * behind one that the target announced.
func (h *hosts) paths(what string, want ...string) {
	h.t.Helper()
	var last string
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		r := h.order("source", "path", "list", "--json")
		var paths []addressPath
		last = r.stdout + r.stderr
		if r.code != 0 || json.Unmarshal([]byte(r.stdout), &paths) != nil {
			continue
		}
		var got []string
		for _, p := range paths {
			local, _, err := net.SplitHostPort(p.Local)
			if err != nil { // not connected: an address without a port
				local = p.Local
			}
			s := local + ">" + p.Remote
			if p.Announced {
				s += "*"
			}
			if p.State != "active" {
				s += " is lost"
			}
			got = append(got, s)
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	h.t.Fatalf("%s: waited in vain for the paths %v; last seen:\n%s", what, want, last)
}

// TestOneSeedAddress starts a source with one address of a target that listens at the wildcard: the paths over the other
// cables form by themselves, each from the address of its own cable, and follow what happens to the target's addresses.
func TestOneSeedAddress(t *testing.T) {
	h := newHosts(t)
	h.start(h.tgt, "target", "--listen", "0.0.0.0:7400")
	h.start(h.src, "source", "--target", "10.201.1.2:7400", "--local", "10.201.3.1,10.201.2.1,10.201.1.1")
	const one, two, three = "10.201.1.1>10.201.1.2:7400", "10.201.2.1>10.201.2.2:7400*", "10.201.3.1>10.201.3.2:7400*"
	h.paths("three cables", one, two, three)

	tool(t, "ip", "-n", h.tgt, "addr", "del", "10.201.2.2/24", "dev", "s2")
	h.paths("an address went", one, three)
	tool(t, "ip", "-n", h.tgt, "addr", "add", "10.201.2.2/24", "dev", "s2")
	h.paths("and came back", one, two, three)

	// A second address on a cable.
	tool(t, "ip", "-n", h.tgt, "addr", "add", "10.201.3.9/24", "dev", "s3")
	nine := "10.201.3.1>10.201.3.9:7400*"
	h.paths("another address", one, two, three, nine)
	tool(t, "ip", "-n", h.tgt, "addr", "del", "10.201.3.9/24", "dev", "s3")
	h.paths("and not any more", one, two, three)

	// One more by hand, on another port, and away again.
	var listens struct{ Listen, Announced []string }
	r := h.order("target", "listen", "add", "10.201.1.2:7401")
	if r.code != 0 || r.stdout != mirrorName+": listening at 10.201.1.2:7401\n" {
		t.Fatalf("listen add: %+v", r)
	}
	by := "10.201.1.1>10.201.1.2:7401*"
	h.paths("by hand", one, by, two, three)
	r = h.order("target", "listen", "list", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &listens); err != nil || !slices.Equal(listens.Listen, []string{"0.0.0.0:7400", "10.201.1.2:7401"}) ||
		!slices.Equal(listens.Announced, []string{"10.201.1.2:7401", "10.201.1.2:7400", "10.201.2.2:7400", "10.201.3.2:7400"}) {
		t.Errorf("listen list: %+v, %v", r, err)
	}
	if r := h.order("target", "listen", "remove", "10.201.1.2:7401"); r.code != 0 {
		t.Fatalf("listen remove: %+v", r)
	}
	h.paths("by hand, away", one, two, three)

	// The seed's own cable is pulled: the path stays configured, and the mirror is fed over the others.
	tool(t, "ip", "-n", h.src, "link", "set", "t1", "down")
	h.paths("the seed is gone", "10.201.1.1>10.201.1.2:7400 is lost", two, three)
	st := h.order("source", "status", "--json")
	if !strings.Contains(st.stdout, `"state": "in sync"`) {
		t.Errorf("the mirror without its seed: %s", st.stdout)
	}
}
