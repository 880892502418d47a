package mirror

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// paceCycle is one rest and the work behind it: means of latency in both.
func paceCycle(p *yieldPace, rest, work time.Duration) {
	p.decide(true, 10*rest, 10)
	for range paceWork {
		p.decide(true, 10*work, 10)
	}
}

// TestYieldPaceDecides: free while nothing is asked of the host, modest when that begins, down while latency is worse beside it
// than while it rests, up again while it is not, never beyond --rate and never quite to a stand.
func TestYieldPaceDecides(t *testing.T) {
	p := newYieldPace(1<<30, nil)
	if p.rate != 1<<30 || p.chunk(maxVerifyChunk) != maxVerifyChunk {
		t.Fatalf("at first: %+v", p)
	}
	p.decide(true, time.Second, 1)
	if p.rate != paceFirst || p.chunk(maxVerifyChunk) >= maxVerifyChunk || !p.rests {
		t.Errorf("an application begins: %+v", p)
	}
	before := p.rate
	for range 3 {
		paceCycle(p, time.Millisecond, 3*time.Millisecond)
		if p.rate != before/2 || !p.rests {
			t.Errorf("slower beside it, the rate goes from %.0f to %.0f", before, p.rate)
		}
		before = p.rate
	}
	for range 20 {
		paceCycle(p, time.Millisecond, time.Hour)
	}
	if p.rate != paceFloor {
		t.Errorf("at the worst: %.0f", p.rate)
	}
	for range 20 {
		paceCycle(p, time.Second, time.Second) // slow with and without it
	}
	if p.rate != 1<<30 {
		t.Errorf("it is not the verify: %.0f", p.rate)
	}
	for range paceWork + 1 { // reads only
		p.decide(true, 0, 0)
	}
	if p.rate != paceFirst {
		t.Errorf("where nothing tells: %.0f", p.rate)
	}
	for range 10 {
		p.decide(false, 0, 0)
	}
	if p.rate != 1<<30 || p.busy || p.rests {
		t.Errorf("the application has ended: %+v", p)
	}
}

// TestYieldPaceWaits: --rate is kept over time, and who waits is let go by its context, or when it is of no use any more.
func TestYieldPaceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newYieldPace(10<<20, func() loadSample { return loadSample{} })
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

// TestYieldPaceYields: an application that begins is seen within a moment, also by who already waits.
func TestYieldPaceYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var load loadSample
		p := newYieldPace(0, func() loadSample {
			load.ops++
			load.of++
			load.took += time.Millisecond
			return load
		})
		on := func() error { return nil }
		began := time.Now()
		n, rests := 0, 0
		for ; time.Since(began) < time.Second; n++ {
			before := time.Now()
			if err := p.wait(t.Context(), 1<<20, on); err != nil {
				t.Fatal(err)
			}
			if time.Since(before) >= paceEvery {
				rests++
			}
			time.Sleep(time.Millisecond) // of work
		}
		if n > 300+paceFirst>>20 || rests == 0 || !p.busy {
			t.Errorf("%d MiB in a second in which an application began, %d rests", n, rests)
		}
	})
}
