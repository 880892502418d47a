package dataporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Net is a network in memory. Addresses are HOST:PORT of any text; each listening address is one link, with its own faults.
type Net struct {
	mu    sync.Mutex
	links map[string]*link
}

// NewNet returns an empty network.
func NewNet() *Net { return &Net{links: map[string]*link{}} }

type link struct {
	net   *Net
	addr  string
	queue chan net.Conn
	done  chan struct{}
	once  sync.Once

	// guarded by net.mu
	black  Direction
	refuse bool
	delay  time.Duration
	conns  map[*memConn]struct{} // the dialling ends
}

// Listen is for Config.ListenFunc.
func (n *Net) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.links[addr]; l != nil {
		select {
		case <-l.done:
		default:
			return nil, fmt.Errorf("listen %s: address in use", addr)
		}
	}
	l := &link{net: n, addr: addr, queue: make(chan net.Conn, 16), done: make(chan struct{}), conns: map[*memConn]struct{}{}}
	if old := n.links[addr]; old != nil {
		l.black, l.refuse, l.delay = old.black, old.refuse, old.delay
	}
	n.links[addr] = l
	return l, nil
}

// Dial is for Config.Dial. Through a hole it waits for ctx, as a SYN would.
func (n *Net) Dial(ctx context.Context, _, remote string) (net.Conn, error) {
	n.mu.Lock()
	l := n.links[remote]
	if l != nil && l.black != 0 {
		n.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l == nil || l.refuse {
		n.mu.Unlock()
		return nil, fmt.Errorf("dial %s: connection refused", remote)
	}
	a, b := newConnPair(l)
	l.conns[a] = struct{}{}
	n.mu.Unlock()
	select {
	case l.queue <- b:
		return a, nil
	case <-l.done:
		return nil, fmt.Errorf("dial %s: connection refused", remote)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *Net) change(addr string, f func(l *link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[addr]
	if l == nil {
		panic("dataporttest: nobody listens on " + addr)
	}
	f(l)
}

// Blackhole drops what goes over the link to addr in the directions d from now on; 0: nothing. Bytes dropped leave a
// hole that TCP would fill and this network cannot: such a connection stays dead in that direction.
func (n *Net) Blackhole(addr string, d Direction) { n.change(addr, func(l *link) { l.black = d }) }

// Refuse makes dialling addr fail.
func (n *Net) Refuse(addr string, on bool) { n.change(addr, func(l *link) { l.refuse = on }) }

// Delay adds d to every write over the link, in each direction.
func (n *Net) Delay(addr string, d time.Duration) { n.change(addr, func(l *link) { l.delay = d }) }

// Cut resets all connections of the link; bytes on their way are lost.
func (n *Net) Cut(addr string) {
	n.change(addr, func(l *link) {
		for c := range l.conns {
			c.in.fail(errReset)
			c.out.fail(errReset)
			delete(l.conns, c)
		}
	})
}

var errReset = errors.New("connection reset by peer")

func (l *link) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *link) Addr() net.Addr { return memAddr(l.addr) }

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// stream is one direction of a connection: a bounded queue of writes, each with the time it arrives.
type stream struct {
	l *link
	d Direction

	mu     sync.Mutex
	parts  []part
	bytes  int
	err    error         // after what is queued; errReset at once
	lost   bool          // has a hole
	change chan struct{} // closed and replaced at every change
}

type part struct {
	b  []byte
	at time.Time
}

const streamBytes = 256 << 10

func newStream(l *link, d Direction) *stream { return &stream{l: l, d: d, change: make(chan struct{})} }

func (s *stream) changed() {
	close(s.change)
	s.change = make(chan struct{})
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || errors.Is(err, errReset) {
		s.err = err
		if errors.Is(err, errReset) {
			s.parts, s.bytes = nil, 0
		}
		s.changed()
	}
}

func (s *stream) write(p []byte, deadline *deadline) (int, error) {
	for {
		s.l.net.mu.Lock()
		black, delay := s.l.black&s.d != 0, s.l.delay
		s.l.net.mu.Unlock()
		s.mu.Lock()
		s.lost = s.lost || black
		switch {
		case s.err != nil:
			err := s.err
			s.mu.Unlock()
			if errors.Is(err, io.EOF) {
				err = errReset
			}
			return 0, err
		case s.lost:
			s.mu.Unlock()
			return len(p), nil
		case s.bytes == 0 || s.bytes+len(p) <= streamBytes:
			s.parts = append(s.parts, part{append([]byte(nil), p...), time.Now().Add(delay)})
			s.bytes += len(p)
			s.changed()
			s.mu.Unlock()
			return len(p), nil
		}
		change := s.change
		s.mu.Unlock()
		if err := deadline.wait(change, 0); err != nil {
			return 0, err
		}
	}
}

func (s *stream) read(p []byte, deadline *deadline) (int, error) {
	for {
		s.mu.Lock()
		wait := time.Duration(0)
		if len(s.parts) > 0 {
			if wait = time.Until(s.parts[0].at); wait <= 0 {
				n := copy(p, s.parts[0].b)
				s.parts[0].b = s.parts[0].b[n:]
				s.bytes -= n
				if len(s.parts[0].b) == 0 {
					s.parts = s.parts[1:]
				}
				s.changed()
				s.mu.Unlock()
				return n, nil
			}
		} else if s.err != nil && !(s.lost && errors.Is(s.err, io.EOF)) { // an end does not pass a hole either
			err := s.err
			s.mu.Unlock()
			return 0, err
		}
		change := s.change
		s.mu.Unlock()
		if err := deadline.wait(change, wait); err != nil {
			return 0, err
		}
	}
}

// deadline is one direction's; setting it wakes who waits.
type deadline struct {
	mu     sync.Mutex
	at     time.Time
	closed bool
	change chan struct{}
}

func (d *deadline) set(at time.Time, closed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.closed = at, d.closed || closed
	close(d.change)
	d.change = make(chan struct{})
}

// wait waits for change, at most long (0: no limit), and reports the deadline or a close.
func (d *deadline) wait(change <-chan struct{}, long time.Duration) error {
	d.mu.Lock()
	at, closed, moved := d.at, d.closed, d.change
	d.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if !at.IsZero() {
		left := time.Until(at)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		if long == 0 || left < long {
			long = left
		}
	}
	var after <-chan time.Time
	if long > 0 {
		t := time.NewTimer(long)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-change:
	case <-moved:
	case <-after:
	}
	return nil
}

type memConn struct {
	l       *link
	in, out *stream
	rd, wd  *deadline
	name    string
	twin    *memConn
}

func newConnPair(l *link) (dials, accepts *memConn) {
	there, back := newStream(l, Forward), newStream(l, Backward)
	mk := func(in, out *stream, name string) *memConn {
		return &memConn{l: l, in: in, out: out, name: name, rd: &deadline{change: make(chan struct{})}, wd: &deadline{change: make(chan struct{})}}
	}
	dials, accepts = mk(back, there, "dialler"), mk(there, back, l.addr)
	dials.twin, accepts.twin = accepts, dials
	return dials, accepts
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.read(p, c.rd) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p, c.wd) }

func (c *memConn) CloseWrite() error {
	c.out.fail(io.EOF)
	return nil
}

func (c *memConn) Close() error {
	c.rd.set(time.Time{}, true)
	c.wd.set(time.Time{}, true)
	c.out.fail(io.EOF)
	c.in.fail(net.ErrClosed)
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.name) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.twin.name) }
func (c *memConn) SetDeadline(t time.Time) error {
	c.rd.set(t, false)
	c.wd.set(t, false)
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.rd.set(t, false)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.wd.set(t, false)
	return nil
}
