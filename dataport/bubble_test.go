package dataport_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// bubble is a source, a target and a backup on a network in memory, inside a bubble: nodes are hosts 0, 1 and 2.
type bubble struct {
	t       *testing.T
	net     *dataporttest.Net
	addrs   [3][]string
	clients [3]*witness
	regs    [3]*dataport.Registration
	nodes   [3]*dataport.Node
	port    *dataport.Port
	t0      time.Time
}

type bubbleConfig struct {
	paths int
	net   func(n *dataporttest.Net)
	node  func(host int, c *dataport.Config)
	port  func(c *dataport.PortConfig)
}

// inMemory runs f when the port of the default configuration is up, a second after the bubble began.
func inMemory(t *testing.T, m bubbleConfig, f func(w *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &bubble{t: t, net: dataporttest.NewNet()}
		if m.net != nil {
			m.net(w.net)
		}
		defer func() {
			for _, n := range w.nodes {
				if n != nil {
					_ = n.Close()
				}
			}
		}()
		for i := range m.paths {
			w.addrs[1] = append(w.addrs[1], fmt.Sprintf("target:%d", i+1))
		}
		w.addrs[2] = []string{"backup:1"}
		for _, h := range []int{2, 1, 0} {
			w.clients[h] = newWitness()
			w.start(h, m.node)
		}
		pc := dataport.PortConfig{Target: w.addrs[1], Backups: [][]string{w.addrs[2]}}
		if m.port != nil {
			m.port(&pc)
		}
		var err error
		if w.port, err = w.regs[0].Open(context.Background(), pc); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.t0 = time.Now()
		f(w)
	})
}

func (w *bubble) start(h int, change func(int, *dataport.Config)) {
	w.t.Helper()
	c := dataport.DefaultConfig()
	c.Name, c.Listen, c.Insecure, c.Dial, c.ListenFunc = fmt.Sprintf("host%d", h), w.addrs[h], true, w.net.Dial, w.net.Listen
	c.SendWindowBytes, c.ReceiveWindowBytes, c.MaxMessageBytes = 256<<10, 128<<10, 1<<20
	if change != nil {
		change(h, &c)
	}
	n, err := dataport.NewNode(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[h] = n
	if w.regs[h], err = n.Register("test", w.clients[h]); err != nil {
		w.t.Fatal(err)
	}
}

// all applies a fault to every path of the target.
func (w *bubble) all(f func(addr string)) {
	for _, a := range w.addrs[1] {
		f(a)
	}
}

// since lists the events of a host after t0: "100ms PathUp", or the kind alone when it came with the one before.
func (w *bubble) since(h int) string {
	c := w.clients[h]
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []string
	last := time.Duration(-1)
	for _, e := range c.events {
		switch d := e.Time.Sub(w.t0); {
		case d < 0:
			continue
		case d != last:
			l = append(l, d.String())
			last = d
		}
		l = append(l, e.Kind.String())
	}
	return strings.Join(l, " ")
}

// want compares the events of a host after t0, with their times.
func (w *bubble) want(h int, events string) {
	w.t.Helper()
	if got := w.since(h); got != strings.Join(strings.Fields(events), " ") {
		w.t.Errorf("events of host %d:\n  %s\nwant:\n  %s", h, got, events)
	}
}

func (w *bubble) kinds(h int) string {
	c := w.clients[h]
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []string
	for _, e := range c.events {
		l = append(l, e.Kind.String())
	}
	return strings.Join(l, " ")
}

// lateListener holds up who is the first to write: what it wrote has left, and it does not know.
type lateListener struct {
	net.Listener
	late  time.Duration
	wrote *atomic.Bool // shared by all listeners
}

type lateConn struct {
	net.Conn
	l lateListener
}

func (l lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return lateConn{c, l}, err
}

func (c lateConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if !c.l.wrote.Swap(true) {
		time.Sleep(c.l.late)
	}
	return n, err
}

// The model found: a path that joined in the moment between the answer to the session's first hello and the adding of
// that first path was told before it, and the session's own PathUp came second, before SessionUp.
func TestJoinComesAfterTheFirstPath(t *testing.T) {
	var wrote atomic.Bool
	inMemory(t, bubbleConfig{paths: 3, node: func(h int, c *dataport.Config) {
		if listen := c.ListenFunc; h == 1 {
			c.ListenFunc = func(addr string) (net.Listener, error) {
				l, err := listen(addr)
				return lateListener{l, 20 * time.Millisecond, &wrote}, err
			}
		}
	}}, func(w *bubble) {
		if got := w.kinds(1); got != "PathUp SessionUp PathUp PathUp" {
			t.Errorf("events of the accepting side: %s", got)
		}
	})
}

// The model found: two addresses that lead to two hosts made a port open and lose sessions as fast as it could dial.
func TestAddressesOfTwoHostsAreTriedWithBackoff(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1, port: func(c *dataport.PortConfig) {
		c.Target, c.Backups = []string{"target:1", "backup:1"}, nil
	}}, func(w *bubble) {
		said := false
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			for _, p := range w.port.Stats().Paths {
				said = said || strings.Contains(p.Reason, "lead to one node")
			}
		}
		for _, a := range []string{"target:1", "backup:1"} {
			if _, ever := w.net.Connections(a); ever > 60 || ever < 10 {
				t.Errorf("%s was dialled %d times in a minute", a, ever)
			}
		}
		if !said {
			t.Errorf("nobody is told what to look at: %+v", w.port.Stats())
		}
	})
}

