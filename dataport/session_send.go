package dataport

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sending is the half of a session that sends. It is guarded by the session's mutex.
//
//	Send → pending ──cut──► frames (base … next) ──acknowledged──► forgotten
//	         │                  │ ▲ path lost or suspect: resend
//	         └── messages ──────┴─┴─────────────── consumed ─────► receipt done
type sending struct {
	next         uint64           // sequence of the next new frame
	base         uint64           // sequence of frames.at(0)
	baseAt       time.Duration    // when base last grew, or when it was cut
	cutAt        time.Duration    // when the last new frame was cut
	frames       deque[*outFrame] // base … next-1, not yet acknowledged (or only selectively)
	resend       []*outFrame      // ordered by sequence: their path is gone
	queue        deque[*outMsg]   // not yet wholly cut into frames
	open         deque[*outMsg]   // messages not yet consumed by the peer's client, in order
	replies      deque[*outMsg]   // not yet acknowledged, in order: they are consumed as they arrive
	spent        uint64           // cost of all frames cut
	credit       uint64           // what spent may reach
	used         int              // bytes held for the peer, of the send window
	wait         deque[*sendWait] // Sends that wait for the window, in order
	calls        map[uint64]*call // open calls by id
	callID       uint64           // number of the last message
	reply        int              // bytes of replies not yet acknowledged
	uncut        int              // bytes of queue that are not in frames yet
	rescuedAt    time.Duration    // when frames that are stuck were last looked for
	hold         bool             // suspended: nothing new goes out
	peerConsumed uint64
}

// maxSequence: a session that gets there ends and makes room for a new one, long before a sequence could wrap.
const maxSequence = 1 << 63

type sendWait struct {
	need  int
	ready chan struct{} // closed when the window has room for it, or the session ended
	gone  bool
	given bool
}

// handedBy is the key under which the ctx of an OnMessage has the session whose message it is.
type handedBy struct{}

type call struct {
	done  chan struct{} // closed when reply or err is set
	reply []byte
	flags frameFlags // of the reply
	err   error
}

// Send queues one message made of parts and returns its receipt. It blocks while the send window is full, until ctx
// ends. The port owns the parts until the receipt is done. Messages of one goroutine go out in the order of its calls.
func (s *Session) Send(ctx context.Context, parts ...[]byte) (*Receipt, error) {
	m, err := s.send(ctx, parts, nil, 0)
	if err != nil {
		return nil, err
	}
	return &m.Receipt, nil
}

// Call sends a message and waits for what the peer's OnMessage returns for it; the reply is the caller's. An error over
// there is a *RemoteError. When ctx ends first the message stays on its way and the port keeps the parts until the session ends.
// OnMessage must not wait for a Call to the peer whose message it has: with its ctx that is ErrCallInOnMessage.
func (s *Session) Call(ctx context.Context, parts ...[]byte) ([]byte, error) {
	if ctx.Value(handedBy{}) == s {
		return nil, ErrCallInOnMessage
	}
	c := &call{done: make(chan struct{})}
	m, err := s.send(ctx, parts, c, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		s.mu.Lock()
		delete(s.out.calls, m.call)
		s.mu.Unlock()
	}()
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.err != nil && c.reply == nil {
		var remote *RemoteError
		if !errors.As(c.err, &remote) {
			return nil, c.err
		}
	}
	if err := m.Wait(ctx); err != nil { // the parts are the caller's again
		return nil, err
	}
	if c.flags&flagPacked != 0 && c.err == nil {
		return s.unpackReply(c.reply)
	}
	return c.reply, c.err
}

// send queues parts as one message; batch: as so many.
func (s *Session) send(ctx context.Context, parts [][]byte, c *call, batch int) (*outMsg, error) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > s.maxMsg {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMessageTooBig, size, s.maxMsg)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &outMsg{Receipt: Receipt{done: make(chan struct{})}, parts: parts, size: size, typ: frameData}
	messages, payload := max(batch, 1), size
	if batch > 0 {
		m.typ, payload = frameBatch, size-len(parts[0])
	}
	need := min(size+frameCost, s.node.conf.SendWindowBytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.next >= maxSequence {
		s.mu.Unlock()
		s.fail("its sequence numbers are used up", endQuietly)
		s.mu.Lock()
	}
	if err := s.reserve(ctx, need); err != nil {
		return nil, err
	}
	m.need = need
	if s.packer != nil {
		link := s.linkSpeed()
		s.mu.Unlock()
		b := s.packer.pack(parts, size, link)
		s.mu.Lock()
		if s.ended {
			b.release()
			return nil, s.err
		}
		m.carry(b)
	}
	s.out.callID++
	m.call = s.out.callID // of all messages: see place.go
	if c != nil {
		m.flags |= flagCall
		s.out.calls[m.call] = c
	}
	s.counts.MessagesSent += uint64(messages)
	s.counts.BytesSent += uint64(payload)
	s.enqueue(m)
	s.dispatch()
	return m, nil
}

