package nbd

import "time"

// syncRequest is a request that is answered after the next Sync: a FLUSH, or a FUA write that the device already has.
type syncRequest struct {
	cookie uint64
	fua    bool
	began  time.Time // when it was received
}

// maxPendingSyncs bounds what waits for a Sync; beyond it the connection is not read.
const maxPendingSyncs = 1024

// flush has the requests answered after a Sync that begins later than now, so it covers every write that was answered
// before. It returns at once, unless very many wait.
func (c *conn) flush(rs []syncRequest) {
	if len(rs) == 0 {
		return
	}
	c.flushMu.Lock()
	defer c.flushMu.Unlock()
	for len(c.pending) > maxPendingSyncs && !c.dead.Load() {
		c.unblocked.Wait()
	}
	if c.dead.Load() {
		return
	}
	c.pending = append(c.pending, rs...)
	if !c.flushing {
		c.flushing = true
		c.mu.Lock()
		c.helpers++
		c.mu.Unlock()
		c.s.running.Go(c.runFlusher)
	}
}

// runFlusher runs while there is something to sync; one Sync for all that wait.
func (c *conn) runFlusher() {
	defer c.helperGone()
	out := make([]byte, 0, maxStatusSize)
	for {
		c.flushMu.Lock()
		rs := c.pending
		if len(rs) == 0 || c.dead.Load() {
			c.pending, c.flushing = c.pending[:0], false
			c.flushMu.Unlock()
			return
		}
		c.pending, c.spare = c.spare[:0], rs
		c.unblocked.Broadcast()
		c.flushMu.Unlock()

		value := errno(cmdFlush, c.device.Sync())
		out = out[:0]
		now := time.Now()
		k := &c.s.count
		for _, r := range rs {
			out = c.export.appendStatus(out, value, r.cookie)
			c.s.times.observe(r.timed(), now.Sub(r.began), 1)
			switch {
			case value != errnoOK:
				k.errors.Add(1)
			case r.fua:
				k.fuas.Add(1)
			default:
				k.flushes.Add(1)
			}
		}
		c.send(out)
	}
}
