package dataport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
)

// path is one live connection of a session. Unless said otherwise its fields are guarded by the session's mutex. One
// goroutine reads it and one writes it; both end when it is shut.
type path struct {
	id   PathID
	s    *Session
	w    *wire
	rec  *record
	wake chan struct{} // capacity 1: there is something to write
	dead chan struct{} // closed by shut
	once sync.Once

	heard    atomic.Int64 // clock time of the last sign of life; written by the reader without the mutex
	lastDeaf bool         // what the last header said; the reader's own
	claim    uint64       // sequence of the fragment that the reader reads into its message

	ear ear

	state  PathState
	silent bool // nothing heard for the threshold: told to the peer as flagDeaf
	deaf   bool // the peer says that it hears nothing, and is believed
	asked  bool // the peer asks to keep data off it
	srtt   time.Duration

	drainSince  time.Duration // when Draining began
	drained     bool          // Draining, and all that was given to it is acknowledged
	peerDrained bool          // the peer says the same
	goes        bool          // closing is about this path, not the session

	queue   deque[*outFrame] // bulk, not yet written
	queued  int              // its cost
	writing []*outFrame      // inside the current write

	probe       *outFrame     // a copy of a frame that another path has; see rescue.go
	probedAt    time.Duration // when it last got one
	late        bool          // scratch of rescue
	notSentLow  int           // what the socket has, see lowDue
	writeAt     time.Duration // when the current write began
	interrupted bool          // the current write is to give back what it reads

	pongs   []uint64
	pingDue bool
	ackDue  bool
	// The peer is to be told in a moment; see ackSoon.
	ackTimer   *time.Timer
	ackPending bool
	gone       []PathID
	closing    string // not empty: say so and end
	told       uint64 // version of our addresses that the peer was told here

	received uint64       // cost of data frames that arrived here; told to the peer as path bytes
	partly   atomic.Int64 // bytes of the payload that is arriving, likewise; written by the reader without the mutex
	meter    meter
	rate     float64
	// Least round trips of the current and the last span of time; see base.
	baseAt, thisBase, lastBase time.Duration
}

func newPath(s *Session, w *wire, rec *record) *path {
	p := &path{
		id: rec.id, s: s, w: w, rec: rec, wake: make(chan struct{}, 1), dead: make(chan struct{}), srtt: w.rtt, thisBase: w.rtt,
		asked: w.asked && !s.dials(), told: w.told, notSentLow: notSentLowBytes,
	}
	p.state, _ = PathAuthenticating.next(pathAuthenticated)
	rec.set(p.state, "")
	now, t := int64(s.node.clock.now()), s.node.conf.Timing
	p.heard.Store(now)
	p.ear.came.Store(now)
	p.ear.gap = max(t.SuspectAfter/2, 2*t.Heartbeat)
	if w.buf != nil {
		w.buf.heard = p.hearPiece
	}
	return p
}

// hearPiece notes a part of a frame; called by the reader.
func (p *path) hearPiece() {
	now := p.s.node.clock.now()
	p.ear.hark(now)
	if !p.lastDeaf {
		p.heard.Store(int64(now))
	}
}

func (p *path) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// shut closes the connection and ends the goroutines. abort throws away what TCP still holds: it goes out elsewhere.
func (p *path) shut(abort bool) {
	p.once.Do(func() {
		close(p.dead)
		p.w.close(abort)
	})
}

func (p *path) heardAt() time.Duration { return time.Duration(p.heard.Load()) }

// grant gives the peer late more time, for this process was not there to hear it.
func (p *path) grant(now, late time.Duration) {
	p.heard.Store(int64(min(now, p.heardAt()+late)))
}

// patience is how long the path may be silent.
func (p *path) patience() time.Duration {
	t := p.s.node.conf.Timing
	if p.srtt == 0 { // it is not known yet how long the way is
		return t.PathDownAfter * 3 / 4
	}
	return min(max(3*p.srtt, t.SuspectAfter), t.PathDownAfter*3/4)
}

