package mirror

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// fakeFront is a front without clients: the test is the client.
type fakeFront struct {
	mu      sync.Mutex // guards all below
	dev     blockdev.Device
	opening func() error // called in Open
	ending  func()       // called in Close and Abort
	clients int
	refuses string // the address that Check refuses; set before the agent runs
}

var errRefusedAddress = errors.New("not there")

func (f *fakeFront) Check(address string) error {
	if address == f.refuses {
		return errRefusedAddress
	}
	return nil
}

func (f *fakeFront) Open(dev blockdev.Device, _, address string) (string, error) {
	f.mu.Lock()
	opening := f.opening
	f.mu.Unlock()
	if opening != nil {
		if err := opening(); err != nil {
			return "", err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dev = dev
	return address, nil
}

func (f *fakeFront) Close(context.Context) error { f.Abort(); return nil }

func (f *fakeFront) Abort() {
	f.mu.Lock()
	ending := f.ending
	f.mu.Unlock()
	if ending != nil {
		ending()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dev = nil
}

func (f *fakeFront) Stats() FrontStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return FrontStats{Connections: f.clients}
}

func (f *fakeFront) setClients(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients = n
}

func (f *fakeFront) served() blockdev.Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dev
}

func (f *fakeFront) setOpening(o func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opening = o
}

func (f *fakeFront) setEnding(e func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ending = e
}

// agentNode is one agent over the real data port, started and ended at will.
type agentNode struct {
	t     *testing.T
	c     Config
	front *fakeFront
	a     *Agent
	stop  context.CancelFunc
	done  chan error

	opened  func()  // called when a is open and does not run yet
	arbiter Arbiter // takes the place of the configured one
}

func newAgentNode(t *testing.T, role Role, targets ...*agentNode) *agentNode {
	t.Helper()
	c := DefaultConfig()
	c.Name, c.Role, c.Insecure = "vol", role, true
	c.Device, c.Size, c.JournalSize = filepath.Join(t.TempDir(), "dev"), 1<<20, minJournalSize
	c.NBD, c.NodeName = "unix:none", "node-"+filepath.Base(filepath.Dir(c.Device))
	c.UnreachableAfter, c.PathDownAfter, c.StartWait = 900*time.Millisecond, 400*time.Millisecond, 700*time.Millisecond
	c.SyncInterval = 20 * time.Millisecond
	if role == RoleSecondary {
		c.Listen = []string{"127.0.0.1:0"}
	}
	for i, x := range targets {
		if i == 0 {
			c.Target = x.a.transport.addresses()
		} else {
			c.Backups = append(c.Backups, x.a.transport.addresses())
		}
	}
	n := &agentNode{t: t, c: c, front: &fakeFront{}}
	t.Cleanup(n.end)
	return n
}

// start opens and runs the agent, at the same addresses as before.
func (n *agentNode) start() *agentNode {
	n.t.Helper()
	a, err := Open(n.t.Context(), n.c, n.front)
	if err != nil {
		n.t.Fatal(err)
	}
	n.a = a
	if n.arbiter != nil {
		a.arbiter, a.c.ArbiterTTL = n.arbiter, 2*time.Second
	}
	if n.opened != nil {
		n.opened()
	}
	if len(n.c.Listen) > 0 {
		n.c.Listen = a.transport.addresses()
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan error, 1)
	go func() { n.done <- a.Run(ctx) }()
	return n
}

func (n *agentNode) end() {
	if n.a == nil {
		return
	}
	n.stop()
	if err := <-n.done; err != nil {
		n.t.Logf("%s ended: %v", n.c.NodeName, err)
	}
	n.a = nil
}

// kill ends the agent as SIGKILL does: what the OS has stays, nothing else.
func (n *agentNode) kill() {
	a := n.a
	a.mu.Lock()
	a.closed = true
	p := a.promise
	a.mu.Unlock()
	a.stopTasks()
	if p != nil {
		p.close()
	}
	a.front.Abort()
	a.stopSenders()
	_ = a.transport.close()
	a.closeInbound()
	a.wg.Wait()
	_ = a.v.Abort()
	n.end()
}

func (n *agentNode) await(what string, ok func(s Status) bool) {
	n.t.Helper()
	n.awaitWithin(8*time.Second, what, ok)
}

func (n *agentNode) awaitWithin(long time.Duration, what string, ok func(s Status) bool) {
	n.t.Helper()
	var s Status
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s = n.a.Status(); ok(s) {
			return
		}
	}
	n.t.Fatalf("%s: not %s: state %s (%s), followers %+v", n.c.NodeName, what, s.State, s.Reason, s.Followers)
}

func (n *agentNode) awaitState(state string) {
	n.t.Helper()
	n.await(state, func(s Status) bool { return s.State == state })
}

