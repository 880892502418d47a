package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// fakeAgent records its orders and answers with what the test put in.
type fakeAgent struct {
	mu      sync.Mutex // guards all below
	state   mirror.Status
	orders  []string
	refuse  error
	block   chan struct{} // when set, commands wait for it or for their ctx
	entered chan struct{} // when set, told by every command that waits
	events  []mirror.Event
	changed chan struct{}
	drill   mirror.DrillStatus
	drilled chan struct{} // closed when it has ended
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{changed: make(chan struct{}), state: mirror.Status{
		Name: "vol0", Role: "primary", Mode: "flush",
		Followers: []mirror.FollowerStatus{{Target: "10.1.0.9:7400", State: "streaming", Active: true}},
		Source:    &mirror.SourceStatus{Peer: "nyc1"},
	}}
}

func (a *fakeAgent) Status() mirror.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

func (a *fakeAgent) Events(after uint64) ([]mirror.Event, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []mirror.Event
	for _, e := range a.events {
		if e.Sequence > after {
			list = append(list, e)
		}
	}
	return list, a.changed
}

func (a *fakeAgent) happen(kind string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, mirror.Event{Sequence: uint64(len(a.events) + 1), Kind: kind, Mirror: "vol0"})
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeAgent) order(ctx context.Context, format string, args ...any) error {
	a.mu.Lock()
	block, entered := a.block, a.entered
	a.mu.Unlock()
	if block != nil {
		if entered != nil {
			entered <- struct{}{}
		}
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return a.refuse
	}
	a.orders = append(a.orders, fmt.Sprintf(format, args...))
	return nil
}

func (a *fakeAgent) SetMode(ctx context.Context, m mirror.Mode) error {
	err := a.order(ctx, "mode %s", m)
	if err == nil {
		a.mu.Lock()
		a.state.Mode = string(m)
		a.mu.Unlock()
	}
	return err
}

func (a *fakeAgent) Switch(ctx context.Context, to string) error {
	return a.order(ctx, "switch %s", to)
}
func (a *fakeAgent) Suspend(ctx context.Context) error { return a.order(ctx, "suspend") }
func (a *fakeAgent) Resume(ctx context.Context) error  { return a.order(ctx, "resume") }
func (a *fakeAgent) ResetPath(ctx context.Context, target string, id int) error {
	return a.order(ctx, "reset %s %d", target, id)
}

func (a *fakeAgent) RemovePath(ctx context.Context, target string, id int) error {
	return a.order(ctx, "remove %s %d", target, id)
}

func (a *fakeAgent) Listen(ctx context.Context, address string) (string, error) {
	return address, a.order(ctx, "listen %s", address)
}

func (a *fakeAgent) Unlisten(ctx context.Context, address string) error {
	return a.order(ctx, "unlisten %s", address)
}

func (a *fakeAgent) SetBandwidth(ctx context.Context, spec string) error {
	return a.order(ctx, "bandwidth %s", spec)
}

func (a *fakeAgent) Resize(ctx context.Context, size int64) (int64, error) {
	return size, a.order(ctx, "resize %d", size)
}

func (a *fakeAgent) CreateCheckpoint(ctx context.Context, name string) (mirror.Checkpoint, error) {
	return mirror.Checkpoint{Name: name, LSN: 4096}, a.order(ctx, "checkpoint %s", name)
}

func (a *fakeAgent) Checkpoints(ctx context.Context) ([]mirror.Checkpoint, error) {
	return []mirror.Checkpoint{{Name: "noon", LSN: 4096}}, a.order(ctx, "checkpoints")
}

func (a *fakeAgent) ResizeLog(ctx context.Context, bytes int64) error {
	return a.order(ctx, "log resize %d", bytes)
}

func (a *fakeAgent) RemoveMember(ctx context.Context, who string) error {
	return a.order(ctx, "member remove %s", who)
}

func (a *fakeAgent) Verify(ctx context.Context, o mirror.VerifyOptions) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{State: mirror.VerifyRunning, Options: o}, a.order(ctx, "verify %+v", o)
}

func (a *fakeAgent) StopVerify(ctx context.Context) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{State: mirror.VerifyStopped}, a.order(ctx, "verify stop")
}

func (a *fakeAgent) VerifyReport(ctx context.Context) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{State: mirror.VerifyDone, Differences: []mirror.Difference{{Offset: 4096, Length: 4096, Kind: "differs"}}}, a.order(ctx, "verify report")
}

func (a *fakeAgent) Window() (mirror.Window, error) {
	return mirror.Window{From: mirror.Point{LSN: 4096}, To: mirror.Point{LSN: 8192}}, a.order(context.Background(), "window")
}

func (a *fakeAgent) StartDrill(ctx context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error) {
	if err := a.order(ctx, "drill %+v", o); err != nil {
		return mirror.DrillStatus{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drill = mirror.DrillStatus{ID: a.drill.ID + 1, Running: true, Asked: o.At}
	a.drilled = make(chan struct{})
	return a.drill, nil
}

func (a *fakeAgent) StopDrill(ctx context.Context, id uint64, why string) (mirror.DrillStatus, error) {
	a.mu.Lock()
	if !a.drill.Running || id != 0 && id != a.drill.ID {
		a.mu.Unlock()
		return mirror.DrillStatus{}, errors.New("no drill runs")
	}
	a.drill.Running, a.drill.Reason = false, why
	close(a.drilled)
	ended := a.drill
	a.mu.Unlock()
	return ended, a.order(ctx, "drill stop %d %s", id, why)
}

func (a *fakeAgent) Drill() (mirror.DrillStatus, <-chan struct{}, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.drill, a.drilled, a.drill.ID > 0
}

func (a *fakeAgent) Scrub(ctx context.Context) error { return a.order(ctx, "scrub") }

func (a *fakeAgent) Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	err := a.order(ctx, "promote force=%t nbd=%s dry=%t", o.Force, o.NBD, o.DryRun)
	return mirror.PromoteResult{Generation: "2.0", LSN: 4096, NBD: o.NBD, Seconds: 0.5}, err
}

func (a *fakeAgent) Demote(ctx context.Context, o mirror.DemoteOptions) (mirror.DemoteResult, error) {
	err := a.order(ctx, "demote dry=%t", o.DryRun)
	return mirror.DemoteResult{Name: "vol0", From: 4096}, err
}

func (a *fakeAgent) Failback(ctx context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error) {
	return mirror.FailbackResult{Home: "nyc1", Ready: true, DryRun: o.DryRun}, a.order(ctx, "failback dry=%t limit=%v", o.DryRun, o.LimitSeconds)
}

// serve starts a server for a and returns its socket.
func serve(t *testing.T, a Agent, change func(*Options)) (*Server, string) {
	t.Helper()
	o := DefaultOptions()
	if change != nil {
		change(&o)
	}
	path := filepath.Join(t.TempDir(), "vol0.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(a, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, path
}

func client(t *testing.T, path string) *Client {
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// exchange sends raw bytes and returns all that comes back.
func exchange(t *testing.T, path, request string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = c.Write([]byte(request)) }()
	return readAll(c)
}
