package mirror

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
)

// Config is everything an Agent needs to know. The zero value is not usable:
// start from DefaultConfig, fill in Name, Role and Device, then Validate.
type Config struct {
	// Name of the mirror, 1 to 64 bytes of letters, digits, '.', '_' and '-'.
	Name string
	// Role that a first start gives the volume. Afterwards the volume's own
	// anchor knows the role: a promoted target stays a primary over restarts.
	Role Role

	// Device is the backing device: a file or a raw block device.
	Device string
	// Size of the device in bytes; a missing file is created with it. Zero
	// means the size that the device has. A multiple of 512.
	Size int64
	// Journal is the log's file or block device; empty means Device +
	// ".journal".
	Journal string
	// JournalSize in bytes; zero means a tenth of the device within 64 MiB
	// and 4 GiB. Only used when the journal is created; one on a block device
	// has the device's size.
	JournalSize int64

	// Adopt lets a target take a device that holds data; it is overwritten
	// where it differs from the source's.
	Adopt bool

	// NBD is the front's address ("unix:PATH" or HOST:PORT). On a secondary
	// it is used from its promotion on.
	NBD string
	// Listen are the data port's addresses, one per path (HOST:PORT).
	Listen []string
	// Target are the addresses of the target host, one per path; empty means
	// that there is none.
	Target []string
	// Backups are the backup hosts in the order in which they take over, each
	// with its addresses.
	Backups [][]string
	// HotBackups says, by index, which backups are fed all the time; the others
	// get no connection before the data flow moves to them. Where any is hot the
	// target is fed on, too, when the flow has left it.
	HotBackups []bool
	// StateDir is where what lies beside the log goes, called after the mirror (bitmaps, members, a copy that is built,
	// exports); empty means beside the journal or, when only that is a file, the device.
	StateDir string

	// Announced: paths are also made to the addresses that a target says it
	// listens at, and go when those go.
	Announced bool
	// Local are local IP addresses to bind: for each path the one whose subnet
	// holds the other end, else they take turns; empty lets the kernel choose.
	Local []string
	// Compress says how what this host sends is packed: none, s2, zstd or auto;
	// empty means none.
	Compress string
	// Bandwidth limits what a source sends to each follower over all its paths, like
	// "50MB/s" or "08:00-18:00=20MB/s,*=100MB/s"; empty means no limit.
	Bandwidth string
	// ResyncBytes is how much a resync copies or compares in a second at most, for each follower; 0 is no limit. It yields to
	// the applications anyway.
	ResyncBytes int64

	Mode   Mode
	Switch SwitchMode
	OnLoss OnLoss
	Alone  Alone
	// OnFull says what happens when the log is full of what a connected
	// follower has not got; PushBack how long it may hold writers up with
	// OnFullTrack.
	OnFull   OnFull
	PushBack time.Duration
	// StartWait is how long a restarted source asks its followers for a
	// higher generation before it opens its front.
	StartWait time.Duration

	// AutoPromote: a secondary that was in sync and has lost its source promotes itself,
	// when the members or the arbiter let it.
	AutoPromote bool
	// Arbiter decides who is primary: "operator" (or empty), or etcd://HOST:PORT[,…]/PREFIX.
	Arbiter string
	// ArbiterTTL is how long it leases that at a time, whole seconds.
	ArbiterTTL time.Duration
	// ArbiterCA, ArbiterCert and ArbiterKey are PEM files, for TLS to the arbiter.
	ArbiterCA, ArbiterCert, ArbiterKey string

	// SyncInterval and SyncBytes are the log's own pace: without any FLUSH it
	// is fdatasynced that often, so that the backing device follows.
	SyncInterval time.Duration
	SyncBytes    int64

	// RetainTime and RetainBytes: how much of the log stays unapplied, so that
	// the volume can go back to any point of it; see VolumeOptions.
	RetainTime  time.Duration
	RetainBytes int64

	// CheckpointEvery is how often a source names a point by itself; 0 is never.
	CheckpointEvery time.Duration

	// ScrubEvery is how often the log is read to look for rot; 0 is never.
	ScrubEvery time.Duration

	// Watchdog is how long what ought to move may stand still before there is an
	// alarm; 0 watches nothing. See watchdog.go for what counts more or less of it.
	Watchdog time.Duration

	// UnreachableAfter is how long a target may be silent on all paths before
	// it counts as unreachable; PathDownAfter the same for one path.
	UnreachableAfter time.Duration
	PathDownAfter    time.Duration
	// ActivePaths is how many of the paths to a target carry data at once, the
	// others stand by; 0 is all.
	ActivePaths int

	// NodeName is shown to the peers; empty means the host's name.
	NodeName string
	// Version of the program, told to the peers for their operators.
	Version string
	// Key is this node's identity; nil is possible with Insecure only.
	Key ed25519.PrivateKey
	// Peers are the public keys that may connect and be connected to.
	Peers []ed25519.PublicKey
	// Insecure allows plain TCP without authentication: laboratories only.
	Insecure bool

	Log zerolog.Logger
}