// hear takes what a frame says about the path itself. One that says "I hear nothing of you" is no sign of life both
// ways, when it is believed. s.mu is held.
func (s *Session) hear(p *path, now time.Duration, h *header) {
	p.ear.hark(now)
	if h.typ == framePing {
		believed := p.ear.believes(now, time.Duration(h.seq), p.patience())
		p.deaf = h.flags&flagDeaf != 0 && (p.deaf || believed)
	} else {
		p.deaf = p.deaf && h.flags&flagDeaf != 0
	}
	if !p.deaf {
		p.heard.Store(int64(now))
		s.lastLife = max(s.lastLife, now)
	}
	asked := p.asked
	if drain := h.flags&flagDrain != 0; s.dials() {
		p.peerDrained = p.peerDrained || drain
	} else {
		p.asked = h.flags&flagStandby != 0
		if drain {
			s.beginDrain(p, "removed by the peer")
		}
	}
	switch {
	case p.state == PathSuspected:
		s.checkPath(p, now)
	case p.asked != asked && p.state.well():
		s.pathsChanged()
	}
}

// give appends a frame to the path's bulk queue.
func (p *path) give(f *outFrame) {
	f.path, f.end = p, 0
	p.queue.push(f)
	p.queued += f.cost()
	p.poke()
}

// stuck reports whether what the path holds is better sent elsewhere.
func (p *path) stuck() bool {
	return p.state == PathSuspected || p.state == PathDraining && (p.silent || p.deaf)
}

// work is what one write carries: headers without checksums, and the frames of those that have data.
type work struct {
	headers []header
	frames  []*outFrame // nil entry: no data
	bye     string
	addrs   []byte // payload of a frameAddrs
	bulk    int
	low     int // not 0: what to set for the socket first
}

const maxBatchBytes = 512 << 10

// collect takes what is due: small frames first, then bulk. s.mu is held. It reports false when nothing is due.
func (p *path) collect(w *work) bool {
	w.headers, w.frames, w.bulk, w.low, w.bye = w.headers[:0], w.frames[:0], 0, 0, p.closing
	w.addrs = nil
	if w.bye != "" {
		w.headers, w.frames = append(w.headers, p.header(frameClose, 0)), append(w.frames, nil)
		return true
	}
	for _, seq := range p.pongs {
		w.headers, w.frames = append(w.headers, p.header(framePong, seq)), append(w.frames, nil)
	}
	if p.pingDue {
		w.headers, w.frames = append(w.headers, p.header(framePing, uint64(p.s.node.clock.now()))), append(w.frames, nil)
	}
	for _, id := range p.gone {
		w.headers, w.frames = append(w.headers, p.header(frameGone, uint64(id))), append(w.frames, nil)
	}
	if w.addrs = p.addrsDue(); w.addrs != nil {
		h := p.header(frameAddrs, 0)
		h.payload = uint32(len(w.addrs))
		w.headers, w.frames = append(w.headers, h), append(w.frames, nil)
	}
	for p.queue.len() > 0 && w.bulk < maxBatchBytes && len(w.headers) < maxBatchFrames {
		f := p.queue.pop()
		p.queued -= f.cost()
		if f.acked || f.path != p || f.msg.over {
			continue
		}
		p.put(w, f)
		f.end = p.meter.total + uint64(w.bulk)
	}
	if f := p.probe; f != nil {
		if p.probe = nil; p.queue.len() == 0 && !f.acked && !f.msg.over {
			p.put(w, f)
		}
	}
	if len(w.headers) == 0 && p.ackDue {
		w.headers, w.frames = append(w.headers, p.header(frameAck, 0)), append(w.frames, nil)
	}
	p.pongs, p.gone, p.pingDue, p.ackDue = p.pongs[:0], p.gone[:0], false, false
	if len(w.headers) > 0 && p.ackPending { // every header says it
		p.ackPending = false
		p.ackTimer.Stop()
	}
	if w.bulk > 0 {
		w.low = p.lowDue()
		p.writeAt = p.s.node.clock.now()
		full := p.queue.len() > 0 || p.unacked()+w.bulk >= p.depth() || p.rate == 0 && p.s.out.queue.len() > 0
		// Held back by the bandwidth limit, a path that has delivered everything says nothing of what it could.
		idle := !full || p.queue.len() == 0 && p.s.throttled && p.meter.arrived == p.meter.total
		p.meter.sent(p.writeAt, uint64(w.bulk), idle)
	}
	return len(w.headers) > 0
}

