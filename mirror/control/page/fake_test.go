package page

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"

	"mirror-agent/mirror"
)

// fakeAgent records its orders and tells of events that the test makes.
type fakeAgent struct {
	mu      sync.Mutex // guards all below
	orders  []string
	refuse  error
	events  []mirror.Event
	marks   []mirror.Checkpoint
	dropped uint64 // events that are not kept any more
	changed chan struct{}
}

func newFakeAgent() *fakeAgent { return &fakeAgent{changed: make(chan struct{})} }

func (a *fakeAgent) Status() mirror.Status {
	return mirror.Status{
		Name: "vol0", Role: "primary", State: "in sync", Mode: "flush",
		Followers: []mirror.FollowerStatus{{Target: "10.1.0.9:7400", State: "streaming", Active: true, LagBytes: 4096, RPOSeconds: 0.5}},
	}
}

func (a *fakeAgent) Events(after uint64) ([]mirror.Event, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []mirror.Event
	for _, e := range a.events {
		if e.Sequence > max(after, a.dropped) {
			list = append(list, e)
		}
	}
	return list, a.changed
}

// happen makes n events.
func (a *fakeAgent) happen(n int, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range n {
		a.events = append(a.events, mirror.Event{Sequence: uint64(len(a.events) + 1), Kind: "state", Text: text})
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeAgent) order(format string, args ...any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return a.refuse
	}
	a.orders = append(a.orders, fmt.Sprintf(format, args...))
	return nil
}

func (a *fakeAgent) given() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.orders...)
}

// mark makes a checkpoint.
func (a *fakeAgent) mark(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.marks = append(a.marks, mirror.Checkpoint{Name: name, LSN: 128})
	a.events = append(a.events, mirror.Event{Sequence: uint64(len(a.events) + 1), Kind: "checkpoint", Text: name})
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeAgent) Checkpoints(context.Context) ([]mirror.Checkpoint, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]mirror.Checkpoint{{Name: "nightly", LSN: 64}}, a.marks...), nil
}
func (a *fakeAgent) Switch(_ context.Context, to string) error { return a.order("switch %s", to) }
func (a *fakeAgent) Promote(_ context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	return mirror.PromoteResult{DryRun: o.DryRun}, a.order("promote %t %t %t", o.Force, o.DryRun, o.Planned)
}

func (a *fakeAgent) Verify(context.Context, mirror.VerifyOptions) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{}, a.order("verify")
}

func (a *fakeAgent) StopVerify(context.Context) (mirror.VerifyReport, error) {
	return mirror.VerifyReport{}, a.order("verify-stop")
}

func (a *fakeAgent) StartDrill(_ context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error) {
	return mirror.DrillStatus{ID: 7, Running: true}, a.order("drill-start %q %q", o.At, o.NBD)
}

func (a *fakeAgent) StopDrill(_ context.Context, id uint64, why string) (mirror.DrillStatus, error) {
	return mirror.DrillStatus{ID: id}, a.order("drill-stop %d %s", id, why)
}
func (a *fakeAgent) Suspend(context.Context) error { return a.order("suspend") }
func (a *fakeAgent) Resume(context.Context) error  { return a.order("resume") }

var errRefused = errors.New("refused: not now\ntry later")

const secret = "a-token-of-the-test-0123456789"

func withToken(o *Options) { o.Token = func() (string, error) { return secret, nil } }

// serve serves the page of a on loopback and returns its URL.
func serve(t *testing.T, a *fakeAgent, change ...func(*Options)) (url string) {
	t.Helper()
	o := DefaultOptions()
	for _, c := range change {
		c(&o)
	}
	s, err := NewServer(a, o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, nil) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}
