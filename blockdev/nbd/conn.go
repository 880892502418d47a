package nbd

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/dataport/socket"
)

// conn is one connection. Exactly one goroutine at a time is its leader: it reads the socket. See the package comment
// for how that changes hands.
type conn struct {
	s      *Server
	socket net.Conn
	nc     net.Conn // socket, or TLS over it
	export *export  // set by the handshake
	device blockdev.Device
	ctx    context.Context // done when the connection is dead; only ends waiting for memory
	cancel context.CancelFunc
	dead   atomic.Bool // nothing more is given to the device

	exposed atomic.Bool   // the leader is inside the device and may lose the lead; changed under mu
	turn    atomic.Uint64 // how often a leader entered the device
	seen    uint64        // the monitor's: turn at its last look

	mu      sync.Mutex // guards what follows and the change of the leader; taken after Server.mu
	leader  *work
	helpers int        // goroutines that may still answer: former leaders and the flusher
	gone    *sync.Cond // on mu; a helper ended

	unsynced atomic.Int32 // requests that wait for the flusher
	synced   atomic.Bool  // it has answered some since the leader looked last

	writeMu sync.Mutex // replies go out one batch at a time

	flushMu   sync.Mutex // guards what follows
	pending   []syncRequest
	spare     []syncRequest // the flusher's other slice
	flushing  bool
	unblocked *sync.Cond // on flushMu; pending got shorter

	// Owned by the leader.
	poller     *poller   // nil where there is no socket to look at
	serial     int       // so many times in a row the client sent nothing while it waited for a Sync
	afterLarge bool      // the last write was a large one
	skip       uint64    // bytes of payload still to be thrown away
	skipped    skipReply // and what is answered then
	lastRead   time.Time // when the last read from the socket returned
	doubt      int       // bytes that may still be the backlog of a client that has given up; see read
	grace      time.Time // when a connection that drains ends; zero before
}

type skipReply struct {
	cookie uint64
	errno  uint32
}

func newConn(s *Server, nc net.Conn) *conn {
	nc = socket.New(nc, s.crowd)
	c := &conn{s: s, socket: nc, nc: nc}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.gone, c.unblocked = sync.NewCond(&c.mu), sync.NewCond(&c.flushMu)
	return c
}

// serve negotiates and becomes the first leader.
func (c *conn) serve() {
	log := c.s.options.Log
	c.socket.SetDeadline(time.Now().Add(c.s.options.HandshakeTimeout))
	h := handshake{
		rw: c.nc, exports: c.s.exports, maximum: c.s.options.MaxPayloadBytes, going: c.s.draining.Load,
		security: security{required: c.s.options.TLSRequired},
	}
	if c.s.options.TLS != nil {
		h.security.start = c.startTLS
	}
	e, err := h.run()
	if err != nil {
		log.Debug().Err(err).Str("client", c.socket.RemoteAddr().String()).Msg("NBD handshake ended")
		c.close()
		return
	}
	w := c.s.memory.work()
	if k, ok := c.nc.(*socket.Conn); ok {
		k.SendLargeAlone()
		if err := k.Detach(); err != nil {
			log.Debug().Err(err).Str("client", c.socket.RemoteAddr().String()).Msg("NBD connection ended")
			c.close()
			return
		}
		c.poller = newPoller(k)
	}
	c.export, c.device = e, e.device
	c.socket.SetDeadline(time.Time{})
	if c.s.draining.Load() { // a kick may have come before the deadline was taken away
		c.kick()
	}
	c.mu.Lock()
	c.leader = w
	c.mu.Unlock()
	c.lastRead = time.Now()
	c.lead(w)
}

// kick wakes the leader when it waits for the client.
func (c *conn) kick() { c.socket.SetReadDeadline(time.Unix(1, 0)) }

