package dataporttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Net is a network in memory. Addresses are HOST:PORT of any text; each is one link, with its own faults, whether or
// not anybody listens there by now. All methods may be called by several goroutines.
type Net struct {
	mu    sync.Mutex // guards everything in this network
	rnd   *rand.Rand
	links map[string]*link
}

// NewNet returns an empty network. Its jitter is the same every time.
func NewNet() *Net {
	return &Net{rnd: rand.New(rand.NewPCG(1, 2)), links: map[string]*link{}}
}

// link is what leads to one address. Everything is guarded by net.mu.
type link struct {
	net        *Net
	addr       string
	listener   *listener
	refuse     bool
	retransmit bool
	slow       time.Duration // of Accept
	dialled    int
	ways       [3]way  // by Direction
	ends       []*conn // of the connections that are not over
}

// way is one direction of a link.
type way struct {
	black, stalled bool
	delay, jitter  time.Duration
	rate           int // bytes per second, of all connections together; 0: no limit
	free           time.Time
	carried        int64
	damage         []damage
	tap            func(conn int, b []byte)
}

func (n *Net) link(addr string) *link {
	l := n.links[addr]
	if l == nil {
		l = &link{net: n, addr: addr}
		n.links[addr] = l
	}
	return l
}

// set changes a link, brings what is under way in line, and wakes everybody.
func (n *Net) set(addr string, f func(l *link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(addr)
	f(l)
	l.reschedule(time.Now())
}

func (l *link) each(d Direction, f func(w *way)) {
	for _, one := range [...]Direction{Forward, Backward} {
		if d&one != 0 {
			f(&l.ways[one])
		}
	}
}

// Blackhole drops what goes over the link to addr in the directions d from now on, and what has not arrived yet; 0: nothing.
func (n *Net) Blackhole(addr string, d Direction) {
	n.set(addr, func(l *link) {
		now := time.Now()
		for _, one := range [...]Direction{Forward, Backward} {
			w := &l.ways[one]
			began := d&one != 0 && !w.black
			w.black = d&one != 0
			for _, c := range l.ends {
				if began && c.out.way == w {
					c.out.holeBegins(now)
				}
			}
		}
	})
}

// Retransmit says whether TCP brings after a hole what was lost in it. Set it before the hole begins.
func (n *Net) Retransmit(addr string, on bool) { n.set(addr, func(l *link) { l.retransmit = on }) }

// Stall stops the link in the directions d: nothing moves and nothing is lost; 0: it goes on.
func (n *Net) Stall(addr string, d Direction) {
	n.set(addr, func(l *link) {
		for _, one := range [...]Direction{Forward, Backward} {
			l.ways[one].stalled = d&one != 0
		}
	})
}

// Refuse makes dialling addr fail.
func (n *Net) Refuse(addr string, on bool) { n.set(addr, func(l *link) { l.refuse = on }) }

// SlowAccept lets a new connection wait for d until it is accepted. The side that dials is not told: the kernel has taken it.
func (n *Net) SlowAccept(addr string, d time.Duration) { n.set(addr, func(l *link) { l.slow = d }) }

// Delay adds d to everything that is sent from now on, in each direction.
func (n *Net) Delay(addr string, d time.Duration) { n.Jitter(addr, d, 0) }

// Jitter adds between d and d+jitter to every write; the order within a connection stays.
func (n *Net) Jitter(addr string, d, jitter time.Duration) {
	n.set(addr, func(l *link) { l.each(Both, func(w *way) { w.delay, w.jitter = d, jitter }) })
}

// Rate limits the directions d to so many bytes per second each, over all connections of the link; 0: no limit. It also
// holds for what waits already.
func (n *Net) Rate(addr string, d Direction, bytesPerSecond int) {
	n.set(addr, func(l *link) { l.each(d, func(w *way) { w.rate, w.free = bytesPerSecond, time.Time{} }) })
}

// Cut resets all connections of the link; bytes on their way, and those not yet read, are lost.
func (n *Net) Cut(addr string) {
	n.set(addr, func(l *link) {
		for _, c := range append([]*conn(nil), l.ends...) {
			c.reset()
		}
	})
}

// HalfClose ends the directions d of the present connections as if the sender had shut them down: the reader gets an
// end of file, and what is written goes nowhere.
func (n *Net) HalfClose(addr string, d Direction) {
	n.set(addr, func(l *link) {
		for _, c := range l.ends {
			if c.out.dir&d != 0 {
				c.out.finish(time.Now())
				c.out.dead = true
			}
		}
	})
}

// Carried returns the bytes written to the link in the directions d.
func (n *Net) Carried(addr string, d Direction) (sum int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(addr).each(d, func(w *way) { sum += w.carried })
	return sum
}

// Connections returns how many there are now and how many ever were dialled successfully.
func (n *Net) Connections(addr string) (now, ever int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(addr)
	return len(l.ends) / 2, l.dialled
}

// Tap shows f what is written in direction d, before any damage, with the number of the connection (from 1). f must not call Net.
func (n *Net) Tap(addr string, d Direction, f func(conn int, b []byte)) {
	n.set(addr, func(l *link) { l.each(d, func(w *way) { w.tap = f }) })
}

type listener struct {
	l       *link
	backlog []pending
	closed  bool
	change  notice
}

type pending struct {
	c  *conn
	at time.Time
}

const backlogMax = 16

// Listen is for Config.ListenFunc.
func (n *Net) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(addr)
	if l.listener != nil {
		return nil, fmt.Errorf("listen %s: address in use", addr)
	}
	l.listener = &listener{l: l}
	return l.listener, nil
}

