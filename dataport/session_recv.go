package dataport

import (
	"errors"
	"fmt"
	"time"
)

// receiving is the half of a session that receives. It is guarded by the session's mutex.
//
//	frames of any path ──► held (out of order) ──► whole (a message being put together) ──► queue ──► OnMessage
//	                        │ duplicate: dropped                                              reply ──► its call
type receiving struct {
	next         uint64                 // all frames below arrived
	end          uint64                 // all frames below belong to whole messages
	consumed     uint64                 // all frames below belong to consumed messages
	cost         uint64                 // of all frames that arrived, each once
	consumedCost uint64                 // of those that need no room any more
	toldCost     uint64                 // of consumedCost, in the newest header
	untold       int                    // messages consumed since then
	granted      uint64                 // what the peer's cost may reach
	held         map[uint64]*inFrame    // arrived before what precedes them
	whole        *inMsg                 // has its first fragments
	queue        deque[*inMsg]          // whole, not yet taken by the client
	busy         *inMsg                 // in OnMessage
	wake         chan struct{}          // capacity 1: queue or end changed
	places       map[placeKey]*assembly // of messages whose fragments are read in place
	claimed      map[uint64]*assembly   // by sequence: a path is reading it into there
	placed       int                    // bytes of places
	lastPath     *path                  // on which data came last
}

type inFrame struct {
	h   header
	buf *buffer
}

type inMsg struct {
	typ         frameType
	flags       frameFlags
	call        uint64
	first, last uint64
	cost        uint64
	have        int
	buf         *buffer
	place       *assembly // whose memory buf is; nil: its own
}

// receive takes a frame that p has read. It owns buf. An error breaks the session.
func (s *Session) receive(p *path, h *header, buf *buffer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		buf.release()
		return nil
	}
	if h.session != s.id || h.client != s.reg.id {
		return fmt.Errorf("%w: frame of session %s client %08x", ErrProtocol, h.session, h.client)
	}
	now := s.node.clock.now()
	s.hear(p, now, h)
	if err := p.delivered(now, h.pathBytes); err != nil {
		return err
	}
	if err := s.acknowledged(h); err != nil {
		return err
	}
	var err error
	switch h.typ {
	case frameData, frameReply, frameBatch:
		err = s.receiveData(p, h, buf)
	case framePing:
		if len(p.pongs) < 4 {
			p.pongs = append(p.pongs, h.seq)
		}
		p.poke()
	case framePong:
		p.measure(now, h.seq)
	case frameGone:
		s.peerGone(p, PathID(h.seq))
	case frameAddrs:
		var a addrList
		if a, err = decodeAddrs(buf.data); err == nil {
			s.heardFrom(a, p.w.raw.RemoteAddr().String())
		}
	}
	s.checkDrain(p, now)
	if !h.sequenced() {
		buf.release()
	}
	s.dispatch()
	return err
}

func (s *Session) receiveData(p *path, h *header, buf *buffer) error {
	in := &s.in
	cost := uint64(h.payload) + frameCost
	p.received += cost
	p.partly.Store(0)
	if buf.in != nil {
		s.unclaim(p)
	} else if len(in.claimed) > 0 {
		s.overtake(h.seq)
	}
	in.lastPath = p
	if h.seq < in.next || h.seq > in.next && in.held[h.seq] != nil {
		s.counts.DuplicateFrames++
		buf.release()
		return nil
	}
	in.cost += cost
	if in.cost > in.granted || h.seq > in.next+(in.granted-in.consumedCost)/frameCost {
		return fmt.Errorf("%w: sequence %d is beyond its credit", ErrProtocol, h.seq)
	}
	if h.seq > in.next {
		in.held[h.seq] = &inFrame{h: *h, buf: buf}
		return nil
	}
	if err := s.accept(h, buf); err != nil {
		return err
	}
	for len(in.held) > 0 {
		f := in.held[in.next]
		if f == nil {
			break
		}
		delete(in.held, in.next)
		if err := s.accept(&f.h, f.buf); err != nil {
			return err
		}
	}
	s.grant()
	return nil
}

// accept takes the next frame in order and puts messages together.
func (s *Session) accept(h *header, buf *buffer) error {
	in := &s.in
	m := in.whole
	switch {
	case m == nil && h.flags&flagFirst != 0:
		m = &inMsg{typ: h.typ, flags: h.flags, call: h.call, first: h.seq}
		if h.flags&flagLast != 0 {
			m.buf = buf
		} else {
			s.memory(m, h)
		}
	case m == nil, h.flags&flagFirst != 0, m.typ != h.typ, (m.flags^h.flags)&flagPacked != 0, m.call != h.call, m.have != int(h.offset), len(m.buf.data) != int(h.message):
		return fmt.Errorf("%w: fragment %d+%d of %d does not follow its predecessor", ErrProtocol, h.offset, h.payload, h.message)
	}
	m.add(buf)
	m.have += int(h.payload)
	m.cost += uint64(h.payload) + frameCost
	m.last = h.seq
	in.next++
	if h.flags&flagLast == 0 {
		in.whole = m
		return nil
	}
	in.whole = nil
	in.end = in.next
	s.assembled(m)
	if m.flags&flagPacked != 0 {
		if _, err := s.packedIn(m.buf.data); err != nil {
			return err
		}
	}
	if m.typ == frameReply {
		s.answer(m)
		return nil
	}
	in.queue.push(m)
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return nil
}