// kill makes the connection dead: no further request reaches the device, no further reply the client.
func (c *conn) kill() {
	c.dead.Store(true)
	c.cancel()
	c.socket.Close()
	c.flushMu.Lock()
	c.unblocked.Broadcast()
	c.flushMu.Unlock()
}

// close ends a connection that has no helpers.
func (c *conn) close() {
	c.kill()
	c.s.remove(c)
}

// end is how the leader leaves when the connection is over. After a DISC, and when a client leaves that is not told of the
// server's end, what is outstanding is answered first.
func (c *conn) end(w *work) {
	mute := c.mute()
	answers := w.stop == disconnect || mute
	if !answers {
		if c.s.draining.Load() {
			c.goodbye()
		}
		c.kill()
	}
	c.s.memory.release(w)
	c.mu.Lock()
	for c.helpers > 0 {
		c.gone.Wait()
	}
	c.mu.Unlock()
	if answers {
		c.goodbye()
	}
	if mute {
		c.hangUp()
	}
	c.close()
}

func (c *conn) helperGone() {
	c.mu.Lock()
	c.helpers--
	c.gone.Broadcast()
	c.mu.Unlock()
}

// send writes replies; several goroutines may. An error ends the connection.
func (c *conn) send(p []byte) {
	if len(p) == 0 {
		return
	}
	c.writeMu.Lock()
	_, err := c.nc.Write(p)
	c.writeMu.Unlock()
	if err != nil {
		c.kill()
	}
}

// sendAll is send of several pieces, by as few system calls as it takes.
func (c *conn) sendAll(pieces [][]byte) {
	c.writeMu.Lock()
	var err error
	if k, ok := c.nc.(*socket.Conn); ok {
		_, err = k.Writev(pieces)
	} else {
		bufs := net.Buffers(pieces)
		_, err = bufs.WriteTo(c.nc)
	}
	c.writeMu.Unlock()
	if err != nil {
		c.kill()
	}
}

// read reads from the socket. While the server drains it returns a timeout only when the connection is over: for a client
// that is not told of it at once.
func (c *conn) read(p []byte) (int, error) {
	for {
		from := time.Now()
		n, err := c.nc.Read(p)
		if n > 0 {
			if c.givenUp(n, from) {
				return 0, net.ErrClosed
			}
			return n, nil
		}
		c.lastRead = time.Now()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !c.s.draining.Load() || !c.export.structured {
			return n, err
		}
		if !c.grace.IsZero() {
			return 0, err
		}
		deadline := time.Now().Add(shutdownGrace)
		c.mu.Lock()
		if c.helpers == 0 {
			c.grace = deadline
		}
		c.mu.Unlock()
		c.socket.SetReadDeadline(deadline)
	}
}

// givenUp notes a read of n bytes that began at from and has returned now, and says whether the client has hung up behind them. Nobody may have
// looked at the socket for a while: this connection was busy, or the whole process stood still, also in the middle of the read. A client
// that gave up in the meantime has perhaps sent its requests again on another connection: they must not be applied here after that. The end of
// the stream comes right behind the last byte that it had sent, which may still be on its way, so it is asked for until that is read.
// Who was only waited for may have hung up as well: then it wants what it sent to be done, and nothing is asked.
func (c *conn) givenUp(n int, from time.Time) bool {
	now := time.Now()
	if from.Sub(c.lastRead) > staleAfter || c.s.pulse.stoodStill(from, now) {
		c.doubt = maxBacklog
	}
	c.lastRead = now
	if c.doubt <= 0 {
		return false
	}
	c.doubt -= n
	return hungUp(c.socket)
}

// maxBacklog is more bytes than the buffers of both sockets hold.
const maxBacklog = 64 << 20

// hungUp says whether the peer has closed the connection, although there may be data of it left to read.
func hungUp(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	hung := true
	err = raw.Control(func(fd uintptr) { hung = socket.Poll(fd, unix.POLLRDHUP, 0) })
	return err != nil || hung
}