// Dial is for Config.Dial. Into a hole it waits for ctx and tries again after 1, 3, 7… seconds, as a SYN would. The local
// address is what the other side sees; "" makes one up.
func (n *Net) Dial(ctx context.Context, local, remote string) (net.Conn, error) {
	if local == "" {
		local = "dialler"
	}
	wait := time.Second
	for {
		n.mu.Lock()
		l := n.link(remote)
		f, b := &l.ways[Forward], &l.ways[Backward]
		trip := f.delay + b.delay
		lost := f.black || b.black || f.stalled || b.stalled
		n.mu.Unlock()
		if !lost {
			if err := sleep(ctx, trip); err != nil {
				return nil, err
			}
			n.mu.Lock()
			switch {
			case l.refuse || l.listener == nil:
				n.mu.Unlock()
				return nil, fmt.Errorf("dial %s: connection refused", remote)
			case len(l.listener.backlog) < backlogMax: // a full one drops the SYN
				c := l.connect(local)
				n.mu.Unlock()
				return c, nil
			}
			n.mu.Unlock()
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		wait *= 2
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect makes the two ends. net.mu is held.
func (l *link) connect(local string) *conn {
	l.dialled++
	there := &stream{l: l, way: &l.ways[Forward], dir: Forward, id: l.dialled}
	back := &stream{l: l, way: &l.ways[Backward], dir: Backward, id: l.dialled}
	a := &conn{l: l, in: back, out: there, local: memAddr(local), remote: memAddr(l.addr)}
	b := &conn{l: l, in: there, out: back, local: memAddr(l.addr), remote: memAddr(local)}
	a.peer, b.peer = b, a
	there.from, there.to, back.from, back.to = a, b, b, a
	l.ends = append(l.ends, a, b)
	l.listener.backlog = append(l.listener.backlog, pending{b, time.Now().Add(l.slow)})
	l.listener.change.tell()
	return a
}

func (s *listener) Accept() (net.Conn, error) {
	n := s.l.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if s.closed {
			return nil, net.ErrClosed
		}
		var until time.Time
		if len(s.backlog) > 0 {
			first := s.backlog[0]
			if !first.at.After(time.Now()) {
				s.backlog = s.backlog[1:]
				return first.c, nil
			}
			until = first.at
		}
		s.change.wait(&n.mu, until)
	}
}

// Close frees the address; who was not accepted yet is reset.
func (s *listener) Close() error {
	n := s.l.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.l.listener = nil
	for _, p := range s.backlog {
		p.c.reset()
	}
	s.backlog = nil
	s.change.tell()
	return nil
}

func (s *listener) Addr() net.Addr { return memAddr(s.l.addr) }

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// notice wakes who waits for a change. It is guarded by the network's mutex.
type notice struct{ ch chan struct{} }

func (n *notice) tell() {
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// wait gives up mu until tell, or until a time that is not zero.
func (n *notice) wait(mu *sync.Mutex, until time.Time) {
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	ch := n.ch
	mu.Unlock()
	if until.IsZero() {
		<-ch
	} else {
		t := time.NewTimer(time.Until(until))
		select {
		case <-ch:
		case <-t.C:
		}
		t.Stop()
	}
	mu.Lock()
}
