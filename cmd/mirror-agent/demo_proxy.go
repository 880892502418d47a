package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// cutter is a cable that can be cut: it forwards TCP connections to an
// address. A cut is silent, as in real life: connections stay open and nothing
// comes through any more; new ones are refused.
type cutter struct {
	to       string
	bytes    atomic.Int64 // forwarded, both directions
	accepted sync.WaitGroup

	mu       sync.Mutex // guards all below
	listener net.Listener
	conns    map[net.Conn]bool
	gate     chan struct{} // closed while the cable is whole
	cut      bool
	closed   bool
}

// newCutter listens at address (HOST:0 picks a port) and forwards to to.
func newCutter(address, to string) (*cutter, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &cutter{to: to, listener: l, conns: map[net.Conn]bool{}, gate: make(chan struct{})}
	close(c.gate)
	c.accepted.Go(c.accept)
	return c, nil
}

func (c *cutter) addr() string { return c.listener.Addr().String() }

func (c *cutter) accept() {
	for {
		near, err := c.listener.Accept()
		if err != nil {
			return
		}
		if !c.keep(near) {
			continue
		}
		c.accepted.Go(func() { c.forward(near) })
	}
}

// keep notes a connection so that it can be closed; false when the cable is
// cut.
func (c *cutter) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut || c.closed {
		conn.Close()
		return false
	}
	c.conns[conn] = true
	return true
}

func (c *cutter) drop(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

func (c *cutter) forward(near net.Conn) {
	defer c.drop(near)
	far, err := net.Dial("tcp", c.to)
	if err != nil || !c.keep(far) {
		return
	}
	defer c.drop(far)
	var both sync.WaitGroup
	pump := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		_, _ = io.Copy(&gated{c, to}, from)
	}
	both.Go(func() { pump(far, near) })
	both.Go(func() { pump(near, far) })
	both.Wait()
}

// gated holds bytes back while the cable is cut.
type gated struct {
	c  *cutter
	to io.Writer
}

func (g *gated) Write(p []byte) (int, error) {
	g.c.mu.Lock()
	gate := g.c.gate
	g.c.mu.Unlock()
	<-gate
	n, err := g.to.Write(p)
	g.c.bytes.Add(int64(n))
	return n, err
}

// sever cuts the cable.
func (c *cutter) sever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cut && !c.closed {
		c.cut, c.gate = true, make(chan struct{})
	}
}

// mend makes the cable whole. The connections that were cut are gone: what
// they held back is never delivered late.
func (c *cutter) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		c.cut = false
		c.closeAll()
		close(c.gate)
	}
}

func (c *cutter) closeAll() {
	for conn := range c.conns {
		conn.Close()
	}
}

// Close ends everything and waits for it.
func (c *cutter) Close() error {
	c.mend()
	err := c.listener.Close()
	c.mu.Lock()
	c.closed = true
	c.closeAll()
	c.mu.Unlock()
	c.accepted.Wait()
	return err
}
