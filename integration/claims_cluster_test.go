package integration

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// claimDaemonRegister: a mirror is a client of its node by its name. Two mirrors
// over the same cables know nothing of each other, and a source whose name is not
// registered at the target reaches nobody.
func claimDaemonRegister(t *testing.T, _ *plays) {
	n := newTopology(t)
	one := newNetMirror(t, n, netLayout{name: "one"})
	two := newNetMirror(t, n, netLayout{name: "two", port: portNumber + 1})
	one.begin()
	two.begin()
	type side struct {
		m  *netMirror
		l  *ledger
		c  *nbdClient
		ld *load
	}
	var sides []*side
	for i, m := range []*netMirror{one, two} {
		x := &side{m: m, l: newLedger(baseSeed+uint64(i), m.size), c: m.source.dialName(m.lay.name)}
		x.ld = x.l.startLoad(x.c, newRand(t), 4, 40)
		sides = append(sides, x)
	}
	sides[0].ld.untilAnswered(t, 200)
	sides[1].ld.untilAnswered(t, 200)

	// A source of a mirror that nobody has there. It knows the keys: it is the name that keeps it out.
	stranger := newNetMirror(t, n, netLayout{name: "stranger"})
	stranger.source.replaceArg("--key", one.path("source", "key"))
	stranger.source.replaceArgs("--peer-key", strings.TrimSpace(runAgent(t, "keygen", "--show", "--key", one.path("target", "key")).stdout))
	before := one.target.mustStatus()
	stranger.source.start()
	stranger.source.until(portLimit, "says that nobody has this name", func(s *status) bool {
		return strings.Contains(s.Reason+stranger.source.command("path", "list").stdout, "stranger")
	})
	st := stranger.source.mustStatus()
	if f := st.follower("target"); f.State == streaming || f.Received != 0 {
		t.Errorf("the stranger reached somebody: %+v", f)
	}
	stranger.source.kill()

	// The target of the one stands still: that holds up nothing of the other.
	two.target.freeze()
	sides[0].ld.untilAnswered(t, 400)
	if s := one.source.mustStatus(); s.follower("target").State != streaming {
		t.Errorf("the other mirror's target stood still, and this one: %s", s.brief())
	}
	two.target.thaw()
	two.source.untilStreaming("target")
	sides[1].ld.untilAnswered(t, 100)
	checkEqual(t, "uuid of the first at its target", one.target.mustStatus().UUID, before.UUID)
	for _, x := range sides {
		if err := x.ld.stop(); err != nil {
			t.Fatal(err)
		}
		if err := x.l.verify(x.c.read, allAcked); err != nil {
			t.Fatal(err)
		}
		x.c.close()
		x.m.stopLevel("target")
	}
}

// claimDaemonBalance: what an application writes goes over a link of 100 and one
// of 20 Mbit/s at the rate of both together.
func claimDaemonBalance(t *testing.T, _ *plays) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{size: 64 << 20, sourceArgs: []string{"--mode", "async", "--on-full", "wait"}})
	n.toTarget[0].shape(bothWays, fastMbit)
	n.toTarget[1].shape(bothWays, slowMbit)
	m.begin()
	c := m.source.dial(startLimit)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(baseSeed, uint64(w)))
			const piece = 128 << 10
			for !stop.Load() {
				at := r.IntN(noiseBytes - piece)
				if err := c.write(int64(r.IntN(int(m.size/piece)))*piece, ledgerNoise()[at:at+piece], false); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	// The log holds more than the links carry in a second before its writers are held back: then both links are full.
	received := func() uint64 { s := m.source.mustStatus(); f := s.follower("target"); return f.Received }
	m.source.until(portLimit, "the links are behind", func(s *status) bool { return s.follower("target").LagBytes > 8<<20 })
	judgeBalance(t, n.toTarget[0], n.toTarget[1], received)
	stop.Store(true)
	wg.Wait()
	for _, k := range n.toTarget[:2] {
		k.shape(bothWays, 0)
	}
	c.close()
	m.stopLevel("target")
}

// claimDaemonMessages: a write does not wait for the target, a FLUSH does.
func claimDaemonMessages(t *testing.T, _ *plays) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{sourceArgs: []string{"--unreachable-after", "60s", "--path-down-after", "40s"}})
	m.begin()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 0)
	ld.untilAnswered(t, 100)
	for _, k := range n.toTarget[:2] {
		k.silence(bothWays)
	}
	covered, flushed := l.answered(), make(chan error, 1)
	go func() { flushed <- c.flush() }()
	ld.untilAnswered(t, 500) // nobody hears of them, and they are answered
	head := m.source.mustStatus()
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-flushed:
		t.Errorf("the FLUSH was answered (%v) although the target could not have heard of it", err)
	default:
	}
	if f := head.follower("target"); f.LagBytes < 400*ledgerBlock {
		t.Errorf("the target lags by %d bytes only", f.LagBytes)
	}
	for _, k := range n.toTarget[:2] {
		k.heal()
	}
	select {
	case err := <-flushed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(portLimit):
		t.Fatal("the FLUSH is not answered although the paths are whole again")
	}
	l.flushed(covered)
	// What the FLUSH covered is at the target, without another word of the source.
	m.source.kill()
	m.target.mustCommand("promote", "--force")
	p := m.target.dial(startLimit)
	if err := l.verify(p.read, allFlushed); err != nil {
		t.Fatal(err)
	}
	p.close()
	m.target.stop()
}

