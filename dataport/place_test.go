package dataport

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"
)

// keeper hands out the payloads it is given and keeps each until the test lets go.
type keeper struct {
	got chan []byte
	let chan struct{}
}

func (k *keeper) OnMessage(_ context.Context, m Message) ([]byte, error) {
	k.got <- m.Payload
	<-k.let
	return nil, nil
}
func (k *keeper) OnEvent(Event) {}

// Fragments are read straight into their message, in any order. When one of them comes by another path while a slow one
// still reads it, what the slow one goes on to write must never be seen by the client.
func TestFragmentsInPlace(t *testing.T) {
	for _, slow := range []bool{false, true} {
		c := DefaultConfig()
		c.Listen, c.Insecure = []string{"127.0.0.1:0"}, true // and hours, so that the session's own ticker stays out of it
		c.Timing.Heartbeat, c.Timing.SuspectAfter, c.Timing.PathDownAfter, c.Timing.UnreachableAfter = time.Hour, 2*time.Hour, 3*time.Hour, 4*time.Hour
		n, err := NewNode(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		k := &keeper{make(chan []byte), make(chan struct{})}
		if _, err := n.Register("test", k); err != nil {
			t.Fatal(err)
		}
		s := sessionByHand(t, n)
		s.mu.Lock()
		p := s.paths[0]
		s.mu.Unlock()
		other := newPath(s, p.w, &record{id: 9})

		const size, count = 16 << 10, 4
		want := make([]byte, count*size)
		for i := range want {
			want[i] = byte(i/size + i*7)
		}
		head := func(i int) *header {
			h := &header{typ: frameData, session: s.id, seq: uint64(i + 1), message: count * size, payload: size, offset: uint32(i * size), call: 1}
			if i == 0 {
				h.flags = flagFirst
			}
			if i == count-1 {
				h.flags = flagLast
			}
			return h
		}
		take := func(i int, buf *buffer) {
			copy(buf.data, want[i*size:])
			s.mu.Lock()
			defer s.mu.Unlock()
			if err := s.receiveData(p, head(i), buf); err != nil {
				t.Fatal(err)
			}
		}
		var reading *buffer
		if slow {
			if reading = other.place(head(1)); reading.in == nil {
				t.Fatal("a fragment before its message's first one is not read in place")
			}
		}
		for _, i := range []int{2, 0, 1, 3} {
			buf := p.place(head(i))
			if inPlace := buf.in != nil; inPlace != (i != 1 || !slow) && i != 3 {
				t.Errorf("slow %v: fragment %d is read in place: %v", slow, i, inPlace)
			}
			take(i, buf)
		}
		payload := <-k.got
		if slow {
			copy(reading.data, slices.Repeat([]byte{0xee}, size)) // it still reads
		}
		if !bytes.Equal(payload, want) {
			t.Errorf("slow %v: the client sees something else", slow)
		}
		if slow { // it comes to an end: a duplicate
			s.mu.Lock()
			_ = s.receiveData(other, head(1), reading)
			s.mu.Unlock()
		}
		close(k.let)
		s.mu.Lock()
		if len(s.in.places) != 0 || len(s.in.claimed) != 0 || s.in.placed != 0 {
			t.Errorf("slow %v: %d places, %d claims, %d bytes are left", slow, len(s.in.places), len(s.in.claimed), s.in.placed)
		}
		s.mu.Unlock()
	}
}

func sessionByHand(t *testing.T, n *Node) *Session {
	t.Helper()
	_, _ = dialHello(t, n)
	for {
		if l := n.sessionsOf(nil); len(l) == 1 && l[0].hasPaths() {
			return l[0]
		}
		time.Sleep(time.Millisecond)
	}
}
