package dataport

import (
	"fmt"
	"time"
)

// SessionID names a session; chosen at random by the side that opened it.
type SessionID uint64

func (id SessionID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// PathID names a path of a port or session, from 1. A path that is re-established keeps it.
type PathID uint32

// PeerInfo says who is on the other side of a session.
type PeerInfo struct {
	Name        string
	Key         string // FormatPublicKey of the peer's key; "" over plain TCP
	Incarnation uint64 // random per process start
	Target      string // the first configured address; the remote address of the first path when Inbound
	Inbound     bool
}

// PathStats is a snapshot of one path. Counters are those of the path's whole life, over reconnections.
type PathStats struct {
	ID            PathID
	Local, Remote string
	State         PathState
	Since         time.Time
	Reason        string // of the last loss or failure
	RTT           time.Duration
	Rate          float64 // measured delivery rate, bytes per second
	UnackedBytes  int
	BytesSent     uint64 // on the wire (before TLS), headers included
	BytesReceived uint64
	ResentFrames  uint64 // frames sent here that another path, or this one before it was lost, had sent before
}

// Stats is a snapshot of a session.
type Stats struct {
	Paths                          []PathStats
	MessagesSent, MessagesReceived uint64 // handed to the port; handed to the client
	BytesSent, BytesReceived       uint64 // payload of these
	QueuedBytes                    int    // accepted by Send and not yet consumed by the peer's client
	BufferedBytes                  int    // received and not yet consumed by the client
	DuplicateFrames                uint64 // arrived twice and dropped
	RescuedFrames                  uint64 // sent again since they were stuck on a path that was slow, not silent
}

// PortStats is a snapshot of a port.
type PortStats struct {
	State    PortState
	Since    time.Time
	Reason   string
	Target   string // first address of the current target
	Index    int    // 0 primary, 1… backups
	Paths    []PathStats
	Session  Stats // zero when there is none
	Sessions uint64
}
