package histogram

import (
	"math/bits"
	"sync/atomic"
)

const (
	subBits = 2
	buckets = 43 << subBits
)

// Recorder is what is counted into. The zero value is ready; it must not be copied after first use.
type Recorder struct {
	sum    atomic.Uint64
	counts [buckets]atomic.Uint64
}

// Observe costs two atomic additions.
func (h *Recorder) Observe(v uint64) { h.ObserveN(v, 1) }

// ObserveN counts n values v for the price of one.
func (h *Recorder) ObserveN(v, n uint64) {
	h.sum.Add(v * n)
	h.counts[bucketOf(v)].Add(n)
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

// Snapshot is what was counted up to some moment.
type Snapshot struct {
	Count, Sum uint64
	counts     [buckets]uint64
}

// Snapshot may be called while others observe.
func (h *Recorder) Snapshot() Snapshot {
	s := Snapshot{Sum: h.sum.Load()}
	for i := range h.counts {
		s.counts[i] = h.counts[i].Load()
		s.Count += s.counts[i]
	}
	return s
}

// Mean is 0 when nothing was counted.
func (h *Snapshot) Mean() float64 {
	if h.Count == 0 {
		return 0
	}
	return float64(h.Sum) / float64(h.Count)
}

// Quantile returns a value that the share q (0 to 1) of all counted ones do not exceed, at most a quarter above the least such
// value. 0 when nothing was counted.
func (h *Snapshot) Quantile(q float64) uint64 {
	want := max(1, uint64(q*float64(h.Count)+0.5))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= want {
			return bucketEnd(i)
		}
	}
	return 0
}

// Below returns how many of the counted values were less than 1<<bit: exact, since every power of two begins a bucket.
func (h *Snapshot) Below(bit int) uint64 {
	var n uint64
	end := buckets
	if bit < 63 {
		end = bucketOf(1 << bit)
	}
	for _, c := range h.counts[:end] {
		n += c
	}
	return n
}

// Since returns what was counted after the earlier snapshot was taken.
func (h *Snapshot) Since(earlier *Snapshot) Snapshot {
	d := Snapshot{Count: h.Count - earlier.Count, Sum: h.Sum - earlier.Sum}
	for i := range h.counts {
		d.counts[i] = h.counts[i] - earlier.counts[i]
	}
	return d
}

// Plus returns what both have counted.
func (h *Snapshot) Plus(other *Snapshot) Snapshot {
	d := Snapshot{Count: h.Count + other.Count, Sum: h.Sum + other.Sum}
	for i := range h.counts {
		d.counts[i] = h.counts[i] + other.counts[i]
	}
	return d
}
