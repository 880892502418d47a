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
	c.unsynced.Add(int32(len(rs)))
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
		for _, r := range rs {
			out = c.export.appendStatus(out, value, r.cookie)
			c.countSync(r, value, now)
		}
		c.synced.Store(true)
		c.unsynced.Add(-int32(len(rs)))
		c.send(out)
	}
}

func (c *conn) countSync(r syncRequest, value uint32, now time.Time) {
	c.s.times.observe(r.timed(), now.Sub(r.began), 1)
	switch k := &c.s.count; {
	case value != errnoOK:
		k.errors.Add(1)
	case r.fua:
		k.fuas.Add(1)
	default:
		k.flushes.Add(1)
	}
}

// A client that sends nothing while it waits for a FLUSH or a FUA write is served by the leader alone: no goroutine has to be woken for
// the Sync. It is known by the last serialSyncs that it waited for. Should another request come all the same, it waits until the monitor
// makes a new leader, once, and the client is one of the others again.
const serialSyncs = 8

// watchSerial is called by the leader when it has read something.
func (c *conn) watchSerial() {
	switch {
	case c.unsynced.Load() > 0:
		c.serial = 0
	case c.synced.Load():
		c.synced.Store(false)
		c.serial++
	}
}

// alone says whether the batch is one request of a client that waits for its answer.
func (c *conn) alone(w *work) bool {
	return c.serial >= serialSyncs && c.poller != nil && w.stop == goOn && w.pos == w.end && len(w.reads) == 0 && len(w.group)+len(w.flushes) == 1
}

// flushNow runs the batch's only FLUSH. False when w lost the lead meanwhile.
func (c *conn) flushNow(w *work) (lead bool) {
	r := w.flushes[0]
	w.flushes = w.flushes[:0]
	c.enter(w)
	value := errno(cmdFlush, c.device.Sync())
	lead = c.leave(w)
	c.stillAlone(lead)
	c.reply(w, value, r.cookie)
	c.countSync(r, value, time.Now())
	return lead
}

// foresee lets the device begin what the client will ask for next, now that it has its answers: in the leader for a client that waits
// for each of them, which saves waking another goroutine, and this one by it. False when w lost the lead meanwhile.
func (c *conn) foresee(w *work) (lead bool) {
	f := c.export.foreseer
	switch {
	case f == nil:
	case c.serial < serialSyncs || c.poller == nil || w.stop != goOn || w.pos != w.end:
		f.Foresee(false)
	default:
		c.enter(w)
		f.Foresee(true)
		return c.leave(w)
	}
	return true
}

// stillAlone is called after a Sync in the leader, before its answer.
func (c *conn) stillAlone(lead bool) {
	if lead && c.poller.waiting() {
		c.serial = 0
	}
}
