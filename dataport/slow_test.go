package dataport_test

import (
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// lane is a link of a certain speed with a buffer, as the kernel's socket and a router have one: what is written leaves
// at that speed in small pieces, and a writer waits when the buffer is full.
type lane struct {
	rate  atomic.Int64 // bytes per second
	taken atomic.Int64 // bytes that left
}

const (
	laneBuffer = 64 << 10
	lanePiece  = 1 << 10
)

// conn puts the lane in front of what c writes.
func (l *lane) conn(c net.Conn) net.Conn {
	lc := &laneConn{Conn: c, lane: l, change: make(chan struct{}), closed: make(chan struct{})}
	go lc.run()
	return lc
}

type laneConn struct {
	net.Conn
	lane   *lane
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex // guards the fields below
	buf      []byte
	deadline time.Time
	change   chan struct{} // closed and replaced when they change
}

func (c *laneConn) changed() {
	close(c.change)
	c.change = make(chan struct{})
}

func (c *laneConn) run() {
	for {
		c.mu.Lock()
		n, change := min(len(c.buf), lanePiece), c.change
		piece := append([]byte(nil), c.buf[:n]...)
		c.mu.Unlock()
		if n == 0 {
			select {
			case <-change:
				continue
			case <-c.closed:
				return
			}
		}
		// A change of speed takes effect within a millisecond, as it does on a link.
		for left := float64(n); left > 0; left -= float64(c.lane.rate.Load()) / 1000 {
			select {
			case <-time.After(min(time.Millisecond, time.Duration(left/float64(c.lane.rate.Load())*1e9))):
			case <-c.closed:
				return
			}
		}
		if _, err := c.Conn.Write(piece); err != nil {
			return
		}
		c.lane.taken.Add(int64(n))
		c.mu.Lock()
		c.buf = c.buf[n:]
		c.changed()
		c.mu.Unlock()
	}
}

func (c *laneConn) Write(b []byte) (done int, err error) {
	for len(b) > 0 {
		c.mu.Lock()
		n, change, deadline := min(laneBuffer-len(c.buf), len(b)), c.change, c.deadline
		if !deadline.IsZero() && time.Until(deadline) <= 0 {
			c.mu.Unlock()
			return done, os.ErrDeadlineExceeded
		}
		if n > 0 {
			c.buf = append(c.buf, b[:n]...)
			c.changed()
			b, done = b[n:], done+n
			c.mu.Unlock()
			continue
		}
		c.mu.Unlock()
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			timeout = time.After(time.Until(deadline))
		}
		select {
		case <-change:
		case <-timeout:
		case <-c.closed:
			return done, net.ErrClosed
		}
	}
	return done, nil
}

func (c *laneConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	c.changed()
	return nil
}