// put adds a frame to a write.
func (p *path) put(w *work, f *outFrame) {
	h := p.header(f.msg.typ, f.seq)
	h.payload, h.message, h.offset, h.call = uint32(f.n), uint32(f.msg.size), uint32(f.off), f.msg.call
	h.flags |= f.msg.flags
	if f.off == 0 {
		h.flags |= flagFirst
	}
	if f.off+f.n == f.msg.size {
		h.flags |= flagLast
	}
	f.msg.writing++
	if f.sends++; f.sends > 1 {
		p.rec.resent.Add(1)
	}
	w.bulk += f.cost()
	w.headers, w.frames = append(w.headers, h), append(w.frames, f)
	p.writing = append(p.writing, f)
}

// header returns a header that carries the newest receiving state, which counts as told. s.mu is held.
func (p *path) header(t frameType, seq uint64) header {
	in := &p.s.in
	in.toldCost, in.untold = in.consumedCost, 0
	h := header{typ: t, session: p.s.id, client: p.s.reg.id, seq: seq, ack: in.next, consumed: in.consumed, credit: in.granted, pathBytes: p.received + uint64(p.partly.Load())}
	if p.silent {
		h.flags |= flagDeaf
	}
	switch dials := p.s.dials(); {
	case dials && p.state == PathStandby:
		h.flags |= flagStandby
	case dials && p.state == PathDraining, !dials && p.drained, p.goes:
		h.flags |= flagDrain
	}
	if len(in.held) > 0 {
		for i := uint64(0); i < 64; i++ {
			if _, ok := in.held[in.next+1+i]; ok {
				h.sack |= 1 << i
			}
		}
	}
	return h
}

// letGo gives back the messages of a finished write. s.mu is held.
func (p *path) letGo() {
	for i, f := range p.writing {
		m := f.msg
		if m.writing--; m.writing == 0 && m.over {
			p.s.finish(m)
			p.s.admit()
		}
		p.writing[i] = nil
	}
	p.writing = p.writing[:0]
}

func (p *path) writeLoop() {
	e := newEncoder()
	var w work
	s := p.s
	for {
		s.mu.Lock()
		p.letGo()
		due := p.collect(&w)
		s.mu.Unlock()
		if !due {
			select {
			case <-p.wake:
				continue
			case <-p.dead:
				return
			}
		}
		if w.bye != "" {
			p.sayGoodbye(e, &w)
			return
		}
		if w.low != 0 {
			setNotSentLow(p.w.raw, w.low)
		}
		n, err := e.write(p, &w)
		p.rec.sent.Add(uint64(n))
		if err != nil {
			s.mu.Lock()
			p.letGo()
			s.mu.Unlock()
			s.pathFailed(p, fmt.Errorf("write: %w", plain(err)))
			return
		}
	}
}

// goodbyeTime is how long an end waits for the last frame to leave.
const goodbyeTime = 250 * time.Millisecond

// sayGoodbye tells the peer that the session or the path ended, and gives TCP a moment to carry it: a close with unread data
// would reset the connection and with it the last frame.
func (p *path) sayGoodbye(e *encoder, w *work) {
	_ = p.w.raw.SetDeadline(time.Now().Add(goodbyeTime))
	w.headers[0].payload = uint32(min(len(w.bye), maxReasonBytes))
	e.control = w.bye[:w.headers[0].payload]
	if _, err := e.write(p, w); err != nil {
		p.shut(true)
		return
	}
	if c, ok := p.w.raw.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // the reader ends at the peer's FIN or at the deadline
		return
	}
	p.shut(false)
}

