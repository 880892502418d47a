package dataport

import (
	"sync"
	"sync/atomic"
	"time"
)

// record is what stays of a path over its reconnections.
type record struct {
	id                     PathID
	sent, received, resent atomic.Uint64
	proved                 atomic.Bool // it has been up

	announced bool // set when made: the peer told us of this address

	mu            sync.Mutex // leaf: guards the fields below
	local, remote string
	state         PathState
	since         time.Time
	reason        string
	rtt           time.Duration
	rate          float64
	unacked       int
}

func (r *record) set(s PathState, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != s {
		r.state, r.since = s, time.Now()
	}
	if reason != "" {
		r.reason = reason
	}
	if !s.live() {
		r.unacked = 0
	}
}

func (r *record) connected(w *wire) {
	r.mu.Lock()
	r.local, r.remote = w.raw.LocalAddr().String(), w.raw.RemoteAddr().String()
	r.mu.Unlock()
	r.proved.Store(true)
}

// over takes the record out of a session that has ended.
func (r *record) over(reason string) {
	r.mu.Lock()
	s := r.state
	r.mu.Unlock()
	switch {
	case s.live():
		r.set(PathIdle, reason)
	case s == PathReserved: // nothing to keep a place in; the side that dials goes on trying
		next, _ := s.next(pathPause)
		r.set(next, "")
	}
}

func (r *record) stats() PathStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return PathStats{
		ID: r.id, Announced: r.announced, Unproven: r.unproven(), Local: r.local, Remote: r.remote, State: r.state, Since: r.since, Reason: r.reason, RTT: r.rtt, Rate: r.rate,
		UnackedBytes: r.unacked, BytesSent: r.sent.Load(), BytesReceived: r.received.Load(), ResentFrames: r.resent.Load(),
	}
}
