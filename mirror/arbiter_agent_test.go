package mirror

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeArbiter is an arbiter in memory with the rules of etcd's, whose answers can be withheld.
type fakeArbiter struct {
	mu     sync.Mutex // guards all below
	silent bool
	until  time.Time
	holder memberID
	node   string
	known  bool
	record Holder
	ttl    time.Duration
}

// setSilent lets nobody have an answer.
func (f *fakeArbiter) setSilent(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = on
}

var errSilent = errors.New("no answer")

func (f *fakeArbiter) Name() string { return "fake" }
func (f *fakeArbiter) Leases() bool { return true }
func (f *fakeArbiter) Close() error { return nil }

func (f *fakeArbiter) Release(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Time{}
	return nil
}

func (f *fakeArbiter) Renew(_ context.Context, h Holder) (Ruling, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch rank := compareRank(f.record.Generation, h.Generation); {
	case f.silent:
		return Ruling{}, errSilent
	case f.known && (rank > 0 || rank == 0 && f.record.Generation.ID != h.Generation.ID):
		return Ruling{Superseded: true, Refused: f.node + " was leased another generation"}, nil
	case f.holder != h.ID && now.Before(f.until):
		return Ruling{Refused: f.node + " has the lease"}, nil
	}
	f.until, f.holder, f.node, f.record, f.known = now.Add(f.ttl), h.ID, h.Node, h, true
	return Ruling{TTL: f.ttl, Recorded: h.Eligible}, nil
}

func (f *fakeArbiter) Grant(_ context.Context, h Holder, dryRun bool) (Ruling, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	named := f.record.ID == h.ID
	for _, id := range f.record.Eligible {
		named = named || id == h.ID
	}
	switch {
	case f.silent:
		return Ruling{}, errSilent
	case now.Before(f.until):
		return Ruling{Refused: f.node + " has the lease"}, nil
	case !named:
		return Ruling{Refused: "this host lacks what was flushed"}, nil
	case dryRun:
		return Ruling{}, nil
	}
	g := generation(max(f.record.Generation.Major, h.Generation.Major)+1, 0, byte(now.UnixNano()))
	g.ID[1] = 1
	h.Generation, h.Eligible = g, []memberID{h.ID}
	f.until, f.holder, f.node, f.record = now.Add(f.ttl), h.ID, h.Node, h
	return Ruling{TTL: f.ttl, Generation: g, Recorded: h.Eligible}, nil
}

func (f *fakeArbiter) eligible() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.record.Eligible)
}

// leasedPair is a source and a target that promotes itself, with an arbiter.
func leasedPair(t *testing.T, set func(source, target *Config)) (f *fakeArbiter, source, target *agentNode) {
	t.Helper()
	f = &fakeArbiter{ttl: 2 * time.Second}
	target = newAgentNode(t, RoleSecondary)
	target.c.AutoPromote = true
	target.arbiter = f
	target.start()
	source = newAgentNode(t, RolePrimary, target)
	source.arbiter = f
	if set != nil {
		set(&source.c, &target.c)
	}
	source.start()
	source.awaitState("in sync")
	source.awaitWithin(20*time.Second, "recorded", func(Status) bool { return f.eligible() == 1 })
	return f, source, target
}

// TestLeasePasses: the source dies, the target promotes itself when the lease has passed and has all that was flushed; the old
// source is fenced by the arbiter's word when it comes back.
func TestLeasePasses(t *testing.T) {
	_, source, target := leasedPair(t, nil)
	p := source.write(1)
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err == nil {
		t.Fatal("promoted beside a live source")
	}
	source.kill()
	target.awaitWithin(30*time.Second, "promoted by itself", func(s Status) bool { return s.Role == "primary" })
	target.awaitServing()
	target.holds(p)
	target.write(2)
	source.c.Target = nil
	source.start()
	source.awaitWithin(20*time.Second, "fenced by the arbiter", func(s Status) bool { return s.State == "fenced" && strings.Contains(s.Reason, "fake says") })
	if source.front.served() != nil {
		t.Fatal("the old source serves")
	}
}

// TestArbiterSilent: a source whose arbiter does not answer lets writes and flushes wait, says so, and goes on when it answers; nobody
// is promoted meanwhile.
func TestArbiterSilent(t *testing.T) {
	f, source, target := leasedPair(t, nil)
	p := source.write(1)
	f.setSilent(true)
	source.awaitWithin(20*time.Second, "frozen", func(s Status) bool {
		return s.State == stateFrozen && strings.Contains(s.Reason, "fake does not answer") && len(s.Alarms) > 0 && !s.Arbiter.Held
	})
	done := make(chan error, 1)
	go func() {
		_, err := source.front.served().WriteAt([]byte("later"), 0)
		done <- err
	}()
	target.a.closeInbound() // it does not hear the source any more
	if _, err := target.a.Promote(t.Context(), PromoteOptions{}); err == nil || !strings.Contains(err.Error(), "fake does not answer") {
		t.Fatalf("promoted without an arbiter: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("a write was answered without a lease: %v", err)
	default:
	}
	f.setSilent(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	source.awaitWithin(20*time.Second, "in sync again", func(s Status) bool { return s.State == "in sync" && s.Arbiter.Held })
	target.holds(p)
}

// TestRecordFirst: a source goes on alone only when the arbiter knows that its target lacks what it answers; that one is not
// promoted then.
func TestRecordFirst(t *testing.T) {
	f, source, target := leasedPair(t, nil)
	source.write(1)
	target.kill()
	source.write(2) // answered alone
	if n := f.eligible(); n != 0 {
		t.Fatalf("%d may be promoted although they lack what was flushed", n)
	}
	source.kill()
	target.c.AutoPromote = false // the test orders it
	target.start()
	target.awaitState("waiting")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := target.a.Promote(t.Context(), PromoteOptions{})
		if err != nil && strings.Contains(err.Error(), "lacks what was flushed") {
			break
		}
		if err == nil || time.Now().After(end) {
			t.Fatalf("promotion of a target that lacks what was flushed: %v", err)
		}
	}
	if _, err := target.a.Promote(t.Context(), PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	target.write(3) // and it got the lease as a primary
}

// TestAutoPromoteOfThree: with three members the others' word is enough.
func TestAutoPromoteOfThree(t *testing.T) {
	x := newElectorTrioWith(t, true, func(c *Config) { c.AutoPromote = true })
	p := x.source.write(1)
	x.source.kill()
	var won *agentNode
	for end := time.Now().Add(40 * time.Second); won == nil; time.Sleep(20 * time.Millisecond) {
		for _, n := range []*agentNode{x.target, x.backup} {
			if n.a.Status().Role == "primary" {
				won = n
			}
		}
		if time.Now().After(end) {
			t.Fatalf("nobody promoted itself: %s; %s", x.target.a.notByItself(time.Now()), x.backup.a.notByItself(time.Now()))
		}
	}
	won.awaitServing()
	won.holds(p)
}

// TestAutoPromoteOfTwo: it is refused at the start where nobody could decide.
func TestAutoPromoteOfTwo(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	target.awaitWithin(20*time.Second, "told", func(s Status) bool { return s.Electorate != nil && len(s.Electorate.Members) == 2 })
	target.end()
	target.c.AutoPromote = true
	if _, err := Open(t.Context(), target.c, target.front); err == nil || !strings.Contains(err.Error(), "give it an arbiter") {
		t.Fatalf("started: %v", err)
	}
	target.c.AutoPromote = false
	target.start()
	source.awaitState("in sync")
}
