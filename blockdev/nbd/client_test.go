package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

const (
	cmdRead  = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc  = protocol.TRANSMISSION_TYPE_REQUEST_DISC
)

// start serves on a unix socket and returns its path.
func start(t testing.TB, o Options, exports ...Export) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(o, exports...)
	done := make(chan error)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		s.Wait()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
	})
	return s, path
}

// raw is a client that says exactly what it is told to.
type raw struct {
	t testing.TB
	net.Conn
}

// patience bounds a test that hangs; nothing is measured by it.
const patience = 30 * time.Second

var noDeadline time.Time

func dial(t testing.TB, path string) *raw {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &raw{t, c}
}

func (c *raw) put(vs ...any) {
	c.t.Helper()
	if _, err := c.Write(encode(vs...)); err != nil {
		c.t.Fatal(err)
	}
}

func encode(vs ...any) []byte {
	var p bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		if err := binary.Write(&p, binary.BigEndian, v); err != nil {
			panic(err)
		}
	}
	return p.Bytes()
}

func (c *raw) get(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return p
}

// ended checks that the server closed the connection without another byte.
func (c *raw) ended() {
	c.t.Helper()
	var p [1]byte
	n, err := c.Read(p[:])
	var timeout net.Error
	if n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("the connection lives: %d bytes %x, %v", n, p[:n], err)
	}
}

func (c *raw) greeting(flags uint32) {
	c.t.Helper()
	want := encode(protocol.NEGOTIATION_MAGIC_OLDSTYLE, protocol.NEGOTIATION_MAGIC_OPTION, uint16(3))
	if got := c.get(len(want)); !bytes.Equal(got, want) {
		c.t.Fatalf("greeting %x", got)
	}
	c.put(flags)
}

func (c *raw) option(id uint32, data ...any) {
	c.t.Helper()
	p := encode(data...)
	c.put(protocol.NEGOTIATION_MAGIC_OPTION, id, uint32(len(p)), p)
}

// answer reads one reply to an option.
func (c *raw) answer(id uint32) (kind uint32, data []byte) {
	c.t.Helper()
	p := c.get(20)
	if magic := binary.BigEndian.Uint64(p); magic != protocol.NEGOTIATION_MAGIC_REPLY {
		c.t.Fatalf("magic %x", magic)
	}
	if got := binary.BigEndian.Uint32(p[8:]); got != id {
		c.t.Fatalf("answer to option %d, not %d", got, id)
	}
	return binary.BigEndian.Uint32(p[12:]), c.get(int(binary.BigEndian.Uint32(p[16:])))
}

// connect goes into transmission with the default export.
func connect(t testing.TB, path string) *raw {
	t.Helper()
	c := dial(t, path)
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.option(optionExportName)
	c.get(10)
	return c
}

func request(command, flags uint16, cookie, offset uint64, length uint32, data ...[]byte) []byte {
	p := encode(protocol.TransmissionRequestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, CommandFlags: flags, Type: command,
		Handle: cookie, Offset: offset, Length: length,
	})
	return append(p, bytes.Join(data, nil)...)
}

func (c *raw) reply() (errno uint32, cookie uint64) {
	c.t.Helper()
	p := c.get(replySize)
	if magic := binary.BigEndian.Uint32(p); magic != protocol.TRANSMISSION_MAGIC_REPLY {
		c.t.Fatalf("magic %x", magic)
	}
	return binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint64(p[8:])
}

func (c *raw) expect(errno uint32, cookie uint64) {
	c.t.Helper()
	if e, k := c.reply(); e != errno || k != cookie {
		c.t.Fatalf("reply to %d with error %d, want %d with %d", k, e, cookie, errno)
	}
}

// alive does a read, to see that the connection goes on and stands at the right byte.
func (c *raw) alive() {
	c.t.Helper()
	c.put(request(cmdRead, 0, 0xabcdef, 0, 512))
	c.expect(0, 0xabcdef)
	c.get(512)
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i>>9) + byte(i)
	}
	return p
}

// gate is a device whose operations of one kind wait until they are let through.
func gate(d blockdev.Device, op blockdev.Op, rule blockdev.Rule) (dev *blockdev.Faulty, entered chan string, leave chan error) {
	entered, leave = make(chan string, 1000), make(chan error)
	rule.Op = op
	rule.Hook = func(op blockdev.Op, off, length int64) error {
		entered <- fmt.Sprint(op, off)
		return <-leave
	}
	return blockdev.NewFaulty(d, rule), entered, leave
}

func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }
func be64(p []byte) uint64 { return binary.BigEndian.Uint64(p) }