const (
	maxBatchFrames = 512
	// Smaller payloads are copied beside their headers: fewer, longer pieces. Two more pieces cost writev less than a copy
	// of a page; for TLS every piece is a record of its own, with a tag and a nonce.
	copyBelowBytes    = 2 << 10
	copyBelowBytesTLS = 16 << 10
	// stagingBytes is what an encoder keeps: as much as a write of short frames takes.
	stagingBytes = maxBatchBytes + maxBatchFrames*headerBytes + copyBelowBytesTLS
)

// encoder turns work into bytes on a connection; it keeps its buffers.
type encoder struct {
	staging []byte
	pieces  net.Buffers
	hash    *xxh3.Hasher
	control string // payload of a frame without data
}

func newEncoder() *encoder { return &encoder{hash: xxh3.New()} }

// write sends all of w with as few system calls as it takes.
func (e *encoder) write(p *path, w *work) (int, error) {
	need, below := len(e.control)+len(w.addrs), uint32(copyBelowBytes)
	if p.w.tls != nil {
		below = copyBelowBytesTLS
	}
	for i, h := range w.headers {
		need += headerBytes
		if w.frames[i] != nil && h.payload < below {
			need += int(h.payload)
		}
	}
	if cap(e.staging) < need || cap(e.staging) > max(need, stagingBytes) {
		e.staging = make([]byte, 0, max(need, min(2*need, stagingBytes), 16<<10))
	}
	e.staging, e.pieces = e.staging[:0], e.pieces[:0]
	from, total := 0, 0
	for i := range w.headers {
		h, f := &w.headers[i], w.frames[i]
		at := len(e.staging)
		e.staging = e.staging[:at+headerBytes]
		total += headerBytes + int(h.payload)
		switch {
		case h.typ == frameAddrs:
			e.staging = append(e.staging, w.addrs...)
			h.payloadHash = xxh3.Hash(w.addrs)
		case f == nil:
			e.staging = append(e.staging, e.control...)
			h.payloadHash = xxh3.HashString(e.control)
		case h.payload < below:
			f.each(func(b []byte) { e.staging = append(e.staging, b...) })
			h.payloadHash = xxh3.Hash(e.staging[at+headerBytes:])
		default:
			e.pieces = append(e.pieces, e.staging[from:])
			from = len(e.staging)
			h.payloadHash = e.gather(f)
		}
		h.encode(e.staging[at : at+headerBytes])
	}
	if from < len(e.staging) {
		e.pieces = append(e.pieces, e.staging[from:])
	}
	err := p.w.writeAll(e.pieces, p.resume)
	clear(e.pieces)
	return total, err
}

func (e *encoder) gather(f *outFrame) uint64 {
	n := len(e.pieces)
	f.each(func(b []byte) { e.pieces = append(e.pieces, b) })
	if len(e.pieces) == n+1 {
		return xxh3.Hash(e.pieces[n])
	}
	e.hash.Reset()
	for _, b := range e.pieces[n:] {
		_, _ = e.hash.Write(b)
	}
	return e.hash.Sum64()
}

// each goes through the bytes of the frame, which may lie in several parts of its message.
func (f *outFrame) each(fn func([]byte)) {
	skip, left := f.off, f.n
	for _, b := range f.msg.parts {
		if left == 0 {
			return
		}
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		b = b[:min(len(b), left)]
		left -= len(b)
		fn(b)
	}
}

const (
	// ackEveryBytes, or a quarter of the window, is how much may arrive in one go before the peer is told.
	ackEveryBytes = 1 << 20
	// ackWithin is how long the peer waits to be told, unless there is something else to tell it: mostly more of a message
	// is on its way, or its client is about to consume it. Each word is a call and a wakeup at either end, which together
	// cost as much as a tenth of a frame of 256 KiB.
	ackWithin = 2 * time.Millisecond
)

