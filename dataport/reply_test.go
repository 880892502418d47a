package dataport_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// callee is a Client whose OnMessage is told by the test; it ignores events.
type callee func(ctx context.Context, m dataport.Message) ([]byte, error)

func (f callee) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) { return f(ctx, m) }
func (callee) OnEvent(dataport.Event)                                              {}

// between opens a port of its own from the source to the target, with the clients here and there, and waits for it.
func (w *bubble) between(here, there callee) *dataport.Port {
	w.t.Helper()
	regs := make([]*dataport.Registration, 2)
	for h, c := range []callee{here, there} {
		var err error
		if regs[h], err = w.nodes[h].Register("callee", c); err != nil {
			w.t.Fatal(err)
		}
	}

	p, err := regs[0].Open(context.Background(), dataport.PortConfig{Target: w.addrs[1]})
	if err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(time.Second)
	return p
}

// A session died of the replies that an honest client had asked for: they had room until the peer's client had consumed
// every message before them, and the limit that ends a session came before the one that fails a call.
func TestRepliesOnASlowLink(t *testing.T) {
	const replyBytes, calls = 64 << 10, 100
	for name, stalled := range map[string]bool{"the caller's client is quick": false, "the caller's client is stuck": true} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, bubbleConfig{paths: 1, node: func(_ int, c *dataport.Config) {
				c.SendWindowBytes, c.ReceiveWindowBytes, c.MaxMessageBytes = 1<<20, 1<<20, 4<<20
			}}, func(w *bubble) {
				release := make(chan struct{})
				defer close(release)
				want := bytes.Repeat([]byte("reply..."), replyBytes/8)
				there := make(chan *dataport.Session, 1)
				p := w.between(func(context.Context, dataport.Message) ([]byte, error) {
					<-release
					return nil, nil
				}, func(_ context.Context, m dataport.Message) ([]byte, error) {
					select {
					case there <- m.Session:
					default:
					}
					return want, nil
				})
				ctx, s := context.Background(), p.Session()
				if _, err := s.Call(ctx, []byte("hello")); err != nil {
					t.Fatal(err)
				}
				if stalled {
					if _, err := (<-there).Send(ctx, []byte("takes its time")); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				var mu sync.Mutex
				var answered, refused int
				call := func() {
					got, err := s.Call(ctx, []byte("a big one, please"))
					mu.Lock()
					defer mu.Unlock()
					var remote *dataport.RemoteError
					switch {
					case err == nil && bytes.Equal(got, want):
						answered++
					case errors.As(err, &remote) && strings.Contains(remote.Text, "too many replies"):
						refused++
					default:
						t.Errorf("a call: %d bytes, %v", len(got), err)
					}
				}
				w.net.Rate("target:1", dataporttest.Backward, 100<<10)
				var all sync.WaitGroup
				for range calls {
					all.Go(call)
				}
				all.Wait()
				if answered < calls/2 || refused == 0 {
					t.Errorf("%d calls were answered, %d refused; want most and some", answered, refused)
				}
				w.net.Rate("target:1", dataporttest.Backward, 0)
				answered, refused = 0, 0
				for range calls {
					call()
				}
				if answered != calls || s.Err() != nil {
					t.Errorf("one after the other %d of %d calls were answered; the session: %v", answered, calls, s.Err())
				}
			})
		})
	}
}

// Two clients that called each other from OnMessage waited for good once the windows were full: the reply was behind
// messages that nobody took. Such a call is refused at once; one to another peer, or from elsewhere, is not.
func TestCallInOnMessage(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
		var refused, taken int
		var other *dataport.Session
		answer := func(ctx context.Context, m dataport.Message) ([]byte, error) {
			if m.Call {
				return []byte("yes"), nil
			}
			taken++
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if _, err := m.Session.Call(ctx, []byte("may I?")); errors.Is(err, dataport.ErrCallInOnMessage) {
				refused++
			} else {
				t.Errorf("a call from OnMessage: %v", err)
			}
			if _, err := other.Call(ctx, numbered(1, 1, 100)...); err != nil {
				t.Errorf("a call to elsewhere from OnMessage: %v", err)
			}
			return nil, nil
		}
		p := w.between(answer, answer)
		s := p.Session()
		other = w.port.Session()
		ctx, start := context.Background(), time.Now()
		var receipts []*dataport.Receipt
		for range 20 { // as many as fill the window
			r, err := s.Send(ctx, make([]byte, 12<<10))
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, r)
		}
		for _, r := range receipts {
			if err := r.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if taken != len(receipts) || refused != taken || time.Since(start) != 0 {
			t.Errorf("%d of %d messages were taken, %d calls refused, after %v", taken, len(receipts), refused, time.Since(start))
		}
		if reply, err := s.Call(ctx, []byte("may I?")); err != nil || string(reply) != "yes" {
			t.Errorf("a call from elsewhere: %q, %v", reply, err)
		}
	})
}
