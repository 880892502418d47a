package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

// client is an NBD client that costs as little as it can, so that the server is what is measured: one blocking socket,
// requests sent together when several are due, replies read as they come. It asks for nothing but simple replies, so that
// it gets along with every server (fio's engine refuses go-nbd's).
type client struct {
	file *os.File
	fd   int
	in   []byte // what was read and not looked at yet
	buf  []byte
}

const (
	requestBytes = 28
	replyBytes   = 16
)

// dialNBD connects and negotiates the default export.
func dialNBD(network, address string) (*client, error) {
	nc, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	if err := negotiate(nc); err != nil {
		return nil, fmt.Errorf("NBD handshake with %s: %w", address, err)
	}
	f, err := nc.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, err
	}
	c := &client{file: f, fd: int(f.Fd()), buf: make([]byte, 512<<10)}
	return c, unix.SetNonblock(c.fd, false)
}

func negotiate(rw io.ReadWriter) error {
	var hello [18]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return err
	}
	p := binary.BigEndian.AppendUint32(nil, 1) // fixed newstyle
	p = binary.BigEndian.AppendUint64(p, protocol.NEGOTIATION_MAGIC_OPTION)
	p = binary.BigEndian.AppendUint32(p, protocol.NEGOTIATION_ID_OPTION_GO)
	p = append(p, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0) // no name, nothing asked for
	if _, err := rw.Write(p); err != nil {
		return err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(rw, head[:]); err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if _, err := io.CopyN(io.Discard, rw, int64(n)); err != nil {
			return err
		}
		switch {
		case kind == 1:
			return nil
		case kind>>31 == 1:
			return fmt.Errorf("GO is answered with error %#x", kind)
		}
	}
}

func (c *client) close() error { return c.file.Close() }

// job is a load for the client.
type job struct {
	name       string
	write      bool
	random     bool
	block      int
	depth      int
	deviceSize int64
}

// run keeps depth requests in flight until the time is up and all are answered, and returns how many were answered and how
// long that took.
func (c *client) run(j job, length time.Duration) (done int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	blocks := j.deviceSize / int64(j.block)
	data := make([]byte, j.block)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	reply := replyBytes
	if !j.write {
		reply += j.block
	}
	next := int64(rand.N(blocks))
	began := time.Now()
	var out []byte
	for issued, over := 0, false; ; {
		out = out[:0]
		for !over && issued-done < j.depth {
			if j.random {
				next = rand.N(blocks)
			} else {
				next = (next + 1) % blocks
			}
			out = appendRequest(out, j, uint64(issued), next*int64(j.block))
			issued++
			switch {
			case j.write && j.block > len(c.buf)/4: // too large to gather
				if err := c.send(out, data); err != nil {
					return done, 0, err
				}
				out = out[:0]
			case j.write:
				out = append(out, data...)
			}
		}
		if err := c.send(out); err != nil {
			return done, 0, err
		}
		if done == issued {
			return done, time.Since(began), nil
		}
		n, err := c.receive(reply)
		if err != nil {
			return done, 0, err
		}
		done += n
		over = over || time.Since(began) > length
	}
}

func appendRequest(p []byte, j job, cookie uint64, off int64) []byte {
	command := uint16(protocol.TRANSMISSION_TYPE_REQUEST_READ)
	if j.write {
		command = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	}
	p = binary.BigEndian.AppendUint32(p, protocol.TRANSMISSION_MAGIC_REQUEST)
	p = binary.BigEndian.AppendUint16(p, 0)
	p = binary.BigEndian.AppendUint16(p, command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, uint64(off))
	return binary.BigEndian.AppendUint32(p, uint32(j.block))
}

func (c *client) send(ps ...[]byte) error {
	for len(ps) > 0 {
		if len(ps[0]) == 0 {
			ps = ps[1:]
			continue
		}
		n, err := unix.Writev(c.fd, ps)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for n = max(n, 0); n > 0; {
			k := min(n, len(ps[0]))
			ps[0], n = ps[0][k:], n-k
			if len(ps[0]) == 0 {
				ps = ps[1:]
			}
		}
	}
	return nil
}

// receive waits for at least one reply of the given size and returns how many were there.
func (c *client) receive(size int) (n int, err error) {
	if size > len(c.buf)/4 {
		return 1, c.receiveLarge(size)
	}
	for n == 0 {
		if len(c.in) > 0 {
			c.in = c.buf[:copy(c.buf, c.in)]
		} else {
			c.in = c.buf[:0]
		}
		got, err := c.read(c.buf[len(c.in):])
		if err != nil {
			return 0, err
		}
		c.in = c.buf[:len(c.in)+got]
		for ; len(c.in) >= size; n++ {
			if err := checkReply(c.in); err != nil {
				return n, err
			}
			c.in = c.in[size:]
		}
	}
	return n, nil
}

func (c *client) receiveLarge(size int) error {
	for got := 0; got < size; {
		n, err := c.read(c.buf[:min(len(c.buf), size-got)])
		if err != nil {
			return err
		}
		if got == 0 { // the first piece of a large reply is never shorter than its header
			if err := checkReply(c.buf[:n]); err != nil {
				return err
			}
		}
		got += n
	}
	return nil
}

func (c *client) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return 0, io.ErrUnexpectedEOF
		default:
			return n, err
		}
	}
}

func checkReply(p []byte) error {
	if len(p) < replyBytes || binary.BigEndian.Uint32(p) != protocol.TRANSMISSION_MAGIC_REPLY {
		return fmt.Errorf("not a simple reply: %x", p[:min(len(p), replyBytes)])
	}
	if e := binary.BigEndian.Uint32(p[4:]); e != 0 {
		return fmt.Errorf("error %d from the server", e)
	}
	return nil
}