func (c *laneConn) SetDeadline(t time.Time) error {
	_ = c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *laneConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// lanes is a source and a target with paths of certain speeds between them, in a synctest bubble.
type lanes struct {
	*memWorld
	lane []*lane
}

func newLanes(t *testing.T, c dataport.PortConfig, change func(*dataport.Config), rates ...int64) *lanes {
	w := &lanes{memWorld: &memWorld{net: dataporttest.NewNet(), source: &list{got: map[dataport.SessionID][]int{}}, target: &list{got: map[dataport.SessionID][]int{}}}}
	by := map[string]*lane{}
	for i, r := range rates {
		a := string(rune('a'+i)) + ":1"
		by[a] = &lane{}
		by[a].rate.Store(r)
		w.addrs, w.lane = append(w.addrs, a), append(w.lane, by[a])
	}
	mk := func(name string, listen ...string) dataport.Config {
		c := memConfig(w.net, name, listen...)
		d := dataport.DefaultConfig()
		c.SendWindowBytes, c.ReceiveWindowBytes = d.SendWindowBytes, d.ReceiveWindowBytes
		if change != nil {
			change(&c)
		}
		return c
	}
	tc, sc := mk("target", w.addrs...), mk("source")
	sc.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
		inner, err := w.net.Dial(ctx, local, remote)
		if err != nil {
			return nil, err
		}
		return by[remote].conn(inner), nil
	}
	for i, l := range []*list{w.target, w.source} {
		n, err := dataport.NewNode([]dataport.Config{tc, sc}[i])
		if err != nil {
			t.Fatal(err)
		}
		w.nodes = append(w.nodes, n)
		r, err := n.Register("test", l)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			c.Target = w.addrs
			if w.port, err = r.Open(context.Background(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(time.Second)
	return w
}

// load sends messages of size as fast as they are taken until stop is called, which returns how many it was.
func (w *lanes) load(t *testing.T, size int) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	sent := make(chan int, 1)
	go func() {
		n := 0
		var last *dataport.Receipt
		for ; ctx.Err() == nil; n++ {
			r, err := w.port.Send(ctx, pattern(n, size))
			if err != nil {
				break
			}
			last = r
		}
		if err := last.Wait(context.Background()); err != nil {
			t.Errorf("last receipt: %v", err)
		}
		sent <- n
	}()
	return func() int { cancel(); return <-sent }
}

// delivered is how many messages the target has been handed, all in order.
func (w *lanes) delivered(t *testing.T) int {
	w.target.mu.Lock()
	defer w.target.mu.Unlock()
	got := w.target.got[w.port.Session().ID()]
	for i, n := range got {
		if n != i%65536 {
			t.Fatalf("message %d came as number %d", n, i)
		}
	}
	return len(got)
}

func (w *lanes) during(t *testing.T, d time.Duration) int {
	before := w.delivered(t)
	time.Sleep(d)
	return w.delivered(t) - before
}

// One of three paths drops to 10 KB/s under full load, with hundreds of KB on it. It is not silent, so no threshold
// helps: the others have to carry on with all they can, at once, and what is stuck has to go out there. Later it is itself again.
func TestASlowPathHoldsUpNothing(t *testing.T) {
	const rate, size = 1_000_000, 4 << 10
	for _, test := range []struct {
		name   string
		sched  dataport.Scheduler
		window int
	}{
		{"least-completion", dataport.LeastCompletion(), 4 << 20},
		{"round-robin", dataport.RoundRobin(), 4 << 20},
		{"least-completion, windows that last for a third of a second", dataport.LeastCompletion(), 1 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLanes(t, dataport.PortConfig{Scheduler: test.sched}, func(c *dataport.Config) {
					c.SendWindowBytes, c.ReceiveWindowBytes = test.window, test.window
				}, rate, rate, rate)
				defer w.close()
				stop := w.load(t, size)
				time.Sleep(time.Second)
				all := w.during(t, time.Second)
				others := 2 * rate / size * 97 / 100 // of every 100 bytes 3 are headers and heartbeats
				w.lane[0].rate.Store(10_000)
				sum := 0
				for i := range 5 {
					got := w.during(t, time.Second)
					if sum += got; got < others*9/10 {
						t.Errorf("second %d with a slow path: %d messages, the other two carry %d (all three did %d)", i+1, got, others, all)
					}
				}
				// What was on the path when it slowed down goes out twice: that is all it costs.
				if twice := (120 << 10) / size; sum < 5*others-twice {
					t.Errorf("%d messages in 5 s with a slow path, the other two carry %d", sum, 5*others)
				}
				slow := w.port.Stats().Paths[0]
				if slow.Rate > rate/20 || slow.UnackedBytes > 120<<10 {
					t.Errorf("the slow path is taken for one of %.0f bytes/s and has %d bytes", slow.Rate, slow.UnackedBytes)
				}
				w.lane[0].rate.Store(rate)
				w.during(t, 2*time.Second)
				if got := w.during(t, time.Second); got < all*95/100 {
					t.Errorf("%d messages per second when the path is well again, before %d", got, all)
				}
				n := stop()
				if got := w.delivered(t); got != n {
					t.Errorf("%d delivered, %d sent", got, n)
				}
				st, dup := w.port.Session().Stats(), w.target.last.Stats().DuplicateFrames
				if st.RescuedFrames == 0 || dup > uint64(n)*4/100 {
					t.Errorf("%d frames rescued, %d of %d came twice", st.RescuedFrames, dup, n)
				}
				if kinds := w.source.kinds(); len(kinds) != 4 {
					t.Errorf("events %v, want three PathUp and a SessionUp only", kinds)
				}
			})
		})
	}
}

