package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cell is one fault in one mode: a mirror in hosts of its own, an ext4 in use in
// the first part of its device and the client with the ledger in the second.
type cell struct {
	*netMirror
	t      *testing.T
	mode   string
	ledger *ledger
	conn   *nbdClient
	client *diligent
	files  *syncedFiles
	level  known // what the target had for certain before the fault
	lost   shortfall
	total  int // answered writes at the fault
	pace   pace
	base   int64 // where the ledger begins: the size of the filesystem
}

// pace is how much the users of a cell do.
type pace struct {
	pause, filePause time.Duration
	before, during   int64 // requests until the mirror is level, and until the fault
	files            int   // versions of documents by then; a third of them before it is level
	after            int64 // requests when all is whole again
}

var (
	usualPace = pace{5 * time.Millisecond, 10 * time.Millisecond, 60, 150, 21, 30}
	guestPace = pace{500 * time.Millisecond, 500 * time.Millisecond, 10, 40, 4, 6} // one side is in software emulation
)

const (
	cellBytes = 48 << 20
	cellBase  = 32 << 20 // where the ledger begins
)

var matrixModes = []string{"async", "flush", "receive", "durable"}

// known is what the users had been told at one time.
type known struct {
	writes moment
	files  [syncedSlots]int
}

// due says how much of what was known a device has to have.
type due string

const (
	dueState   due = "a state of one moment" // not before the mirror was level
	dueFlushed due = "nothing flushed lost"
	dueAcked   due = "nothing acknowledged lost"
)

// promised is what section "modes" of the README says of a source that is gone for good.
func promised(mode string) due {
	return map[string]due{"async": dueState, "flush": dueFlushed, "receive": dueAcked, "durable": dueAcked}[mode]
}

// newCell prepares a mirror and starts nothing.
func newCell(t *testing.T, mode string, lay netLayout) *cell {
	t.Helper()
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "debugfs", "fusermount3")
	lay.size = cellBytes
	lay.sourceArgs = append([]string{"--mode", mode, "--start-wait", "5s"}, lay.sourceArgs...)
	c := &cell{netMirror: newNetMirror(t, newTopology(t), lay), t: t, mode: mode, ledger: newLedger(baseSeed, cellBytes-cellBase), pace: usualPace, base: cellBase}
	makeExt4(t, c.source.device, c.base, cellBytes)
	return c
}

// begin starts the mirror and its users, and waits until both have been at work.
func (c *cell) begin() {
	c.t.Helper()
	c.netMirror.begin()
	c.use(nil)
}

// use begins to write to the source; inside is the host that its NBD address is in.
func (c *cell) use(inside []string) {
	c.t.Helper()
	c.connect(c.source)
	c.files = useFiles(c.t, inside, c.source.nbd, c.base, baseSeed, c.pace.filePause)
	c.untilUsed()
}

// untilUsed waits until the users have been at work, before the mirror was level and after it.
func (c *cell) untilUsed() {
	c.t.Helper()
	c.untilLevel()
	c.untilBusy()
}

// untilLevel waits until users have been at work and the target has what they did; they go on.
func (c *cell) untilLevel() {
	c.t.Helper()
	c.client.upTo(c.t, c.pace.before)
	c.files.untilSynced(c.pace.files / 3)
	c.rest()
	c.level = c.known() // before the head that the target has to reach; the files are written on
	c.source.untilLevel("target")
	c.work()
}

func (c *cell) untilBusy() {
	c.t.Helper()
	c.client.upTo(c.t, c.pace.during)
	c.files.untilSynced(c.pace.files)
}

// connect begins to write to an agent that serves.
func (c *cell) connect(a *agent) {
	c.t.Helper()
	c.conn = a.dial(startLimit)
	c.work()
}

func (c *cell) work() { c.client = c.ledger.work(c.conn, c.base, c.pace.pause, newRand(c.t)) }

// rest ends the client's work; its connection may have gone.
func (c *cell) rest() {
	c.t.Helper()
	if err := c.client.end(); err != nil {
		c.t.Fatalf("the client: %v", err)
	}
}

// dead ends all that used a source which is gone.
func (c *cell) dead() {
	c.t.Helper()
	c.rest()
	c.conn.close()
	c.files.leave()
}