// What a path holds when it falls silent goes out on the other one, and it is given nothing more: whoever sends notices
// the threshold once, and only for what was under way.
func TestSuspectPathHoldsUpNothing(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 2, port: func(c *dataport.PortConfig) { c.Scheduler = dataport.RoundRobin() }}, func(w *bubble) {
		w.alignToHeartbeat()
		data := 0
		w.net.Tap("target:1", dataporttest.Forward, func(_ int, b []byte) {
			if len(b) > 4 && b[4] == 2 {
				data++
			}
		})
		time.Sleep(10 * time.Millisecond)
		w.net.Stall("target:1", dataporttest.Both)
		delivered := func(want time.Duration) {
			c := newCourier(w.t.Context(), uint32(1+data))
			c.jobs <- job{session: w.port.Session, count: 20, size: 3000}
			close(c.jobs)
			<-c.done
			for _, e := range c.sent[w.port.Session().ID()] {
				_ = e.receipt.Wait(w.t.Context())
			}
			if d := time.Since(w.t0); d > want {
				t.Errorf("delivered %v after the last heartbeat, want %v at most", d, want)
			}
			if err := c.check(w.clients[1]); err != nil {
				t.Error(err)
			}
		}
		delivered(200 * time.Millisecond)
		if data == 0 {
			t.Error("the path was given nothing before it was suspect")
		}
		time.Sleep(205*time.Millisecond - time.Since(w.t0)) // by now it is suspect
		before := data
		delivered(205 * time.Millisecond)
		if data != before {
			t.Errorf("a suspect path was given %d writes of data", data-before)
		}
		time.Sleep(210*time.Millisecond - time.Since(w.t0))
		w.net.Stall("target:1", 0)
		time.Sleep(10 * time.Second)
		w.want(0, "200ms PathSuspect 210ms PathUp")
	})
}

// Replies take room as messages do and give it back: many calls go through a window that holds few.
func TestManyCallsOnASmallWindow(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1, node: func(_ int, c *dataport.Config) {
		c.SendWindowBytes, c.ReceiveWindowBytes = 64<<10, 64<<10
	}}, func(w *bubble) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for i := range 1000 {
			if _, err := w.port.Call(ctx, numbered(1, uint32(7*i), 100)...); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		if d := time.Since(w.t0); d != 0 {
			t.Errorf("1000 calls took %v", d)
		}
	})
}
