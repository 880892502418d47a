package integration

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
)

// The faults in which a host loses its power: its agents run in a virtual machine, on disks of that, and QEMU is killed. One machine
// has the agents of all four modes; the other host of each is a process here, behind a cable that can be cut.

// powerCells prepares the four cells; name is the host that is in the guest.
func powerCells(t *testing.T, name string) (*poweredGuest, []*cell) {
	t.Helper()
	g := newPoweredGuest(t)
	var cells []*cell
	for i, mode := range matrixModes {
		patient := []string{"--unreachable-after", "12s", "--path-down-after", "8s"} // a guest in software emulation may be slow
		m := newMirror(t, layout{
			size: cellBytes, insecure: true, targetArgs: patient, sourceArgs: append([]string{"--mode", mode, "--start-wait", "20s"}, patient...),
		})
		c := &cell{netMirror: &netMirror{testMirror: m}, t: t, mode: mode, ledger: newLedger(baseSeed+uint64(i), cellBytes-cellBase), pace: guestPace}
		makeExt4(t, m.source.device, cellBytes)
		away := map[string]*agent{"source": m.source, "target": m.target}[name]
		journal := m.path(name, "journal")
		writeFile(t, journal, "")
		truncate(t, journal, 32<<20) // all of it is written at the first start
		if name == "target" {
			writeFile(t, away.device, "")
			truncate(t, away.device, cellBytes)
		}
		g.disks = append(g.disks, away.device, journal)
		args := append([]string{}, away.args...)
		for j := 0; j+1 < len(args); j++ {
			switch args[j] {
			case "--device":
				args[j+1] = fmt.Sprintf("/dev/vd%c", 'a'+2*i)
			case "--journal":
				args[j+1] = fmt.Sprintf("/dev/vd%c", 'a'+2*i+1)
			case "--journal-size", "--size":
				args = append(args[:j], args[j+2:]...) // the disk's
				j--
			case "--nbd":
				args[j+1] = net.JoinHostPort(guestIP, strconv.Itoa(10810+i))
			case "--listen":
				g.forward[7400+i] = args[j+1] // where the cable leads
				args[j+1] = net.JoinHostPort(guestIP, strconv.Itoa(7400+i))
			case "--target":
				_, port, err := net.SplitHostPort(args[j+1])
				if err != nil {
					t.Fatal(err)
				}
				args[j+1] = net.JoinHostPort(guestHost, port)
			}
		}
		g.args = append(g.args, strings.Join(args, " "))
		in := g.agentIn(t, name, i)
		in.args, in.device = away.args, away.device
		if name == "source" {
			in.nbd = freePort(t, "127.0.0.1")
			g.forward[10810+i] = in.nbd
			m.source = in
		} else {
			m.target = in
		}
		cells = append(cells, c)
	}
	return g, cells
}

// powerSource: the host of the source loses its power. What burnt with it is what the mode says; when it is back, it has all that was
// flushed, in durable all that was answered, and both meet by their logs.
func powerSource(t *testing.T) []*cell {
	g, cells := powerCells(t, "source")
	for _, c := range cells {
		c.target.start()
		c.target.untilUp()
	}
	g.boot()
	for _, c := range cells {
		c.source.untilStreaming("target")
		c.use(nil)
	}
	for _, c := range cells {
		c.toTarget[0].Blackhole(true) // what is under way dies with the host
	}
	g.cut()
	var known []known
	for _, c := range cells {
		c.rest()
		k := c.now()
		known = append(known, k)
		c.dead()
		c.says(c.target, "waiting", "promote")
		c.judgeBurnt(c.target, k, promised(c.mode))
		c.toTarget[0].Blackhole(false)
	}
	g.boot()
	for i, c := range cells {
		least := dueFlushed
		if c.mode == "durable" {
			least = dueAcked
		}
		lost := c.lost
		c.judgeServed(c.source, known[i], least)
		c.lost = lost
		c.adopt(c.source)
		c.source.untilStreaming("target")
		c.noResync(c.source)
		c.connect(c.source)
		c.settle(c.source, "target")
	}
	g.end()
	for _, c := range cells {
		c.target.stop()
		c.compare(c.source, c.target)
	}
	return cells
}

// powerTarget: the host of the target loses its power. The source goes on alone and says so; what is on the target's disks is promotable,
// and has what the mode says but for receive, which does not wait for the target's disk; both meet by their logs.
func powerTarget(t *testing.T) []*cell {
	g, cells := powerCells(t, "target")
	g.boot()
	for _, c := range cells {
		c.source.start()
		c.source.until(guestLimit, "target is streaming", func(s *status) bool { return s.follower("target").State == streaming })
		c.use(nil)
	}
	var known []known
	for _, c := range cells {
		c.toTarget[0].Blackhole(true)
		known = append(known, c.now())
	}
	g.cut()
	for i, c := range cells {
		least := promised(c.mode)
		if c.mode == "receive" {
			least = dueFlushed
		}
		c.judgeBurnt(c.target, known[i], least)
		c.alarmed()
		c.client.more(t, 20)
		c.rest() // a boot may take longer than its log reaches
		c.toTarget[0].Blackhole(false)
	}
	g.boot()
	for _, c := range cells {
		c.source.until(guestLimit, "target is streaming", func(s *status) bool { return s.follower("target").State == streaming })
		c.noResync(c.source)
		c.work()
		c.settle(c.source, "target")
	}
	for _, c := range cells {
		c.source.stop()
	}
	g.end()
	for _, c := range cells {
		c.compare(c.source, c.target)
	}
	return cells
}
