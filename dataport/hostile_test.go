package dataport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

type deafClient struct{}

func (deafClient) OnMessage(context.Context, Message) ([]byte, error) { return nil, nil }
func (deafClient) OnEvent(Event)                                      {}

func plainNode(t *testing.T, change func(*Config)) *Node {
	t.Helper()
	c := DefaultConfig()
	c.Listen, c.Insecure, c.Timing.HandshakeTimeout = []string{"127.0.0.1:0"}, true, 300*time.Millisecond
	if change != nil {
		change(&c)
	}
	n, err := NewNode(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	if _, err := n.Register("test", deafClient{}); err != nil {
		t.Fatal(err)
	}
	return n
}

// closedBy reads until the peer ends the connection; it must, before the deadline.
func closedBy(t *testing.T, c net.Conn, within time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	if _, err := io.Copy(io.Discard, c); err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("still open after %v", within)
		}
	}
}

// dialHello opens a session by hand, as a peer that means no good.
func dialHello(t *testing.T, n *Node) (net.Conn, SessionID) {
	t.Helper()
	c, err := net.Dial("tcp", n.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	w, err := n.secure(context.Background(), c, true)
	if err != nil {
		t.Fatal(err)
	}
	h := n.helloFor(helloOpen, nil, SessionID(randomID()), 1)
	h.client, h.incarnation, h.name = "test", randomID(), fmt.Sprintf("peer-%d", randomID())
	if _, err := w.ask(h); err != nil {
		t.Fatal(err)
	}
	<-n.sessionOf(h.session).begun // its path is added after the answer
	return c, h.session
}

func (n *Node) sessionOf(id SessionID) *Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sessions[id]
}

func TestGarbage(t *testing.T) {
	n := plainNode(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	hello := sampleHello()
	body := hello.encode()
	huge := header{typ: frameHello, payload: maxControlPayload}
	early := sampleHeader()
	early.message, early.payload = 0, 0
	frame := func(h header, change func([]byte)) []byte {
		b := make([]byte, headerBytes)
		h.encode(b)
		if change != nil {
			change(b)
			seal(b)
		}
		return b
	}
	for name, bytes := range map[string][]byte{
		"http":                      []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + string(make([]byte, 200))),
		"zeroes":                    make([]byte, 4096),
		"hello of 4 GiB":            frame(huge, func(b []byte) { copy(b[68:], []byte{255, 255, 255, 255}) }),
		"hello beyond the limit":    frame(huge, func(b []byte) { copy(b[68:], []byte{1, 16, 0, 0}) }),
		"hello that never comes":    frame(huge, nil),
		"data before hello":         frame(early, nil),
		"hello with wrong checksum": append(frame(header{typ: frameHello, payload: uint32(len(body))}, nil), body...),
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				c, err := net.Dial("tcp", n.Addrs()[0])
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write(bytes)
				if name == "hello that never comes" {
					closedBy(t, c, 3*time.Second)
					_ = c.Close()
					break
				}
				closedBy(t, c, 3*time.Second)
				_ = c.Close()
			}
		})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	if len(n.sessionsOf(nil)) != 0 {
		t.Errorf("a session came of it")
	}
}

// A path that was removed does not come back, however late its join arrives, and the place of another is nobody's.
func TestRemovedPathIsNotJoined(t *testing.T) {
	n := plainNode(t, func(c *Config) { c.MaxPaths = 2 })
	_, _ = dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	lost, err := s.recordFor(7)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.recordFor(7); err != nil || again != lost {
		t.Fatalf("the same path has two places: %v", err)
	}
	if _, err := s.recordFor(8); !errors.Is(err, ErrTooManyPaths) {
		t.Fatalf("a third path: %v", err)
	}
	s.mu.Lock()
	on := s.paths[0]
	for id := PathID(7); id < 7+3*maxGone; id++ {
		s.peerGone(on, id)
	}
	kept := len(s.gone)
	s.mu.Unlock()
	if kept > maxGone {
		t.Errorf("%d removed paths are remembered", kept)
	}
	if _, err := s.recordFor(6 + 3*maxGone); !errors.Is(err, ErrUnknownPath) {
		t.Errorf("a removed path joins: %v", err)
	}
	if _, err := s.recordFor(1000); err != nil {
		t.Errorf("the place is not free: %v", err)
	}
}

