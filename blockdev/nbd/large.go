package nbd

import (
	"context"
	"net"
	"time"

	"mirror-agent/dataport/socket"
)

// Large buffers are few. A client that does not take its replies keeps those that they are in, so:
//
//	share    one connection has a quarter of them at most, or what its largest request needs
//	press    while somebody waits for room, clients that stand still for as long as a handshake may take are ended, one after the
//	         other, the one that has stood still for longest first; as long as nobody waits they may take any time
//
// Who sends the payload of a large write has his time for it anyway, see readPayload.

// sendStep is what a client has to take of its replies not to stand still. It is more than the replies of a batch and a read of 1 MiB, which
// so go out by one system call.
const sendStep = 2 << 20

// largeBuffer waits for room and returns n bytes in a buffer that goes back by releaseLarge. Its error is the end of the connection.
func (c *conn) largeBuffer(n int) (*[]byte, error) {
	m, size := c.s.memory, int64(roundUp(n))
	if err := c.share.Acquire(c.ctx, size); err != nil {
		return nil, err
	}
	if !m.big.TryAcquire(size) {
		relieve := c.s.press()
		err := m.big.Acquire(c.ctx, size)
		relieve()
		if err != nil {
			c.share.Release(size)
			return nil, err
		}
	}
	return m.largeBuffer(n), nil
}

func (c *conn) releaseLarge(b *[]byte) {
	size := int64(cap(*b))
	c.s.memory.releaseLarge(b)
	c.share.Release(size)
}

// press ends clients that stand still until it is relieved.
func (s *Server) press() (relieve func()) {
	ctx, cancel := context.WithCancel(context.Background())
	s.running.Go(func() {
		most := s.options.HandshakeTimeout
		for wait := most; pause(ctx, wait) == nil; wait = most / 8 {
			s.endIdler(most)
		}
	})
	return cancel
}

// endIdler ends the client that has stood still for longest, if that is so long. Then the others have a while before it is the next one's turn:
// what the first gives back may be enough.
func (s *Server) endIdler(most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.endedIdler) < most/8 {
		return
	}
	var worst *conn
	since := now.Add(-most).UnixNano()
	for c := range s.conns {
		if c.owing.Load() == 0 || c.dead.Load() { // moved is newer than the beginning of what it owes
			continue
		}
		if at := c.moved.Load(); at <= since {
			worst, since = c, at
		}
	}
	if worst == nil {
		return
	}
	s.endedIdler = now
	s.options.Log.Warn().Str("client", worst.socket.RemoteAddr().String()).
		Msg("NBD connection ended: the client does not take its replies, and others wait for the memory that they are in")
	worst.kill()
}

// owe begins, and paid ends, the time in which the connection has a large buffer because of its client.
func (c *conn) owe() {
	if c.owing.Load() == 0 {
		c.move()
	}
	c.owing.Add(1)
}

func (c *conn) paid() { c.owing.Add(-1) }

// move says that the client does not stand still.
func (c *conn) move() { c.moved.Store(time.Now().UnixNano()) }

// sendAll is send of several pieces that are in a large buffer, by as few system calls as it takes. It changes pieces.
func (c *conn) sendAll(pieces [][]byte) {
	c.writeMu.Lock()
	var err error
	for from := 0; from < len(pieces) && err == nil; {
		to, room := from, sendStep
		for to < len(pieces) && len(pieces[to]) <= room {
			room -= len(pieces[to])
			to++
		}
		var rest []byte
		if to < len(pieces) {
			rest, pieces[to] = pieces[to][room:], pieces[to][:room]
			to++
		}
		c.move()
		err = c.writePieces(pieces[from:to])
		if rest != nil {
			to--
			pieces[to] = rest
		}
		from = to
	}
	c.writeMu.Unlock()
	if err != nil {
		c.kill()
	}
}

func (c *conn) writePieces(pieces [][]byte) (err error) {
	if k, ok := c.nc.(*socket.Conn); ok {
		_, err = k.Writev(pieces)
		return err
	}
	bufs := net.Buffers(pieces)
	_, err = bufs.WriteTo(c.nc)
	return err
}
