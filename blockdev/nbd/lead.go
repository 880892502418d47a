package nbd

import (
	"errors"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// cause is why a leader does not parse what is in its buffer, or does not read on.
type cause uint8

const (
	goOn       cause = iota
	disconnect       // DISC
	broken           // wrong magic
	hungup           // end of the stream or an error
	largeNext        // a write that does not fit into the buffer comes next
	drained          // the server drains and the client is not told
)

// lead reads and runs requests as long as w is the leader; then it answers what it has and leaves.
func (c *conn) lead(w *work) {
	for {
		c.parse(w)
		lead := c.run(w)
		c.send(w.out[w.sent:])
		w.out, w.sent = w.out[:0], 0
		if w.wrote {
			w.wrote = false
			lead = lead && c.foresee(w)
		}
		if !lead {
			c.retire(w)
			return
		}
		if w.stop == largeNext {
			if !c.runLarge(w) {
				return
			}
			continue
		}
		if w.stop == goOn && !w.full {
			c.fill(w)
			c.watchSerial()
		}
		if w.stop != goOn {
			c.end(w)
			return
		}
	}
}

// fill reads more. What is left of the last read is an incomplete request. After a large write only a header is read: when
// another large one follows, its payload then goes where it belongs at once.
func (c *conn) fill(w *work) {
	rest := w.pos < w.end
	if w.pos == w.end {
		w.pos, w.end = 0, 0
	} else if w.pos > 0 && len(w.in)-w.end < len(w.in)/2 {
		w.end = copy(w.in, w.in[w.pos:w.end])
		w.pos = 0
	}
	room := w.in[w.end:]
	if c.afterLarge && !rest {
		room = room[:requestSize]
	}
	if rest && c.poller != nil && c.doubt <= 0 && time.Since(c.lastRead) < staleAfter { // else read has to ask whether the client is there
		if n := c.poller.read(room); n > 0 {
			if c.givenUp(n, c.lastRead) {
				w.stop = hungup
				return
			}
			w.end += n
			return
		}
	}
	n, err := c.read(room)
	w.end += n
	if err != nil {
		w.stop = hungup
	}
}

// parse takes all complete requests out of the buffer, up to a full batch. Refused ones are answered here.
func (c *conn) parse(w *work) {
	for w.full = false; w.stop == goOn; {
		if w.full = len(w.group)+len(w.reads)+len(w.flushes) >= maxBatch; w.full {
			return
		}
		if c.skip > 0 {
			n := min(c.skip, uint64(w.end-w.pos))
			w.pos += int(n)
			if c.skip -= n; c.skip > 0 {
				return
			}
			c.refuse(w, c.skipped.cookie, c.skipped.errno)
		}
		if w.end-w.pos < requestSize {
			return
		}
		h := parseRequest(w.in[w.pos:])
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
			w.stop = broken
			return
		}
		if h.Type == protocol.TRANSMISSION_TYPE_REQUEST_DISC {
			w.stop = disconnect
			return
		}
		if !c.take(w, &h) {
			return
		}
	}
}

// take takes one request; false when its payload is not here yet.
func (c *conn) take(w *work, h *protocol.TransmissionRequestHeader) bool {
	c.afterLarge = false // runLarge knows better
	errno := c.export.refusal(h, c.s.options.MaxPayloadBytes)
	if c.s.draining.Load() {
		if !c.export.structured {
			w.stop = drained
			return false
		}
		errno = errnoShutdown
	}
	write := h.Type == protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	if errno != errnoOK {
		w.pos += requestSize
		if write && h.Length > 0 {
			c.skip, c.skipped = uint64(h.Length), skipReply{h.Handle, errno}
		} else {
			c.refuse(w, h.Handle, errno)
		}
		return true
	}
	from := origin{h.Handle, h.Type, h.CommandFlags&cmdFlagFUA != 0, h.CommandFlags&cmdFlagFastZero != 0}
	switch {
	case write && requestSize+int(h.Length) > len(w.in):
		w.pos += requestSize
		w.large = largeWrite{from, h.Offset, h.Length}
		w.stop = largeNext
		return false
	case write:
		if w.end-w.pos < requestSize+int(h.Length) {
			return false
		}
		data := w.in[w.pos+requestSize:][:h.Length:h.Length]
		w.pos += len(data)
		w.group = append(w.group, blockdev.Write{Offset: int64(h.Offset), Data: data})
		w.origins = append(w.origins, from)
	case h.Type == protocol.TRANSMISSION_TYPE_REQUEST_READ, h.Type == cmdBlockStatus, h.Type == cmdCache:
		w.reads = append(w.reads, readRequest{h.Handle, h.Offset, h.Length, h.Type, h.CommandFlags})
	case h.Type == cmdFlush:
		w.flushes = append(w.flushes, syncRequest{h.Handle, false, c.lastRead})
	default:
		trim := h.Type == cmdTrim || h.CommandFlags&cmdFlagNoHole == 0
		w.group = append(w.group, blockdev.Write{
			Offset: int64(h.Offset), Length: int64(h.Length), Trim: trim, Zero: !trim, Fast: from.fast,
		})
		w.origins = append(w.origins, from)
	}
	w.pos += requestSize
	return true
}

func (c *conn) refuse(w *work, cookie uint64, errno uint32) {
	c.s.count.errors.Add(1)
	c.reply(w, errno, cookie)
}

