package mirror

import (
	"context"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/histogram"
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
	Home         bool             `json:"home"` // this host is the source by its configuration
	Key          string           `json:"key,omitempty"`
	Version      string           `json:"version,omitempty"` // of this agent
	Listen       []string         `json:"listen"`
	Announced    []string         `json:"announced"` // where the other hosts are told to find this one
	Device       DeviceStatus     `json:"device"`
	Log          LogStatus        `json:"log"`
	NBD          FrontStats       `json:"nbd"`
	ActiveTarget string           `json:"active_target"`
	Network      *NetworkStatus   `json:"network,omitempty"` // of a source
	Source       *SourceStatus    `json:"source,omitempty"`
	Followers    []FollowerStatus `json:"followers"`
	Alarms       []Alarm          `json:"alarms"`
	// Electorate is whose word counts for a promotion; absent where nothing is known of it.
	Electorate *ElectorateStatus `json:"electorate,omitempty"`
	Arbiter    *ArbiterStatus    `json:"arbiter,omitempty"` // where one leases who is primary
	Verify     *VerifyReport     `json:"verify,omitempty"`  // the one that runs or ran last
	Scrub      *ScrubStatus      `json:"scrub,omitempty"`
	Drill      *DrillStatus      `json:"drill,omitempty"` // the one that runs
}

// DeviceStatus describes the backing device.
type DeviceStatus struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	// SpareBytes is what the device has beyond that: it grew while the agent
	// was not running. Nobody uses it.
	SpareBytes int64 `json:"spare_bytes,omitempty"`
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
	OverlayLimit   int64  `json:"overlay_extents_limit"` // as many as the memory allows
	OverlayBytes   int64  `json:"overlay_bytes"`
	AbsorbedBytes  int64  `json:"absorbed_bytes"`

	UnappliedBytes   int64   `json:"unapplied_bytes"`
	UnappliedSeconds float64 `json:"unapplied_seconds"`
	UsedBytes        int64   `json:"used_bytes"`
	PinnedBytes      int64   `json:"pinned_bytes"`
	WriteRate        float64 `json:"write_bytes_per_second"`
	WritersWaiting   int     `json:"writers_waiting"` // for room in the log, or for their turn while writers are slowed
	// FullInSeconds is how long the ring lasts at this rate if nothing more is applied; absent while nothing is written.
	FullInSeconds *float64 `json:"full_in_seconds,omitempty"`

	// Since the agent's start.
	Appends        uint64       `json:"appends"`
	Records        uint64       `json:"records"`
	RecordBytes    uint64       `json:"record_bytes"`
	Anchors        uint64       `json:"anchors"`
	RecordsInGroup Distribution `json:"records_in_group"`
	BytesInGroup   Distribution `json:"bytes_in_group"`
	AppendMicros   Distribution `json:"append_us"`
	SyncMicros     Distribution `json:"fdatasync_us"`
}

// Distribution sums up what was measured; quantiles are exact to a quarter.
type Distribution struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

func distribution(h *histogram.Snapshot, unit float64) Distribution {
	q := func(q float64) float64 { return float64(h.Quantile(q)) / unit }
	return Distribution{Count: h.Count, Mean: h.Mean() / unit, P50: q(0.5), P99: q(0.99), P999: q(0.999), Max: q(1)}
}

func (l *LogStatus) fill(s *VolumeStats) {
	l.OverlayExtents, l.OverlayLimit, l.OverlayBytes, l.AbsorbedBytes = s.OverlayExtents, s.OverlayLimit, s.OverlayBytes, s.AbsorbedBytes
	l.UnappliedBytes, l.UnappliedSeconds = s.UnappliedBytes, s.UnappliedAge.Seconds()
	l.UsedBytes, l.PinnedBytes, l.WriteRate = s.UsedBytes, s.PinnedBytes, s.WriteBytesPerSecond
	l.WritersWaiting = s.WritersWaiting
	if s.FullIn >= 0 {
		seconds := s.FullIn.Seconds()
		l.FullInSeconds = &seconds
	}
	l.Appends, l.Records, l.RecordBytes, l.Anchors = s.Log.Appends, s.Log.Records, s.Log.Bytes, s.Log.Anchors
	l.RecordsInGroup, l.BytesInGroup = distribution(&s.Log.GroupRecords, 1), distribution(&s.Log.GroupBytes, 1)
	l.AppendMicros, l.SyncMicros = distribution(&s.Log.AppendTime, 1000), distribution(&s.Log.SyncTime, 1000)
}

// SourceStatus is what a secondary knows of the primary that feeds it.
type SourceStatus struct {
	Peer       string      `json:"peer"`
	Host       *HostStatus `json:"host,omitempty"`
	Connected  bool        `json:"connected"`
	LastSeen   time.Time   `json:"last_seen"`
	Received   uint64      `json:"received"`
	Durable    uint64      `json:"durable"`
	SourceHead uint64      `json:"source_head"`
	// Active: this host is the active target, whose word counts for the mode. Told, as Members are, about once a second.
	Active  bool           `json:"active"`
	Members []MemberStatus `json:"members,omitempty"`
	Resync  *Progress      `json:"resync,omitempty"`
	Paths   []PathStatus   `json:"paths"`

	Network *NetworkStatus `json:"network,omitempty"`
}

