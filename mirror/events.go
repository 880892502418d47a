package mirror

import (
	"sync"
	"time"
)

const keptEvents = 1000

// eventLog keeps the last events and wakes who follows them.
type eventLog struct {
	mu     sync.Mutex // guards all below
	events []Event
	next   uint64
	more   chan struct{} // closed at the next event
}

func newEventLog() *eventLog { return &eventLog{next: 1, more: make(chan struct{})} }

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Sequence, l.next = l.next, l.next+1
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if len(l.events) == keptEvents {
		copy(l.events, l.events[1:])
		l.events = l.events[:keptEvents-1]
	}
	l.events = append(l.events, e)
	close(l.more)
	l.more = make(chan struct{})
}

func (l *eventLog) after(n uint64) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.events {
		if e.Sequence > n {
			return append([]Event(nil), l.events[i:]...), l.more
		}
	}
	return nil, l.more
}

// portEventKind is what happened on the data port, in this room's words.
type portEventKind string

const (
	portPathUp        portEventKind = "path-up"
	portPathSuspect   portEventKind = "path-suspect"
	portPathDown      portEventKind = "path-down"
	portPathStandby   portEventKind = "path-standby"
	portPathDraining  portEventKind = "path-draining"
	portSessionUp     portEventKind = "session-up"
	portSessionDown   portEventKind = "session-down"
	portUnreachable   portEventKind = "target-unreachable"
	portPeerRestarted portEventKind = "peer-restarted"
	portPeerRefused   portEventKind = "peer-refused"
	portSuspended     portEventKind = "suspended"
	portResumed       portEventKind = "resumed"
	portFenced        portEventKind = "port-fenced"
)

type portEvent struct {
	kind     portEventKind
	link     link // nil when the event is about no session
	session  uint64
	inbound  bool
	follower int // index; -1: of none, or of one that is not connected to any more
	path     int
	target   string
	text     string

	by         string // portFenced: the node that has seen
	generation uint64 // this one
}
