package dataport

import (
	"cmp"
	"slices"
	"time"
)

// A path that is slow but not silent must not hold up the order of all. Three rules see to that, after opportunistic
// retransmission and penalizing (Raiciu et al., How Hard Can It Be?, NSDI 2012), earliest completion first (Lim et al.,
// ECF, CoNEXT 2017) and blocking estimation (Ferlin et al., BLEST, IFIP Networking 2016):
//
//   - dispatch gives a path nothing that would arrive so late that the others run out of work meanwhile (offered).
//   - What is stuck on a path while another would deliver it much sooner goes there, too (rescue): what has not been
//     written moves, what has been written goes out a second time, at most once per rescueEvery.
//   - A path that gets nothing for its slowness gets a copy of a small frame now and then, from which its rate is
//     learned again (probe). The order never waits for a copy.
//
// What is given to a path shrinks with its rate (meter.go), and that is all the penalty there is.

const (
	holdSlack   = 50 * time.Millisecond  // so much later than the best path is no reason to hold a frame back
	rescueSlack = 50 * time.Millisecond  // so much later than elsewhere, above twice as late, is worth sending again
	blockSlack  = 20 * time.Millisecond  // the same while nothing else can be sent anyway
	rescueEvery = 500 * time.Millisecond // a frame goes out again for slowness at most once in this time
	rescuePause = 10 * time.Millisecond  // between two looks for stuck frames
	probeEvery  = 500 * time.Millisecond // a path that is held back gets a copy this often, once it is empty
)

// offered fills s.ready and s.loads with the paths that may take a frame of n bytes, but for one, unless no other is
// left. s.mu is held.
func (s *Session) offered(n int, but *path) {
	if but != nil && !s.otherActive(but) {
		but = nil
	}
	s.ready, s.loads, s.probe = s.ready[:0], s.loads[:0], nil
	best, rate, work := -1.0, 0.0, 0
	for _, p := range s.paths {
		if p.state != PathActive || p == but {
			continue
		}
		l := p.load()
		rate += p.rate
		work += l.UnackedBytes
		if at := l.completion(min(n, p.cutBytes())); best < 0 || at < best {
			best = at
		}
		if l.UnackedBytes < p.depth() {
			s.ready, s.loads = append(s.ready, p), append(s.loads, l)
		}
	}
	best += holdSlack.Seconds()
	kept := 0
	for i, p := range s.ready {
		l := s.loads[i]
		// Until p has delivered, the others could deliver this much. They have work for half of it, or p would hold them up:
		// only half, for the window they work on opens again in order.
		if at := l.completion(min(n, p.cutBytes())); at > best && 2*at*(rate-p.rate) > float64(work-l.UnackedBytes+s.backlog()) {
			if l.UnackedBytes == 0 && s.probe == nil && s.node.clock.now()-p.probedAt >= probeEvery {
				s.probe = p
			}
			continue
		}
		s.ready[kept], s.loads[kept] = p, l
		kept++
	}
	s.ready, s.loads = s.ready[:kept], s.loads[:kept]
}

// otherActive reports whether a path beside p carries data. s.mu is held.
func (s *Session) otherActive(p *path) bool {
	return slices.ContainsFunc(s.paths, func(q *path) bool { return q != p && q.state == PathActive })
}

// backlog is what could be sent now if a path had room.
func (s *Session) backlog() int {
	return int(min(uint64(s.out.uncut), s.out.credit-min(s.out.credit, s.out.spent)))
}

// rescue takes back what would arrive much sooner on another path. blocked: nothing else can be sent. s.mu is held.
func (s *Session) rescue(now time.Duration, blocked bool) {
	s.out.rescuedAt = now
	slack := rescueSlack
	if blocked {
		slack = blockSlack
	}
	late := 0
	for _, p := range s.paths {
		p.late = p.state == PathActive && p.unacked() > 0 && p.eta(now, p.meter.total+uint64(p.queued)) > s.sooner(now, p, 0)*2+slack.Seconds()
		if p.late {
			late++
		}
	}
	if late == 0 {
		return
	}
	moved := 0
	for i := range s.out.frames.len() {
		f := s.out.frames.at(i)
		p := f.path
		if f.acked || p == nil || !p.late {
			continue
		}
		if f.arrived() {
			f.acked = true // the peer has it, only its cumulative word is not here yet
			continue
		}
		end := f.end
		if end == 0 {
			end = p.meter.total + uint64(p.queued) // at most
		}
		if p.eta(now, end) <= s.sooner(now, p, moved+f.n)*2+slack.Seconds() {
			continue
		}
		if f.end != 0 { // written: it goes out twice
			if f.rescued != 0 && now-f.rescued < rescueEvery {
				continue
			}
			f.rescued = now
			s.counts.RescuedFrames++
		}
		f.path, f.not = nil, p
		moved += f.cost()
		s.out.resend = append(s.out.resend, f)
	}
	if moved == 0 {
		return
	}
	for _, p := range s.paths {
		if p.late {
			p.forgetMoved()
		}
	}
	s.sortResend()
}

// eta is in how many seconds the path will have delivered what ends at end of its bytes. A path that has stood still for
// a time will, as far as one can know, do so for as long again.
func (p *path) eta(now time.Duration, end uint64) float64 {
	return max(float64(end-min(end, p.meter.arrived))/p.rateOr(), p.stalled(now).Seconds())
}

// sooner is in how many seconds the best other path would have delivered n bytes; a very long time when there is none.
func (s *Session) sooner(now time.Duration, but *path, n int) float64 {
	best := float64(1 << 30)
	for _, q := range s.paths {
		if q != but && q.state == PathActive {
			best = min(best, max(q.completion(n), q.stalled(now).Seconds()))
		}
	}
	return best
}

// forgetMoved takes the frames that have moved elsewhere out of the queue.
func (p *path) forgetMoved() {
	kept := deque[*outFrame]{}
	p.queued = 0
	for p.queue.len() > 0 {
		if f := p.queue.pop(); f.path == p && !f.acked {
			kept.push(f)
			p.queued += f.cost()
		}
	}
	p.queue = kept
}

// arrived reports whether the peer has the frame: a path is a stream, and its path bytes tell how far it got. A whole
// frame is counted when the session has taken it.
func (f *outFrame) arrived() bool {
	return f.end != 0 && f.path != nil && f.end <= f.path.meter.arrived
}

func (s *Session) sortResend() {
	slices.SortFunc(s.out.resend, func(a, b *outFrame) int { return cmp.Compare(a.seq, b.seq) })
}

// interruptAfter is how long a write may hold on to the bytes of messages that the peer has consumed by other paths.
const interruptAfter = 100 * time.Millisecond

// interrupt ends the wait of a write that keeps the bytes of a finished message: its writer copies what it has not yet
// written and goes on with the copy, so that the receipt need not wait for a slow path. s.mu is held.
func (p *path) interrupt(now time.Duration) {
	if p.interrupted || p.closing != "" || now-p.writeAt < interruptAfter {
		return
	}
	for _, f := range p.writing {
		if f.msg.over {
			p.interrupted = true
			_ = p.w.raw.SetWriteDeadline(time.Unix(1, 0))
			return
		}
	}
}

// resume is called by the writer whose write ran into a deadline, with the rest copied. It reports whether the deadline
// was that of interrupt: the path lives on.
func (p *path) resume() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if !p.interrupted || p.closing != "" || p.s.ended {
		return false
	}
	p.interrupted = false
	p.letGo()
	return p.w.raw.SetWriteDeadline(time.Time{}) == nil
}
