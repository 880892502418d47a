package dataport

import (
	"fmt"
	"time"
)

// EventKind says what happened. The order in which a fault shows is part of the contract, see doc.go.
type EventKind uint8

// The kinds of events.
const (
	PathUp            EventKind = iota + 1 // a path carries data: it is new, was heard again, or takes over from another
	PathSuspect                            // a path fell silent; what it held goes out again on the others
	PathDown                               // a path was lost, and is dialled again; or it was removed
	SessionUp                              // a session began: its first path is up
	SessionDown                            // a session ended for good; its paths are closed without PathDown of their own
	TargetUnreachable                      // no sign of life for UnreachableAfter; the port keeps dialling
	Switching                              // the port leaves its target for another one
	Switched                               // the other target answered; SessionUp follows
	PeerRestarted                          // the peer has a new incarnation; SessionDown of the old session follows
	Suspended                              // the port holds its messages back
	Resumed                                // and no longer
	PeerRefused                            // a peer was refused or refused us; Reason says why
	PortClosed                             // the last event of a port
	PathIsStandby                          // a path is well and carries no data, for enough others do
	PathIsDraining                         // a path is being removed; PathDown follows when all on it is acknowledged
	Fenced                                 // a peer has seen a higher Generation: the port sends nothing until SetGeneration reaches it
)

var eventNames = [...]string{
	"", "PathUp", "PathSuspect", "PathDown", "SessionUp", "SessionDown", "TargetUnreachable",
	"Switching", "Switched", "PeerRestarted", "Suspended", "Resumed", "PeerRefused", "PortClosed",
	"PathIsStandby", "PathIsDraining", "Fenced",
}

func (k EventKind) String() string {
	if k == 0 || int(k) >= len(eventNames) {
		return fmt.Sprintf("EventKind(%d)", uint8(k))
	}
	return eventNames[k]
}

// Event is one thing that happened on a port (or on an inbound session: then Port is nil).
type Event struct {
	Kind    EventKind
	Time    time.Time
	Port    *Port
	Session *Session
	Path    PathID
	Target  string
	Reason  string

	Generation uint64 // Fenced: the higher one, for the client to store before it acts on it
	By         string // Fenced: the name of the node that has seen it
}

func (e Event) String() string {
	s := e.Kind.String()
	if e.Path != 0 {
		s += fmt.Sprintf(" path=%d", e.Path)
	}
	if e.Target != "" {
		s += " target=" + e.Target
	}
	if e.Generation != 0 {
		s += fmt.Sprintf(" generation=%d", e.Generation)
	}
	if e.Reason != "" {
		s += " (" + e.Reason + ")"
	}
	return s
}
