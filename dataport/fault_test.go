package dataport_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// world is a source, a target and a backup, each target address behind a proxy.
type world struct {
	source, target, backup          *recorder
	sourceNode, targetNode, bakNode *dataport.Node
	paths, backupPaths              []*dataporttest.Proxy
	port                            *dataport.Port
	conf                            dataport.PortConfig
}

func newWorld(t *testing.T, mode dataport.SwitchMode) *world {
	t.Helper()
	w := &world{source: newRecorder(), target: newRecorder(), backup: newRecorder()}
	w.targetNode = node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
	w.bakNode = node(t, config("backup", "127.0.0.1:0"))
	register(t, w.targetNode, w.target)
	register(t, w.bakNode, w.backup)
	proxies := func(addrs []string) (l []*dataporttest.Proxy, dial []string) {
		for _, a := range addrs {
			p := dataporttest.NewProxy(a)
			t.Cleanup(p.Close)
			l, dial = append(l, p), append(dial, p.Addr())
		}
		return l, dial
	}
	w.conf = dataport.PortConfig{Switch: mode}
	w.paths, w.conf.Target = proxies(w.targetNode.Addrs())
	var b []string
	w.backupPaths, b = proxies(w.bakNode.Addrs())
	w.conf.Backups = [][]string{b}
	w.sourceNode = node(t, config("source"))
	w.port = open(t, register(t, w.sourceNode, w.source), w.conf)
	w.source.awaitEvent(t, dataport.PathUp, 2)
	w.target.awaitEvent(t, dataport.PathUp, 2)
	return w
}

// bothWays streams in both directions while fault happens, and compares the ledgers.
func (w *world) bothWays(t *testing.T, n int, fault func()) {
	t.Helper()
	s := w.port.Session()
	if _, err := w.port.Call(context.Background(), []byte("here I am")); err != nil {
		t.Fatal(err)
	}
	peer := w.target.lastSession()
	before, beforeBack := w.target.ledgerOf(s.ID()), w.source.ledgerOf(s.ID())
	var sent, back ledger
	var wg sync.WaitGroup
	wg.Go(func() { sent = streamFrom(t, w.port, n, before) })
	wg.Go(func() { back = streamFrom(t, peer, n, beforeBack) })
	w.target.await(t, "some messages", func() bool { return w.target.got[s.ID()].count > before.count+n/8 })
	fault()
	wg.Wait()
	if got := w.target.ledgerOf(s.ID()); got != sent {
		t.Errorf("target got %+v, source sent %+v", got, sent)
	}
	if got := w.source.ledgerOf(s.ID()); got != back {
		t.Errorf("source got %+v, target sent %+v", got, back)
	}
	if w.port.Session() != s {
		t.Errorf("another session")
	}
}

func TestPathIsReset(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	w.bothWays(t, 300, w.paths[0].Cut)
	w.source.awaitEvent(t, dataport.PathUp, 3)
	got := w.source.kinds(dataport.PathSuspect)
	for strings.Contains(got, "PathUp PathUp") { // one that a busy machine had suspected for a moment
		got = strings.ReplaceAll(got, "PathUp PathUp", "PathUp")
	}
	if got != "PathUp SessionUp PathUp PathDown PathUp" {
		t.Fatalf("events %s", got)
	}
	down := w.source.awaitEvent(t, dataport.PathDown, 1)
	if again := w.source.awaitEvent(t, dataport.PathUp, 3); again.Path != down.Path {
		t.Fatalf("path %d came back as %d", down.Path, again.Path)
	}
}

func TestBothPathsAreResetTogether(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	w.bothWays(t, 300, func() { w.paths[0].Cut(); w.paths[1].Cut() })
	w.source.awaitEvent(t, dataport.PathUp, 4)
}

// The path that falls silent is suspect, lost, and back again; on a busy machine any path may be suspect for a moment besides.
func TestPathFallsSilent(t *testing.T) {
	story := regexp.MustCompile(`^PathUp( PathSuspect PathUp)* PathSuspect PathDown PathUp( PathSuspect PathUp)*( PathSuspect)?$`)
	// Where only the target misses the source, that side is told by words that it may not believe when it is starved itself, and
	// then by the target's reset.
	told := regexp.MustCompile(`^PathUp( PathSuspect PathUp)*( PathSuspect)? PathDown PathUp( PathSuspect PathUp)*( PathSuspect)?$`)
	for name, way := range map[string]dataporttest.Direction{"both ways": dataporttest.Both, "there": dataporttest.Forward, "back": dataporttest.Backward} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, dataport.Manual)
			var silent dataport.PathID
			for _, p := range w.port.Stats().Paths {
				if p.Remote == w.paths[0].Addr() {
					silent = p.ID
				}
			}
			count := func(k dataport.EventKind) (n int) { // the recorder's mutex is held
				for _, e := range w.source.events {
					if e.Path == silent && e.Kind == k {
						n++
					}
				}
				return n
			}
			ups := 0
			w.bothWays(t, 300, func() { w.paths[0].BlackholeOneWay(way, true) })
			w.source.await(t, "the silent path to be lost", func() bool { ups = count(dataport.PathUp); return count(dataport.PathDown) > 0 })
			w.paths[0].BlackholeOneWay(way, false)
			w.source.await(t, "it to come back", func() bool { return count(dataport.PathUp) > ups })
			w.source.mu.Lock()
			defer w.source.mu.Unlock()
			var kinds []string
			for _, e := range w.source.events {
				if e.Path == silent {
					kinds = append(kinds, e.Kind.String())
				}
			}
			want := story
			if way == dataporttest.Forward {
				want = told
			}
			if got := strings.Join(kinds, " "); !want.MatchString(got) {
				t.Errorf("events of the path %s; all:\n%s", got, w.source.list())
			}
		})
	}
}

