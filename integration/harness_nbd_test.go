package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol package does not name; see NBD's proto.md.
const (
	nbdFlush       = uint16(3)
	nbdTrim        = uint16(4)
	nbdWriteZeroes = uint16(6)
	nbdFlagFUA     = uint16(1)
	nbdMaxReply    = 1 << 20
)

// errNBDGone says that the connection ended before the answer came: the
// request may have been done or not.
var errNBDGone = errors.New("NBD connection gone")

// nbdError is an errno that the server answered.
type nbdError uint32

func (e nbdError) Error() string { return fmt.Sprintf("NBD error %d", uint32(e)) }

// nbdClient is a small pipelining NBD client: newstyle, GO, simple replies. Any
// goroutine may call it; how many requests are in flight is up to the callers.
type nbdClient struct {
	conn  net.Conn
	size  int64
	flags uint16

	writeMu sync.Mutex // one request on the wire at a time

	mu      sync.Mutex // guards below
	next    uint64
	pending map[uint64]*nbdCall
	err     error // why the connection ended
	done    chan struct{}
}

type nbdCall struct {
	into []byte // of a read
	err  error
	done chan struct{}
}

// nbdURI is an agent's address as libnbd's and qemu's tools want it.
func nbdURI(addr string) string {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "nbd+unix:///?socket=" + path
	}
	return "nbd://" + addr
}

func dialRaw(addr string) (net.Conn, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return net.DialTimeout("unix", path, 2*time.Second)
	}
	return net.DialTimeout("tcp", addr, 2*time.Second)
}

// dialNBD connects to an export ("" is the default one).
func dialNBD(addr, export string) (*nbdClient, error) {
	conn, err := dialRaw(addr)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, pending: map[uint64]*nbdCall{}, done: make(chan struct{})}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReaderSize(conn, 256<<10)
	if err := c.negotiate(r, export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("negotiate with %s: %w", addr, err)
	}
	conn.SetDeadline(time.Time{})
	go c.receive(r)
	return c, nil
}

func (c *nbdClient) negotiate(r io.Reader, export string) error {
	var hello protocol.NegotiationNewstyleHeader
	if err := binary.Read(r, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || hello.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return fmt.Errorf("not an NBD server: %x", hello)
	}
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, uint32(hello.HandshakeFlags&3)) // fixed newstyle, no zeroes
	body := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	body = append(append(body, export...), 0, 0) // no information requests
	binary.Write(&b, binary.BigEndian, protocol.NegotiationOptionHeader{
		OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: protocol.NEGOTIATION_ID_OPTION_GO, Length: uint32(len(body)),
	})
	b.Write(body)
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		return err
	}
	for {
		var h protocol.NegotiationReplyHeader
		if err := binary.Read(r, binary.BigEndian, &h); err != nil {
			return err
		}
		if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || h.Length > nbdMaxReply {
			return fmt.Errorf("reply %+v", h)
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		switch {
		case h.Type&(1<<31) != 0:
			return fmt.Errorf("export %q refused: %#x %s", export, h.Type, data)
		case h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return nil
		case h.Type == protocol.NEGOTIATION_TYPE_REPLY_INFO && len(data) >= 12 && binary.BigEndian.Uint16(data) == protocol.NEGOTIATION_TYPE_INFO_EXPORT:
			c.size, c.flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
		}
	}
}

func (c *nbdClient) receive(r io.Reader) {
	var err error
	var h protocol.TransmissionReplyHeader
	buf := make([]byte, 16)
	for {
		if _, err = io.ReadFull(r, buf); err != nil {
			break
		}
		h.ReplyMagic, h.Error, h.Handle = binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:]), binary.BigEndian.Uint64(buf[8:])
		c.mu.Lock()
		call := c.pending[h.Handle]
		delete(c.pending, h.Handle)
		c.mu.Unlock()
		if h.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY || call == nil {
			err = fmt.Errorf("unexpected reply %+v", h)
			break
		}
		if h.Error != 0 {
			call.err = nbdError(h.Error)
		} else if call.into != nil {
			_, err = io.ReadFull(r, call.into)
			if err != nil {
				call.err = errNBDGone
			}
		}
		close(call.done)
		if err != nil {
			break
		}
	}
	c.conn.Close()
	c.mu.Lock()
	c.err = err
	for _, call := range c.pending {
		call.err = errNBDGone
		close(call.done)
	}
	c.pending = nil
	c.mu.Unlock()
	close(c.done)
}

// do sends a request and waits for its answer.
func (c *nbdClient) do(kind, flags uint16, off int64, length int, data, into []byte) error {
	call := &nbdCall{into: into, done: make(chan struct{})}
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return errNBDGone
	}
	c.next++
	handle := c.next
	c.pending[handle] = call
	c.mu.Unlock()

	b := make([]byte, 28, 28+len(data))
	binary.BigEndian.PutUint32(b, protocol.TRANSMISSION_MAGIC_REQUEST)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint64(b[8:], handle)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(length))
	c.writeMu.Lock()
	_, err := c.conn.Write(append(b, data...))
	c.writeMu.Unlock()
	if err != nil {
		c.conn.Close() // receive tells all who wait
	}
	<-call.done
	return call.err
}

func (c *nbdClient) write(off int64, p []byte, fua bool) error {
	var flags uint16
	if fua {
		flags = nbdFlagFUA
	}
	return c.do(protocol.TRANSMISSION_TYPE_REQUEST_WRITE, flags, off, len(p), p, nil)
}

func (c *nbdClient) read(off int64, p []byte) error {
	return c.do(protocol.TRANSMISSION_TYPE_REQUEST_READ, 0, off, len(p), nil, p)
}

func (c *nbdClient) flush() error { return c.do(nbdFlush, 0, 0, 0, nil, nil) }

// close ends the connection as a client that is done does.
func (c *nbdClient) close() {
	c.writeMu.Lock()
	b := make([]byte, 28)
	binary.BigEndian.PutUint32(b, protocol.TRANSMISSION_MAGIC_REQUEST)
	binary.BigEndian.PutUint16(b[6:], protocol.TRANSMISSION_TYPE_REQUEST_DISC)
	c.conn.Write(b)
	c.conn.Close()
	c.writeMu.Unlock()
	<-c.done
}