func (n *agentNode) awaitServing() blockdev.Device {
	n.t.Helper()
	n.await("serving", func(Status) bool { return n.front.served() != nil })
	return n.front.served()
}

func (n *agentNode) write(fill byte) []byte {
	n.t.Helper()
	p := bytes.Repeat([]byte{fill}, 70000)
	dev := n.awaitServing()
	if _, err := dev.WriteAt(p, 4096); err != nil {
		n.t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *agentNode) holds(p []byte) {
	n.t.Helper()
	got := make([]byte, len(p))
	if _, err := n.a.v.ReadAt(got, 4096); err != nil || !bytes.Equal(got, p) {
		n.t.Fatalf("%s does not hold what was written (%v)", n.c.NodeName, err)
	}
}

// TestAgents follows a source and its target through restarts of both, clean
// and killed, to the promotion of the target and the old source's return.
func TestAgents(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	target.holds(source.write(1))

	target.kill()
	p := source.write(2)
	target.start()
	source.awaitState("in sync")
	target.holds(p)

	source.kill()
	before := source.c
	source.start()
	source.awaitState("in sync")
	if s := source.a.Status(); s.Generation != "1.1" || before.Device != s.Device.Path {
		t.Fatalf("generation %s after a kill", s.Generation)
	}
	source.end()
	source.start()
	source.awaitState("in sync")
	if g := source.a.Status().Generation; g != "1.1" {
		t.Fatalf("generation %s after a clean end", g)
	}
	p = source.write(3)
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err == nil || !strings.Contains(err.Error(), "alive") {
		t.Fatalf("promoted beside a live source: %v", err)
	}
	source.kill()
	target.awaitState("waiting")
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err != nil {
		t.Fatal(err)
	}
	target.holds(p)
	target.write(4)
	source.start() // it has nothing of its own: the target had everything
	source.awaitState("streaming")
	if source.front.served() != nil {
		t.Fatal("the old source serves")
	}
	source.end()
	source.start() // and again
	source.awaitState("streaming")
	target.kill()
	target.start()
	target.awaitServing()
	if s := target.a.Status(); s.Role != "primary" || s.Generation != "2.1" {
		t.Fatalf("the promoted target is %s of generation %s after a kill", s.Role, s.Generation)
	}
}

// TestForcedPromotion fences a source that is alive, at once: it was left
// waiting for acknowledgements that nobody sent, its clients with it.
func TestForcedPromotion(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	p := source.write(1)
	dev := source.front.served()
	if _, err := target.a.Promote(t.Context(), PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	source.await("fenced", func(Status) bool { return slices.Contains(eventKinds(source.a), "fenced") })
	target.holds(p)
	if _, err := dev.WriteAt([]byte("x"), 0); !errors.Is(err, ErrFenced) {
		t.Fatalf("a write on the fenced side: %v", err)
	}
	if err := dev.Sync(); !errors.Is(err, ErrFenced) {
		t.Fatalf("a flush on the fenced side: %v", err)
	}
}

// TestPortInUse: a start that cannot listen changes nothing: it creates no
// files, and an unclean end stays one.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := newAgentNode(t, RolePrimary)
	n.c.Listen = []string{l.Addr().String()}
	if _, err := Open(t.Context(), n.c, n.front); err == nil {
		t.Fatal("opened")
	}
	if left, err := os.ReadDir(filepath.Dir(n.c.Device)); err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v (%v)", left, err)
	}
	n.c.Listen = nil
	n.start()
	p := n.write(1)
	n.kill()
	n.c.Listen = []string{l.Addr().String()}
	if _, err := Open(t.Context(), n.c, n.front); err == nil {
		t.Fatal("opened")
	}
	n.c.Listen = nil
	n.start()
	n.awaitServing()
	n.holds(p)
	if g := n.a.Status().Generation; g != "1.1" {
		t.Fatalf("generation %s after an unclean end", g)
	}
}

// TestForeignTarget: a target that belongs to another mirror of the same name
// is refused. It fenced the source when it had seen a higher generation.
func TestForeignTarget(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	other := newAgentNode(t, RolePrimary, target).start()
	other.awaitState("in sync")
	other.kill()
	other.start()
	other.awaitState("in sync")
	other.end()
	source := newAgentNode(t, RolePrimary, target).start()
	source.await("refused", func(s Status) bool { return s.Followers[0].State == string(FollowerRefused) })
	source.write(1)
	s := source.a.Status()
	if s.State != "degraded" || !strings.Contains(s.Reason, "holds mirror") {
		t.Fatalf("state %s: %s", s.State, s.Reason)
	}
}