// DefaultConfig returns the defaults of every setting that has one.
func DefaultConfig() Config {
	return Config{
		Compress: "none",
		Mode:     ModeFlush, Switch: SwitchManual, OnLoss: OnLossContinue, Alone: AloneServe,
		Announced: true, Arbiter: "operator", ArbiterTTL: 10 * time.Second, OnFull: OnFullTrack, PushBack: 10 * time.Second,
		StartWait: 10 * time.Second, SyncInterval: time.Second, SyncBytes: 64 << 20,
		ScrubEvery: 24 * time.Hour, Watchdog: time.Minute, UnreachableAfter: 3 * time.Second, PathDownAfter: time.Second,
		Log: zerolog.Nop(),
	}
}

const (
	maxNameBytes   = 64
	minJournalSize = 16 << 20
	sectorBytes    = 512
)

// Validate reports the first setting that cannot work, with the way out.
func (c *Config) Validate() error {
	if err := validName(c.Name); err != nil {
		return err
	}
	if c.Role != RolePrimary && c.Role != RoleSecondary {
		return errors.New("role: choose primary or secondary")
	}
	if c.Device == "" {
		return errors.New("device: name the backing device with --device")
	}
	if c.Size < 0 || c.Size%sectorBytes != 0 {
		return fmt.Errorf("size %d: must be a positive multiple of %d bytes; choose another --size", c.Size, sectorBytes)
	}
	if c.JournalSize != 0 && c.JournalSize < minJournalSize {
		return fmt.Errorf("journal-size %d: too small, the least is 16 MiB; choose a larger --journal-size", c.JournalSize)
	}
	if c.Role == RolePrimary && c.NBD == "" {
		return errors.New("nbd: a source needs an address to serve at, --nbd unix:PATH or --nbd HOST:PORT")
	}
	if c.Role == RoleSecondary && len(c.Listen) == 0 {
		return errors.New("listen: a target needs at least one address, --listen HOST:PORT")
	}
	if len(c.Target) == 0 && len(c.Backups) > 0 {
		return errors.New("backup: a mirror with backups needs a target first, --target HOST:PORT")
	}
	if err := validCompress(c.Compress); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	if err := validBandwidth(c.Bandwidth); err != nil {
		return err
	}
	if err := c.validateArbiter(); err != nil {
		return err
	}
	if c.StartWait < 0 || c.SyncInterval <= 0 || c.SyncBytes <= 0 || c.UnreachableAfter <= 0 || c.PathDownAfter <= 0 || c.PushBack <= 0 {
		return errors.New("durations and sizes of the pace must be positive")
	}
	if c.ActivePaths < 0 {
		return fmt.Errorf("active-paths %d: give the number of paths that carry data at once, 0 for all", c.ActivePaths)
	}
	if c.ScrubEvery != 0 && c.ScrubEvery < time.Minute {
		return fmt.Errorf("scrub-every %v: at least a minute, or 0 for never", c.ScrubEvery)
	}
	if c.CheckpointEvery != 0 && c.CheckpointEvery < time.Second {
		return fmt.Errorf("checkpoint-every %v: at least a second, or 0 for never", c.CheckpointEvery)
	}
	if c.Watchdog != 0 && c.Watchdog < 4*time.Second {
		return fmt.Errorf("watchdog %v: at least 4s, or 0 to watch nothing", c.Watchdog)
	}
	if c.ResyncBytes != 0 && c.ResyncBytes < 1<<20 {
		return fmt.Errorf("resync-rate %d: at least 1MiB, or 0 for no limit: a resync yields to the applications anyway", c.ResyncBytes)
	}
	if c.RetainTime < 0 || c.RetainBytes < 0 {
		return errors.New("retain-time and retain-size must not be negative")
	}
	if c.JournalSize > 0 && c.RetainBytes > c.JournalSize/2 {
		return fmt.Errorf("retain-size %d: a log of %d bytes can retain half of that; choose a larger --journal-size", c.RetainBytes, c.JournalSize)
	}
	return nil
}

func validName(s string) error {
	if s == "" {
		return errors.New("name: give the mirror a name with --name")
	}
	if len(s) > maxNameBytes {
		return fmt.Errorf("name %.20q…: %d bytes, at most %d are possible", s, len(s), maxNameBytes)
	}
	for _, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
		if !ok {
			return fmt.Errorf("name %q: %q is not possible, use letters, digits, '.', '_' and '-'", s, r)
		}
	}
	return nil
}
