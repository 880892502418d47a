package integration

import (
	"net"
	"strconv"
	"testing"

	"mirror-agent/dataport/dataporttest"
)

// The faults in which a host loses its power: its agents run in a virtual machine, on disks of that, and QEMU is killed. One machine
// has the agents of all four modes; the other host of each is a process here, behind a cable that can be cut.

// powerCell is a cell with one of its hosts in a guest.
type powerCell struct {
	*cell
	guest           *poweredGuest
	away            *agent // the one in there
	device, journal string // its disks
	told            known  // at the cut
}

// powerCells prepares the four cells; name is the host that is in the guest.
func powerCells(t *testing.T, name string) (*poweredGuest, []*powerCell) {
	t.Helper()
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "debugfs", "fusermount3")
	g := newPoweredGuest(t)
	const bytes, base, journalBytes = 16 << 20, 10 << 20, 16 << 20
	var cells []*powerCell
	for i, mode := range matrixModes {
		// A guest in software emulation may be slow, and its source asks a target that is not to be reached for as long as it takes.
		patient := []string{"--unreachable-after", "15s", "--path-down-after", "10s"}
		m := newMirror(t, layout{
			size: bytes, insecure: true, targetArgs: patient, sourceArgs: append([]string{"--mode", mode, "--start-wait", "10m"}, patient...),
		})
		c := &powerCell{guest: g, cell: &cell{
			netMirror: &netMirror{testMirror: m}, t: t, mode: mode, ledger: newLedger(baseSeed+uint64(i), bytes-base), pace: guestPace, base: base,
		}}
		makeExt4(t, m.source.device, base, bytes)
		out, content := m.source, m.source.device
		if name == "target" {
			out, content = m.target, ""
		}
		c.device, c.journal = g.disk(bytes, content), g.disk(journalBytes, "")
		in := g.agentIn(name, c.argsIn(i, out))
		in.args, in.device, in.nbd = out.args, out.device, out.nbd
		in.replaceArg("--journal-size", strconv.Itoa(journalBytes))
		if name == "source" {
			in.nbd = freePort(t, "127.0.0.1")
			g.forward[guestNBD+i] = in.nbd
			m.source = in
		} else {
			g.forward[guestPort+i] = out.listen[0] // where the cable leads
			m.target = in
		}
		c.away = in
		m.source.patience, m.target.patience = guestLimit, guestLimit
		cells = append(cells, c)
	}
	return g, cells
}

// Ports of the guest: where its i-th agent serves NBD, and is reached by others.
const (
	guestNBD  = 10810
	guestPort = 7400
)

// argsIn is the command line of an agent of here as it is in the guest.
func (c *powerCell) argsIn(i int, a *agent) (args []string) {
	c.t.Helper()
	for j := 0; j < len(a.args); j++ {
		flag := a.args[j]
		switch flag {
		case "--journal-size", "--size": // the disk's
			j++
			continue
		}
		args = append(args, flag)
		value := map[string]string{
			"--device": c.device, "--journal": c.journal,
			"--nbd": net.JoinHostPort(guestIP, strconv.Itoa(guestNBD+i)), "--listen": net.JoinHostPort(guestIP, strconv.Itoa(guestPort+i)),
		}[flag]
		if flag == "--target" {
			_, port, err := net.SplitHostPort(a.args[j+1])
			if err != nil {
				c.t.Fatal(err)
			}
			value = net.JoinHostPort(guestHost, port)
		}
		if value != "" {
			args = append(args, value)
			j++
		}
	}
	return args
}

// save has what the guest's disks hold where the agent's files would be if it were one of here.
func (c *powerCell) save() {
	c.t.Helper()
	c.guest.save(c.device, c.away.device)
	c.guest.save(c.journal, c.away.valueOf("--journal"))
}

// served is what the guest serves, in one reading.
func (c *powerCell) served() func(off int64, p []byte) error {
	c.t.Helper()
	conn := c.away.dial(guestLimit)
	defer conn.close()
	p := make([]byte, c.size)
	const piece = 1 << 20
	for off := int64(0); off < c.size; off += piece {
		if err := conn.read(off, p[off:off+piece]); err != nil {
			c.t.Fatal(err)
		}
	}
	return func(off int64, into []byte) error {
		copy(into, p[off:])
		return nil
	}
}

