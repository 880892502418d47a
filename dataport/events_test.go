package dataport_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

const (
	began    = "PathUp SessionUp PathUp"
	wentDown = " PathSuspect PathSuspect PathDown PathDown SessionDown"
)

// The table of doc.go, on both sides: what each fault is told as, nothing more, nothing in another order.
func TestEventsOfEachFault(t *testing.T) {
	both := func(w *bubble) { w.all(func(a string) { w.net.Blackhole(a, dataporttest.Both) }) }
	switchOver := func(w *bubble) {
		if err := w.port.Switch(context.Background(), -1); err != nil {
			w.t.Error(err)
		}
	}
	for _, row := range []struct {
		name                   string
		net                    func(n *dataporttest.Net)
		port                   func(c *dataport.PortConfig)
		fault                  func(w *bubble)
		source, target, backup string
	}{
		{name: "connecting", source: began, target: began},
		{
			name: "path reset", fault: func(w *bubble) { w.net.Cut("target:2") },
			source: began + " PathDown PathUp", target: began + " PathDown PathUp",
		},
		{
			name: "path reset by the client", fault: func(w *bubble) { _ = w.port.ResetPath(1) },
			source: began + " PathDown PathUp", target: began + " PathDown PathUp",
		},
		{
			name: "all paths reset", fault: func(w *bubble) { w.all(w.net.Cut) },
			source: began + " PathDown PathDown PathUp PathUp", target: began + " PathDown PathDown PathUp PathUp",
		},
		{
			name: "path silent for a while", fault: func(w *bubble) {
				w.net.Stall("target:1", dataporttest.Both)
				time.Sleep(500 * time.Millisecond)
				w.net.Stall("target:1", 0)
			},
			source: began + " PathSuspect PathUp", target: began + " PathSuspect PathUp",
		},
		{
			name: "paths silent for a while, on a long way", net: func(n *dataporttest.Net) {
				n.Delay("target:1", 20*time.Millisecond)
				n.Delay("target:2", 15*time.Millisecond)
			},
			fault: func(w *bubble) {
				w.all(func(a string) { w.net.Stall(a, dataporttest.Both) })
				time.Sleep(723 * time.Millisecond)
				w.all(func(a string) { w.net.Stall(a, 0) })
			},
			source: began + " PathSuspect PathSuspect PathUp PathUp", target: began + " PathSuspect PathSuspect PathUp PathUp",
		},
		{
			name: "path silent", fault: func(w *bubble) {
				w.net.Blackhole("target:1", dataporttest.Both)
				time.Sleep(5 * time.Second)
				w.net.Blackhole("target:1", 0)
			},
			source: began + " PathSuspect PathDown PathUp", target: began + " PathSuspect PathDown PathUp",
		},
		{
			name: "path damaged", fault: func(w *bubble) { w.net.FlipBit("target:1", dataporttest.Forward, 5, 1) },
			source: began + " PathDown PathUp", target: began + " PathDown PathUp",
		},
		{
			name: "path ended by somebody between", fault: func(w *bubble) { w.net.HalfClose("target:2", dataporttest.Backward) },
			source: began + " PathDown PathUp", target: began + " PathDown PathUp",
		},
		{
			name: "all paths silent", fault: both,
			source: began + wentDown + " TargetUnreachable", target: began + wentDown,
		},
		{
			name: "all paths silent, auto", fault: both, port: func(c *dataport.PortConfig) { c.Switch = dataport.Auto },
			source: began + wentDown + " TargetUnreachable Switching PathUp Switched SessionUp", target: began + wentDown, backup: "PathUp SessionUp",
		},
		{
			name: "all paths silent, and back", fault: func(w *bubble) {
				both(w)
				time.Sleep(10 * time.Second)
				w.all(func(a string) { w.net.Blackhole(a, 0) })
			},
			source: began + wentDown + " TargetUnreachable " + began, target: began + wentDown + " " + began,
		},
		{name: "never reached", net: func(n *dataporttest.Net) { n.Refuse("target:1", true); n.Refuse("target:2", true) }, source: "TargetUnreachable"},
		{
			name: "never reached, nor the backup", net: func(n *dataporttest.Net) {
				for _, a := range []string{"target:1", "target:2", "backup:1"} {
					n.Refuse(a, true)
				}
			},
			port:   func(c *dataport.PortConfig) { c.Switch = dataport.Auto },
			source: "TargetUnreachable Switching TargetUnreachable",
		},
		{
			name: "switch", fault: switchOver,
			source: began + " Switching SessionDown PathUp Switched SessionUp", target: began + " SessionDown", backup: "PathUp SessionUp",
		},
		{
			name: "switch and back", fault: func(w *bubble) {
				switchOver(w)
				time.Sleep(time.Second)
				if err := w.port.Switch(context.Background(), 0); err != nil {
					w.t.Error(err)
				}
			},
			source: began + " Switching SessionDown PathUp Switched SessionUp Switching SessionDown PathUp Switched SessionUp PathUp",
			target: began + " SessionDown " + began, backup: "PathUp SessionUp SessionDown",
		},
		{
			name: "switch after the loss", fault: func(w *bubble) {
				both(w)
				time.Sleep(10 * time.Second)
				switchOver(w)
			},
			source: began + wentDown + " TargetUnreachable Switching PathUp Switched SessionUp", target: began + wentDown, backup: "PathUp SessionUp",
		},
		{
			name: "peer restarts without a word", fault: func(w *bubble) { w.restartTarget() },
			source: began + " PathDown PathDown PeerRestarted SessionDown " + began, target: began + " PathDown PathDown SessionDown " + began,
		},
		{
			name: "peer says goodbye and begins anew", fault: func(w *bubble) {
				_ = w.nodes[1].Close()
				time.Sleep(time.Second)
				w.start(1, nil)
			},
			source: began + " SessionDown PeerRestarted " + began, target: began + " SessionDown " + began,
		},
		{
			name: "the side that dials restarts without a word", fault: func(w *bubble) { w.restartSource() },
			source: began, target: began + " PathDown PathDown PeerRestarted SessionDown " + began,
		},
		{
			name: "suspend and resume", fault: func(w *bubble) { _, _ = w.port.Suspend(), w.port.Resume() },
			source: began + " Suspended Resumed", target: began,
		},
		{
			name: "close", fault: func(w *bubble) { _ = w.port.Close() },
			source: began + " SessionDown PortClosed", target: began + " SessionDown",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			inMemory(t, bubbleConfig{paths: 2, net: row.net, port: row.port}, func(w *bubble) {
				if row.fault != nil {
					row.fault(w)
				}
				time.Sleep(20 * time.Second)
				for h, want := range [...]string{row.source, row.target, row.backup} {
					if got := w.kinds(h); got != want {
						t.Errorf("events of host %d:\n  %s\nwant:\n  %s", h, got, want)
					}
					if err := w.clients[h].grammar(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func (w *bubble) restartTarget() {
	w.all(func(a string) { w.net.Refuse(a, true); w.net.Cut(a) })
	synctest.Wait()
	_ = w.nodes[1].Close()
	time.Sleep(10 * time.Millisecond)
	w.all(func(a string) { w.net.Refuse(a, false) })
	w.start(1, nil)
}

// restartSource has a new client of the same name open the port; host 0 is known by it from then on.
func (w *bubble) restartSource() {
	w.all(func(a string) { w.net.Refuse(a, true); w.net.Cut(a) })
	synctest.Wait()
	_ = w.nodes[0].Close()
	time.Sleep(10 * time.Millisecond)
	w.all(func(a string) { w.net.Refuse(a, false) })
	w.clients[0] = newWitness()
	w.start(0, nil)
	var err error
	if w.port, err = w.regs[0].Open(context.Background(), dataport.PortConfig{Target: w.addrs[1]}); err != nil {
		w.t.Fatal(err)
	}
}

// load keeps both directions of the port's session full until the returned function is called, which tells how many
// messages went each way.
func (w *bubble) load(size int) (finish func() (there, back int)) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, peer := w.port.Session(), w.clients[1].latest()
	flows := [...]*courier{newCourier(ctx, 1), newCourier(ctx, 2)}
	flows[0].jobs <- job{session: func() *dataport.Session { return s }, count: 1 << 30, size: size}
	flows[1].jobs <- job{session: func() *dataport.Session { return peer }, count: 1 << 30, size: size}
	for _, f := range flows {
		close(f.jobs)
	}
	return func() (there, back int) {
		cancel()
		for _, f := range flows {
			<-f.done
		}
		time.Sleep(30 * time.Second) // what is under way arrives
		for i, f := range flows {
			if err := f.check(w.clients[1-i]); err != nil {
				w.t.Error(err)
			}
		}
		return len(w.clients[1].got[streamKey{s.ID(), 1}]), len(w.clients[0].got[streamKey{s.ID(), 2}])
	}
}

// Under full load both ways, on links that are slow or long, nobody is suspected.
func TestFullLoadIsNoAlarm(t *testing.T) {
	for name, shape := range map[string]func(n *dataporttest.Net){
		"1 and 0.2 MB/s": func(n *dataporttest.Net) {
			n.Rate("target:1", dataporttest.Both, 1_000_000)
			n.Rate("target:2", dataporttest.Both, 200_000)
		},
		"long and jittered": func(n *dataporttest.Net) {
			n.Jitter("target:1", 50*time.Millisecond, 40*time.Millisecond)
			n.Delay("target:2", 20*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
				shape(w.net)
				finish := w.load(50_000)
				time.Sleep(20 * time.Second)
				there, back := finish()
				if there < 200 || back < 200 {
					t.Errorf("%d messages there and %d back in 20 s", there, back)
				}
				w.want(0, "")
				w.want(1, "")
			})
		})
	}
}

// A client that stands still holds up itself: not the heartbeats of its session, not the other client, not its node.
func TestStalledClientHoldsUpOnlyItself(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
		other := [2]*witness{newWitness(), newWitness()}
		var reg [2]*dataport.Registration
		for i, n := range w.nodes[:2] {
			var err error
			if reg[i], err = n.Register("other", other[i]); err != nil {
				t.Fatal(err)
			}
		}
		p, err := reg[0].Open(context.Background(), dataport.PortConfig{Target: w.addrs[1]})
		if err != nil {
			t.Fatal(err)
		}
		w.clients[1].stall(true)
		slow := make(chan struct{})
		w.clients[0].change(func(l *witness) { l.slow = slow })
		ctx, cancel := context.WithCancel(context.Background())
		stuck := newCourier(ctx, 1)
		stuck.jobs <- job{session: w.port.Session, count: 1 << 30, size: 30_000}
		close(stuck.jobs)
		time.Sleep(time.Minute)
		start := time.Now()
		for i := range 100 {
			if _, err := p.Call(context.Background(), numbered(9, uint32(i*7), 2000)...); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("100 calls took %v", d)
		}
		if n := w.port.Session().Stats().QueuedBytes; n < 200<<10 || n > 256<<10 {
			t.Errorf("%d bytes wait for the client that stands still, the window has 256 KiB", n)
		}
		cancel()
		<-stuck.done
		close(slow)
		w.clients[1].stall(false)
		time.Sleep(time.Second)
		if err := stuck.check(w.clients[1]); err != nil {
			t.Error(err)
		}
		w.want(0, "")
		w.want(1, "")
		if a, b := w.kindsOf(other[0]), w.kindsOf(other[1]); a != began || b != began {
			t.Errorf("events of the other client: %s; over there: %s", a, b)
		}
	})
}

func (w *bubble) kindsOf(l *witness) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s []string
	for _, e := range l.events {
		s = append(s, e.Kind.String())
	}
	return strings.Join(s, " ")
}

// Callbacks may do everything, also what ends the session, the port, the registration or the node that calls them.
func TestCallbacksMayDoAnything(t *testing.T) {
	for name, act := range map[string]func(w *bubble, e dataport.Event) error{
		"switch":             func(_ *bubble, e dataport.Event) error { return e.Port.Switch(context.Background(), -1) },
		"reset":              func(_ *bubble, e dataport.Event) error { return e.Port.ResetPath(1) },
		"suspend":            func(_ *bubble, e dataport.Event) error { return e.Port.Suspend() },
		"close the port":     func(_ *bubble, e dataport.Event) error { return e.Port.Close() },
		"close the client":   func(w *bubble, _ dataport.Event) error { w.regs[0].Close(); return nil },
		"close the node":     func(w *bubble, _ dataport.Event) error { return w.nodes[0].Close() },
		"close the peer":     func(w *bubble, _ dataport.Event) error { return w.nodes[1].Close() },
		"call, and the peer": func(_ *bubble, e dataport.Event) error { return callSeven(e.Session) },
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
				var took []time.Duration
				w.clients[0].mu.Lock()
				w.clients[0].onEvent = func(e dataport.Event) {
					if e.Kind != dataport.PathDown || e.Session.Err() != nil {
						return
					}
					start := time.Now()
					if err := act(w, e); err != nil {
						t.Error(err)
					}
					took = append(took, time.Since(start))
				}
				w.clients[0].mu.Unlock()
				w.net.Cut("target:2")
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if len(took) == 0 || took[0] != 0 {
					t.Errorf("the callback took %v", took)
				}
			})
		})
	}
}

