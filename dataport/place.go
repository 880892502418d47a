package dataport

// A fragment of a big message is read straight to where it belongs in the message, whatever the order of frames and
// paths: the copy from a buffer of its own is as expensive as the kernel's. A path claims a frame's place before it reads
// the payload. What arrives a second time, or while another path still reads it, gets a buffer of its own.

// placeBytes is what it is worth a look at the session for.
const placeBytes = 8 << 10

// assembly is the memory of a message some of whose fragments have come.
type assembly struct {
	key    placeKey
	buf    *buffer
	claims int  // paths that are reading into it
	spoilt bool // a claimed fragment came by another path: what the slow one still writes must not reach the client
}

// placeKey names a message while it is on its way: its sender numbers them, replies have the number of their call.
type placeKey struct {
	typ    frameType
	number uint64
}

// place returns memory for the payload of h, which p is about to read: of its message when that can be, else a buffer.
// The header has been decoded, the credit not yet been checked. No lock is held.
func (p *path) place(h *header) *buffer {
	if h.sequenced() && h.call != 0 && h.payload >= placeBytes && h.payload < h.message {
		s := p.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if a := s.assemblyFor(h); a != nil {
			a.claims++
			s.in.claimed[h.seq] = a
			p.claim = h.seq
			return &buffer{data: a.buf.data[h.offset : h.offset+h.payload : h.offset+h.payload], in: a}
		}
	}
	return newBuffer(int(h.payload))
}

// assemblyFor returns the memory that the fragment h may be read into, nil for a buffer of its own. s.mu is held.
func (s *Session) assemblyFor(h *header) *assembly {
	in := &s.in
	if s.ended || h.session != s.id || h.seq < in.next || in.claimed[h.seq] != nil || in.held[h.seq] != nil {
		return nil
	}
	if in.cost+uint64(h.payload)+frameCost > in.granted {
		return nil // receive will say so
	}
	k := placeKey{h.typ, h.call}
	a := in.places[k]
	if a == nil {
		// Each is of a message that will be whole when all that was sent before has come: more of them than the window has
		// bytes cannot be, but for a peer that does as if.
		if in.placed > 0 && in.placed+int(h.message) > s.node.conf.ReceiveWindowBytes {
			return nil
		}
		a = &assembly{key: k, buf: newBuffer(int(h.message))}
		in.places[k] = a
		in.placed += int(h.message)
	}
	if len(a.buf.data) != int(h.message) {
		return nil
	}
	return a
}

// unclaim ends the reading of p into a message. s.mu is held.
func (s *Session) unclaim(p *path) {
	if p.claim == 0 {
		return
	}
	if a := s.in.claimed[p.claim]; a != nil {
		a.claims--
		delete(s.in.claimed, p.claim)
	}
	p.claim = 0
}

// overtake is called for a fragment that came in a buffer of its own while another path is reading it into its message.
// s.mu is held.
func (s *Session) overtake(seq uint64) {
	if a := s.in.claimed[seq]; a != nil {
		a.spoilt = true
		s.forgetPlace(a)
	}
}

// forgetPlace ends the placing into a: its message is whole, or will be put together elsewhere. s.mu is held.
func (s *Session) forgetPlace(a *assembly) {
	if s.in.places[a.key] == a {
		delete(s.in.places, a.key)
		s.in.placed -= len(a.buf.data)
	}
}

// memory gives the message of which h is the first fragment its memory. s.mu is held.
func (s *Session) memory(m *inMsg, h *header) {
	if a := s.in.places[placeKey{h.typ, h.call}]; a != nil && len(a.buf.data) == int(h.message) {
		m.place, m.buf = a, a.buf
		return
	}
	m.buf = newBuffer(int(h.message)) // decode bounded it by MaxMessageBytes
}

// add puts the next fragment into the message. s.mu is held.
func (m *inMsg) add(buf *buffer) {
	if m.place != nil && m.place.spoilt { // another path may still write to this memory: it must not be used again
		fresh := newBuffer(len(m.buf.data))
		copy(fresh.data[:m.have], m.buf.data)
		m.buf, m.place = fresh, nil
	}
	if buf != m.buf && (buf.in == nil || buf.in != m.place) {
		copy(m.buf.data[m.have:], buf.data)
		buf.release()
	}
}

// assembled is called when the last fragment of the message has been added. s.mu is held.
func (s *Session) assembled(m *inMsg) {
	if a := s.in.places[placeKey{m.typ, m.call}]; a != nil {
		s.forgetPlace(a)
	}
	if m.place != nil && m.place.claims > 0 {
		m.buf.pool = nil // by a peer that gave two messages one number: somebody still writes here
	}
}
