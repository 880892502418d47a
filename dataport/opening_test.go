package dataport_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// A path that connected and got no answer to its hello kept all others waiting for as long as they could wait
// themselves: the target was told unreachable, and in Auto left, although two paths to it were well.
func TestHungOpeningIsTakenOver(t *testing.T) {
	for name, active := range map[string]int{"all carry data": 0, "one carries data": 1} {
		t.Run(name, func(t *testing.T) {
			var network *dataporttest.Net
			var healed atomic.Bool
			inMemory(t, bubbleConfig{paths: 3, net: func(n *dataporttest.Net) { network = n }, node: func(_ int, c *dataport.Config) {
				c.Timing.UnreachableAfter = 1200 * time.Millisecond
				dial := c.Dial
				c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
					if remote != "target:1" {
						time.Sleep(10 * time.Millisecond) // path 1 is the first
						return dial(ctx, local, remote)
					}
					conn, err := dial(ctx, local, remote)
					if !healed.Load() {
						network.Stall(remote, dataporttest.Backward)
					}
					return conn, err
				}
			}, port: func(c *dataport.PortConfig) {
				c.Switch, c.ActivePaths = dataport.Auto, active
			}}, func(w *bubble) {
				time.Sleep(5 * time.Second)
				healed.Store(true)
				w.net.Stall("target:1", 0)
				time.Sleep(5 * time.Second)
				want := "PathUp SessionUp PathUp PathUp"
				if active == 1 {
					want = "PathUp SessionUp PathIsStandby PathIsStandby"
				}
				if got := w.kinds(0); got != want {
					t.Errorf("events: %s\nwant: %s", got, want)
				}
				if i, _ := w.port.Target(); i != 0 {
					t.Errorf("the port is on target %d", i)
				}
			})
		})
	}
}

// slowWords is a listener whose connections take their time for the first thing they say.
type slowWords struct {
	net.Listener
	late time.Duration
}

type slowWordsConn struct {
	net.Conn
	late time.Duration
	said atomic.Bool
}

func (l slowWords) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &slowWordsConn{Conn: c, late: l.late}, err
}

func (c *slowWordsConn) Write(b []byte) (int, error) {
	if !c.said.Swap(true) {
		time.Sleep(c.late)
	}
	return c.Conn.Write(b)
}

// Where it is the peer that is slow, paths that took over from each other again and again would never have a session.
func TestSlowPeerIsNotTakenOverForGood(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2, node: func(h int, c *dataport.Config) {
		if listen := c.ListenFunc; h == 1 {
			c.ListenFunc = func(addr string) (net.Listener, error) {
				l, err := listen(addr)
				return slowWords{l, 1200 * time.Millisecond}, err
			}
		}
	}}, func(w *bubble) {
		time.Sleep(10 * time.Second)
		if got := w.kinds(0); !strings.HasPrefix(got, "PathUp SessionUp PathUp") || w.port.State() != dataport.PortConnected {
			t.Errorf("events: %s; the port is %v", got, w.port.State())
		}
	})
}

// A session that was ended between the answer to its first hello and the adding of its first path was told to be down,
// and nobody had been told that it was up.
func TestEndBeforeTheFirstPathIsNotTold(t *testing.T) {
	var wrote atomic.Bool
	inMemory(t, bubbleConfig{paths: 1, node: func(h int, c *dataport.Config) {
		if listen := c.ListenFunc; h == 1 {
			c.ListenFunc = func(addr string) (net.Listener, error) {
				l, err := listen(addr)
				return lateListener{l, 1500 * time.Millisecond, &wrote}, err
			}
		}
	}}, func(w *bubble) {
		if got := w.kinds(0); got != "PathUp SessionUp PathSuspect" { // it has the answer
			t.Errorf("events of the side that dials: %s", got)
		}
		w.regs[1].Close()
		time.Sleep(time.Second)
		if got := w.kinds(1); got != "" {
			t.Errorf("events of the accepting side: %s", got)
		}
	})
}
