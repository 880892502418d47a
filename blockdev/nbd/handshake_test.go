package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

const (
	optAbort = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList  = protocol.NEGOTIATION_ID_OPTION_LIST
	optInfo  = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo    = protocol.NEGOTIATION_ID_OPTION_GO
	repAck   = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repInfo  = protocol.NEGOTIATION_TYPE_REPLY_INFO
)

func twoExports() []Export {
	return []Export{
		{Name: "first", Description: "the first", Device: blockdev.NewMemory(1<<20, nil), MultiConn: true},
		{Name: "second", Device: blockdev.NewMemory(1<<30, nil), ReadOnly: true, BlockMin: 512, BlockPreferred: 8192},
	}
}

func TestList(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	c := dial(t, path)
	c.greeting(clientFixedNewstyle)
	c.option(optList, "surplus")
	if kind, _ := c.answer(optList); kind != replyErrInvalid {
		t.Fatalf("LIST with data: %x", kind)
	}
	c.option(optList)
	for _, want := range []string{"\x00\x00\x00\x05firstthe first", "\x00\x00\x00\x06second"} {
		if kind, data := c.answer(optList); kind != protocol.NEGOTIATION_TYPE_REPLY_SERVER || string(data) != want {
			t.Fatalf("%x %q", kind, data)
		}
	}
	if kind, _ := c.answer(optList); kind != repAck {
		t.Fatalf("%x", kind)
	}
	c.option(optAbort)
	if kind, _ := c.answer(optAbort); kind != repAck {
		t.Fatalf("%x", kind)
	}
	c.ended()
}

func goData(name string, wanted ...uint16) []any {
	return []any{uint32(len(name)), name, uint16(len(wanted)), wanted}
}

func TestInfoAndGo(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	for _, c := range []struct {
		name   string
		data   []any
		kind   uint32
		size   uint64
		flags  uint16
		blocks [3]uint32
		texts  []string
	}{
		{"default export", goData(""), repAck, 1 << 20, 0xd6d, [3]uint32{1, 4096, 32 << 20}, nil},
		{"by name", goData("first", 3), repAck, 1 << 20, 0xd6d, [3]uint32{1, 4096, 32 << 20}, nil},
		{"name and description", goData("", 1, 2, 77), repAck, 1 << 20, 0xd6d, [3]uint32{1, 4096, 32 << 20}, []string{"\x00\x01first", "\x00\x02the first"}},
		{"read-only", goData("second"), repAck, 1 << 30, 0xc6f, [3]uint32{512, 8192, 32 << 20}, nil},
		{"no such", goData("third"), protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, 0, 0, [3]uint32{}, nil},
		{"no data", nil, replyErrInvalid, 0, 0, [3]uint32{}, nil},
		{"a name longer than the data", []any{uint32(1000), "first", uint16(0)}, replyErrInvalid, 0, 0, [3]uint32{}, nil},
		{"a name of 4 GiB", []any{^uint32(0), "first", uint16(0)}, replyErrInvalid, 0, 0, [3]uint32{}, nil},
		{"more requests than data", []any{uint32(0), uint16(3), uint16(1)}, replyErrInvalid, 0, 0, [3]uint32{}, nil},
		{"surplus data", []any{uint32(0), uint16(0), uint16(1)}, replyErrInvalid, 0, 0, [3]uint32{}, nil},
		{"too large", []any{make([]byte, maxOptionSize+1)}, replyErrTooBig, 0, 0, [3]uint32{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(clientFixedNewstyle)
			for _, id := range []uint32{optInfo, optGo} {
				client.option(id, c.data...)
				var infos [][]byte
				kind, data := client.answer(id)
				for ; kind == repInfo; kind, data = client.answer(id) {
					infos = append(infos, data)
				}
				if kind != c.kind {
					t.Fatalf("option %d: %x %q, want %x", id, kind, data, c.kind)
				}
				if kind != repAck {
					continue
				}
				want := [][]byte{
					encode(uint16(0), c.size, c.flags), encode(uint16(3), c.blocks),
				}
				for _, text := range c.texts {
					want = append(want, []byte(text))
				}
				if !slices.EqualFunc(infos, want, bytes.Equal) {
					t.Fatalf("option %d: %q, want %q", id, infos, want)
				}
			}
			if c.kind == repAck {
				client.alive()
				return
			}
			// What was refused leaves no trace: the next option is answered as always.
			client.option(optGo, goData("first")...)
			client.answer(optGo)
			client.answer(optGo)
			client.answer(optGo)
			client.alive()
		})
	}
}

