package dataport_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// A node with as many sessions as it may have says so to the next one, and takes it when there is room again.
func TestMaxSessions(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1, node: func(h int, c *dataport.Config) {
		if h == 1 {
			c.MaxSessions = 2
		}
	}}, func(w *bubble) {
		to := dataport.PortConfig{Target: w.addrs[1]}
		second, third := open(w.t, w.regs[0], to), (*dataport.Port)(nil)
		time.Sleep(time.Second)
		third = open(w.t, w.regs[0], to)
		time.Sleep(10 * time.Second)
		if third.Session() != nil || w.port.Session() == nil || second.Session() == nil {
			t.Errorf("ports are %v and %v, the one beyond the limit %v", w.port.State(), second.State(), third.State())
		}
		var told []string
		w.clients[0].change(func(l *witness) {
			for _, e := range l.events {
				if e.Port == third {
					told = append(told, e.Kind.String()+" "+e.Reason)
				}
			}
		})
		if len(told) != 2 || !strings.HasPrefix(told[0], "PeerRefused") || !strings.Contains(told[0], "has 2 sessions") || !strings.HasPrefix(told[1], "TargetUnreachable") {
			t.Errorf("events beyond the limit: %q", told)
		}
		_ = second.Close()
		time.Sleep(5 * time.Second)
		if third.Session() == nil {
			t.Errorf("there is room and no session: %+v", third.Stats())
		}
	})
}

// Events for a client that is slow are held in bounds: those of paths first give way, and it is told how many were dropped.
func TestEventsOfASlowClientAreBounded(t *testing.T) {
	const most = 4096
	inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
		c, slow := w.clients[0], make(chan struct{})
		c.change(func(l *witness) { l.events, l.slow = nil, slow })
		suspended := false
		toggle := func(n int) {
			for range n {
				change := w.port.Suspend
				if suspended {
					change = w.port.Resume
				}
				suspended = !suspended
				if err := change(); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		toggle(1)
		synctest.Wait() // the client has this one
		toggle(most / 2)
		if err := w.port.ResetPath(1); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(time.Second) // PathDown, PathUp
		toggle(most/2 + 10)
		close(slow)
		synctest.Wait()
		toggle(1)
		synctest.Wait()
		c.change(func(l *witness) {
			if len(l.events) != 1+most+1 {
				w.t.Fatalf("%d events, want %d", len(l.events), 1+most+1)
			}
			for i, e := range l.events {
				dropped := 0
				switch i {
				case 1 + most/2:
					dropped = 2
				case 1 + most:
					dropped = 10
				}
				want := ""
				if dropped > 0 {
					want = fmt.Sprintf(" [%d events before this one were dropped: OnEvent is too slow]", dropped)
				}
				if e.Reason != want || e.Kind != dataport.Suspended && e.Kind != dataport.Resumed {
					w.t.Fatalf("event %d: %v, want %q", i, e, want)
				}
			}
		})
	})
}

// journal is a log's lines.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.b.Reset()
	return strings.Split(strings.TrimSpace(j.b.String()), "\n")
}

// Who knocks with nonsense as fast as it can fills no log: some lines a second, and then how many there were beside.
func TestRefusalsToldPerSecond(t *testing.T) {
	var log journal
	inMemory(t, bubbleConfig{paths: 1, node: func(h int, c *dataport.Config) {
		if h == 1 {
			c.Log = zerolog.New(&log)
		}
	}}, func(w *bubble) {
		knock := func(n int) []string {
			for range n {
				c, err := w.net.Dial(w.t.Context(), "", "target:1")
				if err != nil {
					w.t.Fatal(err)
				}
				if _, err := c.Write(bytes.Repeat([]byte("nonsense"), 20)); err != nil {
					w.t.Fatal(err)
				}
				synctest.Wait()
				_ = c.Close()
				synctest.Wait()
			}
			return log.take()
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		log.take()
		if l := knock(30); len(l) != 5 || !strings.Contains(l[0], "connection refused") || strings.Contains(strings.Join(l, ""), "more") {
			t.Errorf("lines of the first second: %q", l)
		}
		time.Sleep(time.Second)
		if l := knock(1); len(l) != 1 || !strings.Contains(l[0], `"more":25`) {
			t.Errorf("lines of the next second: %q", l)
		}
	})
}

// Where one path carries data it is the first address's, when that connects within SuspectAfter; the others wait no longer.
func TestHeadStartOfTheFirstAddress(t *testing.T) {
	for _, row := range []struct {
		late   time.Duration
		active dataport.PathID
		up     time.Duration
	}{
		{150 * time.Millisecond, 1, 150 * time.Millisecond},
		{250 * time.Millisecond, 2, 200 * time.Millisecond},
	} {
		t.Run(row.late.String(), func(t *testing.T) {
			inMemory(t, bubbleConfig{paths: 2, port: func(c *dataport.PortConfig) { c.ActivePaths = 1 }, node: func(h int, c *dataport.Config) {
				if dial := c.Dial; h == 0 {
					c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
						if remote == "target:1" {
							time.Sleep(row.late)
						}
						return dial(ctx, local, remote)
					}
				}
			}}, func(w *bubble) {
				w.clients[0].change(func(l *witness) {
					if e := l.events[0]; e.Kind != dataport.PathUp || e.Path != row.active || e.Time.Sub(w.t0)+time.Second != row.up {
						t.Errorf("%v after %v, want path %d after %v", e, e.Time.Sub(w.t0)+time.Second, row.active, row.up)
					}
				})
				if got := w.kinds(0); got != "PathUp SessionUp PathIsStandby" {
					t.Errorf("events: %s", got)
				}
			})
		})
	}
}

// A peer that announces another address every millisecond has us dial as often as a path that fails would, and no oftener;
// what it says last is what counts.
func TestPeerThatMovesAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, dialled := dataporttest.NewNet(), map[string]bool{}
		var mu sync.Mutex
		target := node(t, memConfig(network, "target", "10.0.0.1:7000"))
		register(t, target, newWitness())
		c := memConfig(network, "source")
		c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
			mu.Lock()
			dialled[remote] = true
			mu.Unlock()
			return network.Dial(ctx, local, remote)
		}
		p := open(t, register(t, node(t, c), newWitness()), dataport.PortConfig{Target: []string{"10.0.0.1:7000"}, UseAnnounced: true})
		time.Sleep(time.Second)
		last := ""
		for i := range 1000 {
			addr := fmt.Sprintf("10.0.0.1:%d", 8000+i)
			if _, err := target.Listen(addr); err != nil {
				t.Fatal(err)
			}
			if last != "" {
				if err := target.Unlisten(last); err != nil {
					t.Fatal(err)
				}
			}
			last = addr
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if n, most := len(dialled), 2+int(time.Second/c.Timing.BackoffMin); n > most || n < most/2 {
			t.Errorf("%d addresses were dialled within a second, want %d at most and half of them at least", n, most)
		}
		if up, down := pathsOf(p); len(down) != 0 || len(up) != 2 || !slices.Contains(up, last) {
			t.Errorf("paths up %v, down %v; the last address is %s", up, down, last)
		}
	})
}
