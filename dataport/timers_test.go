package dataport_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// Every threshold to the tick, on both sides, with the default timing: heartbeats come every 50 ms from 0 on. With a
// delay the last sign of life is some ms after a heartbeat, so that a threshold is crossed at the heartbeat after it.
func TestTimers(t *testing.T) {
	const hole = 10 * time.Millisecond
	for _, row := range []struct {
		name             string
		fault            func(w *bubble)
		ends             time.Duration // of the fault; 0: never
		watch            time.Duration
		source, target   string
		delay            time.Duration
		retransmit, auto bool
	}{
		{
			name:   "everything falls silent",
			fault:  func(w *bubble) { w.all(func(a string) { w.net.Blackhole(a, dataporttest.Both) }) },
			watch:  10 * time.Second,
			source: "200ms PathSuspect PathSuspect 1s PathDown PathDown 3s SessionDown TargetUnreachable",
			target: "200ms PathSuspect PathSuspect 1s PathDown PathDown 3s SessionDown",
		},
		{
			name:   "and the port switches",
			fault:  func(w *bubble) { w.all(func(a string) { w.net.Blackhole(a, dataporttest.Both) }) },
			watch:  10 * time.Second,
			auto:   true,
			source: "200ms PathSuspect PathSuspect 1s PathDown PathDown 3s SessionDown TargetUnreachable Switching PathUp Switched SessionUp",
			target: "200ms PathSuspect PathSuspect 1s PathDown PathDown 3s SessionDown",
		},
		{
			name:   "one path, both ways",
			fault:  func(w *bubble) { w.net.Blackhole("target:1", dataporttest.Both) },
			watch:  10 * time.Second,
			source: "200ms PathSuspect 1s PathDown",
			target: "200ms PathSuspect 1s PathDown",
		},
		{
			name:   "one path, there: the side that is not heard is told",
			fault:  func(w *bubble) { w.net.Blackhole("target:1", dataporttest.Forward) },
			watch:  10 * time.Second,
			delay:  time.Millisecond,
			source: "300ms PathSuspect 1.052s PathDown", // the target's reset comes through
			target: "249ms PathSuspect 1.049s PathDown",
		},
		{
			name:   "one path, back",
			fault:  func(w *bubble) { w.net.Blackhole("target:1", dataporttest.Backward) },
			watch:  10 * time.Second,
			delay:  time.Millisecond,
			source: "250ms PathSuspect 1.05s PathDown",
			target: "299ms PathSuspect 1.053s PathDown",
		},
		{
			name:   "short of suspicion",
			fault:  func(w *bubble) { w.all(func(a string) { w.net.Stall(a, dataporttest.Both) }) },
			ends:   199 * time.Millisecond,
			watch:  10 * time.Second,
			source: "",
			target: "",
		},
		{
			name:       "suspect, and heard again when TCP has repeated",
			fault:      func(w *bubble) { w.all(func(a string) { w.net.Blackhole(a, dataporttest.Both) }) },
			ends:       500 * time.Millisecond,
			watch:      10 * time.Second,
			retransmit: true,
			delay:      time.Millisecond,
			source:     "250ms PathSuspect PathSuspect 652ms PathUp PathUp", // lost at 49, repeated 200 and 600 ms later
			target:     "249ms PathSuspect PathSuspect 653ms PathUp PathUp",
		},
		{
			name:   "the peer stands still, and goes on before its paths are down",
			fault:  func(w *bubble) { w.all(func(a string) { w.net.Stall(a, dataporttest.Both) }) },
			ends:   990 * time.Millisecond,
			watch:  10 * time.Second,
			source: "200ms PathSuspect PathSuspect 990ms PathUp PathUp",
			target: "200ms PathSuspect PathSuspect 990ms PathUp PathUp",
		},
		{
			name:   "a reset",
			fault:  func(w *bubble) { w.net.Cut("target:1") },
			watch:  20 * time.Millisecond, // the path is back within its backoff, at a random time
			source: "10ms PathDown",
			target: "10ms PathDown",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			inMemory(t, bubbleConfig{
				paths: 2,
				net: func(n *dataporttest.Net) {
					for _, a := range []string{"target:1", "target:2"} {
						n.Delay(a, row.delay)
						n.Retransmit(a, row.retransmit)
					}
				},
				port: func(c *dataport.PortConfig) {
					if row.auto {
						c.Switch = dataport.Auto
					}
				},
			}, func(w *bubble) {
				w.alignToHeartbeat()
				if row.delay > 0 { // or what was sent at a heartbeat would arrive at a heartbeat
					w.all(func(a string) { w.net.Delay(a, 3*row.delay) })
				}
				time.Sleep(hole)
				row.fault(w)
				if row.ends > 0 {
					time.Sleep(row.ends - hole)
					w.all(func(a string) { w.net.Blackhole(a, 0); w.net.Stall(a, 0) })
				}
				time.Sleep(time.Until(w.t0.Add(row.watch)))
				w.want(0, row.source)
				w.want(1, row.target)
			})
		})
	}
}

