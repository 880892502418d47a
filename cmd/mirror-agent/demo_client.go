package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol does not name, from the NBD specification.
const (
	nbdFlagNoZeroes   = 1 << 1
	nbdCommandFlush   = uint16(3)
	nbdTypeErrorBit   = uint32(1) << 31
	nbdFlagSendFlush  = uint16(1) << 2
	maxNBDReplyOption = 64 << 10
	maxNBDPayload     = 32 << 20
	nbdReadBuffer     = 256 << 10
	nbdCloseTimeout   = time.Second
)

var errNBDClosed = errors.New("the NBD connection is closed")

// nbdClient is a client of one NBD connection for the demo. Its methods may be
// called from many goroutines at once: each is a request in flight.
type nbdClient struct {
	conn  net.Conn
	size  int64
	flags uint16

	sendMu sync.Mutex // one request at a time on the wire; taken before mu

	mu     sync.Mutex // guards all below
	calls  map[uint64]*nbdCall
	handle uint64
	err    error // why the connection is of no more use

	ended   chan struct{} // closed when the reader has ended
	release func() bool   // lets go of the context
}

type nbdCall struct {
	into []byte // where a READ's data goes
	done chan error
}

// dialNBD connects to "unix:PATH" or HOST:PORT and negotiates the export. The
// connection ends with ctx at the latest, so that no call outlives it.
func dialNBD(ctx context.Context, address, export string) (*nbdClient, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, calls: map[uint64]*nbdCall{}, ended: make(chan struct{})}
	c.release = context.AfterFunc(ctx, func() { conn.Close() })
	if err := c.negotiate(export); err != nil {
		c.release()
		conn.Close()
		return nil, fmt.Errorf("NBD handshake with %s: %w", address, err)
	}
	go c.receive()
	return c, nil
}

func (c *nbdClient) negotiate(export string) error {
	var hello protocol.NegotiationNewstyleHeader
	if err := binary.Read(c.conn, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || hello.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return errors.New("this is no NBD server")
	}
	if hello.HandshakeFlags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return errors.New("the server does not speak fixed newstyle")
	}
	var out bytes.Buffer
	put := func(v any) { _ = binary.Write(&out, binary.BigEndian, v) } // a buffer takes everything
	put(uint32(hello.HandshakeFlags & (protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbdFlagNoZeroes)))
	put(protocol.NegotiationOptionHeader{
		OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: protocol.NEGOTIATION_ID_OPTION_GO,
		Length: uint32(4 + len(export) + 2),
	})
	put(uint32(len(export)))
	out.WriteString(export)
	put(uint16(0)) // no particular information wanted
	if _, err := c.conn.Write(out.Bytes()); err != nil {
		return err
	}
	for {
		done, err := c.negotiateReply()
		if err != nil || done {
			return err
		}
	}
}

// negotiateReply reads one answer to GO; done after the last.
func (c *nbdClient) negotiateReply() (done bool, err error) {
	var h protocol.NegotiationReplyHeader
	if err := binary.Read(c.conn, binary.BigEndian, &h); err != nil {
		return false, err
	}
	if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || h.ID != protocol.NEGOTIATION_ID_OPTION_GO || h.Length > maxNBDReplyOption {
		return false, errors.New("the answer to GO makes no sense")
	}
	data := make([]byte, h.Length)
	if _, err := io.ReadFull(c.conn, data); err != nil {
		return false, err
	}
	switch {
	case h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK:
		return true, nil
	case h.Type&nbdTypeErrorBit != 0:
		return false, fmt.Errorf("refused (error %d): %s", h.Type&^nbdTypeErrorBit, data)
	case h.Type == protocol.NEGOTIATION_TYPE_REPLY_INFO && len(data) >= 2 && binary.BigEndian.Uint16(data) == protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		var info protocol.NegotiationReplyInfo
		if err := binary.Read(bytes.NewReader(data), binary.BigEndian, &info); err != nil {
			return false, err
		}
		c.size, c.flags = int64(info.Size), info.TransmissionFlags
	}
	return false, nil
}

