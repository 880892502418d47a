package dataporttest

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"
)

// conn is one end of a connection. Everything is guarded by the network's mutex.
type conn struct {
	l             *link
	peer          *conn
	in, out       *stream
	local, remote memAddr

	closed   bool
	abort    bool      // SetLinger(0)
	broken   bool      // was reset
	resetAt  time.Time // not zero: a reset is on its way to this end
	resetDue bool      // a hole or a stall holds one up
	rd, wd   time.Time // deadlines

	readable, writable notice
}

var (
	errReset = errors.New("connection reset by peer")
	errPipe  = errors.New("broken pipe")
)

// state says whether this end can be used now, and until when that is known to hold.
func (c *conn) state(now, deadline time.Time) (until time.Time, err error) {
	if !c.resetAt.IsZero() && !c.resetAt.After(now) {
		c.takeReset()
	}
	switch {
	case c.closed:
		return until, net.ErrClosed
	case c.broken:
		return until, errReset
	case !deadline.IsZero() && !deadline.After(now):
		return until, os.ErrDeadlineExceeded
	}
	return earliest(deadline, c.resetAt), nil
}

// earliest ignores zero times.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (c *conn) Read(p []byte) (int, error) {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		now := time.Now()
		until, err := c.state(now, c.rd)
		if err != nil {
			return 0, err
		}
		n, next, end := c.take(p, now)
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case end:
			return 0, io.EOF
		}
		c.readable.wait(mu, earliest(until, next))
	}
}

// take reads what has arrived; next is when more will have, if that is known.
func (c *conn) take(p []byte, now time.Time) (n int, next time.Time, end bool) {
	s := c.in
	for len(s.pieces) > 0 && n < len(p) {
		first := &s.pieces[0]
		if first.held || first.arrives.After(now) {
			if !first.held {
				next = first.arrives
			}
			break
		}
		if first.eof {
			end = true
			break
		}
		k := copy(p[n:], first.b)
		n += k
		if first.b = first.b[k:]; len(first.b) == 0 {
			s.pieces = s.pieces[1:]
		}
	}
	if n > 0 {
		s.bytes -= n
		if back := c.out.way; back.black || back.stalled {
			s.unacked += n
		}
		c.peer.writable.tell()
	}
	return n, next, end
}

func (c *conn) Write(p []byte) (total int, _ error) {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	for {
		now := time.Now()
		until, err := c.state(now, c.wd)
		switch {
		case err != nil:
			return total, err
		case c.out.ended && !c.out.dead:
			return total, errPipe
		case len(p) == 0:
			return total, nil
		case c.peer.closed && c.out.way.black && !c.l.retransmit:
			return total + len(p), nil
		case c.peer.closed && (c.out.way.black || c.out.way.stalled):
			c.resetDue = true
			return total + len(p), nil
		case c.peer.closed:
			c.peer.sendReset(now.Add(c.out.way.delay))
			return total + len(p), nil
		}
		if n := min(c.out.room(), len(p)); n > 0 {
			c.out.send(p[:n], now)
			p = p[n:]
			total += n
			continue
		}
		c.writable.wait(mu, until)
	}
}

// sendReset has c answer with a reset at a time: it is closed, or was closed with bytes unread.
func (c *conn) sendReset(at time.Time) {
	back := c.out.way
	switch {
	case c.peer.broken || c.peer.resetDue || !c.peer.resetAt.IsZero():
	case back.stalled || back.black && c.l.retransmit: // it goes, or the next byte asks for it, when that is over
		c.peer.resetDue = true
	case back.black: // lost, and nobody asks again
	default:
		c.peer.resetAt = at.Add(back.delay)
		c.peer.readable.tell()
		c.peer.writable.tell()
	}
}

// settleReset lets a reset go that was held up.
func (c *conn) settleReset(now time.Time) {
	if there, back := c.in.way, c.out.way; c.resetDue && !there.black && !back.black && !there.stalled && !back.stalled {
		c.resetDue = false
		c.resetAt = now.Add(there.delay + back.delay)
	}
}

// takeReset is what a reset does to the end that gets it.
func (c *conn) takeReset() {
	c.broken, c.resetAt = true, time.Time{}
	c.in.pieces, c.in.bytes, c.in.unacked = nil, 0, 0
	c.readable.tell()
	c.writable.tell()
	c.leave()
}

// reset breaks both ends at once.
func (c *conn) reset() {
	c.takeReset()
	c.peer.takeReset()
}

// leave forgets a connection of which both ends are over.
func (c *conn) leave() {
	if (c.closed || c.broken) && (c.peer.closed || c.peer.broken) {
		c.l.ends = slices.DeleteFunc(c.l.ends, func(o *conn) bool { return o == c || o == c.peer })
	}
}

// CloseWrite ends this end's direction; what was written before arrives.
func (c *conn) CloseWrite() error {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	now := time.Now()
	if _, err := c.state(now, time.Time{}); err != nil {
		return err
	}
	c.out.finish(now)
	return nil
}

// SetLinger: 0 makes Close reset the connection. Other values are TCP's business.
func (c *conn) SetLinger(sec int) error {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	c.abort = sec == 0
	return nil
}

// Close sends the end of the stream, or a reset when bytes are unread. Bytes that come later are answered with a reset.
func (c *conn) Close() error {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	now := time.Now()
	if _, err := c.state(now, time.Time{}); err == nil {
		var late time.Time // when the first byte comes that nobody reads
		for i := range c.in.pieces {
			if p := &c.in.pieces[i]; !p.held && len(p.b) > 0 {
				late = p.arrives
				break
			}
		}
		switch {
		case c.abort || !late.IsZero() && !late.After(now):
			c.sendReset(now)
		default:
			c.out.finish(now)
			if !late.IsZero() {
				c.sendReset(late)
			}
		}
	}
	c.closed = true
	c.readable.tell()
	c.writable.tell()
	c.peer.writable.tell()
	c.leave()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error      { return c.deadlines(&t, &t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.deadlines(&t, nil) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.deadlines(nil, &t) }

func (c *conn) deadlines(read, write *time.Time) error {
	mu := &c.l.net.mu
	mu.Lock()
	defer mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if read != nil {
		c.rd = *read
		c.readable.tell()
	}
	if write != nil {
		c.wd = *write
		c.writable.tell()
	}
	return nil
}
