package mirror

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// waits reports whether a flush up to lsn is still waiting after everything
// that can run has run.
func waits(t *testing.T, p *promise, lsn journal.LSN) (bool, <-chan error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.wait(t.Context(), lsn) }()
	synctest.Wait()
	return len(done) == 0, done
}

// TestPromise: when a flush is answered, by mode, policy and what the target has.
func TestPromise(t *testing.T) {
	counting := func(p *promise) { p.acknowledge(0, 100, 100, 100) }
	tests := []struct {
		name      string
		mode      Mode
		onLoss    OnLoss
		followers int
		do        func(*promise)
		waits     bool
	}{
		{"no target configured", ModeFlush, OnLossFreeze, 0, nil, false},
		{"target never there, continue", ModeFlush, OnLossContinue, 1, nil, false},
		{"target never there, freeze", ModeFlush, OnLossFreeze, 1, nil, true},
		{"target in sync and behind", ModeFlush, OnLossContinue, 1, counting, true},
		{"target in sync and behind, async", ModeAsync, OnLossContinue, 1, counting, false},
		{"target in sync and durable", ModeFlush, OnLossContinue, 1, func(p *promise) { counting(p); p.acknowledge(0, 200, 200, 200) }, false},
		{"session lost, target expected", ModeFlush, OnLossContinue, 1, func(p *promise) { counting(p); p.lost(0) }, true},
		{"given up, continue", ModeFlush, OnLossContinue, 1, func(p *promise) { counting(p); p.lost(0); p.giveUp(0) }, false},
		{"given up, freeze", ModeFlush, OnLossFreeze, 1, func(p *promise) { counting(p); p.giveUp(0) }, true},
		{"given up, async and freeze", ModeAsync, OnLossFreeze, 1, func(p *promise) { counting(p); p.giveUp(0) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPromise(tt.mode, tt.onLoss, tt.followers, 50)
				if tt.do != nil {
					tt.do(p)
				}
				got, done := waits(t, p, 200)
				if got != tt.waits {
					t.Fatalf("waits: %v, want %v", got, tt.waits)
				}
				p.close()
				if err := <-done; got != errors.Is(err, blockdev.ErrShutdown) {
					t.Fatalf("after the end: %v", err)
				}
			})
		})
	}
}

// TestPromiseCounts: a target counts only once it has everything that a flush
// was answered for without it, and not while it is far behind.
func TestPromiseCounts(t *testing.T) {
	p := newPromise(ModeFlush, OnLossContinue, 1, 1000)
	if p.acknowledge(0, 999, 999, 2000); p.counts() {
		t.Error("counts without what was answered before the start")
	}
	if err := p.wait(context.Background(), 3000); err != nil { // alone
		t.Fatal(err)
	}
	if p.acknowledge(0, 2999, 2999, 3000); p.counts() {
		t.Error("counts without what was answered alone")
	}
	if p.acknowledge(0, 3000, 3000, 3000+maxBehindBytes+1); p.counts() {
		t.Error("counts while it is far behind")
	}
	if news := p.acknowledge(0, 3001, 3001, 3000+maxBehindBytes+1); news != cameLevel || !p.counts() {
		t.Error("does not count with all of it")
	}
	p.session(0)
	if p.acknowledge(0, 2000, 2000, 3000); p.counts() {
		t.Error("a new session counts with an old acknowledgement")
	}
}

// TestPromiseFreeze: with freeze, writes wait as long as no target counts.
func TestPromiseFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPromise(ModeAsync, OnLossFreeze, 1, 0)
		done := make(chan error, 1)
		go func() { done <- p.admit(context.Background()) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("a write was admitted without a target")
		}
		p.acknowledge(0, 10, 10, 10)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		p.giveUp(0)
		go func() { done <- p.admit(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}
