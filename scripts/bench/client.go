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
	depth      int // requests in flight
	deviceSize int64

	flushEvery int  // after so many writes, when all are answered, a FLUSH, and nothing before it is answered
	once       bool // every block of the device once, in order, and a FLUSH at the end, inside the measured time
	fua        bool // every write has to be durable
	reads      int  // of 100 requests so many are reads; with write set
}

// run keeps depth requests in flight until the time is up and all are answered, and returns how many were answered and how
// long that took.
func (c *client) run(j job, length time.Duration) (requests int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	blocks := j.deviceSize / int64(j.block)
	data := make([]byte, j.block)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	next := int64(rand.N(blocks))
	if j.once {
		next = -1
	}
	began := time.Now()
	var out []byte
	flushes, answered := 0, 0
	for issued, over := 0, false; ; {
		out = out[:0]
		for !over && issued-answered < j.depth && (!j.once || int64(issued) < blocks) && (j.flushEvery == 0 || issued < (flushes+1)*j.flushEvery) {
			if j.random {
				next = rand.N(blocks)
			} else {
				next = (next + 1) % blocks
			}
			read := !j.write || j.reads > 0 && rand.IntN(100) < j.reads
			out = c.appendRequest(out, j, read, uint64(issued), next*int64(j.block))
			issued++
			switch {
			case read:
			case j.block > len(c.buf)/4: // too large to gather
				if err := c.send(out, data); err != nil {
					return answered, 0, err
				}
				out = out[:0]
			default:
				out = append(out, data...)
			}
		}
		if j.flushEvery > 0 && issued == answered && answered == (flushes+1)*j.flushEvery {
			if err := c.flush(); err != nil {
				return answered, 0, err
			}
			flushes++
			continue
		}
		if err := c.send(out); err != nil {
			return answered, 0, err
		}
		if answered == issued {
			if j.once {
				if err := c.flush(); err != nil {
					return answered, 0, err
				}
			}
			return answered, time.Since(began), nil
		}
		n, err := c.receive(j.block)
		if err != nil {
			return answered, 0, err
		}
		answered += n
		over = over || time.Since(began) > length
		if j.once {
			over = int64(issued) == blocks
		}
	}
}

// readCookie marks the cookies of reads: their replies carry data.
const readCookie = 1 << 63

const (
	commandFlush = 3
	flagFUA      = 1
)

func (c *client) appendRequest(p []byte, j job, read bool, cookie uint64, off int64) []byte {
	command, flags := uint16(protocol.TRANSMISSION_TYPE_REQUEST_WRITE), uint16(0)
	switch {
	case read:
		command, cookie = protocol.TRANSMISSION_TYPE_REQUEST_READ, cookie|readCookie
	case j.fua:
		flags = flagFUA
	}
	return appendHeader(p, flags, command, cookie, off, j.block)
}

func appendHeader(p []byte, flags, command uint16, cookie uint64, off int64, length int) []byte {
	p = binary.BigEndian.AppendUint32(p, protocol.TRANSMISSION_MAGIC_REQUEST)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, uint64(off))
	return binary.BigEndian.AppendUint32(p, uint32(length))
}

func (c *client) flush() error {
	if err := c.send(appendHeader(nil, 0, commandFlush, 0, 0, 0)); err != nil {
		return err
	}
	_, err := c.receive(0)
	return err
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

// receive waits for at least one reply and returns how many were there. Those to reads carry block bytes.
func (c *client) receive(block int) (n int, err error) {
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
		for len(c.in) >= replyBytes {
			size, err := replySize(c.in, block)
			if err != nil {
				return n, err
			}
			if size > len(c.buf) { // it comes alone: throw away what is still to come
				if err := c.discard(size - len(c.in)); err != nil {
					return n, err
				}
				c.in = nil
				return n + 1, nil
			}
			if len(c.in) < size {
				break
			}
			c.in, n = c.in[size:], n+1
		}
	}
	return n, nil
}

func (c *client) discard(n int) error {
	for n > 0 {
		got, err := c.read(c.buf[:min(len(c.buf), n)])
		if err != nil {
			return err
		}
		n -= got
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

// replySize is the size of the reply that p begins with.
func replySize(p []byte, block int) (int, error) {
	if binary.BigEndian.Uint32(p) != protocol.TRANSMISSION_MAGIC_REPLY {
		return 0, fmt.Errorf("not a simple reply: %x", p[:replyBytes])
	}
	if e := binary.BigEndian.Uint32(p[4:]); e != 0 {
		return 0, fmt.Errorf("error %d from the server", e)
	}
	if binary.BigEndian.Uint64(p[8:])&readCookie != 0 {
		return replyBytes + block, nil
	}
	return replyBytes, nil
}