// ackSoon tells the peer within ackWithin what has arrived, unless another frame does.
func (p *path) ackSoon() {
	p.s.mu.Lock()
	p.ackLater()
	p.s.mu.Unlock()
}

// ackLater is ackSoon with s.mu held.
func (p *path) ackLater() {
	s := p.s
	switch {
	case p.ackPending:
		return
	case p.ackTimer == nil:
		p.ackTimer = time.AfterFunc(ackWithin, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if p.ackPending {
				p.ackPending, p.ackDue = false, true
				p.poke()
			}
		})
	default:
		p.ackTimer.Reset(ackWithin)
	}
	p.ackPending = true
}

func (p *path) readLoop() {
	err := p.read()
	p.s.mu.Lock()
	p.s.unclaim(p)
	p.s.mu.Unlock()
	var broken *brokenError
	if errors.As(err, &broken) {
		p.s.fail(broken.err.Error(), broken.why)
		// When this side is saying goodbye, now or since before, the reader is who ends it: nobody else would.
		_, _ = io.Copy(io.Discard, p.w.raw)
		p.shut(false)
		return
	}
	p.s.pathFailed(p, fmt.Errorf("read: %w", plain(err)))
}

// brokenError is one that ends the session, not the path alone.
type brokenError struct {
	err error
	why endCause
}

func (e *brokenError) Error() string { return e.err.Error() }

func (p *path) read() error {
	s, r := p.s, p.w.r
	maxMessage := uint32(s.node.conf.MaxMessageBytes)
	every := min(ackEveryBytes, s.node.conf.ReceiveWindowBytes/4)
	var h header
	since := 0    // bytes since the peer was last told at once
	owed := false // it was not yet told, nor will be soon, of the last ones
	for {
		head, err := r.header()
		if err != nil {
			return err
		}
		if err := h.decode(head, maxMessage); err != nil {
			return err
		}
		p.lastDeaf = h.flags&flagDeaf != 0
		r.expect(h.payload)
		buf, err := p.payload(r, &h)
		if err != nil {
			return err
		}
		p.rec.received.Add(headerBytes + uint64(h.payload))
		if h.typ == frameClose {
			reason := "closed by the peer: " + string(buf.data)
			if h.flags&flagDrain != 0 {
				s.goodbye(p)
				return errors.New(reason)
			}
			return &brokenError{errors.New(reason), endByPeer}
		}
		if h.typ == frameHello {
			return fmt.Errorf("%w: hello on an established path", ErrProtocol)
		}
		if err := s.receive(p, &h, buf); err != nil {
			return &brokenError{err, endProtocol}
		}
		if h.sequenced() {
			since += headerBytes + int(h.payload)
			owed = true
		}
		switch {
		case !owed || since < every && r.more():
		case since < every:
			owed = false
			p.ackSoon()
		default:
			since, owed = 0, false
			s.mu.Lock()
			p.ackDue = true
			s.mu.Unlock()
			p.poke()
		}
	}
}

// payload reads and verifies a payload whose length decode has bounded. Every piece of it is a sign of life, however
// small, or a slow path would fall silent for as long as a frame takes; and it counts as delivered, or the sender would
// not know for as long how slow the path is.
func (p *path) payload(r *frameReader, h *header) (*buffer, error) {
	buf := p.place(h)
	for rest := buf.data; len(rest) > 0; {
		n, err := r.Read(rest)
		if err != nil && n == 0 {
			buf.release()
			return nil, err
		}
		rest = rest[n:]
		p.hearPiece()
		if len(rest) > 0 && h.sequenced() {
			p.partly.Store(int64(len(buf.data) - len(rest)))
		}
	}
	if xxh3.Hash(buf.data) != h.payloadHash {
		buf.release()
		return nil, fmt.Errorf("%w: payload checksum of sequence %d", ErrFrame, h.seq)
	}
	return buf, nil
}

// plain strips the addresses that net puts around an error: the path is known.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