// reply appends to the replies of the batch, sending those that are there when the buffer is full.
func (c *conn) reply(w *work, errno uint32, cookie uint64) {
	c.room(w, maxStatusSize)
	w.out = c.export.appendStatus(w.out, errno, cookie)
}

// run gives a batch to the device: flushes to the flusher, writes as one group, then the rest one by one. False when another
// goroutine became the leader meanwhile; it has what was not begun.
func (c *conn) run(w *work) (lead bool) {
	lead = true
	w.began = c.lastRead
	alone := c.alone(w) && !c.dead.Load()
	if alone && len(w.flushes) == 1 {
		return c.flushNow(w)
	}
	c.flush(w.flushes)
	w.flushes = w.flushes[:0]
	if len(w.group) > 0 && !c.dead.Load() {
		now := alone && w.origins[0].fua
		w.group[0].Sync = now
		c.enter(w)
		blockdev.ApplyBatch(c.device, w.group)
		lead = c.leave(w)
		if now {
			c.stillAlone(lead)
		}
		c.answerGroup(w)
	}
	w.clearGroup()
	for lead && w.next < len(w.reads) && !c.dead.Load() {
		r := w.reads[w.next]
		w.next++
		lead = c.ask(w, r)
		c.s.times.observe(timedAs(r.command), time.Since(w.began), 1)
	}
	w.reads, w.next = w.reads[:0], 0
	return lead
}

// answerGroup replies to the writes of a batch, but not to those that have to be durable first.
func (c *conn) answerGroup(w *work) {
	var writes, bytes, trims, zeroes, failed uint64
	var answered [timedCommands]uint64
	for i := range w.group {
		from, err := w.origins[i], w.group[i].Err
		switch {
		case err != nil:
			failed++
		case from.command == protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
			writes++
			bytes += uint64(len(w.group[i].Data))
		case from.command == cmdTrim:
			trims++
		default:
			zeroes++
		}
		if err == nil && from.fua && !w.group[i].Sync {
			w.flushes = append(w.flushes, syncRequest{from.cookie, true, w.began})
			continue
		}
		value := errno(from.command, err)
		if from.fast && errors.Is(err, errors.ErrUnsupported) {
			value = errnoNotSup
		}
		c.reply(w, value, from.cookie)
		if err == nil && from.fua {
			c.countSync(syncRequest{from.cookie, true, w.began}, errnoOK, time.Now())
			continue
		}
		answered[timedAs(from.command)]++
	}
	c.flush(w.flushes)
	w.flushes = w.flushes[:0]
	w.wrote = true
	k := &c.s.count
	add(&k.writes, writes)
	add(&k.writtenBytes, bytes)
	add(&k.trims, trims)
	add(&k.zeroes, zeroes)
	add(&k.errors, failed)
	took := time.Since(w.began)
	for command, n := range answered {
		c.s.times.observe(timedCommand(command), took, n)
	}
}

func add(n interface{ Add(uint64) uint64 }, k uint64) {
	if k > 0 {
		n.Add(k)
	}
}

// runLarge receives the payload of a large write, as a whole, and runs it. False when w is done with.
func (c *conn) runLarge(w *work) bool {
	large := w.large
	w.stop = goOn
	c.afterLarge = true
	buf, err := c.largeBuffer(int(large.length))
	if err != nil {
		w.stop = hungup
		c.end(w)
		return false
	}
	got := copy(*buf, w.in[w.pos:w.end])
	w.pos += got
	if err := c.readPayload((*buf)[got:]); err != nil {
		c.releaseLarge(buf)
		w.stop = hungup
		c.end(w)
		return false
	}
	if c.dead.Load() {
		c.releaseLarge(buf)
		return true
	}
	w.group = append(w.group, blockdev.Write{Offset: int64(large.offset), Data: *buf})
	w.origins = append(w.origins, large.origin)
	w.began = c.lastRead
	c.enter(w)
	blockdev.ApplyBatch(c.device, w.group)
	lead := c.leave(w)
	c.answerGroup(w)
	w.clearGroup()
	c.releaseLarge(buf)
	if !lead {
		c.send(w.out[w.sent:])
		c.retire(w)
	}
	return lead
}

// payloadStep is what has to come of a payload in the time that a handshake may take.
const payloadStep = 1 << 20

// readPayload reads len(p) bytes. A large buffer is not for clients that send nothing, or hardly anything.
func (c *conn) readPayload(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	for due := len(p); len(p) > 0; { // the deadline is for what begins here
		if due-len(p) >= payloadStep || due == len(p) {
			due = len(p)
			c.awaitPayload()
		}
		n, err := c.read(p)
		p = p[n:]
		if err == nil && n == 0 {
			err = io.ErrNoProgress
		}
		if err != nil {
			return err
		}
	}
	if c.grace.IsZero() {
		c.socket.SetReadDeadline(time.Time{})
	}
	if c.s.draining.Load() {
		c.kick()
	}
	return nil
}

// awaitPayload gives the client its time for the next step.
func (c *conn) awaitPayload() {
	if !c.grace.IsZero() {
		return
	}
	c.socket.SetReadDeadline(time.Now().Add(c.s.options.HandshakeTimeout))
	if c.s.draining.Load() { // a kick may have come before
		c.kick()
	}
}
