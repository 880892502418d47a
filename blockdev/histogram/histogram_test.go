package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

func TestHistogram(t *testing.T) {
	for i := 1; i < buckets; i++ {
		end := bucketEnd(i)
		if end <= bucketEnd(i-1) || bucketOf(end) != i || i < buckets-1 && bucketOf(end+1) != i+1 {
			t.Fatalf("bucket %d ends at %d: %d, %d", i, end, bucketOf(end), bucketOf(end+1))
		}
	}
	if bucketOf(math.MaxUint64) != buckets-1 {
		t.Error("the largest value has no bucket")
	}
	var h Recorder
	rng := rand.New(rand.NewPCG(1, 1))
	var all []uint64
	sum := uint64(0)
	for range 20000 {
		v := uint64(math.Exp(rng.Float64() * 25))
		all, sum = append(all, v), sum+v
		h.Observe(v)
	}
	slices.Sort(all)
	s := h.Snapshot()
	if s.Count != 20000 || s.Sum != sum || s.Mean() != float64(sum)/20000 {
		t.Errorf("count %d, sum %d", s.Count, s.Sum)
	}
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.999, 1} {
		got, want := s.Quantile(q), all[max(1, int(q*20000+0.5))-1]
		if got < want || float64(got) > float64(want)*1.25+1 {
			t.Errorf("quantile %v: %d, want %d or a little more", q, got, want)
		}
	}
	h.Observe(7)
	later := h.Snapshot()
	if d := later.Since(&s); d.Count != 1 || d.Sum != 7 || d.Quantile(0.5) != 7 {
		t.Errorf("since: %+v", d)
	}
	if none := (&Snapshot{}); none.Quantile(0.5) != 0 || none.Mean() != 0 {
		t.Error("an empty histogram has values")
	}
}

// The buckets of a scrape are exact at every power of two.
func TestBelow(t *testing.T) {
	var h Recorder
	values := []uint64{0, 1, 3, 4, 7, 8, 1023, 1024, 1025, 1 << 30, math.MaxUint64}
	for _, v := range values {
		h.Observe(v)
	}
	s := h.Snapshot()
	for bit := range 45 {
		var want uint64
		for _, v := range values {
			if v < 1<<bit {
				want++
			}
		}
		if bit < 44 && s.Below(bit) != want {
			t.Errorf("below 2^%d: %d, want %d", bit, s.Below(bit), want)
		}
	}
	if s.Below(64) != s.Count {
		t.Errorf("below the end: %d of %d", s.Below(64), s.Count)
	}
}

// Values from many goroutines are all counted, n at once like n times one.
func TestObserveN(t *testing.T) {
	var h, single Recorder
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			for range 1000 {
				h.ObserveN(100*i, 3)
			}
		})
		for range 3000 {
			single.Observe(100 * i)
		}
	}
	wg.Wait()
	got, want := h.Snapshot(), single.Snapshot()
	if got != want || got.Count != 24000 {
		t.Errorf("%d values of %d in all, want %d of %d", got.Count, got.Sum, want.Count, want.Sum)
	}
	if twice := got.Plus(&want); twice.Count != 48000 || twice.Quantile(0.5) != got.Quantile(0.5) {
		t.Errorf("the sum of two: %+v", twice)
	}
	if n := testing.AllocsPerRun(100, func() { h.ObserveN(77, 2) }); n != 0 {
		t.Errorf("%v allocations for each value", n)
	}
}
