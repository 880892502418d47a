package nbd

import "time"

// maxHelpers is how many former leaders of one connection may be inside the device.
const maxHelpers = 16

// enter and leave enclose every call of the device by the leader. In between it may lose the lead.
func (c *conn) enter(w *work) {
	c.mu.Lock()
	c.turn.Add(1)
	c.exposed.Store(true)
	c.mu.Unlock()
	c.s.watch()
}

// leave says whether w still is the leader. When not, everything in w that it had not begun is gone.
func (c *conn) leave(w *work) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader != w {
		return false
	}
	c.exposed.Store(false)
	return true
}

// takeOver makes a new leader when the old one is still in the device as it was at the given turn. The new one gets the
// requests that were not begun, the bytes that were not parsed, and the replies that were not sent.
func (c *conn) takeOver(turn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.exposed.Load() || c.turn.Load() != turn || c.helpers >= maxHelpers {
		return
	}
	if !c.s.memory.helpers.TryAcquire(1) {
		return
	}
	w, old := c.s.memory.work(), c.leader
	w.end = copy(w.in, old.in[old.pos:old.end])
	old.pos = old.end
	w.reads = append(w.reads, old.reads[old.next:]...)
	old.next = len(old.reads)
	w.out = append(w.out, old.out[old.sent:]...)
	old.sent = len(old.out)
	w.stop, w.large = old.stop, old.large
	c.leader = w
	c.serial = 0 // while the old one is in the device nobody else looks at it
	c.exposed.Store(false)
	c.helpers++
	c.s.running.Go(func() {
		c.send(w.out)
		w.out = w.out[:0]
		c.lead(w)
	})
}

// retire is how a former leader leaves.
func (c *conn) retire(w *work) {
	c.s.memory.release(w)
	c.s.memory.helpers.Release(1)
	c.helperGone()
}

// tick is how often the monitor looks: a request that is in the device for one to two of them loses the lead.
const tick = 2 * time.Millisecond

// watch has the monitor run. It ends by itself when nothing happens.
func (s *Server) watch() {
	if !s.watching.Load() && s.watching.CompareAndSwap(false, true) {
		s.running.Go(s.monitor)
	}
}

// monitor looks after leaders that are slow to come back from the device.
func (s *Server) monitor() {
	const idleTicks = 100
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for quiet := 0; ; quiet++ {
		select {
		case <-s.idle:
			return
		case <-ticker.C:
		}
		if s.look() {
			quiet = 0
		}
		if quiet < idleTicks {
			continue
		}
		s.watching.Store(false)
		// Who entered the device before that did not start another monitor.
		if !s.look() || !s.watching.CompareAndSwap(false, true) {
			return
		}
		quiet = 0
	}
}

// look says whether any connection did anything since the last look.
func (s *Server) look() (busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		turn, exposed := c.turn.Load(), c.exposed.Load()
		busy = busy || exposed || turn != c.seen
		if exposed && turn == c.seen {
			c.takeOver(turn)
		}
		c.seen = turn
	}
	return busy
}