// carry makes b, a packed message or nil, what goes out.
func (m *outMsg) carry(b *buffer) {
	if b != nil {
		m.packed, m.parts, m.size = b, [][]byte{b.data}, len(b.data)
		m.flags |= flagPacked
	}
}

// enqueue appends a message to what is to be sent. s.mu is held.
func (s *Session) enqueue(m *outMsg) {
	s.out.queue.push(m)
	if m.typ == frameReply {
		s.out.replies.push(m)
	} else {
		s.out.open.push(m)
	}
	s.out.uncut += m.size
}

// reserve takes need bytes of the send window, waiting for its turn. s.mu is held, and given up while waiting.
func (s *Session) reserve(ctx context.Context, need int) error {
	if s.ended {
		return s.err
	}
	if s.out.wait.len() == 0 && s.out.used+need <= s.node.conf.SendWindowBytes {
		s.out.used += need
		return nil
	}
	w := &sendWait{need: need, ready: make(chan struct{})}
	s.out.wait.push(w)
	s.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	}
	s.mu.Lock()
	switch {
	case s.ended:
		return s.err
	case w.given:
		return nil
	}
	w.gone = true
	s.admit()
	return ctx.Err()
}

// admit lets waiting Sends in as far as the window has room. s.mu is held.
func (s *Session) admit() {
	for s.out.wait.len() > 0 {
		w := s.out.wait.at(0)
		if !w.gone {
			if s.out.used+w.need > s.node.conf.SendWindowBytes {
				return
			}
			s.out.used += w.need
			w.given = true
			close(w.ready)
		}
		s.out.wait.pop()
	}
}

// enqueueReply queues the answer to a call. It never blocks: a delivery that waited for room here while the peer's does
// the same over there would be a deadlock. The backlog is bounded instead: above the window and one message an error
// replaces the reply; when those errors fill the window once more the peer asks more than it takes, and the session ends.
// packed, if not nil, is what goes out. s.mu is held.
func (s *Session) enqueueReply(id uint64, reply []byte, packed *buffer, err error) error {
	m := &outMsg{Receipt: Receipt{done: make(chan struct{})}, typ: frameReply, call: id}
	window := s.node.conf.SendWindowBytes
	switch most := window + s.node.conf.MaxMessageBytes; {
	case s.out.reply > most+window:
		return fmt.Errorf("%w: %d bytes of replies wait for it", ErrProtocol, s.out.reply)
	case err == nil && s.out.reply+len(reply)+frameCost > most:
		err = fmt.Errorf("reply of %d bytes: too many replies wait to be taken", len(reply))
	case err == nil && len(reply) > s.maxMsg:
		err = fmt.Errorf("reply of %d bytes, the caller takes at most %d", len(reply), s.maxMsg)
	}
	if err != nil {
		text := []byte(err.Error())
		reply, m.flags = text[:min(len(text), maxControlPayload, s.maxMsg)], flagError
	}
	m.parts, m.size = [][]byte{reply}, len(reply)
	if err == nil {
		m.carry(packed)
	} else {
		packed.release()
	}
	s.out.reply += m.size + frameCost
	s.enqueue(m)
	return nil
}

// dispatch gives frames to paths while there are frames, room and credit. s.mu is held.
func (s *Session) dispatch() {
	for !s.ended {
		again := s.nextResend()
		if again == nil && (s.out.hold || s.out.queue.len() == 0) {
			if s.out.wait.len() > 0 {
				s.blocked()
			}
			return
		}
		n, not := maxFramePayload, (*path)(nil)
		if again != nil {
			n, not = again.n, again.not
		} else {
			n = min(n, s.out.queue.at(0).size-s.out.queue.at(0).cut)
		}
		s.offered(n, not)
		if len(s.ready) == 0 {
			return
		}
		most := s.mayCut()
		if most == 0 {
			return
		}
		i := s.sched.Pick(n, s.loads)
		if i < 0 || i >= len(s.ready) {
			return
		}
		f := again
		if f == nil {
			most = min(most, s.ready[i].cutBytes())
			if s.probe != nil {
				most = min(most, s.probe.cutBytes())
			}
			if f = s.cut(most); f == nil {
				s.blocked()
				return
			}
			if s.probe != nil {
				s.probe.probe, s.probe.probedAt = f, s.node.clock.now()
				s.probe.poke()
			}
		} else {
			s.out.resend = s.out.resend[1:]
		}
		s.ready[i].give(f)
		s.spend(f)
	}
}