// claimAllTalk: three hosts; the source has a port to each of the others, and
// all send and call at once while paths to both are cut.
func claimAllTalk(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 2)
	toBackup := x.source.register("second")
	fromBackup := x.backup.register("second")
	x.source.open(portSettings{Target: addrsOf(x.toTarget, portNumber)})
	toBackup.open(portSettings{Target: addrsOf(x.toBack, portNumber)})
	x.source.untilPaths(2)
	toBackup.untilPaths(2)
	for _, u := range []*user{x.source, toBackup} {
		u.load(steady(streamForth))
		u.load(loadSettings{Stream: streamCalls, Kind: "call", Size: 100, Spread: 20 << 10})
	}
	x.target.untilHanded(0, 20)
	fromBackup.untilHanded(0, 20)
	for _, u := range []*user{x.target, fromBackup} {
		u.load(steadyBack(streamBack))
		u.load(loadSettings{Stream: streamCallsBack, Kind: "call", Size: 100, Spread: 20 << 10, Inbound: true})
	}
	all := []*user{x.source, toBackup, x.target, fromBackup}
	on := func(n uint64) {
		t.Helper()
		var from []uint64
		for _, u := range all {
			from = append(from, u.view().Handed)
		}
		for i, u := range all {
			u.untilHanded(from[i], n)
		}
	}
	on(100)
	x.toTarget[0].silence(bothWays)
	x.toBack[1].silence(back)
	on(200)
	x.toTarget[0].heal()
	x.toBack[1].heal()
	x.source.untilPaths(2)
	toBackup.untilPaths(2)
	x.toTarget[1].unplug()
	x.toBack[0].kill(portNumber)
	on(200)
	x.toTarget[1].plug()
	x.source.untilPaths(2)
	toBackup.untilPaths(2)
	for _, u := range []*user{x.source, toBackup} {
		u.unload(streamForth, streamCalls)
	}
	for _, u := range []*user{x.target, fromBackup} {
		u.unload(streamBack, streamCallsBack)
	}
	a := x.books.close(all...)
	checkEqual(t, "sessions", a.Sessions, 2)
	checkEqual(t, "messages lost", a.Lost, 0)
	t.Logf("ledgers: %+v", a)
}

// claimHungHost: the target does not die, it stands still for longer than it may;
// when it goes on, it is not used any more.
func claimHungHost(t *testing.T, _ *plays) {
	x := newTrio(t, 3, 2)
	set := x.settings()
	set.Auto = true
	x.source.open(set)
	x.source.untilPaths(3)
	x.source.load(steady(streamForth))
	x.target.untilHanded(0, 100)
	// For less than the threshold: nothing is switched.
	session := x.source.view().Session
	x.target.signal(syscall.SIGSTOP)
	time.Sleep(1200 * time.Millisecond)
	x.target.signal(syscall.SIGCONT)
	x.target.untilHanded(x.target.view().Handed, 100)
	x.source.untilPaths(3)
	checkEqual(t, "session after a pause of 1.2 s", x.source.view().Session, session)
	clock := startFairClock(t)
	x.target.signal(syscall.SIGSTOP)
	from := clock.now()
	x.backup.untilHanded(0, 1)
	took := clock.now() - from
	const bound = 3*time.Second + 2*time.Second
	t.Logf("data reached the backup after %s; the threshold is 3 s", took.Round(time.Millisecond))
	if took > bound {
		t.Errorf("data reached the backup after %s, at most %s are allowed", took, bound)
	}
	x.target.signal(syscall.SIGCONT)
	x.backup.untilHanded(x.backup.view().Handed, 200)
	checkEqual(t, "target although the first goes on", x.source.view().Index, 1)
	x.source.unload(streamForth)
	t.Logf("ledgers: %+v", x.books.close(x.source, x.target, x.backup))
}

// claimCluster: three hosts with their configuration in files. The target dies,
// the backup takes over; the source dies, the backup is promoted and serves all that was flushed.
func claimCluster(t *testing.T, _ *plays) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{toTarget: 3, toBackup: 2, files: true, sourceArgs: []string{"--switch", "auto"}})
	m.begin()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 200)
	n.toTarget[1].unplug()
	m.source.until(portLimit, "one of three paths is down", func(s *status) bool { return activePaths(s) == 2 })
	ld.untilAnswered(t, 200)
	m.target.kill()
	m.source.untilStreaming("backup")
	m.backup.untilMembers(3)
	ld.untilAnswered(t, 200)
	m.source.kill()
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.takeOver(l)
}

// takeOver promotes the backup and looks for all that was flushed.
func (m *netMirror) takeOver(l *ledger) {
	m.t.Helper()
	m.promoteAlone(m.backup)
	c := m.backup.dial(startLimit)
	if err := l.verify(c.read, allFlushed); err != nil {
		m.t.Fatalf("on the promoted backup: %v", err)
	}
	if err := l.settle(c.read); err != nil {
		m.t.Fatal(err)
	}
	ld := l.startLoad(c, newRand(m.t), 4, 20)
	ld.untilAnswered(m.t, 200)
	if err := ld.stop(); err != nil {
		m.t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		m.t.Fatal(err)
	}
	c.close()
	m.backup.stop()
}