// An authenticated peer that breaks the protocol loses its session; nothing is allocated on its word.
func TestPeerBreaksTheProtocol(t *testing.T) {
	data := func(change func(h *header)) func(SessionID) []byte {
		return func(id SessionID) []byte {
			h := header{typ: frameData, flags: flagFirst | flagLast, session: id, client: clientID("test"), seq: 1, ack: 1, consumed: 1}
			h.payloadHash = xxhashOfNothing
			change(&h)
			b := make([]byte, headerBytes+h.payload%64) // a header that lies is refused before its payload is read
			h.encode(b)
			return b
		}
	}
	for name, frame := range map[string]func(SessionID) []byte{
		"foreign session":         data(func(h *header) { h.session++ }),
		"foreign client":          data(func(h *header) { h.client++ }),
		"acknowledges the unsent": data(func(h *header) { h.ack = 99 }),
		"consumed before it came": data(func(h *header) { h.consumed = 99 }),
		"path bytes never sent":   data(func(h *header) { h.pathBytes = 1 }),
		"sequence beyond credit":  data(func(h *header) { h.seq = 1 << 40 }),
		"fragment without its first": data(func(h *header) {
			h.flags, h.message, h.offset, h.payload, h.payloadHash = flagLast, 16, 8, 8, sumOf(make([]byte, 8))
		}),
		"message beyond the limit":  data(func(h *header) { h.flags, h.message, h.payload = flagFirst, 1<<31, 8 }),
		"hello on a path":           data(func(h *header) { h.typ = frameHello }),
		"payload hash of something": data(func(h *header) { h.payloadHash = 7 }),
	} {
		t.Run(name, func(t *testing.T) {
			n := plainNode(t, nil)
			c, id := dialHello(t, n)
			s := n.sessionsOf(nil)[0]
			if _, err := c.Write(frame(id)); err != nil {
				t.Fatal(err)
			}
			closedBy(t, c, 3*time.Second)
			if st := s.Stats(); st.MessagesReceived != 0 {
				t.Errorf("a message was delivered")
			}
		})
	}
}

const xxhashOfNothing = 0x2d06800538d394c2

// A peer that sends past its credit is stopped before its bytes pile up.
func TestCreditIsEnforced(t *testing.T) {
	n := plainNode(t, func(c *Config) { c.ReceiveWindowBytes = minWindowBytes })
	c, id := dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	payload := make([]byte, 8<<10)
	for seq := uint64(2); seq < 40; seq++ { // never the first: nothing can be delivered
		h := header{
			typ: frameData, flags: flagFirst | flagLast, session: id, client: clientID("test"), seq: seq, ack: 1, consumed: 1,
			payload: uint32(len(payload)), message: uint32(len(payload)), payloadHash: sumOf(payload),
		}
		b := make([]byte, headerBytes)
		h.encode(b)
		if _, err := c.Write(append(b, payload...)); err != nil {
			break
		}
	}
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the session goes on")
	}
	if err := s.Err(); !strings.Contains(err.Error(), "beyond its credit") {
		t.Errorf("it ended for another reason: %v", err)
	}
}

func TestPreAuthCap(t *testing.T) {
	n := plainNode(t, func(c *Config) { c.MaxPreAuth, c.Timing.HandshakeTimeout = 3, time.Second })
	var conns []net.Conn
	for range 12 {
		c, err := net.Dial("tcp", n.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	closed := make(chan bool, len(conns))
	for _, c := range conns {
		go func() {
			_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) // below the handshake deadline
			_, err := c.Read(make([]byte, 1))
			ne, ok := err.(net.Error)
			closed <- !(ok && ne.Timeout())
		}()
	}
	open := 0
	for range conns {
		if !<-closed {
			open++
		}
	}
	if open > 3 {
		t.Errorf("%d connections that say nothing are held, want at most 3", open)
	}
}

// A path cannot be spliced into a session by someone who does not know its secret.
func TestJoinNeedsTheSecret(t *testing.T) {
	n := plainNode(t, func(c *Config) { // hours: the first path stays, silent as it is
		c.Timing.Heartbeat, c.Timing.SuspectAfter, c.Timing.PathDownAfter, c.Timing.UnreachableAfter = time.Hour, 2*time.Hour, 3*time.Hour, 4*time.Hour
	})
	_, id := dialHello(t, n)
	c, err := net.Dial("tcp", n.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w, _ := n.secure(context.Background(), c, true)
	h := n.helloFor(helloJoin, nil, id, 2)
	h.client = "test"
	h.proof = joinProof([32]byte{1}, roleDials, w.bound(h.nonce), id, 2)
	_, err = w.ask(h)
	var refused *RefusedError
	if !asRefused(err, &refused) || refused.Code != RefusedProof {
		t.Fatalf("answer %v", err)
	}
	if got := len(n.sessionsOf(nil)[0].Stats().Paths); got != 1 {
		t.Errorf("%d paths", got)
	}
}

// A late heartbeat means that this process stood still: the peer gets the time again. A punctual one gives nothing.
func TestOwnPauseIsNotThePeersDeath(t *testing.T) {
	n := plainNode(t, func(c *Config) { // hours, so that the session's own ticker stays out of it
		c.Timing.Heartbeat, c.Timing.SuspectAfter, c.Timing.PathDownAfter, c.Timing.UnreachableAfter = time.Hour, 2*time.Hour, 3*time.Hour, 4*time.Hour
	})
	_, _ = dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	s.mu.Lock()
	p := s.paths[0]
	s.mu.Unlock()
	at := n.clock.now() + 10*time.Hour
	if reason := s.tick(at); reason != "" {
		t.Fatalf("after a pause of ours: %q", reason)
	}
	s.mu.Lock()
	state := p.state
	s.mu.Unlock()
	if state != PathActive {
		t.Fatalf("after a pause of ours the path is %v", state)
	}
	for range 6 {
		at += time.Hour
		if s.tick(at) != "" {
			return
		}
	}
	t.Fatal("and after real silence there was no alarm")
}
