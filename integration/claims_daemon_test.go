package integration

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// daemonStory is the tale of story, played by the running daemons: what an
// application writes to the source goes over two paths, one is cut, the target is
// killed, and the backup takes over by itself.
type daemonStory struct {
	sockets       []socket
	grown         []uint64
	wire          captured
	cut           status // after writes went on with one path silent
	cutEvents     []agentEvent
	answered      int64 // writes while the path was cut
	backupBefore  int
	packetsBefore int
	backupAfter   []socket
	deathEvents   []agentEvent
	end           status
}

func playDaemons(t *testing.T) *daemonStory {
	n, s := newTopology(t), &daemonStory{}
	m := newNetMirror(t, n, netLayout{toBackup: 2, sourceArgs: []string{"--switch", "auto"}})
	n.countTCP(n.toBack)
	m.begin()
	eyes := startHost(t, n.src, nodeOf("eyes"))
	before := []uint64{n.toTarget[0].carried(), n.toTarget[1].carried()}
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 40)
	ld.untilAnswered(t, 400)
	s.sockets = n.src.sockets(t, n.toTarget[:2])
	for i, k := range n.toTarget[:2] {
		s.grown = append(s.grown, k.carried()-before[i])
	}
	eyes.ask(portOrder{Do: "capture", Addr: n.toTarget[1].nearIf, Within: 300 * time.Millisecond}, &s.wire)

	from, answered := m.source.lastEvent(), ld.answers.Load()
	n.toTarget[0].silence(bothWays)
	m.source.untilEvent(from, "path-down")
	ld.untilAnswered(t, 300)
	s.cut, s.answered = m.source.mustStatus(), ld.answers.Load()-answered
	n.toTarget[0].heal()
	m.source.until(portLimit, "both paths again", func(s *status) bool { return activePaths(s) == 2 })
	s.cutEvents = m.source.eventsAfter(from)

	s.backupBefore, s.packetsBefore = len(n.src.sockets(t, n.toBack)), n.packetsCounted()
	from = m.source.lastEvent()
	m.target.kill()
	m.source.untilStreaming("backup")
	ld.untilAnswered(t, 300)
	m.source.until(portLimit, "both paths to the backup", func(s *status) bool {
		f, n := s.follower("backup"), 0
		for _, p := range f.Paths {
			if p.State == "active" {
				n++
			}
		}
		return n == 2
	})
	s.backupAfter, s.deathEvents = n.src.sockets(t, n.toBack), m.source.eventsAfter(from)
	s.end = m.source.mustStatus()
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("backup")
	return s
}

func claimDaemon(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	if f := s.cut.follower("target"); f.State != streaming || !f.Active || activePaths(&s.cut) != 1 {
		t.Errorf("with one path cut: %s", s.cut.brief())
	}
	if s.answered < 300 {
		t.Errorf("%d writes were answered with one path cut", s.answered)
	}
	if f := s.end.follower("backup"); f.State != streaming || !f.Active || s.end.ActiveTarget != f.Target {
		t.Errorf("in the end: %s", s.end.brief())
	}
}

func claimDaemonPaths(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	checkEqual(t, "established sockets to the target", len(s.sockets), 2)
	locals := map[string]bool{}
	for _, k := range s.sockets {
		locals[hostOf(k.local)] = true
	}
	checkEqual(t, "addresses of the source in use", len(locals), 2)
	for i, n := range s.grown {
		if n < 100<<10 {
			t.Errorf("cable %d carried only %d bytes", i+1, n)
		}
	}
	t.Logf("cables carried %v bytes", s.grown)
}

func claimDaemonEvents(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	want := []string{"PathSuspect", "PathDown", "PathUp"}
	if got := asTold(portEvents(s.cutEvents), want); !slices.Equal(got, want) {
		t.Errorf("a path fell silent and came back: told %v, want %v", got, want)
	}
	// The process is killed: its kernel resets both connections; nobody listens. The daemon makes the backup the active target,
	// and connects to it.
	want = []string{"PathDown", "PathDown", "TargetUnreachable", "Switching", "Switched", "PathUp", "PathUp"}
	if got := asTold(portEvents(s.deathEvents), want); !slices.Equal(got, want) {
		t.Errorf("the target died: told %v, want %v", got, want)
	}
}

func claimDaemonTCP(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	if s.wire.TCP == 0 || s.wire.Other != 0 || s.wire.TLS == 0 || s.wire.PortMark != 0 {
		t.Errorf("on the wire: %+v; TCP with TLS in it is expected, and nothing else", s.wire)
	}
	t.Logf("%+v", s.wire)
}

func claimDaemonConnection(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	checkEqual(t, "sockets to the backup while the target lived", s.backupBefore, 0)
	checkEqual(t, "TCP packets sent to the backup until then", s.packetsBefore, 0)
	checkEqual(t, "sockets to the backup after the switch", len(s.backupAfter), 2)
}

func claimDaemonAuto(t *testing.T, p *plays) {
	s := p.daemons.of(t, playDaemons)
	l := portEvents(s.deathEvents)
	i := slices.IndexFunc(l, func(e eventLine) bool { return e.Kind == "TargetUnreachable" })
	if i < 0 || i+1 == len(l) || l[i+1].Kind != "Switching" {
		t.Errorf("events after the target's death: %s", eventKinds(l))
	}
	checkEqual(t, "active target", s.end.ActiveTarget, net.JoinHostPort("10.202.1.3", fmt.Sprint(portNumber)))
}

// claimDaemonUnreachable: silence on all paths, of which nobody is told.
func claimDaemonUnreachable(t *testing.T, _ *plays) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{toBackup: 2, sourceArgs: []string{"--switch", "auto"}})
	n.countTCP(n.toBack)
	m.begin()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 200)
	clock := startFairClock(t)
	n.toTarget[0].silence(bothWays)
	n.toTarget[1].silence(bothWays)
	from := clock.now()
	eventually(t, portLimit, "data goes to the backup", func() (bool, string) { return n.toBack[0].carried() > 64<<10, "none" })
	took := clock.now() - from
	const bound = 3*time.Second + 2*time.Second
	t.Logf("data went to the backup after %s; the threshold is 3 s", took.Round(time.Millisecond))
	if took > bound {
		t.Errorf("data went to the backup after %s, at most %s are allowed", took, bound)
	}
	m.source.untilStreaming("backup")
	ld.untilAnswered(t, 200)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.stopLevel("backup")
}

// claimDaemonManual: the operator is told and decides.
func claimDaemonManual(t *testing.T, _ *plays) {
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{toBackup: 2})
	n.countTCP(n.toBack)
	m.begin()
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 4, 40)
	ld.untilAnswered(t, 200)
	from := m.source.lastEvent()
	n.toTarget[0].silence(bothWays)
	n.toTarget[1].silence(bothWays)
	m.source.untilEvent(from, "target-unreachable")
	told := m.source.until(portLimit, "an alarm names the way out", func(s *status) bool { return len(s.Alarms) > 0 })
	if out := m.source.mustCommand("explain"); !strings.Contains(out, "switch backup") {
		t.Errorf("explain does not name the way out, switch backup:\n%s", out)
	}
	clock := startFairClock(t)
	eventually(t, portLimit, "three more seconds", func() (bool, string) { return clock.now() >= 3*time.Second, "" })
	checkEqual(t, "packets sent to the backup before the order", n.packetsCounted(), 0)
	m.source.mustCommand("switch", "backup")
	m.source.untilStreaming("backup")
	ld.untilAnswered(t, 200)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
	t.Logf("told: %s", told.brief())
	m.stopLevel("backup")
}