func callSeven(s *dataport.Session) error {
	_, err := s.Call(context.Background(), numbered(1, 7, 100)...)
	return err
}

// The same from OnMessage, on the side that accepts; and what was being handed over is not handed over again.
func TestCloseFromOnMessage(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2}, func(w *bubble) {
		closer := closing{done: make(chan error, 1)}
		r, err := w.nodes[1].Register("closer", &closer)
		if err != nil {
			t.Fatal(err)
		}
		closer.act = func() error { r.Close(); return w.nodes[1].Close() }
		mine, _ := w.nodes[0].Register("closer", newWitness())
		p, err := mine.Open(context.Background(), dataport.PortConfig{Target: w.addrs[1]})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := p.Call(context.Background(), []byte("end")); !errors.Is(err, dataport.ErrSessionLost) {
			t.Errorf("call: %v", err)
		}
		if err := <-closer.done; err != nil {
			t.Error(err)
		}
		if closer.calls != 1 {
			t.Errorf("handed over %d times", closer.calls)
		}
	})
}

type closing struct {
	act   func() error
	done  chan error
	calls int
}

func (c *closing) OnMessage(context.Context, dataport.Message) ([]byte, error) {
	c.calls++
	c.done <- c.act()
	return nil, nil
}
func (c *closing) OnEvent(dataport.Event) {}