// While a path is so slow that windows would be empty before it has delivered one frame it gets no frame of its own, only
// a copy of one now and then: that is how it is noticed that it has become as fast as the other.
func TestAProbeFindsAFastPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 1_000_000, 4 << 10
		w := newLanes(t, dataport.PortConfig{}, func(c *dataport.Config) {
			c.SendWindowBytes, c.ReceiveWindowBytes = 512<<10, 512<<10
		}, rate, 10_000)
		defer w.close()
		stop := w.load(t, size)
		time.Sleep(30 * time.Second) // it gets rid of what it was given before anything was known
		before, rescued := w.lane[1].taken.Load(), w.port.Session().Stats().RescuedFrames
		alone := w.during(t, 5*time.Second)
		if alone < 5*rate/size*95/100 {
			t.Errorf("%d messages in 5 s, the fast path alone carries %d", alone, 5*rate/size*97/100)
		}
		// Heartbeats are 4 KB/s, and a probe every half a second 8.
		if got := w.lane[1].taken.Load() - before; got > 5*13_000 {
			t.Errorf("the slow path was given %d bytes in 5 s", got)
		}
		if got := w.port.Session().Stats().RescuedFrames - rescued; got > 0 {
			t.Errorf("%d frames had to be rescued from it: it should have had none", got)
		}
		w.lane[1].rate.Store(rate)
		time.Sleep(3 * time.Second)
		if both := w.during(t, 5*time.Second); both < alone*18/10 {
			t.Errorf("%d messages in 5 s when both are fast, %d by one", both, alone)
		}
		if n := stop(); w.delivered(t) != n {
			t.Errorf("%d delivered, %d sent", w.delivered(t), n)
		}
	})
}

// A frame in the middle of a write on a path of 10 KB/s: the message is there by the other path, and its receipt must not
// wait until the slow write has gone through its bytes.
func TestASlowWriteHoldsNoReceipt(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLanes(t, dataport.PortConfig{}, secured(secure), 10_000, 4_000_000)
				defer w.close()
				start := time.Now()
				for i := range 4 {
					b := pattern(i, 1<<20)
					r, err := w.port.Send(context.Background(), b)
					if err == nil {
						err = r.Wait(context.Background())
					}
					if err != nil {
						t.Fatal(err)
					}
					clear(b) // ours again
				}
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("4 MiB took %v, the fast path alone carries them in one second", took)
				}
				time.Sleep(90 * time.Second) // the slow one comes to the end of what it was given, and it is not nonsense
				if got := w.delivered(t); got != 4 {
					t.Errorf("%d delivered", got)
				}
				if kinds := w.source.kinds(); len(kinds) != 3 {
					t.Errorf("events %v, want two PathUp and a SessionUp only", kinds)
				}
			})
		})
	}
}

// secured gives each node the key of the other; nil when that is not asked for.
func secured(on bool) func(*dataport.Config) {
	if !on {
		return nil
	}
	a, _ := dataport.GenerateKey()
	b, _ := dataport.GenerateKey()
	return func(c *dataport.Config) {
		c.Insecure, c.Key, c.Peers = false, a, append(c.Peers, pub(b))
		a, b = b, a
	}
}

// A path that falls silent costs no more than its share, and for no longer than the threshold.
func TestASilentPathCostsItsShare(t *testing.T) {
	const rate, size = 1_000_000, 4 << 10
	for _, window := range []int{4 << 20, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			w := newLanes(t, dataport.PortConfig{}, func(c *dataport.Config) {
				c.SendWindowBytes, c.ReceiveWindowBytes = window, window
			}, rate, rate, rate)
			defer w.close()
			stop := w.load(t, size)
			time.Sleep(time.Second)
			all := w.during(t, time.Second)
			w.net.Blackhole(w.addrs[0], dataporttest.Forward|dataporttest.Backward)
			time.Sleep(time.Millisecond)
			// Within its own second the path is suspect and down; the share of all is a third.
			if got := w.during(t, dataport.DefaultTiming().PathDownAfter); got < all*2/3*97/100 {
				t.Errorf("windows of %d: %d messages in the second after the loss, %d before it", window, got, all)
			}
			w.net.Blackhole(w.addrs[0], 0)
			w.during(t, 4*time.Second)
			if got := w.during(t, time.Second); got < all*95/100 {
				t.Errorf("%d messages per second when the path is back, before %d", got, all)
			}
			if n := stop(); w.delivered(t) != n {
				t.Errorf("%d delivered, %d sent", w.delivered(t), n)
			}
		})
	}
}