// metByLog: both sides went on by their logs; so little was written meanwhile that no bitmap is an excuse.
func (c *powerCell) metByLog() {
	c.t.Helper()
	if why := c.source.resyncs(); len(why) > 0 {
		c.t.Errorf("%s: resyncs: %q", c.mode, why)
	}
}

// judgeAlone answers what a source has that lost its power if it has nobody to ask: a copy of its disks serves.
func (c *powerCell) judgeAlone() {
	c.t.Helper()
	copied := c.copyOf(c.source)
	copied.replaceArg("--start-wait", "1s") // its cable is cut
	copied.start()
	least, lost := dueFlushed, c.lost
	if c.mode == "durable" {
		least = dueAcked
	}
	c.judgeServed(copied, c.told, least)
	c.lost = lost
	copied.kill()
}

// useAll begins to write to all of them, and waits until all users have been at work.
func useAll(cells []*powerCell) {
	for _, c := range cells {
		c.t.Helper()
		c.connect(c.source)
		c.files = useFiles(c.t, nil, c.source.nbd, c.base, baseSeed, c.pace.filePause)
	}
	for _, c := range cells {
		c.untilLevel()
	}
	for _, c := range cells {
		c.untilBusy()
	}
}

// cables lead to the guest, or out of it.
func cables(cells []*powerCell) (l []*dataporttest.Proxy) {
	for _, c := range cells {
		l = append(l, c.toTarget...)
	}
	return l
}

// outcomes are the cells as such.
func outcomes(cells []*powerCell) (l []*cell) {
	for _, c := range cells {
		l = append(l, c.cell)
	}
	return l
}

// powerSource: the host of the source loses its power. What burnt with it is what the mode says; when it is back, it has all that was
// flushed, in receive and durable all that was answered, and both meet by their logs.
func powerSource(t *testing.T) []*cell {
	g, cells := powerCells(t, "source")
	for _, c := range cells {
		c.target.start()
	}
	g.boot()
	g.ready()
	for _, c := range cells {
		c.source.untilStreaming("target")
	}
	useAll(cells)
	g.cut(func() {}, cables(cells)...)
	for _, c := range cells {
		c.save()
	}
	g.boot() // it reaches nobody yet
	for _, c := range cells {
		c.rest()
		c.told = c.now()
		c.dead()
		c.judgeAlone()
		c.judgeBurnt(c.target, c.told, promised(c.mode))
		c.says(c.target, "waiting", "promote")
	}
	for _, c := range cells {
		c.toTarget[0].Blackhole(false)
	}
	g.ready()
	for _, c := range cells {
		least := dueFlushed
		if promised(c.mode) == dueAcked {
			least = dueAcked // it fetches what its log has lost
		}
		lost := c.lost
		served := c.served()
		c.judge("source", served, c.told, least)
		c.lost = lost
		c.adoptFrom(served)
		c.source.untilStreaming("target")
		c.metByLog()
		c.connect(c.source)
		c.settle(c.source, "target")
	}
	g.end()
	for _, c := range cells {
		c.target.stop()
		c.save()
		c.compare(c.source, c.target)
	}
	return outcomes(cells)
}

// powerTarget: the host of the target loses its power. The source goes on alone and says so; what is on the target's disks is promotable,
// and has what the mode says but for receive, which does not wait for the target's disk; both meet by their logs.
func powerTarget(t *testing.T) []*cell {
	g, cells := powerCells(t, "target")
	g.boot()
	g.ready()
	for _, c := range cells {
		c.source.start()
	}
	for _, c := range cells {
		c.source.untilStreaming("target")
	}
	useAll(cells)
	g.cut(func() {
		for _, c := range cells {
			c.told = c.now()
		}
	}, cables(cells)...)
	for _, c := range cells {
		c.save()
	}
	g.boot() // it reaches nobody yet
	for _, c := range cells {
		c.alarmed()
		c.client.more(c.t, 20)
		c.rest() // what is written until it is back has to be in the log
		c.files.leave()
	}
	for _, c := range cells {
		c.judgeBurnt(c.target, c.told, leastOfDisk(c.mode))
	}
	for _, c := range cells {
		c.toTarget[0].Blackhole(false)
	}
	g.ready()
	for _, c := range cells {
		c.source.untilStreaming("target")
		c.metByLog()
		c.work()
		c.settle(c.source, "target")
	}
	for _, c := range cells {
		c.source.stop()
	}
	g.end()
	for _, c := range cells {
		c.save()
		c.compare(c.source, c.target)
	}
	return outcomes(cells)
}