// TestSuspendAndSwitch: the followers' states stay true through suspend,
// resume, and a switch to the backup and back, also of an idle mirror.
func TestSuspendAndSwitch(t *testing.T) {
	first, second := newAgentNode(t, RoleSecondary).start(), newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, first, second)
	source.c.OnLoss = OnLossFreeze // a follower that never counts again would hang the writes
	source.start()
	source.awaitState("in sync")
	first.holds(source.write(1))
	order := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	order(source.a.Suspend(t.Context()))
	source.awaitState("suspended")
	order(source.a.Resume(t.Context()))
	source.awaitState("in sync")
	order(source.a.Switch(t.Context(), "backup"))
	active := func(n *agentNode) func(Status) bool {
		return func(s Status) bool { return s.State == "in sync" && s.ActiveTarget == n.c.Listen[0] }
	}
	source.await("fed to the backup", active(second))
	second.holds(source.write(2))
	// The old target knows that it is old, also after a restart.
	refusedAs := func(n *agentNode, why string) {
		t.Helper()
		if _, err := n.a.Promote(t.Context(), PromoteOptions{NBD: "unix:x"}); err == nil || !strings.Contains(err.Error(), why) {
			t.Fatalf("promotion of a target: %v, want a refusal with %q", err, why)
		}
	}
	refusedAs(first, "moved its data flow")
	first.kill()
	first.start()
	refusedAs(first, "moved its data flow")
	order(source.a.Suspend(t.Context()))
	order(source.a.Switch(t.Context(), "primary"))
	order(source.a.Resume(t.Context()))
	source.await("fed to the primary target", active(first))
	first.holds(source.write(3))
	refusedAs(first, "is alive")
	if f := source.a.Status().Followers[1]; f.State != string(FollowerIdle) {
		t.Fatalf("the backup is %s", f.State)
	}
	order(source.a.Switch(t.Context(), "backup"))
	source.await("fed to the backup again", active(second))
	second.holds(source.write(4))
}

// TestSwitchToOneThatAnswersAtOnce: the session with the new target may be up before the flow has moved there.
func TestSwitchToOneThatAnswersAtOnce(t *testing.T) {
	first, second := newAgentNode(t, RoleSecondary).start(), newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, first, second)
	source.c.OnLoss = OnLossFreeze // a follower that is never fed would hang the writes
	source.start()
	source.awaitState("in sync")
	if err := source.a.connect(1); err != nil { // as the switch does, but then it is slow
		t.Fatal(err)
	}
	source.await("connected to the backup", func(Status) bool {
		l, _ := source.a.transport.session(source.a.portOf(1))
		return l != nil
	})
	time.Sleep(50 * time.Millisecond) // the agent is told, too
	if err := source.a.Switch(t.Context(), "backup"); err != nil {
		t.Fatal(err)
	}
	source.await("fed to the backup", func(s Status) bool { return s.State == "in sync" && s.ActiveTarget == second.c.Listen[0] })
	second.holds(source.write(1))
}

// TestAutoSwitch: the flow moves when the target dies, and a flush waits for
// neither longer than it has to.
func TestAutoSwitch(t *testing.T) {
	first, second := newAgentNode(t, RoleSecondary).start(), newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, first, second)
	source.c.Switch = SwitchAuto
	source.start()
	source.awaitState("in sync")
	source.write(1)
	first.kill()
	source.write(2)
	source.await("fed to the backup", func(s Status) bool { return s.State == "in sync" && s.ActiveTarget == second.c.Listen[0] })
	second.holds(source.write(3))
}

// TestPromoteWhereNothingServes: a promotion whose address is taken says so,
// and is completed by the next order.
func TestPromoteWhereNothingServes(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	spare := newAgentNode(t, RoleSecondary).start()
	target.c.Target = spare.a.transport.addresses()
	target.end()
	target.start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	p := source.write(1)
	source.end()
	target.awaitState("waiting")
	taken := errors.New("address in use")
	target.front.setOpening(func() error { return taken })
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); !errors.Is(err, taken) {
		t.Fatal(err)
	}
	target.awaitState("failed")
	target.front.setOpening(nil)
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err != nil {
		t.Fatal(err)
	}
	target.awaitState("in sync") // with its own follower
	target.holds(p)
	spare.holds(target.write(2))
}

// TestFencedWhileOpening: a higher generation met while the front opens
// leaves no front open.
func TestFencedWhileOpening(t *testing.T) {
	n := newAgentNode(t, RolePrimary)
	n.front.setOpening(func() error { n.a.fence("a test", journal.Generation{Major: 99}); return nil })
	a, err := Open(t.Context(), n.c, n.front)
	if err != nil {
		t.Fatal(err)
	}
	n.a = a
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan error, 1)
	go func() { n.done <- a.Run(ctx) }()
	n.awaitState("fenced")
	if err := a.ResetPath(ctx, "nobody", 1); err == nil {
		t.Fatal("a path of nobody was reset")
	}
	n.await("closed", func(Status) bool { return n.front.served() == nil })
}
