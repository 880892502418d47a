package dataporttest

import (
	"slices"
	"time"
)

// stream is one direction of a connection: what was written and not yet read, each piece with the time it arrives.
// Everything is guarded by the network's mutex.
type stream struct {
	l        *link
	way      *way
	dir      Direction
	id       int
	from, to *conn

	pieces  []piece
	bytes   int       // in pieces
	unacked int       // read, but the way back was a hole: they still fill the sender's socket
	last    time.Time // arrival of the newest piece: nothing overtakes it
	lostAt  time.Time // not zero: since when TCP repeats what a hole took
	ended   bool      // the end is among the pieces or was read
	dead    bool      // lost bytes for good, or was ended by a fault: nothing arrives any more
}

// piece is part of what was written. held: it has not left, by a stall or a hole.
type piece struct {
	b        []byte
	eof      bool
	held     bool
	earliest time.Time // it may leave: when TCP repeats it
	departs  time.Time // the link begins with it
	arrives  time.Time
	overhead time.Duration // delay and jitter
}

const (
	socketBytes = 256 << 10 // what both sockets of a direction hold
	pieceBytes  = 16 << 10  // of a link with a rate: pieces arrive one by one
	rtoMin      = 200 * time.Millisecond
	rtoMax      = 2 * time.Minute
)

func (s *stream) room() int { return socketBytes - s.bytes - s.unacked }

// send takes bytes from the sender; what is too much for one piece is split.
func (s *stream) send(b []byte, now time.Time) {
	s.way.carried += int64(len(b))
	if s.way.tap != nil {
		s.way.tap(s.id, b)
	}
	if s.way.black && !s.l.retransmit {
		s.dead = true
	}
	if s.dead {
		s.unacked += len(b)
		return
	}
	b, cut := s.way.mangle(b)
	for len(b) > 0 {
		n := len(b)
		if s.way.rate > 0 {
			n = min(n, pieceBytes)
		}
		s.push(piece{b: slices.Clone(b[:n])}, now)
		b = b[n:]
	}
	if cut {
		s.finish(now)
		s.dead = true
	}
}

// finish sends the end of the stream. It passes a hole no more than bytes do.
func (s *stream) finish(now time.Time) {
	if s.way.black && !s.l.retransmit {
		s.dead = true
	}
	if !s.ended && !s.dead {
		s.push(piece{eof: true}, now)
	}
	s.ended = true
}

func (s *stream) push(p piece, now time.Time) {
	p.overhead = s.way.delay
	if j := s.way.jitter; j > 0 {
		p.overhead += time.Duration(s.l.net.rnd.Int64N(int64(j)))
	}
	s.bytes += len(p.b)
	s.schedule(&p, now)
	s.pieces = append(s.pieces, p)
	s.to.readable.tell()
}

// schedule works out when a piece arrives that could leave at now.
func (s *stream) schedule(p *piece, now time.Time) {
	w := s.way
	if p.held = w.stalled || w.black; p.held {
		if w.black && s.lostAt.IsZero() {
			s.lostAt = now
		}
		return
	}
	p.departs = latest(now, p.earliest)
	p.arrives = p.departs
	if w.rate > 0 {
		p.departs = latest(p.departs, w.free)
		w.free = p.departs.Add(time.Duration(len(p.b)) * time.Second / time.Duration(w.rate))
		p.arrives = w.free
	}
	s.last = latest(p.arrives.Add(p.overhead), s.last)
	p.arrives = s.last
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// repeatsAt is when TCP next repeats what it lost, at or after now.
func (s *stream) repeatsAt(now time.Time) time.Time {
	rto := rtoMin
	at := s.lostAt.Add(rto)
	for at.Before(now) {
		rto = min(2*rto, rtoMax)
		at = at.Add(rto)
	}
	return at
}

// holeBegins takes what is on its way.
func (s *stream) holeBegins(now time.Time) {
	for i := range s.pieces {
		p := &s.pieces[i]
		if !p.held && !p.arrives.After(now) {
			continue
		}
		if !s.l.retransmit {
			for _, q := range s.pieces[i:] {
				s.bytes -= len(q.b)
				s.unacked += len(q.b)
			}
			s.pieces, s.dead = s.pieces[:i], true
			return
		}
		p.held = true
		if s.lostAt.IsZero() {
			s.lostAt = now
		}
	}
}

// reschedule works out anew what has not left yet, after the link has changed, and wakes all ends.
func (l *link) reschedule(now time.Time) {
	for i := range l.ways {
		if l.ways[i].free.After(now) {
			l.ways[i].free = now
		}
	}
	for _, c := range l.ends {
		c.out.reschedule(now)
		if w := c.out.way; !w.black && !w.stalled && !c.in.dead {
			c.in.unacked = 0 // the acknowledgements of what c has read
		}
		c.settleReset(now)
		c.readable.tell()
		c.writable.tell()
	}
}

func (s *stream) reschedule(now time.Time) {
	s.last = time.Time{}
	var again time.Time
	if !s.lostAt.IsZero() && !s.way.black {
		again, s.lostAt = s.repeatsAt(now), time.Time{}
	}
	for i := range s.pieces {
		p := &s.pieces[i]
		if !p.held && !p.departs.After(now) {
			s.last = latest(s.last, p.arrives)
			continue
		}
		if p.held {
			p.earliest = latest(p.earliest, again)
		}
		s.schedule(p, now)
	}
}