func (c *cell) known() known { return known{c.ledger.moment(), c.files.moment()} }

// now is known at the moment of a fault; the cell reports how many writes were answered until then.
func (c *cell) now() known {
	_, c.total = c.ledger.counts()
	return c.known()
}

// cut silences all cables of a host.
func (c *cell) cut(cables []*cable, d direction) {
	c.t.Helper()
	for _, k := range cables {
		k.silence(d)
	}
}

func (c *cell) mend(cables []*cable) {
	c.t.Helper()
	for _, k := range cables {
		k.heal()
	}
}

func (c *cell) targetCables() []*cable { return c.net.toTarget[:c.lay.toTarget] }

// judge checks what is read against what was known, and keeps how much of it is lost.
func (c *cell) judge(where string, read func(off int64, p []byte) error, k known, d due) {
	c.t.Helper()
	raw := func(off int64, p []byte) error { return read(off+c.base, p) }
	short, err := c.ledger.measure(raw, k.writes)
	if err != nil {
		c.t.Errorf("%s, %s: %v", c.mode, where, err)
	}
	older, _, err := c.files.judge(c.t, read, k.files)
	if err != nil {
		c.t.Errorf("%s, %s: the filesystem: %v", c.mode, where, err)
	}
	c.lost.acked, c.lost.flushed = max(c.lost.acked, short.acked), max(c.lost.flushed, short.flushed)
	bad := d == dueFlushed && (short.flushed > 0 || older > 0) || d == dueAcked && (short.acked > 0 || older > 0)
	if bad {
		c.t.Errorf("%s, %s: %d answered writes, %d flushed ones and %d synced documents of what was known are lost; promised: %s", c.mode, where, short.acked, short.flushed, older, d)
	}
	// In no mode is it older than what the target had acknowledged before.
	short, err = c.ledger.measure(raw, c.level.writes)
	if err == nil && short.acked > 0 {
		c.t.Errorf("%s, %s: %d writes are lost that the target had before the fault", c.mode, where, short.acked)
	}
	c.t.Logf("%s, %s: %d of %d answered writes are not there, %d flushed ones, %d documents older", c.mode, where, c.lost.acked, c.total, c.lost.flushed, older)
}

// judgeServed is judge of what an agent serves.
func (c *cell) judgeServed(a *agent, k known, d due) {
	c.t.Helper()
	conn := a.dial(startLimit)
	defer conn.close()
	c.judge(a.name, conn.read, k, d)
}

// adopt goes on from what an agent serves: what is not there must never be seen again.
func (c *cell) adopt(a *agent) {
	c.t.Helper()
	conn := a.dial(startLimit)
	defer conn.close()
	c.adoptFrom(conn.read)
}

