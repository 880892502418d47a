package dataport_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// list is a Client that keeps the numbers of the messages of each session, in the order of OnMessage.
type list struct {
	mu     sync.Mutex
	got    map[dataport.SessionID][]int
	events []dataport.Event
	last   *dataport.Session
}

func (l *list) OnMessage(_ context.Context, m dataport.Message) ([]byte, error) {
	i := int(m.Payload[0]) | int(m.Payload[1])<<8
	ok := string(m.Payload) == string(pattern(i, len(m.Payload)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok {
		i = -1
	}
	l.got[m.Session.ID()] = append(l.got[m.Session.ID()], i)
	l.last = m.Session
	if m.Call {
		return fmt.Appendf(nil, "%d", i), nil
	}
	return nil, nil
}

func (l *list) OnEvent(e dataport.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *list) kinds() (s []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		s = append(s, e.Kind.String())
	}
	return s
}

type memWorld struct {
	net            *dataporttest.Net
	source, target *list
	nodes          []*dataport.Node
	port           *dataport.Port
	addrs          []string
}

func memConfig(net *dataporttest.Net, name string, listen ...string) dataport.Config {
	c := dataport.DefaultConfig()
	c.Name, c.Listen, c.Insecure, c.Dial, c.ListenFunc = name, listen, true, net.Dial, net.Listen
	c.SendWindowBytes, c.ReceiveWindowBytes, c.MaxMessageBytes = 256<<10, 128<<10, 1<<20
	return c
}

func newMemWorld(t interface{ Fatal(...any) }, paths int) *memWorld {
	w := &memWorld{net: dataporttest.NewNet(), source: &list{got: map[dataport.SessionID][]int{}}, target: &list{got: map[dataport.SessionID][]int{}}}
	for i := range paths {
		w.addrs = append(w.addrs, fmt.Sprintf("target:%d", i+1))
	}
	start := func(c dataport.Config, l *list) *dataport.Registration {
		n, err := dataport.NewNode(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes = append(w.nodes, n)
		r, err := n.Register("test", l)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	start(memConfig(w.net, "target", w.addrs...), w.target)
	r := start(memConfig(w.net, "source"), w.source)
	p, err := r.Open(context.Background(), dataport.PortConfig{Target: w.addrs})
	if err != nil {
		t.Fatal(err)
	}
	w.port = p
	return w
}

func (w *memWorld) close() {
	for _, n := range w.nodes {
		_ = n.Close()
	}
}

// TestSessionAgainstAList: whatever happens to the paths, each side's client gets a prefix of what the other side sent
// on that session, in order and once; everything whose receipt succeeded is in it; and when the session lives through
// the run, it is everything.
func TestSessionAgainstAList(t *testing.T) {
	rapid.Check(t, checkAgainstAList(t))
}

func checkAgainstAList(t *testing.T) func(*rapid.T) {
	return func(rt *rapid.T) {
		paths := rapid.IntRange(1, 3).Draw(rt, "paths")
		steps := rapid.SliceOfN(rapid.IntRange(0, 11), 5, 20).Draw(rt, "steps")
		waits := rapid.SliceOfN(rapid.IntRange(0, 400), len(steps), len(steps)).Draw(rt, "waits ms")
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(8, 2000), rapid.IntRange(8, 150_000)), 3, 6).Draw(rt, "sizes")
		synctest.Test(t, func(t *testing.T) { runModel(rt, paths, steps, waits, sizes) })
	}
}

func runModel(rt *rapid.T, paths int, steps, waits, sizes []int) {
	w := newMemWorld(rt, paths)
	defer w.close()
	time.Sleep(500 * time.Millisecond) // the bubble's clock
	if _, err := w.port.Call(context.Background(), pattern(0, 8)); err != nil {
		rt.Fatalf("first call: %v", err)
	}
	s := w.port.Session()
	peer := w.target.last
	there := startFlow(s, sizes, 1)
	back := startFlow(peer, sizes, 0)
	for i, step := range steps {
		addr := w.addrs[step%paths]
		switch step / 3 {
		case 0:
			w.net.Cut(addr)
		case 1:
			w.net.Blackhole(addr, dataporttest.Direction(1+i%3))
		case 2:
			w.net.Blackhole(addr, 0)
		case 3:
			w.net.Delay(addr, time.Duration(waits[i])*time.Millisecond/8)
		}
		time.Sleep(time.Duration(waits[i]) * time.Millisecond)
	}
	for _, a := range w.addrs {
		w.net.Blackhole(a, 0)
		w.net.Delay(a, 0)
	}
	there.finish()
	back.finish()
	time.Sleep(10 * time.Second) // receipts and events settle
	there.check(rt, "there", w.target, s, append([]int{0}, there.sent...))
	back.check(rt, "back", w.source, s, back.sent)
}

// flow sends numbered messages until it is told to finish.
type flow struct {
	s        *dataport.Session
	stop     chan struct{}
	done     chan struct{}
	sent     []int
	receipts []*dataport.Receipt
}

func startFlow(s *dataport.Session, sizes []int, first int) *flow {
	f := &flow{s: s, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for i := first; ; i++ {
			select {
			case <-f.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			b := pattern(i, sizes[i%len(sizes)])
			r, err := s.Send(context.Background(), b[:len(b)/2], b[len(b)/2:])
			if err != nil {
				return
			}
			f.sent, f.receipts = append(f.sent, i), append(f.receipts, r)
		}
	}()
	return f
}

func (f *flow) finish() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	<-f.done
}

func (f *flow) check(rt fatal, name string, l *list, s *dataport.Session, sent []int) {
	l.mu.Lock()
	got := l.got[s.ID()]
	l.mu.Unlock()
	if len(got) > len(sent) || !slices.Equal(got, sent[:len(got)]) {
		rt.Fatalf("%s: got %v, sent %v", name, got, sent)
	}
	lost := f.s.Err() != nil
	delivered := len(sent) - len(f.sent)
	for i, r := range f.receipts {
		select {
		case <-r.Done():
		default:
			rt.Fatalf("%s: receipt %d is still open", name, i)
		}
		switch {
		case r.Err() == nil && delivered == len(sent)-len(f.sent)+i:
			delivered++
		case r.Err() == nil:
			rt.Fatalf("%s: receipt %d succeeded after one that failed", name, i)
		case !errors.Is(r.Err(), dataport.ErrSessionLost) || !lost:
			rt.Fatalf("%s: receipt %d: %v", name, i, r.Err())
		}
	}
	if len(got) < delivered || !lost && len(got) != len(sent) {
		rt.Fatalf("%s: %d delivered, %d receipts succeeded, %d sent, lost %v", name, len(got), delivered, len(sent), lost)
	}
}

// The default thresholds, to the heartbeat, on the bubble's clock.
func TestThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t, 2)
		defer w.close()
		time.Sleep(time.Second)
		start := time.Now()
		for _, a := range w.addrs {
			w.net.Blackhole(a, dataporttest.Both)
		}
		time.Sleep(5 * time.Second)
		want := []struct {
			kind dataport.EventKind
			at   time.Duration
		}{
			{dataport.PathSuspect, 200 * time.Millisecond},
			{dataport.PathSuspect, 200 * time.Millisecond},
			{dataport.PathDown, time.Second},
			{dataport.PathDown, time.Second},
			{dataport.SessionDown, 3 * time.Second},
			{dataport.TargetUnreachable, 3 * time.Second},
		}
		w.source.mu.Lock()
		defer w.source.mu.Unlock()
		events := w.source.events[3:]
		if len(events) != len(want) {
			t.Fatalf("events %v", events)
		}
		for i, e := range events {
			if d := e.Time.Sub(start); e.Kind != want[i].kind || d < want[i].at-100*time.Millisecond || d > want[i].at+100*time.Millisecond {
				t.Errorf("event %d: %v after %v, want %v after %v", i, e, d, want[i].kind, want[i].at)
			}
		}
	})
}

func TestSilenceBelowTheThresholdIsNoAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t, 2)
		defer w.close()
		time.Sleep(time.Second)
		for _, a := range w.addrs { // 140 ms later everything comes: a pause of the peer
			w.net.Delay(a, 140*time.Millisecond)
		}
		time.Sleep(30 * time.Second)
		if got := w.source.kinds(); len(got) != 3 {
			t.Fatalf("events %v", got)
		}
		if got := w.target.kinds(); len(got) != 3 {
			t.Fatalf("events %v", got)
		}
	})
}
