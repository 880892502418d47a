package dataporttest

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Direction names the way of bytes through a Proxy, or both ways.
type Direction uint8

// The directions. Forward is from the side that dials to the target.
const (
	Forward Direction = 1 << iota
	Backward
	Both = Forward | Backward
)

// Proxy is a TCP link on 127.0.0.1 that a test can damage: dial Addr instead of the target. What it drops it drops
// silently, as a network does: the sender's TCP sees its bytes acknowledged. All methods may be called at any time.
type Proxy struct {
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when a setting changes
	closed   bool
	refuse   bool
	black    Direction
	delay    time.Duration
	rate     int // bytes per second, per connection and direction; 0: no limit, -1: frozen
	pipes    map[*pipe]struct{}
	accepted int
	carried  [3]int64
}

type pipe struct {
	client, server net.Conn
	lost           Direction    // bytes of this direction were dropped: the connection is never good again in that direction
	ended          int          // directions that are over
	next           [3]time.Time // by direction, used by its goroutine only: when the rate lets the next piece go
}

// NewProxy listens on a free port of 127.0.0.1 and forwards to target. It panics when it cannot: a test has no use for it then.
func NewProxy(target string) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic("dataporttest: " + err.Error())
	}
	p := &Proxy{target: target, l: l, changed: make(chan struct{}), pipes: map[*pipe]struct{}{}}
	p.wg.Add(1)
	go p.accept()
	return p
}

// Addr is what to dial.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// SetTarget changes where new connections lead.
func (p *Proxy) SetTarget(target string) { p.set(func() { p.target = target }) }

// Cut resets all connections (RST on both sides). New ones are taken.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pipes {
		c.reset()
	}
}

// Refuse resets new connections at once, as a host without the service does.
func (p *Proxy) Refuse(on bool) { p.set(func() { p.refuse = on }) }

// Blackhole drops everything in both directions, also of new connections, and never says so; off lets bytes through
// again. A connection that lost bytes stays dead in that direction, as TCP would retransmit and this proxy cannot.
func (p *Proxy) Blackhole(on bool) { p.BlackholeOneWay(Both, on) }

// BlackholeOneWay drops one direction only.
func (p *Proxy) BlackholeOneWay(d Direction, on bool) {
	p.set(func() {
		if on {
			p.black |= d
		} else {
			p.black &^= d
		}
	})
}

// Freeze stops reading in both directions: nothing is lost, everything waits (a stalled link); off lets it go on.
func (p *Proxy) Freeze(on bool) {
	if on {
		p.Rate(-1)
	} else {
		p.Rate(0)
	}
}

// Delay adds d to every byte, in each direction.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Rate limits each direction of each connection to so many bytes per second; 0: no limit.
func (p *Proxy) Rate(bytesPerSecond int) { p.set(func() { p.rate = bytesPerSecond }) }

// Connections returns how many connections there are now and how many were ever accepted.
func (p *Proxy) Connections() (now, ever int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pipes), p.accepted
}

// Carried returns the bytes that went through in one direction.
func (p *Proxy) Carried(d Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var n int64
	if d&Forward != 0 {
		n += p.carried[Forward]
	}
	if d&Backward != 0 {
		n += p.carried[Backward]
	}
	return n
}

// Close resets everything and waits for the proxy's goroutines.
func (p *Proxy) Close() {
	p.set(func() { p.closed = true })
	_ = p.l.Close()
	p.Cut()
	p.wg.Wait()
}

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (c *pipe) reset() {
	for _, conn := range []net.Conn{c.client, c.server} {
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = conn.Close()
	}
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Add(1)
		go p.serve(client)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer p.wg.Done()
	p.mu.Lock()
	target, refuse := p.target, p.refuse || p.closed
	p.accepted++
	p.mu.Unlock()
	c := &pipe{client: client}
	if !refuse {
		if server, err := net.DialTimeout("tcp", target, 5*time.Second); err == nil {
			c.server = server
		}
	}
	if c.server == nil {
		if t, ok := client.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.pipes[c] = struct{}{}
	for _, conn := range []net.Conn{c.client, c.server} {
		_ = conn.(*net.TCPConn).SetReadBuffer(256 << 10) // a link holds little: what it has read is on its way
	}
	if p.closed {
		c.reset()
	}
	p.mu.Unlock()
	p.wg.Add(2)
	go p.carry(c, Forward, c.client, c.server)
	go p.carry(c, Backward, c.server, c.client)
}

type chunk struct {
	b  []byte
	at time.Time // not to be delivered before
}

// carry moves one direction of one connection.
func (p *Proxy) carry(c *pipe, d Direction, from, to net.Conn) {
	defer p.wg.Done()
	// Delayed bytes wait in a bounded queue, so that delay does not limit the rate.
	queue := make(chan chunk, 512)
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		p.deliver(c, d, to, queue)
	}()
	var err error
	for err == nil {
		buf := make([]byte, 32<<10)
		var n int
		n, err = from.Read(buf)
		if n == 0 || !p.pass(c, d, n) {
			continue
		}
		p.mu.Lock()
		delay := p.delay
		p.mu.Unlock()
		queue <- chunk{buf[:n], time.Now().Add(delay)}
	}
	p.mu.Lock()
	// A close passes too, but not through a hole: the other side must not learn of it.
	silent := (p.black|c.lost)&d != 0 && !p.closed
	p.mu.Unlock()
	if !errors.Is(err, io.EOF) && !silent {
		c.reset()
	}
	close(queue)
}

// pass waits for the rate and says whether n bytes may pass; false: dropped.
func (p *Proxy) pass(c *pipe, d Direction, n int) bool {
	for {
		p.mu.Lock()
		if p.black&d != 0 {
			c.lost |= d
		}
		rate, changed, lost, closed := p.rate, p.changed, c.lost&d != 0, p.closed
		if !lost && rate >= 0 {
			p.carried[d] += int64(n)
		}
		p.mu.Unlock()
		switch {
		case lost || closed:
			return false
		case rate == 0:
			return true
		case rate > 0:
			// By the clock and not by the piece: what a sleep is too long the next one is shorter.
			next := c.next[d]
			if now := time.Now(); next.Before(now.Add(-20 * time.Millisecond)) {
				next = now
			}
			next = next.Add(time.Duration(n) * time.Second / time.Duration(rate))
			c.next[d] = next
			time.Sleep(time.Until(next))
			return true
		}
		<-changed
	}
}

func (p *Proxy) deliver(c *pipe, d Direction, to net.Conn, queue <-chan chunk) {
	broken := false
	for ch := range queue {
		if broken {
			continue
		}
		if wait := time.Until(ch.at); wait > 0 {
			time.Sleep(wait)
		}
		p.mu.Lock()
		if p.black&d != 0 {
			c.lost |= d
		}
		lost := c.lost&d != 0
		p.mu.Unlock()
		if !lost {
			_, err := to.Write(ch.b)
			broken = err != nil
		}
	}
	p.mu.Lock()
	silent := (p.black|c.lost)&d != 0 && !p.closed
	p.mu.Unlock()
	if silent { // the far side is left hanging until its own way is over
		if d == Forward {
			_ = c.client.Close()
		} else {
			_ = c.server.Close()
		}
	} else if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.ended++; c.ended == 2 {
		_ = c.client.Close()
		_ = c.server.Close()
		delete(p.pipes, c)
	}
}
