package dataport_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"mirror-agent/dataport"
)

// Message n of stream f is f (u32), n (u32), its length (u32) and a piece of noise that begins where n says. A client
// that is handed anything else was handed nonsense.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}()

const numberedBytes = 12

// numbered returns a message in two parts; the second is noise and not to be written to.
func numbered(f, n uint32, size int) [][]byte {
	head := make([]byte, numberedBytes)
	binary.LittleEndian.PutUint32(head[0:], f)
	binary.LittleEndian.PutUint32(head[4:], n)
	binary.LittleEndian.PutUint32(head[8:], uint32(size))
	return [][]byte{head, noise[n%1024:][:size]}
}

func parseNumbered(b []byte) (f, n uint32, ok bool) {
	if len(b) < numberedBytes {
		return 0, 0, false
	}
	f, n = binary.LittleEndian.Uint32(b[0:]), binary.LittleEndian.Uint32(b[4:])
	size := int(binary.LittleEndian.Uint32(b[8:]))
	return f, n, size == len(b)-numberedBytes && bytes.Equal(b[numberedBytes:], noise[n%1024:][:size])
}

// stream is one goroutine's messages on one session.
type streamKey struct {
	session dataport.SessionID
	flow    uint32
}

// witness is a Client that keeps the numbers of the messages it was handed, and its events.
type witness struct {
	mu       sync.Mutex
	got      map[streamKey][]uint32
	events   []dataport.Event
	sessions []*dataport.Session
	bad      string        // the first thing that no peer ever sent
	stalled  chan struct{} // not nil: OnMessage waits for its close
	slow     chan struct{} // the same for OnEvent
	onEvent  func(dataport.Event)
}

func newWitness() *witness { return &witness{got: map[streamKey][]uint32{}} }

func (l *witness) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) {
	f, n, ok := parseNumbered(m.Payload)
	l.mu.Lock()
	if !ok && l.bad == "" {
		l.bad = fmt.Sprintf("message %d of session %s: %d bytes that nobody sent", m.Seq, m.Session.ID(), len(m.Payload))
	}
	k := streamKey{m.Session.ID(), f}
	l.got[k] = append(l.got[k], n)
	l.note(m.Session)
	wait := l.stalled
	l.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
	switch {
	case !m.Call:
		return nil, nil
	case n%7 == 3:
		return nil, fmt.Errorf("no to %d", n)
	}
	return m.Payload[:8], nil
}

// note keeps the sessions in the order of their first sign. l.mu is held.
func (l *witness) note(s *dataport.Session) {
	for _, o := range l.sessions {
		if o == s {
			return
		}
	}
	l.sessions = append(l.sessions, s)
}

func (l *witness) OnEvent(e dataport.Event) {
	l.mu.Lock()
	l.events = append(l.events, e)
	if e.Session != nil {
		l.note(e.Session)
	}
	f, slow := l.onEvent, l.slow
	l.mu.Unlock()
	if slow != nil {
		<-slow
	}
	if f != nil {
		f(e)
	}
}

// change sets what callbacks read, which may be running.
func (l *witness) change(set func(*witness)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set(l)
}

func (l *witness) stall(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case on && l.stalled == nil:
		l.stalled = make(chan struct{})
	case !on && l.stalled != nil:
		close(l.stalled)
		l.stalled = nil
	}
}

// latest returns the newest session, nil when there was none.
func (l *witness) latest() *dataport.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sessions) == 0 {
		return nil
	}
	return l.sessions[len(l.sessions)-1]
}

// grammar judges the events of each session: PathUp first, SessionUp once and right after, nothing after SessionDown,
// a path or session goes down only when it is up.
func (l *witness) grammar() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	type state struct {
		up, down bool
		paths    map[dataport.PathID]bool
	}
	all := map[*dataport.Session]*state{}
	for i, e := range l.events {
		if e.Session == nil {
			continue
		}
		s := all[e.Session]
		if s == nil {
			s = &state{paths: map[dataport.PathID]bool{}}
			all[e.Session] = s
		}
		wrong := func(why string) error { return fmt.Errorf("event %d, %v of session %s: %s", i, e, e.Session.ID(), why) }
		if s.down {
			return wrong("comes after SessionDown")
		}
		switch e.Kind {
		case dataport.PathUp:
			s.paths[e.Path] = true
		case dataport.PathSuspect, dataport.PathDown:
			if !s.paths[e.Path] {
				return wrong("the path is not up")
			}
			s.paths[e.Path] = e.Kind != dataport.PathDown
		case dataport.SessionUp:
			if s.up || len(s.paths) != 1 {
				return wrong(fmt.Sprintf("a session is up once and with its first path, paths %v", s.paths))
			}
			s.up = true
		case dataport.SessionDown:
			if !s.up {
				return wrong("it was never up")
			}
			s.down = true
		}
	}
	return nil
}

// switches judges where the ports of this client went, of an ordered list of targets: by themselves to the next one and
// after it was told that theirs is unreachable, else only when they were asked.
func (l *witness) switches(targets [][]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	type state struct {
		at   int
		lost bool
	}
	all := map[*dataport.Port]*state{}
	for i, e := range l.events {
		if e.Port == nil {
			continue
		}
		p := all[e.Port]
		if p == nil {
			p = &state{}
			all[e.Port] = p
		}
		to := slices.IndexFunc(targets, func(t []string) bool { return t[0] == e.Target })
		asked := e.Reason == "asked by the client"
		switch {
		case e.Kind == dataport.TargetUnreachable:
			p.lost = true
		case e.Kind == dataport.SessionUp:
			p.lost = false
		case e.Kind != dataport.Switching:
			continue
		case !asked && (to != p.at+1 || !p.lost):
			return fmt.Errorf("event %d: a port went by itself from target %d to %d, lost: %v", i, p.at, to, p.lost)
		default:
			p.at, p.lost = to, false
		}
		if to != p.at {
			return fmt.Errorf("event %d, %v: the port is on target %d", i, e, p.at)
		}
	}
	return nil
}
