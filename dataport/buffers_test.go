package dataport

import "testing"

// Of large buffers the last one that came back is given out first, and no more are kept than the bound says.
func TestBuffersLastFirst(t *testing.T) {
	all := 0
	for _, p := range bufferPools {
		all += p.keep * p.size
		if p.keep > 0 && p.size < lastFromBytes {
			t.Errorf("%d buffers of %d bytes are kept", p.keep, p.size)
		}
	}
	if all > 16<<20 {
		t.Errorf("%d bytes may be kept", all)
	}
	const size = 1 << 20
	var held []*buffer
	for range lastBuffers + 3 {
		held = append(held, newBuffer(size-100))
	}
	for _, b := range held {
		b.release()
	}
	pool := held[0].pool
	if len(pool.last) != lastBuffers {
		t.Fatalf("%d buffers are kept, not %d", len(pool.last), lastBuffers)
	}
	for i := lastBuffers - 1; i >= 0; i-- {
		if b := newBuffer(size); b != held[i] || len(b.data) != size {
			t.Fatalf("buffer %d of %d bytes is not the one that came back last", i, len(b.data))
		}
	}
	if len(pool.last) != 0 {
		t.Error("some are still kept")
	}
	for _, b := range held[:lastBuffers] {
		b.release()
	}
}

// How much may lie unsent follows the rate by steps, between its bounds, and a rate near a step does not change it all the time.
func TestNotSentLow(t *testing.T) {
	for _, c := range []struct {
		rate float64
		want int
	}{{0, 256 << 10}, {1e6, 256 << 10}, {125e6, 256 << 10}, {512 << 20, 512 << 10}, {1.25e9, 1 << 20}, {3e9, 2 << 20}, {1e12, 4 << 20}} {
		if got := notSentLow(c.rate); got != c.want {
			t.Errorf("%.0f bytes/s: %d, not %d", c.rate, got, c.want)
		}
	}
	p := &path{notSentLow: notSentLowBytes}
	for _, step := range []struct {
		rate float64
		want int
	}{{3e9, 2 << 20}, {3e9, 0}, {2e9, 0}, {3e9, 0}, {1e9, 512 << 10}, {1e6, 0}, {4.3e9, 4 << 20}, {1e6, 256 << 10}, {0, 0}} {
		p.rate = step.rate
		if got := p.lowDue(); got != step.want {
			t.Errorf("at %.0f bytes/s %d is due, not %d", step.rate, got, step.want)
		}
	}
}
