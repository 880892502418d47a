package socket

import (
	"sync/atomic"
	"time"
)

// Crowd estimates how many of the connections that share it are busy: how many waited for their peer in a span of time, this one or the one before.
type Crowd struct {
	warmSeats, hotSeats int32

	span      atomic.Int64 // number of the present one
	now, last atomic.Int32
}

// NewCrowd returns one in which connections are waited for warm as long as no more than warm are busy, and hot where no more than hot are. Where
// more are busy than there are processors to serve them, one wait for all of them costs less than one for each.
func NewCrowd(warm, hot int) *Crowd { return &Crowd{warmSeats: int32(warm), hotSeats: int32(hot)} }

const crowdSpan = 50 * time.Millisecond

// count takes one that waits, which keeps in span when it was last counted, and returns how many there are.
func (c *Crowd) count(span *int64) int32 {
	n := time.Now().UnixNano() / int64(crowdSpan)
	if before := c.span.Load(); before != n && c.span.CompareAndSwap(before, n) {
		now := c.now.Swap(0)
		if before != n-1 {
			now = 0
		}
		c.last.Store(now)
	}
	if *span != n {
		*span = n
		c.now.Add(1)
	}
	return max(c.now.Load(), c.last.Load())
}
