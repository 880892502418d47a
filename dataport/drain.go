package dataport

import (
	"fmt"
	"slices"
	"time"
)

// How a path is removed. The side that dials begins; both give the path nothing more from the moment they know.
//
//	dials                                        accepts
//	RemovePath: Draining ──── flagDrain ───────► Draining
//	mine all acknowledged?                       mine all acknowledged?
//	          ◄──────────────────── flagDrain ── yes: I need it no more
//	yes, both: close + flagDrain ──────────────► removed (its place is free)
//	PathDown "removed"       ◄──────── FIN ───── PathDown
//
//	afterwards, by any other path, until answered: gone(id) ───► forget it, whatever it is there;  ◄─── gone(id)
//
// After PathDownAfter the connection is closed as it is, and what it held goes out elsewhere. gone reaches the peer also
// when the path was not up, or when the goodbye was lost: else its place would stay reserved there.

const maxGone = 64

// drainPath begins to drain a path and reports whether it is there. reason: who wants it.
func (s *Session) drainPath(id PathID, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.paths {
		if p.id == id {
			s.beginDrain(p, reason)
			return true
		}
	}
	return false
}

// beginDrain takes the path out of use; a standby takes its place before anybody is told. s.mu is held.
func (s *Session) beginDrain(p *path, reason string) {
	if !s.shift(p, pathDrain, reason) {
		return
	}
	p.drainSince = s.node.clock.now()
	p.ackDue = true
	s.elect(nil, "")
	s.event(PathIsDraining, p.id, reason)
	s.reclaimQueued(p)
	s.pathsChanged()
	s.checkDrain(p, p.drainSince)
	p.poke()
}

// checkDrain goes on with a path that is being drained. s.mu is held.
func (s *Session) checkDrain(p *path, now time.Duration) {
	if p.state != PathDraining {
		return
	}
	if now-p.drainSince >= s.node.conf.Timing.PathDownAfter && s.dials() {
		s.takeOut(p, pathStop, fmt.Sprintf("removed: not all of it acknowledged within %v", s.node.conf.Timing.PathDownAfter))
		p.shut(true)
		return
	}
	if !p.drained && p.queue.len() == 0 && len(p.writing) == 0 && !s.holds(p) {
		p.drained, p.ackDue = true, true
		p.poke()
	}
	if p.drained && p.peerDrained && s.dials() {
		s.takeOut(p, pathStop, "removed")
		p.closing, p.goes = "removed", true
		_ = p.w.raw.SetDeadline(time.Now().Add(goodbyeTime))
		p.poke()
	}
}

// holds reports whether something that p was given waits for its acknowledgement. s.mu is held.
func (s *Session) holds(p *path) bool {
	for i := range s.out.frames.len() {
		if f := s.out.frames.at(i); f.path == p && !f.acked {
			return true
		}
	}
	return false
}

// goodbye takes the peer's last word on a path. One from a peer that may not remove paths is a loss.
func (s *Session) goodbye(p *path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dials() {
		s.takeOut(p, pathStop, "removed by the peer")
		p.shut(false)
	}
}

// takeOut ends a path's part in the session: its frames go out again elsewhere. With pathFailed its place stays
// reserved, with pathStop it is free. s.mu is held. It does not close the connection.
func (s *Session) takeOut(p *path, in pathInput, reason string) bool {
	i := slices.Index(s.paths, p)
	if i < 0 {
		return false
	}
	s.paths = slices.Delete(s.paths, i, i+1)
	s.shift(p, in, reason)
	if in == pathFailed {
		s.shift(p, pathReserve, "")
	} else {
		s.dropRecord(p.id)
	}
	s.reclaim(p)
	s.event(PathDown, p.id, reason)
	s.pathsChanged()
	return true
}

// place finds a path's place in the session, or takes one. s.mu is held.
func (s *Session) place(rec *record) (*record, error) {
	for _, r := range s.recs {
		if r.id == rec.id {
			return r, nil
		}
	}
	switch {
	case len(s.recs) >= s.node.conf.MaxPaths:
		return nil, ErrTooManyPaths
	case !s.dials() && slices.Contains(s.gone, rec.id):
		return nil, fmt.Errorf("%w: %d was removed", ErrUnknownPath, rec.id)
	}
	s.recs = append(s.recs, rec)
	return rec, nil
}

func (s *Session) dropRecord(id PathID) {
	s.recs = slices.DeleteFunc(s.recs, func(r *record) bool { return r.id == id })
}

// forgetPath has the peer forget a path that this side has removed, and forgets it here.
func (s *Session) forgetPath(id PathID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.dropRecord(id)
	if !slices.Contains(s.gone, id) && len(s.gone) < maxGone {
		s.gone = append(s.gone, id)
	}
	s.tellGone()
}

// tellGone says which paths are gone, at every heartbeat until the peer has answered. s.mu is held.
func (s *Session) tellGone() {
	if len(s.gone) == 0 || !s.dials() {
		return
	}
	if p := s.quickest(); p != nil {
		p.gone = append(p.gone[:0], s.gone...)
		p.poke()
	}
}

// peerGone takes a gone frame: the order on the side that accepts, the answer on the side that dials. s.mu is held.
func (s *Session) peerGone(on *path, id PathID) {
	if s.dials() {
		s.gone = slices.DeleteFunc(s.gone, func(g PathID) bool { return g == id })
		return
	}
	for _, p := range s.paths {
		if p.id == id {
			s.takeOut(p, pathStop, "removed by the peer")
			p.shut(false)
			break
		}
	}
	s.dropRecord(id)
	if !slices.Contains(s.gone, id) { // a join of it that is under way comes too late
		if len(s.gone) >= maxGone {
			s.gone = slices.Delete(s.gone, 0, 1)
		}
		s.gone = append(s.gone, id)
	}
	if len(on.gone) < maxGone {
		on.gone = append(on.gone, id)
		on.poke()
	}
}

// reclaimQueued takes back what waits for p's writer, when another path can have it. What is written stays until it is
// acknowledged. s.mu is held.
func (s *Session) reclaimQueued(p *path) {
	if p.queue.len() == 0 || !s.otherActive(p) {
		return
	}
	for p.queue.len() > 0 {
		if f := p.queue.pop(); f.path == p && !f.acked {
			f.path, f.not = nil, nil
			s.out.resend = append(s.out.resend, f)
		}
	}
	p.queued = 0
	s.sortResend()
}