// alignToHeartbeat sleeps until both sides have just sent a heartbeat, and makes that t0. Their beats began with the
// session: on the target when it accepted it, on the source when it knew, a way later.
func (w *bubble) alignToHeartbeat() {
	beat := make(chan time.Time, 2)
	var once [3]sync.Once
	for _, d := range []dataporttest.Direction{dataporttest.Forward, dataporttest.Backward} {
		w.net.Tap("target:1", d, func(_ int, b []byte) {
			if len(b) >= 5 && b[4] == 4 { // a ping
				once[d].Do(func() { beat <- time.Now() })
			}
		})
	}
	a, b := <-beat, <-beat
	w.net.Tap("target:1", dataporttest.Both, nil)
	w.t0 = a
	if b.After(a) {
		w.t0 = b
	}
	time.Sleep(time.Until(w.t0))
	synctest.Wait()
}

// The threshold of suspicion grows with the round trip, and stays below that of the path's loss.
func TestSuspicionIsPatientWithLongWays(t *testing.T) {
	for _, row := range []struct{ oneWay, suspect time.Duration }{
		{10 * time.Millisecond, 200 * time.Millisecond},
		{100 * time.Millisecond, 600 * time.Millisecond},
		{300 * time.Millisecond, 750 * time.Millisecond},
	} {
		inMemory(t, bubbleConfig{paths: 1, net: func(n *dataporttest.Net) { n.Delay("target:1", row.oneWay) }}, func(w *bubble) {
			time.Sleep(5 * time.Second)
			w.net.Blackhole("target:1", dataporttest.Both)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			for h, c := range w.clients[:2] {
				for _, e := range c.events {
					if e.Kind != dataport.PathSuspect {
						continue
					}
					silent, err := time.ParseDuration(strings.TrimPrefix(e.Reason, "silent for "))
					if err != nil || silent < row.suspect || silent >= row.suspect+50*time.Millisecond {
						t.Errorf("%v one way, host %d: suspect when %s, want from %v on", row.oneWay, h, e.Reason, row.suspect)
					}
				}
			}
			if got := w.kinds(0); got != "PathUp SessionUp PathSuspect PathDown" {
				t.Errorf("%v one way: events %s", row.oneWay, got)
			}
		})
	}
}

