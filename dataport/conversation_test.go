package dataport

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// A recorded conversation: what one side sent on its first path after the hello, while both sent messages and called
// each other. In testdata/conversation.txt a line is a header in hex and its payload as COUNT*BYTE.
type spoken struct {
	h       header
	payload []byte
}

const conversationFile = "testdata/conversation.txt"

func readConversation(tb testing.TB) (l []spoken) {
	tb.Helper()
	b, err := os.ReadFile(conversationFile)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var head string
		var n int
		var c byte
		if _, err := fmt.Sscanf(line, "%s %d*%x", &head, &n, &c); err != nil {
			tb.Fatalf("%q: %v", line, err)
		}
		raw, err := hex.DecodeString(head)
		if err != nil || len(raw) != headerBytes {
			tb.Fatalf("%q: %v", line, err)
		}
		f := spoken{payload: bytes.Repeat([]byte{c}, n)}
		if err := f.h.decode(raw, 1<<20); err != nil {
			tb.Fatalf("%q: %v", line, err)
		}
		l = append(l, f)
	}
	return l
}

func (f *spoken) encode() []byte {
	b := make([]byte, headerBytes, headerBytes+len(f.payload))
	f.h.encode(b)
	return append(b, f.payload...)
}

// talker is a Client that answers calls with ten bytes of 'r'.
type talker struct {
	mu    sync.Mutex
	sizes []int
}

func (c *talker) OnMessage(_ context.Context, m Message) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes = append(c.sizes, len(m.Payload))
	return bytes.Repeat([]byte("r"), 10), nil
}
func (c *talker) OnEvent(Event) {}

// talk sends this side's part of the conversation; the sizes are told apart by what they are filled with.
func talk(s *Session, call bool) {
	for i, size := range []int{5, 70_000, 0, 3000} {
		_, _ = s.Send(context.Background(), bytes.Repeat([]byte{byte('a' + i)}, size))
	}
	if call {
		_, _ = s.Call(s.ctx, []byte("cccccccc"))
	}
}

func talkNode(tb testing.TB, n *dataporttest.Net, c Client, listen ...string) *Node {
	tb.Helper()
	conf := DefaultConfig()
	conf.Name, conf.Listen, conf.Insecure, conf.Dial, conf.ListenFunc = "talker", listen, true, n.Dial, n.Listen
	conf.MaxMessageBytes, conf.SendWindowBytes, conf.ReceiveWindowBytes = 200_000, 256<<10, 128<<10
	node, err := NewNode(conf)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := node.Register("test", c); err != nil {
		tb.Fatal(err)
	}
	return node
}

// TestConversation: what was recorded is understood word for word; the frames on the wire are a contract. With
// UPDATE_GOLDEN it is recorded anew.
func TestConversation(t *testing.T) {
	if os.Getenv("UPDATE_GOLDEN") != "" {
		synctest.Test(t, func(t *testing.T) { recordConversation(t) })
	}
	synctest.Test(t, func(t *testing.T) {
		r := newReplay(t)
		defer r.close()
		for _, f := range readConversation(t) {
			r.say(&f)
		}
		synctest.Wait()
		if err := r.s.Err(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.client.sizes); got != "[5 70000 0 3000 8]" {
			t.Errorf("delivered messages of %s bytes", got)
		}
		if st := r.s.Stats(); st.QueuedBytes != 0 || st.BufferedBytes != 0 || !r.called {
			t.Errorf("what the other side had acknowledged and answered is still open: %+v", st)
		}
	})
}

func recordConversation(t *testing.T) {
	n := dataporttest.NewNet()
	target := talkNode(t, n, &talker{}, "target:1")
	source := talkNode(t, n, &talker{})
	defer target.Close()
	defer source.Close()
	var said []byte
	n.Tap("target:1", dataporttest.Forward, func(_ int, b []byte) { said = append(said, b...) })
	n.Delay("target:1", 10*time.Millisecond)
	p, err := source.clients["test"].Open(context.Background(), PortConfig{Target: []string{"target:1"}})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	go talk(target.sessionsOf(nil)[0], true)
	talk(p.Session(), true)
	time.Sleep(100 * time.Millisecond)
	n.Tap("target:1", dataporttest.Both, nil)
	var out strings.Builder
	for len(said) >= headerBytes {
		var h header
		if err := h.decode(said, 1<<20); err != nil {
			t.Fatal(err)
		}
		payload := said[headerBytes:][:h.payload]
		c := byte(0)
		if len(payload) > 0 {
			c = payload[0]
		}
		if h.typ != frameHello {
			fmt.Fprintf(&out, "%x %d*%02x\n", said[:headerBytes], len(payload), c)
		}
		said = said[headerBytes+len(payload):]
	}
	if err := os.WriteFile(conversationFile, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replay is a node that has said its part and hears the recorded side, or what a fuzzer made of it.
type replay struct {
	t      testing.TB
	n      *Node
	client *talker
	conn   net.Conn
	s      *Session
	called bool
	wg     sync.WaitGroup
	heard  []header
	wrong  error // what it said was no frame
}

func newReplay(t testing.TB) *replay {
	mem := dataporttest.NewNet()
	r := &replay{t: t, client: &talker{}}
	r.n = talkNode(t, mem, r.client, "target:1")
	var err error
	if r.conn, err = mem.Dial(context.Background(), "", "target:1"); err != nil {
		t.Fatal(err)
	}
	w := &wire{raw: r.conn, r: newFrameReader(r.conn, r.conn)}
	h := r.n.helloFor(helloOpen, nil, SessionID(randomID()), 1)
	h.client, h.incarnation, h.name = "test", randomID(), "peer"
	if _, err := w.ask(h); err != nil {
		t.Fatal(err)
	}
	r.s = r.n.sessionOf(h.session)
	<-r.s.begun
	r.wg.Go(func() { r.listen(w.r) })
	r.wg.Go(func() {
		talk(r.s, false)
		_, err := r.s.Call(r.s.ctx, []byte("cccccccc"))
		r.called = err == nil
	})
	synctest.Wait()
	return r
}

// listen checks that whatever the node says is well-formed.
func (r *replay) listen(from *frameReader) {
	for {
		head, err := from.header()
		if err != nil {
			return
		}
		var h header
		if err := h.decode(head, 1<<20); err != nil {
			r.wrong = err
			return
		}
		b := make([]byte, h.payload)
		if _, err := io.ReadFull(from, b); err != nil {
			return
		}
		if sumOf(b) != h.payloadHash {
			r.wrong = fmt.Errorf("payload checksum of %+v", h)
			return
		}
		r.heard = append(r.heard, h)
	}
}

// say sends a frame of the recording as one of this session.
func (r *replay) say(f *spoken) {
	f.h.session, f.h.client = r.s.id, clientID("test")
	r.write(f.encode())
}

func (r *replay) write(b []byte) {
	_ = r.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = r.conn.Write(b) // it may have been closed by then: that is its right
	synctest.Wait()
}

func (r *replay) close() {
	_ = r.conn.Close()
	_ = r.n.Close()
	r.wg.Wait()
	if r.wrong != nil {
		r.t.Errorf("the node said what is no frame: %v", r.wrong)
	}
}

// held is what the session keeps of what the peer sent.
func (s *Session) held() (bytes, frames int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.in.held {
		bytes += cap(f.buf.b)
	}
	if s.in.whole != nil {
		bytes += len(s.in.whole.buf.data)
	}
	for i := range s.in.queue.len() {
		bytes += len(s.in.queue.at(i).buf.data)
	}
	return bytes, len(s.in.held)
}
