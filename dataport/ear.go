package dataport

import (
	"sync/atomic"
	"time"
)

// A peer that hears nothing on a path says so there (flagDeaf). The word may be old: while a process stands still, or a
// link, it lies in sockets and queues, and when all goes on it comes after, or together with, the first new frames. It
// says nothing then about a path that has worked again since.
//
// So a deaf word counts only when the peer said it long enough after our last trouble on the path that it would have
// heard us, were the path well. Trouble is the end of a time in which we did not run, or in which nothing came.
// When a word was said follows from its time stamp (only pings have one) and the smallest difference seen between the
// clocks: what lay in a queue comes later than that. A path dead one way from a sound state gives no trouble to the
// side that hears, and is believed at once.

// ear is what a path's receiving half knows of its own trouble. The atomics are written by the reader without the mutex.
type ear struct {
	came    atomic.Int64 // clock time of the last bytes, whatever they said
	trouble atomic.Int64 // clock time at which the last trouble was over
	gap     time.Duration
	peer    peerClock
}

// hark notes that bytes came.
func (e *ear) hark(now time.Duration) {
	if now-time.Duration(e.came.Swap(int64(now))) >= e.gap {
		e.trouble.Store(int64(now))
	}
}

// believes takes a ping of the peer, stamped by its clock, and reports whether "I hear nothing" counts, said by it.
func (e *ear) believes(now, stamp, patience time.Duration) bool {
	return e.peer.said(now, stamp) >= time.Duration(e.trouble.Load())+patience
}

// clockPeriod is how long a smallest difference is held, twice at most: clocks drift, and a suspended machine's stands still.
const clockPeriod = 10 * time.Second

// peerClock maps time stamps of the peer to the local clock.
type peerClock struct {
	began     time.Duration
	now, last time.Duration // smallest difference in this period and in the one before
	known     bool
}

// said returns the local time at which a frame stamped so would have come through empty queues.
func (c *peerClock) said(now, stamp time.Duration) time.Duration {
	d := now - stamp
	switch {
	case !c.known:
		*c = peerClock{began: now, now: d, last: d, known: true}
	case now-c.began >= clockPeriod:
		c.began, c.last, c.now = now, c.now, d
	default:
		c.now = min(c.now, d)
	}
	return stamp + min(c.now, c.last)
}
