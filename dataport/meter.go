package dataport

import (
	"fmt"
	"time"
)

// meter measures what a path delivers, from the path bytes that the peer reports on it (as BBR's rate samples do:
// Cardwell et al., draft-cheng-iccrg-delivery-rate-estimation). It is guarded by the session's mutex.
type meter struct {
	marks     deque[mark]
	total     uint64        // cost written to the path
	arrived   uint64        // of this, reported by the peer
	arrivedAt time.Duration // when it last grew, or when an idle path got work again
}

// mark remembers how things stood at a write.
type mark struct {
	total     uint64 // after the write
	arrived   uint64
	arrivedAt time.Duration
	idle      bool // there was no more to send: a low sample says nothing about the path
}

func (m *meter) sent(now time.Duration, cost uint64, idle bool) {
	if m.arrived == m.total {
		m.arrivedAt = now
	}
	m.total += cost
	m.marks.push(mark{total: m.total, arrived: m.arrived, arrivedAt: m.arrivedAt, idle: idle})
}

// unacked is what the path has been given and has not reported as arrived.
func (p *path) unacked() int { return p.queued + int(p.meter.total-p.meter.arrived) }

// delivered takes the peer's report on this path and updates the rate. s.mu is held.
func (p *path) delivered(now time.Duration, pathBytes uint64) error {
	m := &p.meter
	if pathBytes > m.total {
		return fmt.Errorf("%w: reports %d bytes of path %d, sent %d", ErrProtocol, pathBytes, p.id, m.total)
	}
	if pathBytes <= m.arrived {
		return nil
	}
	m.arrived = pathBytes
	var last mark
	for m.marks.len() > 0 && m.marks.at(0).total <= pathBytes {
		last = m.marks.pop()
	}
	m.arrivedAt = now
	if last.total != 0 {
		p.sample(float64(pathBytes-last.arrived)/max(now-last.arrivedAt, 20*time.Microsecond).Seconds(), last.idle)
	}
	p.note()
	return nil
}

func (p *path) sample(rate float64, idle bool) {
	switch {
	case p.rate == 0 && !idle:
		p.rate = rate
	case p.rate == 0:
	case rate > p.rate:
		p.rate += (rate - p.rate) / 2
	case !idle:
		p.rate -= (p.rate - rate) / 8
	}
}

// measure takes a pong.
func (p *path) measure(now time.Duration, sentAt uint64) {
	rtt := now - time.Duration(sentAt)
	if rtt < 0 || rtt > time.Minute {
		return // not one of our pings
	}
	if p.srtt == 0 {
		p.srtt = max(rtt, 1)
	} else {
		p.srtt += (rtt - p.srtt) / 8
	}
	p.note()
}

func (p *path) note() {
	p.rec.mu.Lock()
	p.rec.rtt, p.rec.rate, p.rec.unacked = p.srtt, p.rate, p.unacked()
	p.rec.mu.Unlock()
}

// depth is how much the path may have unacknowledged: enough to keep it busy, not so much that what waits in it would be missed when it dies.
func (p *path) depth() int {
	if p.rate == 0 {
		return minDepthBytes
	}
	return max(minDepthBytes, int(p.rate*(min(p.srtt.Seconds(), 1)+depthSeconds)))
}

// cutBytes is the size of a frame that holds up the path for cutSeconds.
func (p *path) cutBytes() int {
	if p.rate == 0 {
		return unknownCutBytes
	}
	return min(max(int(p.rate*cutSeconds), minCutBytes), maxFramePayload)
}