// MemberStatus is another volume of the mirror, as the source has told of it.
type MemberStatus struct {
	Name    string `json:"name"`
	Durable uint64 `json:"durable"`
}

// FollowerStatus is a follower as the primary sees it.
type FollowerStatus struct {
	Target     string       `json:"target"`
	Kind       string       `json:"kind"`           // target or backup
	Home       bool         `json:"home,omitempty"` // the source by its configuration, which another one leads now
	Hot        bool         `json:"hot"`            // fed all the time, not only while it is the active one
	State      string       `json:"state"`
	Reason     string       `json:"reason"`
	Since      time.Time    `json:"since"`
	Active     bool         `json:"active"` // its word counts for the mode
	Received   uint64       `json:"received"`
	Durable    uint64       `json:"durable"`
	LagBytes   uint64       `json:"lag_bytes"`
	RPOSeconds float64      `json:"rpo_seconds"`
	DirtyBytes int64        `json:"dirty_bytes"`
	Port       string       `json:"port,omitempty"`    // of the connection; "" when there is none
	Host       *HostStatus  `json:"host,omitempty"`    // nil before the first handshake of this session
	Trouble    string       `json:"trouble,omitempty"` // of its backing device: device full, device error
	Resync     *Progress    `json:"resync,omitempty"`
	Paths      []PathStatus `json:"paths"`
	// Resynced is the last copy that was completed since this agent's start.
	Resynced *Resynced `json:"resynced,omitempty"`

	lost   string // why it is not known what it lacks, for an alarm; since lostAt
	lostAt time.Time
}

// Resynced is a copy that was completed: what it had to look at, and what went over the network for it, bytes.
type Resynced struct {
	All           bool      `json:"all"` // all blocks were compared, not only those that had changed
	Reason        string    `json:"reason"`
	LookedAtBytes int64     `json:"looked_at_bytes"`
	SentBytes     int64     `json:"sent_bytes"` // of blocks; records that were written meanwhile are not counted
	Started       time.Time `json:"started"`
	Ended         time.Time `json:"ended"`
}

// Progress of a resync, in bytes of the device.
type Progress struct {
	DoneBytes  int64     `json:"done_bytes"`
	TotalBytes int64     `json:"total_bytes"`
	SentBytes  int64     `json:"sent_bytes"`
	Started    time.Time `json:"started"`
	// YieldsTo is how much is done in a second at most because applications are at work; 0: none are.
	YieldsTo int64 `json:"yields_to_bytes_per_second,omitempty"`
}

// NetworkStatus is what a session does with the messages on its way. Bytes are
// those of messages; packed ones as they are on the wire.
type NetworkStatus struct {
	Compress       string  `json:"compress"`        // what was asked for
	InUse          string  `json:"compress_in_use"` // none, s2 or zstd
	SentBytes      uint64  `json:"sent_bytes"`
	SentPacked     uint64  `json:"sent_packed_bytes"`
	ReceivedBytes  uint64  `json:"received_unpacked_bytes"` // of messages that came packed
	ReceivedPacked uint64  `json:"received_packed_bytes"`
	Bandwidth      string  `json:"bandwidth,omitempty"`
	BandwidthNow   float64 `json:"bandwidth_bytes_per_second,omitempty"` // 0: no limit now
}

// PathStatus is one connection path to a peer.
type PathStatus struct {
	ID            int    `json:"id"`
	Local         string `json:"local"`
	Remote        string `json:"remote"`
	Announced     bool   `json:"announced"` // the target said this address
	Unproven      bool   `json:"unproven"`  // and it has never been reached: no loss
	State         string `json:"state"`
	RTTMicros     int64  `json:"rtt_us"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
	ResentFrames  uint64 `json:"resent_frames"`
	// Rate is how fast data was delivered last, UnackedBytes what is on its way.
	Rate         float64 `json:"rate_bytes_per_second"`
	UnackedBytes int     `json:"unacked_bytes"`

	Reason string `json:"reason,omitempty"`

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
	TLS          bool   `json:"tls"` // nothing is served without it
	Connections  int    `json:"connections"`
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
	Flushes      uint64 `json:"flushes"`
	ReadBytes    uint64 `json:"read_bytes"`
	WrittenBytes uint64 `json:"written_bytes"`
	Trims        uint64 `json:"trims"`
	Zeroes       uint64 `json:"write_zeroes"`
	Errors       uint64 `json:"errors"` // requests answered with one

	Times []RequestTimes `json:"-"` // too long for a status; see Agent.Measures
}

// RequestTimes is how long the requests of one command took, in nanoseconds, until their answer was ready.
type RequestTimes struct {
	Command string
	Time    histogram.Snapshot
}

// Front serves the volume of a primary to applications. The agent opens it
// when the volume may be written, and closes it when it may not any more.
type Front interface {
	// Check says why the front would refuse to serve at an address, before
	// anything is done that needs it. That the address is free it cannot know.
	Check(address string) error
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