// go-nbd's own server answers EXPORT_NAME wrongly and forgets that a GO on a bad name must not succeed after an INFO on a
// good one.
func TestGoAfterInfoOfAnother(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	c := dial(t, path)
	c.greeting(clientFixedNewstyle)
	c.option(optInfo, goData("first")...)
	for kind, _ := c.answer(optInfo); kind != repAck; kind, _ = c.answer(optInfo) {
	}
	c.option(optGo, goData("none")...)
	if kind, _ := c.answer(optGo); kind != protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN {
		t.Fatalf("%x", kind)
	}
}

func TestExportName(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	for _, c := range []struct {
		name   string
		flags  uint32
		zeroes int
	}{{"zeroes", clientFixedNewstyle, 124}, {"no zeroes", clientFixedNewstyle | clientNoZeroes, 0}, {"old client", 0, 124}} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(c.flags)
			client.option(optionExportName, "second")
			want := append(encode(uint64(1<<30), uint16(0xc6f)), make([]byte, c.zeroes)...)
			if got := client.get(len(want)); !bytes.Equal(got, want) {
				t.Fatalf("%x", got)
			}
			client.alive()
		})
	}
	c := dial(t, path)
	c.greeting(clientFixedNewstyle)
	c.option(optionExportName, "third")
	c.ended()
}

func TestHandshakeEnds(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	for name, say := range map[string]func(c *raw){
		"unknown client flag": func(c *raw) { c.greeting(1 << 7) },
		"wrong option magic":  func(c *raw) { c.greeting(1); c.put(uint64(1), uint32(3), uint32(0)) },
		"endless option":      func(c *raw) { c.greeting(1); c.put(protocol.NEGOTIATION_MAGIC_OPTION, uint32(99), ^uint32(0)) },
		"endless export name": func(c *raw) {
			c.greeting(1)
			// All of it is there, and yet nothing is answered: there is no error reply to EXPORT_NAME.
			c.Write(option(optionExportName, make([]byte, maxOptionSize+1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path)
			say(c)
			c.ended()
		})
	}
}

func TestUnknownOptions(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	c := dial(t, path)
	c.greeting(clientFixedNewstyle)
	for id := uint32(0); id < 20; id++ {
		if id >= 1 && id <= 3 || id >= optInfo && id <= optionSetMetaContext {
			continue
		}
		c.option(id, "some data")
		if kind, _ := c.answer(id); kind != protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED {
			t.Fatalf("option %d: %x", id, kind)
		}
	}
	for range maxOptions + 1 {
		c.Write(encode(protocol.NEGOTIATION_MAGIC_OPTION, uint32(99), uint32(0)))
	}
	for answered := 0; ; answered++ {
		p := make([]byte, 20)
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		if answered == maxOptions {
			t.Fatal("it goes on for ever")
		}
		if kind := binary.BigEndian.Uint32(p[12:]); kind != protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED {
			t.Fatalf("%x", kind)
		}
	}
}

// A client that says nothing, or stops half-way, is gone when the time is up; one in transmission is not.
func TestHandshakeDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Options{HandshakeTimeout: time.Minute}, twoExports()...)
		l := newPipes()
		go s.Serve(context.Background(), l)
		client := l.dial()
		c := &raw{t, client}
		began := time.Now()
		c.greeting(clientFixedNewstyle)
		c.ended()
		if took := time.Since(began); took != time.Minute {
			t.Error("closed after", took)
		}
		client = l.dial()
		c = &raw{t, client}
		c.greeting(clientFixedNewstyle | clientNoZeroes)
		c.option(optionExportName)
		c.get(10)
		time.Sleep(24 * time.Hour)
		c.alive()
		client.Close()
		s.Close()
		s.Wait()
		synctest.Wait()
	})
}

func TestConnectionCap(t *testing.T) {
	s, path := start(t, Options{MaxConnections: 2}, twoExports()...)
	a, b := connect(t, path), connect(t, path)
	dial(t, path).ended()
	a.alive()
	b.alive()
	if got := s.Stats(); got.Connections != 2 || got.Refused != 1 {
		t.Fatalf("%+v", got)
	}
	a.put(request(cmdDisc, 0, 0, 0, 0))
	a.ended() // and there is room again
	for s.Stats().Connections == 2 {
		runtime.Gosched()
	}
	connect(t, path).alive()
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	if _, err := Listen("unix:" + path); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Fatal("a live socket:", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen("unix:" + path); err != nil {
		t.Fatal("a stale socket:", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Fatal("a file:", err)
	}
	if p, err := os.ReadFile(path); string(p) != "precious" {
		t.Fatal(p, err)
	}
	tcp, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if _, err := Listen(tcp.Addr().String()); err == nil || !strings.Contains(err.Error(), tcp.Addr().String()) {
		t.Fatal("a used port:", err)
	}
}

// pipes is a listener whose connections are net.Pipes.
type pipes struct {
	c    chan net.Conn
	done chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.c <- a
	return b
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.c:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
