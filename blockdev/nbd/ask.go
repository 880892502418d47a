package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// ask runs a request that changes nothing: READ, BLOCK_STATUS, CACHE. False when w lost the lead meanwhile.
func (c *conn) ask(w *work, r readRequest) (lead bool) {
	switch {
	case r.command == cmdBlockStatus:
		return c.blockStatus(w, r)
	case r.command == cmdCache:
		c.enter(w)
		err := c.export.prefetcher.Prefetch(int64(r.offset), int64(r.length))
		lead = c.leave(w)
		if err != nil {
			c.s.count.errors.Add(1)
		}
		c.reply(w, errno(cmdCache, err), r.cookie)
		return lead
	case c.export.overhead(r)+int(r.length) > cap(w.out):
		return c.readLarge(w, r)
	default:
		return c.readSmall(w, r)
	}
}

// room sees to it that n more bytes fit into the replies of the batch.
func (c *conn) room(w *work, n int) {
	if len(w.out)+n > cap(w.out) {
		c.send(w.out[w.sent:])
		w.out, w.sent = w.out[:0], 0
	}
}

// readSmall reads into the replies of the batch.
func (c *conn) readSmall(w *work, r readRequest) (lead bool) {
	c.room(w, c.export.overhead(r)+int(r.length))
	at := len(w.out)
	c.enter(w)
	// Whoever takes over looks at w.out up to its length only.
	p, failedAt, err := c.readChunks(w, w.out[at:at:cap(w.out)], r)
	lead = c.leave(w)
	if err == nil {
		w.out = w.out[:at+len(p)]
	} else {
		w.out = c.appendReadError(w.out, r, failedAt, err)
	}
	c.countRead(int(r.length), err)
	return lead
}

// readChunks appends the answer to a read to p, which has the room. On an error it returns where that is.
func (c *conn) readChunks(w *work, p []byte, r readRequest) ([]byte, uint64, error) {
	if !c.export.structured {
		p = appendReply(p, errnoOK, r.cookie)
		n, err := c.device.ReadAt(p[len(p):len(p)+int(r.length)], int64(r.offset))
		return p[:len(p)+int(r.length)], r.offset + uint64(max(n, 0)), err
	}
	c.export.plan(w, r)
	if len(w.extents) == 0 {
		return appendChunk(p, chunkDone, chunkNone, r.cookie, 0), 0, nil
	}
	off := r.offset
	for i, x := range w.extents {
		flags := lastFlag(i, len(w.extents))
		if x.hole {
			p = appendHole(p, flags, r.cookie, off, uint32(x.length))
		} else {
			p = appendDataHead(p, flags, r.cookie, off, uint32(x.length))
			n, err := c.device.ReadAt(p[len(p):len(p)+int(x.length)], int64(off))
			if err != nil {
				return p, off + uint64(max(n, 0)), err
			}
			p = p[:len(p)+int(x.length)]
		}
		off += x.length
	}
	return p, 0, nil
}

// lastFlag is DONE for the last of n chunks: all errors are known before the first is sent.
func lastFlag(i, n int) uint16 {
	if i == n-1 {
		return chunkDone
	}
	return 0
}

func (c *conn) appendReadError(p []byte, r readRequest, failedAt uint64, err error) []byte {
	value := errno(protocol.TRANSMISSION_TYPE_REQUEST_READ, err)
	if c.export.structured && failedAt < r.offset+uint64(r.length) {
		return appendErrorOffset(p, value, r.cookie, failedAt)
	}
	return c.export.appendStatus(p, value, r.cookie)
}

// readLarge reads into a buffer of its own. Headers and data go out in one writev.
func (c *conn) readLarge(w *work, r readRequest) (lead bool) {
	c.enter(w)
	c.export.plan(w, r)
	size := 0
	for _, x := range w.extents {
		if !x.hole {
			size += int(x.length)
		}
	}
	var data []byte
	if size > 0 {
		buf, err := c.largeBuffer(size)
		if err != nil { // the connection is dead
			return c.leave(w)
		}
		defer c.releaseLarge(buf)
		data = *buf
	}
	failedAt, err := c.readExtents(w, data, r)
	lead = c.leave(w)
	c.countRead(int(r.length), err)
	if data != nil {
		c.owe()
		defer c.paid()
	}
	if err != nil {
		c.room(w, maxStatusSize)
		w.out = c.appendReadError(w.out, r, failedAt, err)
		return lead
	}
	c.sendLarge(w, data, r)
	return lead
}

// readExtents reads all the data of a read, one piece after the other.
func (c *conn) readExtents(w *work, data []byte, r readRequest) (failedAt uint64, err error) {
	off := r.offset
	for _, x := range w.extents {
		if !x.hole {
			n, err := c.device.ReadAt(data[:x.length], int64(off))
			if err != nil {
				return off + uint64(max(n, 0)), err
			}
			data = data[x.length:]
		}
		off += x.length
	}
	return 0, nil
}

// sendLarge sends the replies that are there and then that to a large read.
func (c *conn) sendLarge(w *work, data []byte, r readRequest) {
	w.vector = append(w.vector[:0], w.out[w.sent:])
	head := w.heads[:0] // has the room for all of them
	off := r.offset
	for i, x := range w.extents {
		at, flags := len(head), lastFlag(i, len(w.extents))
		switch {
		case x.hole:
			head = appendHole(head, flags, r.cookie, off, uint32(x.length))
		case c.export.structured:
			head = appendDataHead(head, flags, r.cookie, off, uint32(x.length))
		default:
			head = appendReply(head, errnoOK, r.cookie)
		}
		w.vector = append(w.vector, head[at:])
		if !x.hole {
			w.vector = append(w.vector, data[:x.length])
			data = data[x.length:]
		}
		off += x.length
	}
	c.sendAll(w.vector)
	clear(w.vector)
	w.out, w.sent = w.out[:0], 0
}

func (c *conn) countRead(n int, err error) {
	if err != nil {
		c.s.count.errors.Add(1)
		return
	}
	c.s.count.reads.Add(1)
	c.s.count.readBytes.Add(uint64(n))
}

// blockStatus answers with the extents of a range in the one context there is: chunk header, context u32, then per extent
// length u32, status u32.
func (c *conn) blockStatus(w *work, r readRequest) (lead bool) {
	limit := maxStatusExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	c.enter(w)
	extents, err := c.export.extents(w.extents[:0], r.offset, uint64(r.length), limit)
	lead = c.leave(w)
	w.extents = extents
	if err != nil {
		c.s.count.errors.Add(1)
		c.reply(w, errno(cmdBlockStatus, err), r.cookie)
		return lead
	}
	size := 4 + 8*len(extents)
	c.room(w, chunkSize+size)
	w.out = appendChunk(w.out, chunkDone, chunkBlockStatus, r.cookie, uint32(size))
	w.out = binary.BigEndian.AppendUint32(w.out, allocationContext)
	for _, x := range extents {
		state := uint32(0)
		if x.hole {
			state = stateHole | stateZero
		}
		w.out = binary.BigEndian.AppendUint32(w.out, uint32(x.length))
		w.out = binary.BigEndian.AppendUint32(w.out, state)
	}
	return lead
}
