package journal

import (
	"math/bits"
	"sync/atomic"
)

// Counters that any number of goroutines feed without a lock. HdrHistogram for Go counts without atomics, so it would need a
// mutex on the way of every append.

// A value v ≥ 4 falls into the bucket of its highest bit and the two bits below: the values of a bucket
// differ by less than a quarter. The last one takes all that is larger, which for nanoseconds begins at 4 hours.
const (
	subBits = 2
	buckets = 43 << subBits
)

// histogram is what is counted into. The zero value is ready.
type histogram struct {
	sum    atomic.Uint64
	counts [buckets]atomic.Uint64
}

// observe costs two atomic additions.
func (h *histogram) observe(v uint64) {
	h.sum.Add(v)
	h.counts[bucketOf(v)].Add(1)
}

func bucketOf(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return min(shift<<subBits+int(v>>shift), buckets-1)
}

// bucketEnd is the largest value of a bucket.
func bucketEnd(i int) uint64 {
	if i < 2<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return uint64(i&(1<<subBits-1)+1<<subBits+1)<<shift - 1
}

// Histogram is what was counted up to some moment.
type Histogram struct {
	Count, Sum uint64
	counts     [buckets]uint64
}

func (h *histogram) snapshot() Histogram {
	s := Histogram{Sum: h.sum.Load()}
	for i := range h.counts {
		s.counts[i] = h.counts[i].Load()
		s.Count += s.counts[i]
	}
	return s
}

// Mean is 0 when nothing was counted.
func (h *Histogram) Mean() float64 {
	if h.Count == 0 {
		return 0
	}
	return float64(h.Sum) / float64(h.Count)
}

// Quantile returns a value that the share q (0 to 1) of all counted ones do not exceed, at most a quarter above the least such
// value. 0 when nothing was counted.
func (h *Histogram) Quantile(q float64) uint64 {
	want := max(1, uint64(q*float64(h.Count)+0.5))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= want {
			return bucketEnd(i)
		}
	}
	return 0
}

// Since returns what was counted after the earlier snapshot was taken.
func (h *Histogram) Since(earlier *Histogram) Histogram {
	d := Histogram{Count: h.Count - earlier.Count, Sum: h.Sum - earlier.Sum}
	for i := range h.counts {
		d.counts[i] = h.counts[i] - earlier.counts[i]
	}
	return d
}
