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
	Generation  uint64 // the peer's, as its hello said; 0: it uses none, or one of another history
}

// PathStats is a snapshot of one path. Counters are those of the path's whole life, over reconnections.
type PathStats struct {
	ID            PathID
	Local, Remote string
	Announced     bool // the peer told us of this address
	Unproven      bool // and it has never been up: that it is not is no loss
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
	Compression                    CompressionStats
	RescuedFrames                  uint64 // sent again since they were stuck on a path that was slow, not silent
}

// PortStats is a snapshot of a port.
type PortStats struct {
	State     PortState
	Since     time.Time
	Reason    string
	Target    string // first address of the current target
	Index     int    // 0 primary, 1… backups
	Paths     []PathStats
	Session   Stats // zero when there is none
	Bandwidth BandwidthStats
	Sessions  uint64
	Fenced    uint64 // the generation that fences this port, 0: none
}

// CompressionStats says what packing did in one session. Messages and replies that went plain count as they are, before and after.
type CompressionStats struct {
	Mode                             Compression // what was asked for
	InUse                            Compression // of the last message that was not tiny: none, s2 or zstd
	BytesBefore, BytesAfter          uint64      // sent
	Packed                           uint64      // messages and replies of these that went packed
	ReceivedPacked, ReceivedUnpacked uint64      // bytes of packed messages that arrived, and what they unfolded to
}
