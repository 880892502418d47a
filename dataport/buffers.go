package dataport

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Payload buffers come in a few sizes and go back to their pool when the client has consumed the message. Whoever
// holds a *buffer owns it; release gives it up.
type buffer struct {
	b    []byte // full capacity of the class
	data []byte
	pool *bufferPool
	in   *assembly // data is a part of this one's memory
}

// bufferSizes grow by two, so that memory stays within twice what credit counts.
var bufferSizes = [...]int{512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20}

// bufferPool has the buffers of one size that nobody holds. Of large ones it gives out first what came back last, whoever brought it: that is
// still in the processors' caches, where a copy by the kernel costs half as much. A sync.Pool gives them in turn.
type bufferPool struct {
	size int
	keep int // so many at most are in last

	mu   sync.Mutex // guards last
	last []*buffer
	rest sync.Pool
}

const (
	// lastFromBytes is from which size on the order counts.
	lastFromBytes = 64 << 10
	// lastBytes bounds, for each size, what stays here although nobody uses it: 16 MiB for all of them.
	lastBytes   = 4 << 20
	lastBuffers = 4
)

func (p *bufferPool) get() *buffer {
	if p.keep > 0 {
		p.mu.Lock()
		if n := len(p.last); n > 0 {
			b := p.last[n-1]
			p.last = p.last[:n-1]
			p.mu.Unlock()
			return b
		}
		p.mu.Unlock()
	}
	if b, ok := p.rest.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, p.size), pool: p}
}

func (p *bufferPool) put(b *buffer) {
	if p.keep > 0 {
		p.mu.Lock()
		if len(p.last) < p.keep {
			p.last = append(p.last, b)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
	p.rest.Put(b)
}

var bufferPools = func() (p [len(bufferSizes)]*bufferPool) {
	for i, n := range bufferSizes {
		p[i] = &bufferPool{size: n}
		if n >= lastFromBytes {
			p[i].keep = min(lastBuffers, lastBytes/n)
		}
	}
	return p
}()

// newBuffer returns a buffer whose data has n bytes of any content. n was checked by the caller.
func newBuffer(n int) *buffer {
	for i, size := range bufferSizes {
		if n <= size {
			b := bufferPools[i].get()
			b.data = b.b[:n]
			return b
		}
	}
	return &buffer{data: make([]byte, n)}
}

func (b *buffer) release() {
	if b == nil || b.pool == nil {
		return
	}
	b.data = nil
	b.pool.put(b)
}

// bufferedConn lies between TLS and TCP: TLS writes one record of 16 KiB at a time, which would be a system call each.
// Buffering begins after the handshake; flush is called by the path's writer. Only the writer goroutine and, rarely, TLS
// itself (key updates) write, so a mutex is enough.
type bufferedConn struct {
	net.Conn
	mu    sync.Mutex // guards out
	out   []byte     // nil: not buffering
	late  bool       // a deadline has passed: TLS, which would break by that, writes on into out; flush tells
	rest  []byte     // read, not yet given to TLS; used by the reading goroutine only
	space []byte
	heard func() // nil, or called by the reading goroutine for every piece that arrives
}

const tlsBufferBytes = 128 << 10

func (c *bufferedConn) startBuffering() {
	c.mu.Lock()
	c.out = make([]byte, 0, tlsBufferBytes)
	c.mu.Unlock()
}

func (c *bufferedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out == nil {
		return c.Conn.Write(p)
	}
	if len(c.out)+len(p) > tlsBufferBytes && !c.late {
		switch err := c.flushLocked(); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.late = true
		case err != nil:
			return 0, err
		}
	}
	c.out = append(c.out, p...) // beyond its size by what the rest of one write takes, when late
	return len(p), nil
}

func (c *bufferedConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushLocked()
}

func (c *bufferedConn) flushLocked() error {
	if len(c.out) == 0 {
		return nil
	}
	n, err := c.Conn.Write(c.out)
	if err != nil {
		c.out = append(c.out[:0], c.out[n:]...)
		return err
	}
	if c.out, c.late = c.out[:0], false; cap(c.out) > 2*tlsBufferBytes {
		c.out = make([]byte, 0, tlsBufferBytes)
	}
	return nil
}

// read tells of what arrives: a path so slow that a record of TLS takes longer than the thresholds is not silent.
func (c *bufferedConn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.heard != nil {
		c.heard()
	}
	return n, err
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if len(p) >= tlsBufferBytes/2 {
			return c.read(p)
		}
		if c.space == nil {
			c.space = make([]byte, tlsBufferBytes)
		}
		n, err := c.read(c.space)
		c.rest = c.space[:n]
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// clock is the monotonic time since the node began; tests in a synctest bubble make it theirs.
type clock struct{ start time.Time }

func (c clock) now() time.Duration { return time.Since(c.start) }
