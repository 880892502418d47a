package nbd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// stub is a connection whose writing side ends after a number of bytes, or takes a break there.
type stub struct {
	net.Conn
	left int
	cut  bool // close there, instead of beginning a new packet
	sent int
}

var errCut = errors.New("cut here")

func (s *stub) Write(p []byte) (int, error) {
	s.sent += len(p)
	if s.left >= len(p) {
		s.left -= len(p)
		return s.Conn.Write(p)
	}
	first := p[:s.left]
	s.left = 1 << 30
	if len(first) > 0 {
		if n, err := s.Conn.Write(first); err != nil {
			return n, err
		}
	}
	if s.cut {
		s.Conn.Close()
		return len(first), errCut
	}
	n, err := s.Conn.Write(p[len(first):])
	return len(first) + n, err
}

// upgrade is a whole connection, from the greeting to a flushed write by TLS. It returns how many bytes the client said.
func upgrade(path string, config *tls.Config, at int, cut bool) (sent int, err error) {
	nc, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	s := &stub{Conn: nc, left: at, cut: cut}
	var step error // the first that went wrong
	do := func(c net.Conn, say []byte, answer int) []byte {
		p := make([]byte, answer)
		if step == nil && len(say) > 0 {
			_, step = c.Write(say)
		}
		if step == nil {
			_, step = io.ReadFull(c, p)
		}
		return p
	}
	do(s, nil, 18)
	do(s, encode(clientFixedNewstyle|clientNoZeroes), 0)
	ack := do(s, option(optionStartTLS), 20)
	if step != nil {
		return s.sent, step
	}
	if be32(ack[12:]) != repAck {
		return s.sent, errors.New("STARTTLS was not acknowledged")
	}
	secure := tls.Client(s, config)
	if err := secure.Handshake(); err != nil {
		return s.sent, err
	}
	do(secure, option(optionExportName), 10)
	do(secure, request(cmdWrite, cmdFlagFUA, 1, 0, 4, []byte("done")), replySize)
	if step == nil {
		step = secure.Close()
	}
	return s.sent, step
}

// The way into TLS is cut at every byte, and ends at every byte: in pieces it leads to the same, and what is not complete
// leaves nothing behind, in the server or on the device.
func TestStartTLSCutAtEveryByte(t *testing.T) {
	p := newPKI(t)
	var writes atomic.Int32
	d := blockdev.NewFaulty(blockdev.NewMemory(4096, nil), blockdev.Rule{Op: blockdev.OpWrite, Hook: func(blockdev.Op, int64, int64) error {
		writes.Add(1)
		return nil
	}})
	s, path := start(t, p.options(true), Export{Device: d})
	config := &tls.Config{
		RootCAs: p.pool, Certificates: []tls.Certificate{p.client}, ServerName: "localhost",
		CurvePreferences: []tls.CurveID{tls.X25519}, // short messages, and no hybrid key agreement a thousand times
	}
	whole, err := upgrade(path, config, 1<<30, false)
	if err != nil || writes.Load() != 1 {
		t.Fatal(writes.Load(), "writes,", err)
	}
	step := 1
	if testing.Short() {
		step = 7
	}
	// The length of a signature varies by a few bytes, so the last of the write's own are not tried here.
	const ending = 64
	for at := 0; at < whole-ending; at += step {
		writes.Store(0)
		if at%2 == 0 {
			if _, err := upgrade(path, config, at, false); err != nil || writes.Load() != 1 {
				t.Fatalf("in two pieces, at %d of %d: %d writes, %v", at, whole, writes.Load(), err)
			}
			continue
		}
		if _, err := upgrade(path, config, at, true); !errors.Is(err, errCut) {
			t.Fatalf("cut at %d of %d: %v", at, whole, err)
		}
		if writes.Load() != 0 {
			t.Fatalf("cut at %d of %d: a write was done", at, whole)
		}
	}
	until(t, "all connections have ended", func() bool { return s.Stats().Connections == 0 })
}