func TestPathIsFrozenForAMoment(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	w.bothWays(t, 300, func() {
		w.paths[0].Freeze(true)
		w.source.awaitEvent(t, dataport.PathSuspect, 1)
		w.paths[0].Freeze(false)
	})
	w.source.awaitEvent(t, dataport.PathUp, 3)
	// What was frozen arrives late and may say once more that a side was not heard, or the freeze lasted longer than meant on a busy
	// machine: then the path goes down and comes back. The session lives through all of it.
	got := w.source.kinds()
	rest, ok := strings.CutPrefix(got, "PathUp SessionUp PathUp PathSuspect ")
	for _, kind := range strings.Fields(rest) {
		ok = ok && strings.HasPrefix(kind, "Path")
	}
	if !ok {
		t.Errorf("events %s\n%s\nand of the target:\n%s", got, w.source.list(), w.target.list())
	}
}

func (w *world) silence() {
	for _, p := range w.paths {
		p.Blackhole(true)
	}
}

const lossEvents = "PathUp SessionUp PathUp PathSuspect PathSuspect PathDown PathDown SessionDown TargetUnreachable"

func TestManualSwitch(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	s := w.port.Session()
	start := time.Now()
	w.silence()
	open, err := w.port.Send(context.Background(), []byte("into the void"))
	if err != nil {
		t.Fatal(err)
	}
	w.source.awaitEvent(t, dataport.TargetUnreachable, 1)
	if d := time.Since(start); d > 2*quick().UnreachableAfter {
		t.Errorf("unreachable after %v", d)
	}
	if err := open.Wait(context.Background()); !errors.Is(err, dataport.ErrSessionLost) {
		t.Errorf("receipt: %v", err)
	}
	if !errors.Is(s.Err(), dataport.ErrSessionLost) || w.port.State() != dataport.PortUnreachable {
		t.Errorf("session %v, state %v", s.Err(), w.port.State())
	}
	if got := w.source.kinds(); got != lossEvents {
		t.Errorf("events %s", got)
	}
	if _, ever := w.backupPaths[0].Connections(); ever != 0 {
		t.Errorf("%d connections to the backup before Switch", ever)
	}
	if err := w.port.Switch(context.Background(), -1); err != nil {
		t.Fatal(err)
	}
	w.source.awaitEvent(t, dataport.SessionUp, 2)
	want := stream(t, w.port, 50)
	if got := w.backup.ledgerOf(w.port.Session().ID()); got != want {
		t.Errorf("backup got %+v, sent %+v", got, want)
	}
	if got := w.source.kinds(); got != lossEvents+" Switching PathUp Switched SessionUp" {
		t.Errorf("events %s", got)
	}
	if i, addr := w.port.Target(); i != 1 || addr != w.backupPaths[0].Addr() {
		t.Errorf("target %d %s", i, addr)
	}
}

func TestAutoSwitch(t *testing.T) {
	w := newWorld(t, dataport.Auto)
	w.silence()
	w.source.awaitEvent(t, dataport.SessionUp, 2)
	want := stream(t, w.port, 50)
	if got := w.backup.ledgerOf(w.port.Session().ID()); got != want {
		t.Errorf("backup got %+v, sent %+v", got, want)
	}
	if got := w.source.kinds(); got != lossEvents+" Switching PathUp Switched SessionUp" {
		t.Errorf("events %s", got)
	}
}

func TestTargetReturns(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	w.silence()
	w.source.awaitEvent(t, dataport.TargetUnreachable, 1)
	for _, p := range w.paths {
		p.Blackhole(false)
	}
	w.source.awaitEvent(t, dataport.PathUp, 4)
	want := stream(t, w.port, 50)
	if got := w.target.ledgerOf(w.port.Session().ID()); got != want {
		t.Errorf("target got %+v, sent %+v", got, want)
	}
	if got := w.source.kinds(); got != lossEvents+" PathUp SessionUp PathUp" {
		t.Errorf("events %s", got)
	}
}

