package dataport

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Client is what a user of the port implements.
type Client interface {
	// OnMessage gets the messages of a session in order, one at a time; different sessions may call at once. Window
	// is given back to the peer, and its receipt completes, when OnMessage returns. What it returns for a Call goes
	// back to the caller (an error as RemoteError); for other messages it is ignored. ctx ends with the session.
	// It must wait neither for a Call to the same peer nor for a receipt of it, nor Send more than its window holds: what
	// it waits for may be behind messages that the peer's OnMessage, waiting likewise, does not take.
	// A message may come before the SessionUp event of its session: events have their own goroutine.
	OnMessage(ctx context.Context, m Message) (reply []byte, err error)
	// OnEvent gets the events of the registration in exact order, one at a time. It may take its time and may call
	// anything of this package.
	OnEvent(e Event)
}

// Message is one message as the peer sent it.
type Message struct {
	Session *Session
	Seq     uint64 // sequence of the message's last frame; grows with every message of the session
	Index   int    // in its batch (SendBatch), from 0; the messages of a batch have one Seq
	Payload []byte // valid until OnMessage returns
	Call    bool
}

// maxEvents bounds the events that wait for a slow OnEvent. Above half of it path events are dropped and counted;
// the others come no faster than sessions can be opened.
const maxEvents = 4096

// Registration is a client known to the node by name. Peers reach the client by the same name.
type Registration struct {
	node   *Node
	name   string
	id     uint32 // the name's hash, carried in every frame
	client Client
	tasks  tasks

	mu      sync.Mutex // leaf: guards the fields below
	events  []Event
	dropped int
	closing bool          // no port is opened any more
	closed  bool          // no event comes any more, but for what ended last
	wake    chan struct{} // capacity 1, never closed
	fence   fencing
	ports   map[*Port]struct{}
}

func clientID(name string) uint32 { return uint32(xxhash.Sum64String(name)) }

func newRegistration(n *Node, name string, c Client) *Registration {
	r := &Registration{node: n, name: name, id: clientID(name), client: c, wake: make(chan struct{}, 1), ports: map[*Port]struct{}{}}
	r.tasks.start(r.runEvents)
	return r
}

// Name returns the name the client registered with.
func (r *Registration) Name() string { return r.name }

// emit queues an event. It never blocks; callers may hold any other lock of the package.
func (r *Registration) emit(e Event) {
	e.Time = time.Now()
	r.mu.Lock()
	pathEvent := e.Kind == PathUp || e.Kind == PathSuspect || e.Kind == PathDown || e.Kind == PathIsStandby || e.Kind == PathIsDraining
	switch {
	case r.closed && e.Kind != PortClosed && e.Kind != SessionDown:
	case len(r.events) >= maxEvents || (pathEvent && len(r.events) >= maxEvents/2):
		r.dropped++
	default:
		if r.dropped > 0 {
			e.Reason += fmt.Sprintf(" [%d events before this one were dropped: OnEvent is too slow]", r.dropped)
			r.dropped = 0
		}
		r.events = append(r.events, e)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Registration) runEvents() {
	for {
		r.mu.Lock()
		batch, closed := r.events, r.closed
		r.events = nil
		r.mu.Unlock()
		for _, e := range batch {
			r.tasks.leave()
			r.client.OnEvent(e)
			r.tasks.enter()
		}
		if len(batch) > 0 {
			continue
		}
		if closed {
			return
		}
		<-r.wake
	}
}

// Close closes the ports and sessions of the registration and takes its name back. It waits for everything but
// callbacks that are running, so that a callback may call it. It may be called twice.
func (r *Registration) Close() {
	r.node.forget(r)
	r.mu.Lock()
	r.closing = true // before it is looked which there are
	ports := make([]*Port, 0, len(r.ports))
	for p := range r.ports {
		ports = append(ports, p)
	}
	r.mu.Unlock()
	for _, p := range ports {
		_ = p.Close()
	}
	r.node.endSessions(r, "client closed")
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	r.tasks.wait()
}

// tasks counts goroutines that are not inside a client's callback, so that Close can wait for them even when a callback calls it.
type tasks struct {
	mu   sync.Mutex
	cond *sync.Cond
	n    int
}

func (t *tasks) start(f func()) {
	t.enter()
	go func() {
		defer t.leave()
		f()
	}()
}

func (t *tasks) enter() {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
}

func (t *tasks) leave() {
	t.mu.Lock()
	t.n--
	if t.n == 0 && t.cond != nil {
		t.cond.Broadcast()
	}
	t.mu.Unlock()
}

func (t *tasks) wait() {
	t.mu.Lock()
	if t.cond == nil {
		t.cond = sync.NewCond(&t.mu)
	}
	for t.n > 0 {
		t.cond.Wait()
	}
	t.mu.Unlock()
}