// ReadAt implements io.ReaderAt.
func (c *nbdClient) ReadAt(p []byte, off int64) (int, error) {
	if err := c.do(protocol.TRANSMISSION_TYPE_REQUEST_READ, off, len(p), nil, p); err != nil {
		return 0, fmt.Errorf("NBD read of %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt. It returns when the server has answered.
func (c *nbdClient) WriteAt(p []byte, off int64) (int, error) {
	if err := c.do(protocol.TRANSMISSION_TYPE_REQUEST_WRITE, off, len(p), p, nil); err != nil {
		return 0, fmt.Errorf("NBD write of %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// Flush returns when all writes answered before it are as durable as the
// mirror's mode says.
func (c *nbdClient) Flush() error {
	if c.flags&nbdFlagSendFlush == 0 {
		return errors.New("NBD flush: the server does not offer it")
	}
	if err := c.do(nbdCommandFlush, 0, 0, nil, nil); err != nil {
		return fmt.Errorf("NBD flush: %w", err)
	}
	return nil
}

func (c *nbdClient) do(command uint16, off int64, length int, payload, into []byte) error {
	if length > maxNBDPayload {
		return fmt.Errorf("longer than %d bytes", maxNBDPayload)
	}
	call := &nbdCall{into: into, done: make(chan error, 1)}
	if err := c.send(command, off, length, payload, call); err != nil {
		return err
	}
	return <-call.done
}

func (c *nbdClient) send(command uint16, off int64, length int, payload []byte, call *nbdCall) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.handle++
	handle := c.handle
	c.calls[handle] = call
	c.mu.Unlock()

	var h bytes.Buffer
	err := binary.Write(&h, binary.BigEndian, protocol.TransmissionRequestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Type: command,
		Handle: handle, Offset: uint64(off), Length: uint32(length),
	})
	if err == nil {
		_, err = (&net.Buffers{h.Bytes(), payload}).WriteTo(c.conn)
	}
	if err != nil {
		c.conn.Close() // the reader then answers every call, this one too
	}
	return nil
}

// receive hands the answers out until the connection ends; then every call
// that waits gets the reason.
func (c *nbdClient) receive() {
	defer close(c.ended)
	r := bufio.NewReaderSize(c.conn, nbdReadBuffer)
	var err error
	for err == nil {
		err = c.receiveOne(r)
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	for _, call := range c.calls {
		call.done <- c.err
	}
	c.calls = nil
}

func (c *nbdClient) receiveOne(r io.Reader) error {
	var h protocol.TransmissionReplyHeader
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return err
	}
	if h.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY {
		return errors.New("the server's answer makes no sense")
	}
	c.mu.Lock()
	call := c.calls[h.Handle]
	c.mu.Unlock()
	if call == nil {
		return fmt.Errorf("answer to a request %d that was never sent", h.Handle)
	}
	var result error
	if h.Error != 0 {
		result = syscall.Errno(h.Error)
	} else if _, err := io.ReadFull(r, call.into); err != nil {
		return err // the call is still listed and gets the reason
	}
	c.mu.Lock()
	delete(c.calls, h.Handle)
	c.mu.Unlock()
	call.done <- result
	return nil
}

// Close tells the server and ends the connection.
func (c *nbdClient) Close() error {
	c.conn.SetWriteDeadline(time.Now().Add(nbdCloseTimeout)) // also for a sender that is stuck
	c.sendMu.Lock()
	c.mu.Lock()
	if c.err == nil {
		c.err = errNBDClosed
		// Best effort: the server may be gone.
		_ = binary.Write(c.conn, binary.BigEndian, protocol.TransmissionRequestHeader{
			RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Type: protocol.TRANSMISSION_TYPE_REQUEST_DISC,
		})
	}
	c.mu.Unlock()
	c.sendMu.Unlock()
	c.release()
	err := c.conn.Close()
	<-c.ended
	if errors.Is(err, net.ErrClosed) { // the server has hung up first, and receive has closed it
		return nil
	}
	return err
}
