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
	counting := func(p *promise) { p.acknowledge(100, 100, 100) }
	tests := []struct {
		name   string
		mode   Mode
		onLoss OnLoss
		remote bool
		do     func(*promise)
		waits  bool
	}{
		{"no target configured", ModeFlush, OnLossFreeze, false, nil, false},
		{"target never there, continue", ModeFlush, OnLossContinue, true, nil, false},
		{"target never there, freeze", ModeFlush, OnLossFreeze, true, nil, true},
		{"target in sync and behind", ModeFlush, OnLossContinue, true, counting, true},
		{"target in sync and behind, async", ModeAsync, OnLossContinue, true, counting, false},
		{"target in sync and durable", ModeFlush, OnLossContinue, true, func(p *promise) { counting(p); p.acknowledge(200, 200, 200) }, false},
		{"session lost, target expected", ModeFlush, OnLossContinue, true, func(p *promise) { counting(p); p.lost() }, true},
		{"given up, continue", ModeFlush, OnLossContinue, true, func(p *promise) { counting(p); p.lost(); p.giveUp() }, false},
		{"given up, freeze", ModeFlush, OnLossFreeze, true, func(p *promise) { counting(p); p.giveUp() }, true},
		{"given up, async and freeze", ModeAsync, OnLossFreeze, true, func(p *promise) { counting(p); p.giveUp() }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPromise(tt.mode, tt.onLoss, tt.remote, 50)
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
	p := newPromise(ModeFlush, OnLossContinue, true, 1000)
	if counts, _ := p.acknowledge(999, 999, 2000); counts {
		t.Error("counts without what was answered before the start")
	}
	if err := p.wait(context.Background(), 3000); err != nil { // alone
		t.Fatal(err)
	}
	if counts, _ := p.acknowledge(2999, 2999, 3000); counts {
		t.Error("counts without what was answered alone")
	}
	if counts, _ := p.acknowledge(3000, 3000, 3000+maxBehindBytes+1); counts {
		t.Error("counts while it is far behind")
	}
	if counts, began := p.acknowledge(3001, 3001, 3000+maxBehindBytes+1); !counts || !began {
		t.Error("does not count with all of it")
	}
	p.session()
	if counts, _ := p.acknowledge(2000, 2000, 3000); counts {
		t.Error("a new session counts with an old acknowledgement")
	}
}

// TestPromiseFreeze: with freeze, writes wait as long as no target counts.
func TestPromiseFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPromise(ModeAsync, OnLossFreeze, true, 0)
		done := make(chan error, 1)
		go func() { done <- p.admit(context.Background()) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("a write was admitted without a target")
		}
		p.acknowledge(10, 10, 10)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		p.giveUp()
		go func() { done <- p.admit(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}
