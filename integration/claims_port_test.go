package integration

import (
	"slices"
	"testing"
	"time"
)

// trio is a source with a target and a backup, each a process with a data port
// in a host of its own.
type trio struct {
	*topology
	source, target, backup *user
	books                  *books
}

// newTrio starts the three over so many cables; the client's name is vol.
func newTrio(t *testing.T, toTarget, toBackup int) *trio {
	t.Helper()
	return newTrioOf(t, toTarget, toBackup, nodeSettings{})
}

// newTrioOf takes windows, thresholds, where to listen and the source's own addresses from some settings.
func newTrioOf(t *testing.T, toTarget, toBackup int, like nodeSettings) *trio {
	t.Helper()
	x := &trio{topology: newTopology(t), books: newBooks(t)}
	x.toTarget, x.toBack = x.toTarget[:toTarget], x.toBack[:toBackup]
	host := func(h netHost, name string, listen ...string) *user {
		if like.Listen != nil && len(listen) > 0 {
			listen = like.Listen
		}
		node := nodeOf(name, listen...)
		node.Diary, node.Window, node.Unreachable = shortDir(t)+"/diary", like.Window, like.Unreachable
		if len(listen) == 0 {
			node.Local = like.Local
		}
		return startHost(t, h, node).register("vol")
	}
	x.target = host(x.tgt, "target", addrsOf(x.toTarget, portNumber)...)
	x.backup = host(x.bak, "backup", addrsOf(x.toBack, portNumber)...)
	x.source = host(x.src, "source")
	return x
}

func (x *trio) settings() portSettings {
	s := portSettings{Target: addrsOf(x.toTarget, portNumber)}
	if len(x.toBack) > 0 {
		s.Backups = [][]string{addrsOf(x.toBack, portNumber)}
	}
	return s
}

// Streams of the ledgers.
const (
	streamForth byte = iota + 1 // messages of the source
	streamBack                  // messages of the target or backup
	streamCalls
	streamCallsBack
	streamFailing
)

// steady is a load that leaves the machine room for others.
func steady(stream byte) loadSettings {
	return loadSettings{Stream: stream, Size: 200, Spread: 24 << 10, Pause: time.Millisecond}
}

func steadyBack(stream byte) loadSettings {
	s := steady(stream)
	s.Inbound = true
	return s
}

// story is what was seen of the whole tale: two paths, one cut, the target
// killed, all by itself to the backup.
type story struct {
	sockets       []socket // to the target, before anything happened
	grown         []uint64 // bytes each cable carried meanwhile, one entry for each
	cut           portView // the port with one cable cut, after data went on
	backupBefore  int      // sockets to the backup while the target lived
	packetsBefore int      // TCP packets ever sent to the backup, until the target died
	backupAfter   []socket // sockets to the backup in the end
	end           portView
	events        []eventLine // from the death of the target on
	account       account
}

func playStory(t *testing.T) *story {
	x, s := newTrio(t, 2, 2), &story{}
	x.countTCP(x.toBack)
	set := x.settings()
	set.Auto = true
	x.source.open(set)
	x.source.untilPaths(2)
	before := []uint64{x.toTarget[0].carried(), x.toTarget[1].carried()}
	x.source.load(steady(streamForth))
	x.target.load(steadyBack(streamBack))
	x.target.untilHanded(0, 300)
	s.sockets = x.src.sockets(t, x.toTarget)
	for i, c := range x.toTarget {
		s.grown = append(s.grown, c.carried()-before[i])
	}

	x.toTarget[0].silence(bothWays)
	x.source.until(portLimit, "one path is lost", func(v *portView) bool { return v.count("active") == 1 })
	x.target.untilHanded(x.target.view().Handed, 200)
	x.source.untilHanded(x.source.view().Handed, 200)
	s.cut = x.source.view()
	x.toTarget[0].heal()
	x.source.untilPaths(2)
	x.target.untilHanded(x.target.view().Handed, 200)

	s.backupBefore = len(x.src.sockets(t, x.toBack))
	s.packetsBefore = x.packetsCounted()
	x.books.pull(x.source, x.target)
	from := len(x.source.events())
	x.target.kill()
	x.books.recover(x.target)
	x.backup.untilHanded(0, 200)
	x.source.untilPaths(2)
	x.backup.load(steadyBack(streamBack))
	x.source.untilHanded(x.source.view().Handed, 100)
	s.backupAfter = x.src.sockets(t, x.toBack)
	s.events = x.source.events()[from:]
	x.backup.unload(streamBack)
	x.source.unload(streamForth)
	s.end = x.source.view()
	s.account = x.books.close(x.source, x.backup)
	return s
}

func claimOnePort(t *testing.T, p *plays) {
	s := p.story.of(t, playStory)
	checkEqual(t, "state with one cable cut", s.cut.State, "degraded")
	checkEqual(t, "target with one cable cut", s.cut.Index, 0)
	checkEqual(t, "target in the end", s.end.Index, 1)
	checkEqual(t, "state in the end", s.end.State, "connected")
	// The client opened one port, once, and every message went through it.
	checkEqual(t, "sessions of that one port", s.end.Sessions, uint64(2))
	if s.account.Forth < 700 || s.account.Back < 300 {
		t.Errorf("ledger: %+v; both directions were to carry hundreds of messages", s.account)
	}
	t.Logf("ledger equal: %+v", s.account)
}

func claimPaths(t *testing.T, p *plays) {
	s := p.story.of(t, playStory)
	checkEqual(t, "established sockets to the target", len(s.sockets), 2)
	seen := map[string]bool{}
	for _, k := range s.sockets {
		seen[hostOf(k.local)], seen[hostOf(k.peer)] = true, true
	}
	for _, ip := range []string{"10.201.1.1", "10.201.1.2", "10.201.2.1", "10.201.2.2"} {
		if !seen[ip] {
			t.Errorf("no connection uses %s: %v", ip, s.sockets)
		}
	}
	for i, n := range s.grown {
		if n < 100<<10 {
			t.Errorf("cable %d carried only %d bytes", i+1, n)
		}
	}
	t.Logf("cables carried %v bytes", s.grown)
}

func claimConnection(t *testing.T, p *plays) {
	s := p.story.of(t, playStory)
	checkEqual(t, "sockets to the backup while the target lived", s.backupBefore, 0)
	checkEqual(t, "TCP packets sent to the backup until then", s.packetsBefore, 0)
	checkEqual(t, "sockets to the backup after the switch", len(s.backupAfter), 2)
}

func claimAuto(t *testing.T, p *plays) {
	s := p.story.of(t, playStory)
	// Nobody gave an order: the client's callback does nothing, the test called nothing.
	order := []string{"SessionDown", "TargetUnreachable", "Switching", "PathUp", "Switched", "SessionUp"}
	var got []string
	for _, e := range s.events {
		if e.Kind != "PathSuspect" && e.Kind != "PathDown" && len(got) < len(order) {
			got = append(got, e.Kind)
		}
	}
	if !slices.Equal(got, order) {
		t.Errorf("events after the target's death: %v, want %v\n%s", got, order, eventKinds(s.events))
	}
	checkEqual(t, "target in the end", s.end.Index, 1)
}
