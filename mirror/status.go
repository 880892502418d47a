package mirror

import (
	"context"
	"time"

	"mirror-agent/blockdev"
)

// Status is the state of one mirror on this host, as the control API and
// `status --json` show it. Field names are a contract; fields may be added.
type Status struct {
	Name         string           `json:"name"`
	UUID         string           `json:"uuid"`
	Role         string           `json:"role"`
	State        string           `json:"state"`
	Reason       string           `json:"reason"`
	Since        time.Time        `json:"since"`
	NextStep     string           `json:"next_step"`
	Mode         string           `json:"mode"`
	OnLoss       string           `json:"on_loss"`
	OnFull       string           `json:"on_full"`
	Switch       string           `json:"switch"`
	Generation   string           `json:"generation"`
	Node         string           `json:"node"`
	Key          string           `json:"key,omitempty"`
	Listen       []string         `json:"listen"`
	Device       DeviceStatus     `json:"device"`
	Log          LogStatus        `json:"log"`
	NBD          FrontStats       `json:"nbd"`
	ActiveTarget string           `json:"active_target"`
	Source       *SourceStatus    `json:"source,omitempty"`
	Followers    []FollowerStatus `json:"followers"`
	Alarms       []Alarm          `json:"alarms"`
}

// DeviceStatus describes the backing device.
type DeviceStatus struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
}

// LogStatus holds the log's positions (LSNs, bytes) and its ring's size.
type LogStatus struct {
	Path           string `json:"path"`
	Head           uint64 `json:"head"`
	Durable        uint64 `json:"durable"`
	Committed      uint64 `json:"committed"`
	Applied        uint64 `json:"applied"`
	Tail           uint64 `json:"tail"`
	SizeBytes      int64  `json:"size_bytes"`
	OverlayExtents int    `json:"overlay_extents"`
}

// SourceStatus is what a secondary knows of the primary that feeds it.
type SourceStatus struct {
	Peer       string       `json:"peer"`
	Connected  bool         `json:"connected"`
	LastSeen   time.Time    `json:"last_seen"`
	Received   uint64       `json:"received"`
	Durable    uint64       `json:"durable"`
	SourceHead uint64       `json:"source_head"`
	Resync     *Progress    `json:"resync,omitempty"`
	Paths      []PathStatus `json:"paths"`
}

// FollowerStatus is a follower as the primary sees it.
type FollowerStatus struct {
	Target     string       `json:"target"`
	Kind       string       `json:"kind"` // target or backup
	State      string       `json:"state"`
	Reason     string       `json:"reason"`
	Since      time.Time    `json:"since"`
	Active     bool         `json:"active"`
	Received   uint64       `json:"received"`
	Durable    uint64       `json:"durable"`
	LagBytes   uint64       `json:"lag_bytes"`
	RPOSeconds float64      `json:"rpo_seconds"`
	DirtyBytes int64        `json:"dirty_bytes"`
	Resync     *Progress    `json:"resync,omitempty"`
	Paths      []PathStatus `json:"paths"`
}

// Progress of a resync, in bytes of the device.
type Progress struct {
	DoneBytes  int64     `json:"done_bytes"`
	TotalBytes int64     `json:"total_bytes"`
	SentBytes  int64     `json:"sent_bytes"`
	Started    time.Time `json:"started"`
}

// PathStatus is one connection path to a peer.
type PathStatus struct {
	ID            int    `json:"id"`
	Local         string `json:"local"`
	Remote        string `json:"remote"`
	State         string `json:"state"`
	RTTMicros     int64  `json:"rtt_us"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
	ResentFrames  uint64 `json:"resent_frames"`
	Reason        string `json:"reason,omitempty"`

	Since time.Time `json:"since"` // in this state
}

// Alarm is a condition that wants the operator's attention.
type Alarm struct {
	Name     string    `json:"name"`
	Since    time.Time `json:"since"`
	Reason   string    `json:"reason"`
	NextStep string    `json:"next_step"`
}

// Event is one entry of the agent's history: a change of role, state, path.
type Event struct {
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"` // e.g. path-up, target-unreachable, switched, promoted
	Mirror   string    `json:"mirror"`
	Target   string    `json:"target,omitempty"`
	Path     string    `json:"path,omitempty"`
	LSN      uint64    `json:"lsn,omitempty"`
	Text     string    `json:"text"`
}

// FrontStats counts what the clients did; the front's owner fills it in.
type FrontStats struct {
	Address      string `json:"address"`
	Connections  int    `json:"connections"`
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
	Flushes      uint64 `json:"flushes"`
	ReadBytes    uint64 `json:"read_bytes"`
	WrittenBytes uint64 `json:"written_bytes"`
}

// Front serves the volume of a primary to applications. The agent opens it
// when the volume may be written, and closes it when it may not any more.
type Front interface {
	// Open starts serving dev under the export name at address and returns
	// the address it really serves at.
	Open(dev blockdev.Device, export, address string) (string, error)
	// Close drains what is in flight, answers nothing after, and frees the
	// address. A front that is not open closes without error.
	Close(ctx context.Context) error
	// Abort closes at once, without answers.
	Abort()
	// Stats may be called at any time.
	Stats() FrontStats
}