// answer hands a reply to its call, beside the queue of messages. It does not overtake those before it on the wire.
func (s *Session) answer(m *inMsg) {
	if c := s.out.calls[m.call]; c != nil {
		delete(s.out.calls, m.call)
		if m.flags&flagError != 0 {
			c.err = &RemoteError{Text: string(m.buf.data)}
		} else {
			c.flags = m.flags
			c.reply = append(make([]byte, 0, len(m.buf.data)), m.buf.data...)
		}
		close(c.done)
	}
	m.buf.release()
	s.in.consumedCost += m.cost
	s.settle()
}

// settle works out consumed: replies are consumed as they come, messages in order.
func (s *Session) settle() {
	in := &s.in
	switch {
	case in.busy != nil:
		in.consumed = in.busy.first
	case in.queue.len() > 0:
		in.consumed = in.queue.at(0).first
	default:
		in.consumed = in.end
	}
}

// grant works out the credit. A message larger than half the window gets credit for what of it has been put together,
// or it could never become whole; so the bound is the window and one message.
func (s *Session) grant() {
	in := &s.in
	window := uint64(s.node.conf.ReceiveWindowBytes)
	limit := in.consumedCost + window
	if in.whole != nil && uint64(len(in.whole.buf.data)) > window/2 {
		limit += in.whole.cost
	}
	in.granted = max(in.granted, limit)
}

// deliver hands messages to the client, one at a time.
func (s *Session) deliver() {
	for {
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			return
		}
		if s.in.queue.len() == 0 {
			s.mu.Unlock()
			select {
			case <-s.in.wake:
			case <-s.done:
			}
			continue
		}
		m := s.in.queue.pop()
		s.in.busy = m
		s.mu.Unlock()

		if e := s.unfold(m); e != nil {
			s.fail(e.Error(), endProtocol)
			return
		}
		s.tasks.leave()
		reply, messages, err := s.hand(m)
		s.tasks.enter()
		if broken := (*brokenError)(nil); errors.As(err, &broken) {
			s.fail(broken.Error(), broken.why)
			return
		}
		var packed *buffer
		if m.flags&flagCall != 0 && len(reply) > 0 && err == nil {
			if packed = s.packReply(reply); packed == nil {
				reply = append([]byte(nil), reply...) // it may lie in the payload, which is recycled now
			}
		}
		size := len(m.buf.data)
		if m.typ == frameBatch {
			size -= 4 + 4*messages
		}
		m.buf.release()
		if e := s.consumed(m, messages, size, reply, packed, err); e != nil {
			s.fail(e.Error(), endProtocol)
			return
		}
	}
}

func (s *Session) consumed(m *inMsg, messages, size int, reply []byte, packed *buffer, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		packed.release()
		return nil
	}
	s.in.busy = nil
	s.counts.MessagesReceived += uint64(messages)
	s.counts.BytesReceived += uint64(size)
	s.in.untold++
	s.in.consumedCost += m.cost
	s.settle()
	s.grant()
	if m.flags&flagCall != 0 {
		if e := s.enqueueReply(m.call, reply, packed, err); e != nil {
			return e
		}
	}
	if p := s.ackPath(s.in.lastPath); p != nil && s.talks() {
		p.ackLater()
	} else {
		s.askAck(p)
	}
	s.dispatch()
	return nil
}

// talks says whether what was consumed can wait to be told for a message of ours: one went out a moment ago, so that another one is likely to
// follow, as where either side answers what the other one says. Each word by itself would be a call here and a wakeup over there, often while the
// message is being made. It is one message at most, and small: the peer may have room for few, or wait for the bytes. s.mu is held.
func (s *Session) talks() bool {
	return s.in.untold <= 1 && s.in.consumedCost-s.in.toldCost < uint64(min(ackEveryBytes, s.node.conf.ReceiveWindowBytes)/8) && s.out.cutAt != 0 && s.node.clock.now()-s.out.cutAt < ackWithin
}

// ackSlack is by how much a path's round trip may be above the best one's until acknowledgements leave it.
const ackSlack = 5 * time.Millisecond

// askAck has the newest receiving state told to the peer, by p if it is well and not much slower than others, else by the
// quickest path. s.mu is held.
func (s *Session) askAck(p *path) {
	if p = s.ackPath(p); p != nil {
		p.ackDue = true
		p.poke()
	}
}

// ackPath is who tells it.
func (s *Session) ackPath(p *path) *path {
	best := s.quickest()
	if p == nil || p.state != PathActive || best != nil && p.srtt > 2*best.srtt+ackSlack {
		return best
	}
	return p
}

// quickest returns the path for a small frame: an active one, else a standby, else whatever there is. s.mu is held.
func (s *Session) quickest() (best *path) {
	rank := func(p *path) int {
		switch p.state {
		case PathActive:
			return 0
		case PathStandby:
			return 1
		}
		return 2
	}
	for _, p := range s.paths {
		if best == nil || rank(p) < rank(best) || rank(p) == rank(best) && p.srtt < best.srtt {
			best = p
		}
	}
	return best
}

// dropReceived forgets what was received and not consumed: the session has ended.
func (s *Session) dropReceived() {
	s.in.held, s.in.whole, s.in.queue, s.in.places, s.in.claimed = nil, nil, deque[*inMsg]{}, nil, nil
}