// What follows STARTTLS in the clear, in the same packet, is neither answered nor done, whether TLS was a must or not. Only
// TLS itself may follow: a client that does not wait for the acknowledgement is as good as one that does.
func TestBehindStartTLSInTheClear(t *testing.T) {
	p := newPKI(t)
	for _, required := range []bool{true, false} {
		d := blockdev.NewMemory(1<<16, nil)
		s, path := start(t, p.options(required), Export{Name: "fuzz", Device: d})
		injected := append(handshakeMessages()[1:], option(optionStartTLS), option(optAbort), option(optionExportName, "fuzz"),
			encode(clientFixedNewstyle), request(cmdWrite, cmdFlagFUA, 1, 0, 4, []byte("evil")), []byte{0})
		injected = append(injected, bytes.Join(injected, nil), bytes.Join(append(handshakeMessages()[1:], structuredMessages()...), nil))
		for _, more := range injected {
			c := dial(t, path)
			c.greeting(clientFixedNewstyle | clientNoZeroes)
			c.put(append(option(optionStartTLS), more...))
			c.acknowledged(optionStartTLS)
			if len(more) < 5 { // less than the head of a record: TLS waits for the rest of it
				giveUp(t, c)
			}
			said, _ := io.ReadAll(c) // an alert, or nothing
			if len(said) > 7 || len(said) > 0 && said[0] != 21 {
				t.Errorf("after %.40x: %x", more, said)
			}
			c.Close()
		}
		until(t, "all connections have ended", func() bool { return s.Stats().Connections == 0 })
		if got := s.Stats(); got.Writes+got.Reads+got.Flushes+got.Errors != 0 {
			t.Errorf("it did something: %+v", got)
		}
		c := dial(t, path)
		c.greeting(clientFixedNewstyle | clientNoZeroes)
		hasty := tls.Client(&prefixed{Conn: c.Conn, before: option(optionStartTLS), skip: 20},
			&tls.Config{RootCAs: p.pool, Certificates: []tls.Certificate{p.client}, ServerName: "localhost"})
		if err := hasty.Handshake(); err != nil {
			t.Fatal("a client that does not wait:", err)
		}
		c = &raw{t, hasty}
		c.option(optionExportName)
		c.get(10)
		c.alive()
	}
}

// prefixed says something before its first write, in the same packet, and skips the first bytes that it hears.
type prefixed struct {
	net.Conn
	before []byte
	skip   int
}

func (p *prefixed) Write(b []byte) (int, error) {
	before := len(p.before)
	n, err := p.Conn.Write(append(p.before, b...))
	p.before = nil
	return n - before, err
}

func (p *prefixed) Read(b []byte) (int, error) {
	if p.skip > 0 {
		if _, err := io.ReadFull(p.Conn, make([]byte, p.skip)); err != nil {
			return 0, err
		}
		p.skip = 0
	}
	return p.Conn.Read(b)
}

// STARTTLS with a payload of any size is refused, as often as a client likes, in the clear and by TLS; one without
// works after that, once.
func TestStartTLSTakesNothing(t *testing.T) {
	p := newPKI(t)
	_, path := start(t, p.options(true), Export{Device: blockdev.NewMemory(mib, nil)})
	c := dial(t, path)
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	sizes := map[int]uint32{1: replyErrInvalid, maxOptionSize: replyErrInvalid, maxOptionSize + 1: replyErrTooBig, maxSkippedSize: replyErrTooBig}
	refused := func() {
		t.Helper()
		for n, want := range sizes {
			go c.Write(option(optionStartTLS, make([]byte, n)))
			if kind, _ := c.answer(optionStartTLS); kind != want {
				t.Fatalf("%d bytes: %x, want %x", n, kind, want)
			}
		}
	}
	refused()
	c = c.secure(p)
	refused()
	for range 2 {
		c.option(optionStartTLS)
		if kind, text := c.answer(optionStartTLS); kind != replyErrInvalid || len(text) == 0 {
			t.Fatalf("a second time: %x %q", kind, text)
		}
	}
	c.option(optionExportName)
	c.get(10)
	c.alive()
	for _, n := range []uint32{maxSkippedSize + 1, 1 << 31, ^uint32(0)} {
		c := dial(t, path)
		c.greeting(clientFixedNewstyle)
		c.put(protocol.NEGOTIATION_MAGIC_OPTION, optionStartTLS, n)
		c.ended()
	}
}
