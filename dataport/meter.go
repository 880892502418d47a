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
	watch     watch
}

// mark remembers how things stood at a write.
type mark struct {
	total     uint64 // after the write
	arrived   uint64
	arrivedAt time.Duration
	idle      bool // the path was not full: a low sample says nothing about it
}

// watch is a look at what was under way at a moment, to be judged some time later.
type watch struct {
	at      time.Duration
	arrived uint64
	under   uint64 // written and not arrived; 0: no look was taken
}

func (m *meter) sent(now time.Duration, cost uint64, idle bool) {
	if m.arrived == m.total {
		m.arrivedAt, m.watch = now, watch{}
	}
	m.total += cost
	m.marks.push(mark{total: m.total, arrived: m.arrived, arrivedAt: m.arrivedAt, idle: idle})
}

// unacked is what the path has been given and has not reported as arrived.
func (p *path) unacked() int { return p.queued + int(p.meter.total-p.meter.arrived) }

// delivered takes the peer's report on this path and updates the rate. The report may grow within a frame, or a slow
// path would seem to stand still for as long as a frame takes. s.mu is held.
func (p *path) delivered(now time.Duration, pathBytes uint64) error {
	m := &p.meter
	if pathBytes > m.total {
		return fmt.Errorf("%w: reports %d bytes of path %d, sent %d", ErrProtocol, pathBytes, p.id, m.total)
	}
	if pathBytes <= m.arrived {
		return nil
	}
	m.arrived, m.arrivedAt = pathBytes, now
	var last mark
	for m.marks.len() > 0 && m.marks.at(0).total <= pathBytes {
		last = m.marks.pop()
	}
	if last.total != 0 {
		p.sample(float64(pathBytes-last.arrived)/max(now-last.arrivedAt, 20*time.Microsecond).Seconds(), last.idle)
	}
	p.judge(now)
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

// judgeAfter is the shortest time after which a path is judged by what it should have delivered: the peer reports at
// least once per heartbeat of its own, so that a shorter one would judge the reports.
const judgeAfter = 100 * time.Millisecond

// judge lowers the rate of a path that delivers far less than its rate promised. Samples come with reports, and the
// rarer the slower the path has become; this does not wait for one. s.mu is held.
func (p *path) judge(now time.Duration) {
	m := &p.meter
	took := now - m.watch.at
	switch {
	case m.watch.under == 0:
	case took < max(judgeAfter, 2*p.srtt):
		return
	default:
		got, promised := float64(m.arrived-m.watch.arrived), p.rateOr()*(took-p.srtt).Seconds()
		if got < min(float64(m.watch.under), promised)/2 {
			p.rate = max(got/took.Seconds(), p.rateOr()/16)
		}
	}
	m.watch = watch{at: now, arrived: m.arrived, under: m.total - m.arrived}
}

// stalled is how long the path has reported nothing although there is something under way, or how long the order of all
// has waited for it, beyond what its round trip and the pace of reports explain; else 0. s.mu is held.
func (p *path) stalled(now time.Duration) time.Duration {
	m, o := &p.meter, &p.s.out
	waited := time.Duration(0)
	if m.arrived != m.total {
		waited = now - m.arrivedAt
	}
	if o.frames.len() > 0 && o.frames.at(0).path == p {
		waited = max(waited, now-o.baseAt)
	}
	if waited > 2*p.srtt+3*p.s.node.conf.Timing.Heartbeat/2 {
		return waited
	}
	return 0
}

// baseSpan is how long a low round trip is remembered, twice over.
const baseSpan = 5 * time.Second

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
	switch {
	case p.thisBase == 0:
		p.baseAt, p.thisBase = now, rtt
	case now-p.baseAt > baseSpan:
		p.baseAt, p.lastBase, p.thisBase = now, p.thisBase, rtt
	}
	p.thisBase = min(p.thisBase, rtt)
	p.note()
}

// base is the least round trip of the last seconds: what of it is not waiting behind our own bytes.
func (p *path) base() time.Duration {
	if p.lastBase == 0 {
		return p.thisBase
	}
	return min(p.lastBase, p.thisBase)
}

func (p *path) note() {
	p.rec.mu.Lock()
	p.rec.rtt, p.rec.rate, p.rec.unacked = p.srtt, p.rate, p.unacked()
	p.rec.mu.Unlock()
}

const (
	// notSentLowBytes keeps what the kernel holds unsent small, so that a ping that enters the socket is soon on the wire: a
	// write blocks from there on, and what waits then waits in the path's queue, where small frames overtake it and from where
	// it can still move to another path. It says nothing about what is under way, so it costs no speed, whatever the delay. On
	// a slow path it would be much; there depth is what bounds it.
	notSentLowBytes = 256 << 10
	notSentLowMost  = 4 << 20

	minCutBytes     = 4 << 10
	unknownCutBytes = 64 << 10
	cutSeconds      = 0.020 // a frame holds up its path no longer than this, down to minCutBytes
	depthSeconds    = 0.050 // a path is given this much ahead of what it has delivered, above its round trips
	minDepthBytes   = 4 * minCutBytes
	maxQueueing     = 200 * time.Millisecond // waiting on the way that a path is given more for
	firstDepthBytes = 2 * unknownCutBytes    // of a path that has not delivered anything yet
)

// depth is how much the path may have unacknowledged: enough to keep it busy and to find out within a few round trips
// that it has become faster, not so much that what waits in it would be missed when it dies.
func (p *path) depth() int {
	if p.rate == 0 {
		return firstDepthBytes
	}
	base := p.base()
	trip := min(p.srtt, base+maxQueueing, time.Second) // of a path that was slow for a while srtt knows it for long
	return max(minDepthBytes, int(p.rate*((trip+base).Seconds()+depthSeconds)))
}

// cutBytes is the size of a frame that holds up the path for cutSeconds.
func (p *path) cutBytes() int {
	if p.rate == 0 {
		return unknownCutBytes
	}
	return min(max(int(p.rate*cutSeconds), minCutBytes), maxFramePayload)
}

// notSentLow is how much may lie unsent in the socket of a path of this rate before a write waits: a millisecond's worth, rounded down to a power
// of two times notSentLowBytes, and no more than notSentLowMost. Each wait costs a wakeup, and what is urgent stands behind all that is there.
func notSentLow(rate float64) int {
	n := notSentLowBytes
	for n < notSentLowMost && float64(2*n) <= rate/1000 {
		n *= 2
	}
	return n
}

// lowDue returns what is to be set for the path's socket now, 0 when that can stay. s.mu is held.
func (p *path) lowDue() int {
	n := notSentLow(p.rate)
	if n <= p.notSentLow && n > p.notSentLow/4 { // a rate near a power of two does not set it at every write
		return 0
	}
	p.notSentLow = n
	return n
}

// rateOr is the rate, or the assumed one as long as nothing is known.
func (p *path) rateOr() float64 {
	if p.rate <= 0 {
		return assumedRate
	}
	return p.rate
}

func (p *path) completion(frameBytes int) float64 {
	l := p.load()
	return l.completion(frameBytes)
}

// load is what a Scheduler is told of the path.
func (p *path) load() PathLoad {
	return PathLoad{ID: p.id, UnackedBytes: p.unacked(), Rate: p.rate, RTT: p.base()}
}