func TestSwitchFromACallback(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	w.source.mu.Lock()
	w.source.onEvent = func(e dataport.Event) {
		switch e.Kind {
		case dataport.TargetUnreachable:
			if err := e.Port.Switch(context.Background(), -1); err != nil {
				t.Errorf("switch: %v", err)
			}
		case dataport.SessionUp:
			if r, err := e.Port.Call(context.Background(), []byte("from a callback")); err != nil || string(r) != "re:from a callback" {
				t.Errorf("call: %q %v", r, err)
			}
			_ = e.Port.Close()
		}
	}
	w.source.mu.Unlock()
	w.silence()
	w.source.awaitEvent(t, dataport.PortClosed, 1)
	if got := w.source.kinds(); got != lossEvents+" Switching PathUp Switched SessionUp SessionDown PortClosed" {
		t.Errorf("events %s", got)
	}
}

func TestSlowCallbackDelaysNoHeartbeat(t *testing.T) {
	w := newWorld(t, dataport.Auto)
	release := make(chan struct{})
	w.source.mu.Lock()
	w.source.onEvent = func(e dataport.Event) { <-release }
	w.source.onMsg = func(context.Context, dataport.Message) ([]byte, error) { <-release; return nil, nil }
	w.source.mu.Unlock()
	w.target.mu.Lock()
	w.target.onMsg = func(ctx context.Context, m dataport.Message) ([]byte, error) {
		_, err := m.Session.Send(ctx, []byte("stuck"))
		return nil, err
	}
	w.target.mu.Unlock()
	if _, err := w.port.Call(context.Background(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.port.ResetPath(1); err != nil { // events pile up behind the slow callback
		t.Fatal(err)
	}
	w.target.awaitEvent(t, dataport.PathUp, 3)
	time.Sleep(2 * quick().UnreachableAfter) // the time itself is what is tested
	close(release)
	w.source.awaitEvent(t, dataport.PathUp, 3)
	if got := w.source.kinds(); got != "PathUp SessionUp PathUp PathDown PathUp" {
		t.Errorf("source events %s", got)
	}
	if got := w.target.kinds(); got != "PathUp SessionUp PathUp PathDown PathUp" {
		t.Errorf("target events %s", got)
	}
}

func TestPeerRestarts(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	old := w.port.Session()
	addrs := w.targetNode.Addrs()
	// The process dies: its connections are reset, no goodbye is said.
	for _, p := range w.paths {
		p.Refuse(true)
		p.Cut()
	}
	w.source.awaitEvent(t, dataport.PathDown, 2)
	_ = w.targetNode.Close()
	again := newRecorder()
	n := node(t, config("target", addrs...))
	register(t, n, again)
	for _, p := range w.paths {
		p.Refuse(false)
	}
	w.source.awaitEvent(t, dataport.SessionUp, 2)
	w.source.awaitEvent(t, dataport.PathUp, 4)
	if got := w.source.kinds(); got != "PathUp SessionUp PathUp PathDown PathDown PeerRestarted SessionDown PathUp SessionUp PathUp" {
		t.Errorf("events %s", got)
	}
	if w.port.Session() == old || old.Err() == nil || w.port.Session().Peer().Incarnation != n.Incarnation() {
		t.Errorf("the old session lives on")
	}
	want := stream(t, w.port, 20)
	if got := again.ledgerOf(w.port.Session().ID()); got != want {
		t.Errorf("got %+v, sent %+v", got, want)
	}
}

// Two links of 10 and 2 MB/s: both are used for what they can.
func TestUnequalLinksAddUp(t *testing.T) {
	w := newWorld(t, dataport.Manual)
	const fast, slow = 10 << 20, 2 << 20
	w.paths[0].Rate(fast)
	w.paths[1].Rate(slow)
	run := func(total int) float64 {
		start := time.Now()
		b := make([]byte, 100<<10)
		var last *dataport.Receipt
		for sent := 0; sent < total; sent += len(b) {
			r, err := w.port.Send(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			last = r
		}
		if err := last.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		return float64(total) / time.Since(start).Seconds()
	}
	run(4 << 20) // the rates are learnt
	got := run(30 << 20)
	t.Logf("%.1f MB/s of %.1f (%.0f %%)", got/(1<<20), float64(fast+slow)/(1<<20), 100*got/(fast+slow))
	// How fast that is on a busy machine says little; who carried what says it.
	paths := w.port.Stats().Paths
	if a, b := paths[0].BytesSent, paths[1].BytesSent; a < 2*b || b < 1<<20 {
		t.Errorf("the link of 10 MB/s carried %d MiB, the one of 2 MB/s %d MiB", a>>20, b>>20)
	}
	for _, p := range paths {
		t.Logf("path %d: %.1f MB/s measured, rtt %v, sent %d MiB, resent %d", p.ID, p.Rate/(1<<20), p.RTT, p.BytesSent>>20, p.ResentFrames)
	}
	if got := w.source.kinds(); got != "PathUp SessionUp PathUp" {
		t.Errorf("load alone caused events: %s", got)
	}
}
