package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestPathLocalAddress: the source's routes would give each connection the address of another cable. With its own addresses set, each path
// is bound to the one that its cable has.
func TestPathLocalAddress(t *testing.T) {
	x := newTrioOf(t, 3, 0, nodeSettings{Local: []string{"10.201.1.1", "10.201.2.1", "10.201.3.1"}})
	for i, k := range x.toTarget {
		wrong := x.toTarget[(i+1)%len(x.toTarget)].nearIP
		tool(t, "ip", "-n", string(x.src), "route", "replace", fmt.Sprintf("10.201.%d.0/24", i+1), "dev", k.nearIf, "src", wrong)
		if out := x.src.run(t, "ip", "route", "get", k.farIP); !strings.Contains(out, "src "+wrong) {
			t.Fatalf("the kernel would not choose %s for %s: %s", wrong, k.farIP, out)
		}
	}
	set := x.settings()
	set.Scheduler = "round-robin" // all three carry data
	x.source.open(set)
	x.source.untilPaths(3)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	own := map[string]string{}
	for _, s := range x.src.sockets(t, x.toTarget) {
		own[hostOf(s.peer)] = hostOf(s.local)
	}
	for _, k := range x.toTarget {
		checkEqual(t, "address of the path to "+k.farIP, own[k.farIP], k.nearIP)
	}
	for _, p := range x.source.view().Paths {
		checkEqual(t, "the path to "+p.Remote+" as it is told", hostOf(p.Local), own[hostOf(p.Remote)])
	}
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.target))
}