// blocked is called when the peer's credit or the send window is used up: perhaps by a frame that is stuck. s.mu is held.
func (s *Session) blocked() {
	if len(s.paths) < 2 {
		return
	}
	if now := s.node.clock.now(); now-s.out.rescuedAt >= rescuePause {
		s.rescue(now, true)
		if len(s.out.resend) > 0 {
			s.dispatch()
		}
	}
}

func (s *Session) nextResend() *outFrame {
	for len(s.out.resend) > 0 {
		if f := s.out.resend[0]; !f.acked && f.path == nil {
			return f
		}
		s.out.resend = s.out.resend[1:]
	}
	return nil
}

// cut makes the next frame of at most most bytes out of the oldest queued message; nil when the peer's credit does not allow it.
func (s *Session) cut(most int) *outFrame {
	m := s.out.queue.at(0)
	n := min(m.size-m.cut, most)
	if s.out.credit < s.out.spent+frameCost+uint64(min(n, minCutBytes)) {
		return nil
	}
	n = int(min(uint64(n), s.out.credit-s.out.spent-frameCost))
	f := &outFrame{msg: m, seq: s.out.next, off: m.cut, n: n}
	if m.cut == 0 {
		m.first = f.seq
	}
	m.cut += n
	s.out.uncut -= n
	if m.cut == m.size {
		m.allCut, m.last = true, f.seq
		s.out.queue.pop()
	}
	s.out.cutAt = s.node.clock.now()
	if s.out.frames.len() == 0 {
		s.out.baseAt = s.out.cutAt
	}
	s.out.next++
	s.out.spent += uint64(f.cost())
	s.out.frames.push(f)
	return f
}

// reclaim takes back the frames that p has and the peer has not acknowledged. s.mu is held.
func (s *Session) reclaim(p *path) {
	n := len(s.out.resend)
	for i := range s.out.frames.len() {
		if f := s.out.frames.at(i); f.path == p && !f.acked && !f.arrived() {
			f.path, f.not = nil, nil
			s.out.resend = append(s.out.resend, f)
		}
	}
	p.queue, p.queued, p.probe = deque[*outFrame]{}, 0, nil
	if len(s.out.resend) > n {
		s.sortResend()
	}
}

// acknowledged takes the receiving state of the peer from any frame. s.mu is held.
func (s *Session) acknowledged(h *header) error {
	o := &s.out
	if h.ack > o.next || h.consumed > max(h.ack, o.peerConsumed) {
		return fmt.Errorf("%w: acknowledges %d, consumed %d, sent below %d", ErrProtocol, h.ack, h.consumed, o.next)
	}
	o.credit = max(o.credit, h.credit)
	if o.base < h.ack {
		o.baseAt = s.node.clock.now()
	}
	for o.base < h.ack {
		o.frames.pop().acked = true
		o.base++
	}
	for o.replies.len() > 0 && o.replies.at(0).allCut && o.replies.at(0).last < h.ack {
		s.over(o.replies.pop(), nil)
	}
	for i, bits := uint64(0), h.sack; bits != 0; i, bits = i+1, bits>>1 {
		if seq := h.ack + 1 + i; bits&1 != 0 && seq >= o.base && seq < o.next {
			o.frames.at(int(seq - o.base)).acked = true
		}
	}
	if h.consumed <= o.peerConsumed {
		return nil
	}
	o.peerConsumed = h.consumed
	for o.open.len() > 0 && o.open.at(0).allCut && o.open.at(0).last < h.consumed {
		s.over(o.open.pop(), nil)
	}
	s.admit()
	return nil
}

// over ends a message: at once, or when the last path that is writing it lets go of its bytes. s.mu is held.
func (s *Session) over(m *outMsg, err error) {
	m.over, m.failure = true, err
	if m.writing == 0 {
		s.finish(m)
	} // else when its paths let go, see letGo and interrupt
}

// finish completes the receipt. s.mu is held; the message is over and no one reads its parts.
func (s *Session) finish(m *outMsg) {
	m.parts = nil
	if m.typ == frameReply {
		s.out.reply -= m.size + frameCost
	} else {
		s.out.used -= m.need
	}
	m.packed.release()
	m.packed = nil
	m.err = m.failure
	close(m.done)
}

// fail ends everything that is open with the session's end.
func (s *Session) failSending() {
	o := &s.out
	for o.open.len() > 0 {
		s.over(o.open.pop(), s.err)
	}
	for o.replies.len() > 0 {
		s.over(o.replies.pop(), s.err)
	}
	o.frames, o.queue, o.resend, o.uncut = deque[*outFrame]{}, deque[*outMsg]{}, nil, 0
	for id, c := range o.calls {
		c.err = s.err
		close(c.done)
		delete(o.calls, id)
	}
	for o.wait.len() > 0 {
		if w := o.wait.pop(); !w.gone {
			close(w.ready)
		}
	}
}
