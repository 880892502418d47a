package mirror

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestVerifyPaceDecides: free while nothing is asked of the host, modest when that begins, down while latency is worse than it
// was at best, up again while it is not, never beyond --rate and never quite to a stand.
func TestVerifyPaceDecides(t *testing.T) {
	p := newVerifyPace(1<<30, nil)
	if p.rate != 1<<30 || p.chunk() != maxVerifyChunk {
		t.Fatalf("at first: %+v", p)
	}
	p.decide(true, time.Second)
	if p.rate != paceFirst || p.chunk() >= maxVerifyChunk {
		t.Errorf("an application begins: %.0f, chunks of %d", p.rate, p.chunk())
	}
	p.decide(true, time.Millisecond)
	before := p.rate
	for range 3 {
		p.decide(true, 5*time.Millisecond)
		if p.rate >= before {
			t.Errorf("latency went up, the rate from %.0f to %.0f", before, p.rate)
		}
		before = p.rate
	}
	for range 50 {
		p.decide(true, time.Hour)
	}
	if p.rate < paceFloor {
		t.Errorf("at the worst: %.0f", p.rate)
	}
	for range 200 {
		p.decide(true, p.best)
	}
	if p.rate != 1<<30 {
		t.Errorf("all is well again: %.0f", p.rate)
	}
	p.decide(true, time.Hour)
	p.decide(false, 0)
	p.decide(false, 0)
	if p.rate != 1<<30 || p.busy {
		t.Errorf("the application has ended: %.0f", p.rate)
	}
	// A load that is heavier than before is not fled from for ever.
	for range 1000 {
		p.decide(true, 3*time.Millisecond)
	}
	if p.rate != 1<<30 {
		t.Errorf("at a load that stays: %.0f, best %v", p.rate, p.best)
	}
}

// TestVerifyPaceWaits: --rate is kept over time, and who waits is let go by its context, or when it is of no use any more.
func TestVerifyPaceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newVerifyPace(10<<20, func() loadSample { return loadSample{} })
		on := func() error { return nil }
		began := time.Now()
		const chunks = 51
		for range chunks {
			if err := p.wait(t.Context(), 1<<20, on); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 4900*time.Millisecond || took > 5200*time.Millisecond {
			t.Errorf("%d MiB at 10 MiB/s in %v", chunks-1, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.wait(ctx, 1<<40, on); err != nil { // paid for later
			t.Fatal(err)
		}
		if err := p.wait(ctx, 1, on); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		why := errors.New("lost")
		if err := p.wait(t.Context(), 1, func() error { return why }); !errors.Is(err, why) {
			t.Errorf("%v", err)
		}
	})
}

// TestVerifyPaceYields: an application that begins is seen within a moment, also by who already waits.
func TestVerifyPaceYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var load loadSample
		p := newVerifyPace(0, func() loadSample {
			load.ops++
			load.of++
			load.took += time.Millisecond
			return load
		})
		on := func() error { return nil }
		began := time.Now()
		for range 300 {
			if err := p.wait(t.Context(), 1<<20, on); err != nil {
				t.Fatal(err)
			}
			if time.Since(began) == 0 {
				time.Sleep(paceEvery) // of work
			}
		}
		if took := time.Since(began); took < 2*time.Second || !p.busy {
			t.Errorf("300 MiB beside an application in %v", took)
		}
	})
}