func (c *cell) adoptFrom(read func(off int64, p []byte) error) {
	c.t.Helper()
	if err := c.ledger.adopt(func(off int64, p []byte) error { return read(off+c.base, p) }); err != nil {
		c.t.Fatal(err)
	}
	_, there, err := c.files.judge(c.t, read, [syncedSlots]int{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.files.adopt(there)
}

// judgeBurnt answers what would be there if the source burnt down in this moment: the files of a follower are copied while its
// process stands still, a target is started on the copy in a place without a network, promoted and judged.
func (c *cell) judgeBurnt(a *agent, k known, d due, flags ...string) {
	c.t.Helper()
	copied := c.copyOf(a)
	copied.start()
	copied.untilUp()
	eventually(c.t, portLimit, "promote is accepted", func() (bool, string) {
		r := copied.command(append([]string{"promote"}, flags...)...)
		return r.code == 0, r.stderr
	})
	c.judgeServed(copied, k, d)
	copied.kill()
}

// copyOf prepares an agent with a copy of a follower's files.
func (c *cell) copyOf(a *agent) *agent {
	c.t.Helper()
	if a.pid() != 0 {
		a.freeze()
		defer a.thaw()
		eventually(c.t, startLimit, a.name+" stands still", func() (bool, string) { return standsStill(c.t, a.pid()) })
	}
	dir := shortDir(c.t)
	journal := a.valueOf("--journal")
	for from, to := range map[string]string{a.device: "img", journal: "journal"} {
		found, err := filepath.Glob(from + "*")
		if err != nil || len(found) == 0 {
			c.t.Fatalf("nothing to copy at %s: %v", from, err)
		}
		for _, f := range found {
			rest := strings.TrimPrefix(f, from)
			if rest == ".journal" {
				continue // the device's glob finds a journal beside it
			}
			tool(c.t, "cp", "--sparse=always", "--preserve=xattr", f, filepath.Join(dir, to+rest))
		}
	}
	b := newAgent(c.t, dir, "copy", append([]string{}, a.args...)...)
	b.device, b.nbd = filepath.Join(dir, "img"), "unix:"+filepath.Join(dir, "nbd")
	b.replaceArg("--device", b.device)
	b.replaceArg("--journal", filepath.Join(dir, "journal"))
	b.replaceArg("--nbd", b.nbd)
	if slices.Contains(b.args, "--listen") {
		b.replaceArg("--listen", freePort(c.t, "127.0.0.1"))
	}
	if c.net != nil {
		b.inside = c.net.bak.inside()
	}
	return b
}

// valueOf is the value of a flag that the agent is started with.
func (a *agent) valueOf(flag string) string {
	for i, arg := range a.args {
		if arg == flag {
			return a.args[i+1]
		}
	}
	a.t.Fatalf("%s has no flag %s", a.name, flag)
	return ""
}

// standsStill: all threads of a process are stopped, none is in the middle of a write.
func standsStill(t testing.TB, pid int) (bool, string) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no process %d: %v", pid, err)
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			return false, err.Error()
		}
		after := string(b[strings.LastIndexByte(string(b), ')')+1:])
		if !strings.HasPrefix(after, " T") {
			return false, f + after
		}
	}
	return true, ""
}

// says waits until an agent is in a state, and looks whether explain tells reason and way out.
func (c *cell) says(a *agent, state string, words ...string) {
	c.t.Helper()
	s := a.until(portLimit, "is "+state, func(s *status) bool { return s.State == state })
	explained := a.mustCommand("explain")
	for _, w := range append(words, state) {
		if !strings.Contains(explained, w) {
			c.t.Errorf("%s: explain does not say %q:\n%s", a.name, w, explained)
		}
	}
	if s.State != "in sync" && s.State != "streaming" && s.NextStep == "" {
		c.t.Errorf("%s: %s has no next step: %s", a.name, state, s.brief())
	}
}

// alarmed waits for the source's word that it has no target that counts.
func (c *cell) alarmed(words ...string) {
	c.t.Helper()
	c.says(c.source, "degraded", append(words, "continue")...)
	if s := c.source.mustStatus(); len(s.Alarms) == 0 {
		c.t.Errorf("no alarm although no target counts: %s", s.brief())
	}
}

// noResync: after a crash both sides went on by their logs (G3).
func (c *cell) noResync(a *agent) {
	c.t.Helper()
	for _, why := range a.resyncs() {
		if !strings.Contains(why, "what changed since is copied") { // it was away for longer than the log reaches back
			c.t.Errorf("a resync: %s", why)
		}
	}
}

// finish lets the users end, waits until the follower of a kind is in sync, and compares both devices with each other and with what is known.
func (c *cell) finish(primary *agent, kind string, second *agent) {
	c.t.Helper()
	c.settle(primary, kind)
	primary.stop()
	second.stop()
	c.compare(primary, second)
}

// settle lets the users end, and waits until the follower has everything.
func (c *cell) settle(primary *agent, kind string) {
	c.t.Helper()
	c.says(primary, "in sync")
	c.client.more(c.t, c.pace.after)
	c.rest()
	c.conn.close()
	c.files.leave()
	primary.untilLevel(kind)
}

// compare compares both devices, whose agents have ended, with each other and with what is known.
func (c *cell) compare(primary, second *agent) {
	c.t.Helper()
	sameFile(c.t, primary.device, second.device)
	k := c.known()
	lost := c.lost
	c.judge("both devices in the end", deviceFile(c.t, second.device), k, dueAcked)
	c.lost = lost
}
