package integration

import (
	"slices"
	"strings"
	"testing"
)

// claimAddresses: the source knows one address of the target. The others come to
// it by themselves; one that the target gives up drains, one that it takes makes a path.
func claimAddresses(t *testing.T, _ *plays) {
	x := newTrio(t, 3, 0)
	set := x.settings()
	set.Target, set.Announced = set.Target[:1], true
	set.Scheduler = "round-robin" // least completion may give a load this light to one path alone
	x.source.open(set)
	x.untilRemotes("10.201.1.2", "10.201.2.2", "10.201.3.2")
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	x.target.load(steadyBack(streamBack))
	session := x.source.view().Session

	from, removed := len(x.source.events()), x.pathOver(2)
	x.target.order(portOrder{Do: "unlisten", Addr: x.toTarget[2].addr(portNumber)})
	x.untilRemotes("10.201.1.2", "10.201.2.2")
	x.target.untilHanded(x.target.view().Handed, 100)
	x.source.untilNamed(from, named("PathIsDraining", removed))
	checkEqual(t, "sockets over the cable that is not listened on", len(x.src.sockets(t, x.toTarget[2:])), 0)

	x.target.order(portOrder{Do: "listen", Addr: x.toTarget[2].addr(portNumber)})
	x.untilRemotes("10.201.1.2", "10.201.2.2", "10.201.3.2")
	carried := x.toTarget[2].carried()
	x.target.untilHanded(x.target.view().Handed, 300)
	if n := x.toTarget[2].carried() - carried; n < 20<<10 {
		t.Errorf("the path to the new address carried only %d bytes", n)
	}
	x.source.unload(streamForth)
	x.target.unload(streamBack)
	checkEqual(t, "session", x.source.view().Session, session)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "messages lost", a.Lost, 0)
	t.Logf("ledgers: %+v", a)
}

// claimClusterAddresses: the same at a cluster's ports and at its daemons.
func claimClusterAddresses(t *testing.T, _ *plays) {
	playClusterAddresses(t)
	playDaemonAddresses(t)
}

// playClusterAddresses: target and backup listen on whatever addresses their hosts
// have, the source knows one of each. A host gets an address and loses it again, and
// after a switch the backup's paths form in the same way.
func playClusterAddresses(t *testing.T) {
	x := newTrioOf(t, 2, 2, nodeSettings{Listen: []string{"0.0.0.0:7400"}})
	set := x.settings()
	set.Target, set.Backups, set.Announced = set.Target[:1], [][]string{set.Backups[0][1:]}, true
	x.source.open(set)
	x.source.load(steady(streamForth))
	// The third cable is there, too, and so are its addresses.
	x.untilRemotes("10.201.1.2", "10.201.2.2", "10.201.3.2")
	x.target.load(steadyBack(streamBack))

	const newSubnet = "10.203.9."
	x.toTarget[1].address(newSubnet, true)
	x.untilRemotes("10.201.1.2", "10.201.2.2", "10.201.3.2", newSubnet+"2")
	x.target.untilHanded(x.target.view().Handed, 200)
	x.toTarget[1].address(newSubnet, false)
	x.untilRemotes("10.201.1.2", "10.201.2.2", "10.201.3.2")
	x.target.untilHanded(x.target.view().Handed, 200)
	x.target.unload(streamBack)

	x.source.do(portOrder{Do: "switch", To: 1})
	x.untilRemotes("10.202.1.3", "10.202.2.3")
	x.backup.untilHanded(x.backup.view().Handed, 100)
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.target, x.backup))
}

// playDaemonAddresses: the source's daemon is told one of three addresses; the
// target's gives one up while it runs, and takes it again.
func playDaemonAddresses(t *testing.T) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{toTarget: 3, seed: 1})
	m.begin()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 100)
	for _, verb := range []string{"remove", "add"} {
		m.target.mustCommand("listen", verb, n.toTarget[2].addr(portNumber))
		want := map[string]int{"remove": 2, "add": 3}[verb]
		m.source.until(portLimit, "paths after listen "+verb, func(s *status) bool {
			f := s.follower("target")
			return len(f.Paths) == want && activePaths(s) == want
		})
		ld.untilAnswered(t, 100)
	}
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("target")
}

// untilRemotes waits until the source's paths, all active, lead to these hosts' addresses and nowhere else.
func (x *trio) untilRemotes(want ...string) {
	x.t.Helper()
	x.source.until(portLimit, "paths to "+strings.Join(want, " "), func(v *portView) bool {
		var got []string
		for _, p := range v.Paths {
			if p.State != "active" {
				return false
			}
			got = append(got, hostOf(p.Remote))
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// address gives both ends of a cable an address of a further subnet, or takes it away.
func (c *cable) address(subnet string, on bool) {
	c.t.Helper()
	verb := map[bool]string{true: "add", false: "del"}[on]
	tool(c.t, "ip", "-n", string(c.near), "addr", verb, subnet+"1/24", "dev", c.nearIf)
	tool(c.t, "ip", "-n", string(c.far), "addr", verb, subnet+"2/24", "dev", c.farIf)
}