// Pings every heartbeat, each answered, and nothing else while nothing is to be said: also when there was something before.
func TestHeartbeat(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
		for _, n := range []int{1, 100 << 10, 300 << 10, 5} {
			r, err := w.port.Send(context.Background(), make([]byte, n))
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
			if _, err := w.port.Call(context.Background(), make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		w.alignToHeartbeat()
		time.Sleep(time.Millisecond)
		count := map[byte]int{}
		tap := func(f func(int, []byte)) { w.all(func(a string) { w.net.Tap(a, dataporttest.Both, f) }) }
		tap(func(_ int, b []byte) {
			for ; len(b) >= 104; b = b[104:] {
				count[b[4]]++
				if d := time.Since(w.t0); d%(50*time.Millisecond) != 0 {
					t.Errorf("a frame of type %d at %v", b[4], d)
				}
			}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		if len(count) != 2 || count[4] != 80 || count[5] != 80 {
			t.Errorf("frames by type in a second, both ways on both paths: %v", count)
		}
		tap(nil)
	})
}

// Dials that are refused come with jittered, growing pauses up to BackoffMax; a path that was up for a while begins anew.
func TestBackoff(t *testing.T) {
	var mu sync.Mutex
	var dialled []time.Time
	since := func() []time.Time { // the last call
		mu.Lock()
		defer mu.Unlock()
		l := dialled
		dialled = nil
		return l
	}
	inMemory(t, bubbleConfig{paths: 1, node: func(h int, c *dataport.Config) {
		if dial := c.Dial; h == 0 {
			c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
				mu.Lock()
				dialled = append(dialled, time.Now())
				mu.Unlock()
				return dial(ctx, local, remote)
			}
		}
	}}, func(w *bubble) {
		for round := range 2 {
			w.net.Refuse("target:1", true)
			w.net.Cut("target:1")
			_, began := since(), time.Now()
			time.Sleep(time.Minute)
			synctest.Wait()
			dials := append([]time.Time{began}, since()...)
			exact, longest := 0, time.Duration(0)
			for i := range dials[1:] {
				gap := dials[i+1].Sub(dials[i])
				mean := min(50*math.Pow(1.6, float64(i)), 2000/1.3)
				ms := gap.Seconds() * 1000
				if ms < 0.69*mean || ms > 1.31*mean || gap > 2*time.Second {
					t.Errorf("round %d: pause %d is %v, want %.0f ms ± 30 %%", round, i, gap, mean)
				}
				if math.Abs(ms-mean) < 0.01*mean {
					exact++
				}
				longest = max(longest, gap)
			}
			if n := len(dials) - 1; n < 30 || exact > n/4 || longest < 1500*time.Millisecond {
				t.Errorf("round %d: %d dials in a minute, %d of them without jitter, longest pause %v", round, n, exact, longest)
			}
			w.net.Refuse("target:1", false)
			time.Sleep(5 * time.Second) // longer than PathDownAfter: the backoff begins anew
			if w.port.State() != dataport.PortConnected {
				t.Fatalf("round %d: %v", round, w.port.State())
			}
		}
		since() // and who asks for a path by name does not wait
		w.net.Refuse("target:1", true)
		w.net.Cut("target:1")
		time.Sleep(30 * time.Second)
		w.net.Refuse("target:1", false)
		asked := time.Now()
		if err := w.port.ResetPath(1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		dials := since()
		if d := dials[len(dials)-1]; !d.Equal(asked) {
			t.Errorf("dialled %v after ResetPath", d.Sub(asked))
		}
	})
}

// Who connects and says nothing is closed when HandshakeTimeout is over; so is what a silent target gave us.
func TestHandshakeDeadline(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
		c, err := w.net.Dial(context.Background(), "", "target:1")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_ = c.SetReadDeadline(start.Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) != 2*time.Second {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
		_ = c.Close()
	})
	for name, fault := range map[string]func(n *dataporttest.Net){
		"dialing":        func(n *dataporttest.Net) { n.Blackhole("target:1", dataporttest.Both) },
		"authenticating": func(n *dataporttest.Net) { n.SlowAccept("target:1", time.Hour) },
	} {
		inMemory(t, bubbleConfig{paths: 1, net: fault}, func(w *bubble) {
			time.Sleep(999 * time.Millisecond) // a second has passed
			if st := w.port.Stats().Paths[0].State.String(); st != name {
				t.Errorf("after 1.999 s the path is %s, want %s", st, name)
			}
			time.Sleep(2 * time.Millisecond)
			if st := w.port.Stats().Paths[0].State; st != dataport.PathBackoff {
				t.Errorf("after 2.001 s the path is %v: %s", st, w.port.Stats().Paths[0].Reason)
			}
			time.Sleep(time.Second)
			w.want(0, "2s TargetUnreachable") // 3 s after Open
		})
	}
}

// An end is said, and waited for no longer than goodbyeTime when nobody listens.
func TestGoodbye(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
		start := time.Now()
		if err := w.port.Close(); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		synctest.Wait()
		w.want(0, "0s SessionDown PortClosed")
		w.want(1, "0s SessionDown")
	})
	for name, fault := range map[string]func(w *bubble){
		"stalled": func(w *bubble) { w.all(func(a string) { w.net.Stall(a, dataporttest.Both) }) },
		"hole":    func(w *bubble) { w.all(func(a string) { w.net.Blackhole(a, dataporttest.Both) }) },
	} {
		inMemory(t, bubbleConfig{paths: 1, node: func(_ int, c *dataport.Config) {
			c.SendWindowBytes, c.ReceiveWindowBytes = 2<<20, 2<<20 // more than a socket: the path's write is blocked
		}}, func(w *bubble) {
			for range 8 { // so that the path is known to be quick, and gets more than it takes
				r, err := w.port.Send(context.Background(), make([]byte, 1<<20))
				if err != nil {
					w.t.Fatal(err)
				}
				<-r.Done()
				time.Sleep(10 * time.Millisecond)
			}
			w.alignToHeartbeat()
			fault(w)
			start := time.Now()
			_, _ = w.port.Send(context.Background(), make([]byte, 1<<20))
			synctest.Wait()
			if err := w.port.Close(); err != nil || time.Since(start) != 250*time.Millisecond {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
		})
	}
}

// What a path had under way when it dies goes out again on another one, at once: long before that would fall to suspicion.
func TestUnderWayWhenThePathDies(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
		dying := w.addrs[1][0]
		w.all(func(a string) { w.net.Stall(a, dataporttest.Both) })
		var receipts []*dataport.Receipt
		for range 12 {
			r, err := w.port.Send(context.Background(), make([]byte, 8<<10))
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, r)
		}
		synctest.Wait()
		for _, r := range receipts {
			select {
			case <-r.Done():
				t.Error("a message came through a link that stands still")
			default:
			}
		}
		w.net.Cut(dying)
		w.net.Stall(w.addrs[1][1], 0)
		time.Sleep(10 * time.Millisecond)
		for i, r := range receipts {
			select {
			case <-r.Done():
			default:
				t.Errorf("message %d has not arrived", i)
			}
		}
		resent := uint64(0)
		for _, p := range w.port.Stats().Paths {
			resent += p.ResentFrames
		}
		if resent == 0 {
			t.Error("nothing was under way on the path that died")
		}
	})
}

// Whoever's call fails because the session has ended finds it ended.
func TestDoneBeforeCallsFail(t *testing.T) {
	for range 20 {
		inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
			s := w.port.Session()
			w.all(func(a string) { w.net.Stall(a, dataporttest.Both) })
			var calls sync.WaitGroup
			for range 600 {
				calls.Go(func() {
					_, err := s.Call(context.Background(), []byte("never answered"))
					select {
					case <-s.Done():
					default:
						t.Errorf("the session is not done, and a call failed: %v", err)
					}
				})
			}
			synctest.Wait()
			_ = w.port.Close()
			calls.Wait()
		})
	}
}
