package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
)

// A drill shows this host's copy as it was at one point, by NBD and writable, beside everything else that goes on. What is
// written goes into a scratch file that is thrown away. One at a time.

// DrillOptions are what the operator says when a drill starts.
type DrillOptions struct {
	// At is the point, see CheckPoint; empty is the newest.
	At string `json:"at,omitempty"`
	// NBD is the address to serve at; empty is a unix socket beside the volume's, or beside the scratch.
	NBD string `json:"nbd,omitempty"`
	// Label is shown in status.
	Label string `json:"label,omitempty"`
	// ScratchBytes is how much the scratch may take; 0 is half of what its filesystem has free.
	ScratchBytes int64 `json:"scratch_bytes,omitempty"`
	// ScratchDir is where it lies; empty is beside the journal, or the device when only that is a file.
	ScratchDir string `json:"scratch_dir,omitempty"`
}

// DrillStatus is a drill that runs, or the last one.
type DrillStatus struct {
	ID      uint64 `json:"id"` // of this agent's life
	Label   string `json:"label,omitempty"`
	Running bool   `json:"running"`
	// Asked is the point as it was asked for.
	Asked string `json:"asked,omitempty"`
	Point Point  `json:"point"`
	// Newest is the newest point that this host knows the mirror to have had when the drill began; its time is that of when the
	// source was last heard of, where this host lacks its newest records. RPO is what lies between.
	Newest     Point   `json:"newest"`
	RPOSeconds float64 `json:"rpo_seconds"`
	RPOBytes   int64   `json:"rpo_bytes"`

	Started     time.Time `json:"started"`
	Ended       time.Time `json:"ended,omitzero"`
	Reason      string    `json:"reason,omitempty"` // why it ended
	OpenSeconds float64   `json:"open_seconds"`     // from the order until it was served

	NBD       string `json:"nbd"`
	NBDTLS    bool   `json:"nbd_tls"`
	Export    string `json:"export"`
	SizeBytes int64  `json:"size_bytes"`

	ScratchBytes int64      `json:"scratch_bytes"`
	ScratchLimit int64      `json:"scratch_limit_bytes"`
	Clients      FrontStats `json:"clients"`
}

var (
	errDrillPromoted = errors.New("this host is promoted")
	errDrillAgent    = errors.New("the agent ended")
	errNoDrill       = errors.New("no drill runs: mirror-agent drill start")
)

// drills of an agent.
type drills struct {
	front Front

	turn sync.Mutex // one start or end at a time; comes after opMu

	mu   sync.Mutex // guards all below
	now  *drill
	last *DrillStatus // of the one before; nil before the first end
	ids  uint64
}

type drill struct {
	view   *view
	status DrillStatus
	before FrontStats    // what the front had done for earlier ones
	done   chan struct{} // closed when it has ended and nothing of it is left
}

// UseDrillFront says by what drills are served. Before Run.
func (a *Agent) UseDrillFront(f Front) { a.drills.front = f }

func (c *Config) drillPath() string { return c.beside(drillSuffix) }

const drillSuffix = ".drill"

// removeStaleDrill removes what an agent left that was killed while it opened a scratch.
func (c *Config) removeStaleDrill() error {
	path := c.drillPath()
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("scratch of a drill that was cut short: %w", err)
	}
	return nil
}

// StartDrill opens this host's copy at a point.
func (a *Agent) StartDrill(_ context.Context, o DrillOptions) (DrillStatus, error) {
	began := time.Now()
	at, err := parsePoint(o.At)
	if err != nil {
		return DrillStatus{}, err
	}
	if o.Label != "" {
		if err := validName(o.Label); err != nil {
			return DrillStatus{}, fmt.Errorf("label: %w", err)
		}
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.drills.turn.Lock()
	defer a.drills.turn.Unlock()
	if err := a.drillable(); err != nil {
		return DrillStatus{}, err
	}
	address := a.drillAddress(&o)
	if err := a.drills.front.Check(address); err != nil {
		return DrillStatus{}, fmt.Errorf("refused: nbd: %w", err)
	}
	path, limit, err := a.scratchPlace(&o)
	if err != nil {
		return DrillStatus{}, err
	}
	w, p, err := a.openDrillView(at, path, limit)
	if err != nil {
		return DrillStatus{}, fmt.Errorf("drill: %w", err)
	}
	before := a.drills.front.Stats()
	served, err := a.drills.front.Open(w, a.c.Name, address)
	if err != nil {
		w.end(err)
		return DrillStatus{}, fmt.Errorf("drill: nbd: %w", err)
	}
	d := &drill{view: w, before: before, done: make(chan struct{}), status: DrillStatus{
		Label: o.Label, Running: true, Asked: o.At, Point: p, Started: began, OpenSeconds: time.Since(began).Seconds(),
		NBD: served, NBDTLS: a.drills.front.Stats().TLS, Export: a.c.Name, SizeBytes: w.size, ScratchLimit: limit,
	}}
	a.measureRPO(&d.status, began)
	a.drills.mu.Lock()
	a.drills.ids++
	d.status.ID = a.drills.ids
	a.drills.now = d
	a.drills.mu.Unlock()
	a.event("drill-started", "", "drill %d shows %s at %s", d.status.ID, p, served)
	a.spawn(func() { a.watchDrill(d) })
	st, _, _ := a.Drill()
	return st, nil
}

// drillable says why no drill can start. drills.turn is held.
func (a *Agent) drillable() error {
	a.mu.Lock()
	closed := a.closed
	a.mu.Unlock()
	a.drills.mu.Lock()
	now := a.drills.now
	a.drills.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case a.drills.front == nil:
		return errors.New("refused: this agent has nothing to serve a drill by")
	case now != nil:
		return fmt.Errorf("refused: drill %d runs already, it shows %s at %s: mirror-agent drill stop ends it", now.status.ID, now.status.Point, now.status.NBD)
	case a.v.damageNow() != nil:
		return fmt.Errorf("refused: %w: it is repaired first", a.v.damageNow().rot)
	}
	return a.v.Err()
}

func (a *Agent) drillAddress(o *DrillOptions) string {
	switch {
	case o.NBD != "":
		return o.NBD
	case strings.HasPrefix(a.c.NBD, "unix:"):
		return a.c.NBD + drillSuffix
	}
	return "unix:" + cmp.Or(a.c.drillPath(), filepath.Join(os.TempDir(), a.c.Name+drillSuffix)) + ".nbd"
}

// scratchPlace says where the scratch goes and how large it may become.
func (a *Agent) scratchPlace(o *DrillOptions) (path string, limit int64, err error) {
	path = a.c.drillPath()
	if o.ScratchDir != "" {
		path = filepath.Join(o.ScratchDir, a.c.Name+drillSuffix)
	}
	if path == "" {
		return "", 0, fmt.Errorf("refused: say where the scratch goes, --scratch-dir DIR: %w", errNoPlace)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &fs); err != nil {
		return "", 0, fmt.Errorf("scratch: free space of %s: %w", filepath.Dir(path), err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	switch limit = o.ScratchBytes; {
	case limit < 0:
		return "", 0, fmt.Errorf("scratch size %d: give how many bytes it may take", limit)
	case limit > free:
		return "", 0, fmt.Errorf("refused: a scratch of %s does not fit, the filesystem of %s has %s free: choose another --scratch-dir, or a smaller --scratch-size",
			humanize.IBytes(uint64(limit)), filepath.Dir(path), humanize.IBytes(uint64(free)))
	case limit == 0:
		limit = free / 2
	}
	return path, limit, nil
}

// openScratch makes the scratch file, which has no name any more when this returns.
func openScratch(path string, size int64) (blockdev.Device, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("scratch: %w", err)
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{Create: true, Size: size})
	if err != nil {
		return nil, fmt.Errorf("scratch: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch: %w", err), f.Close())
	}
	return f, nil
}

func (a *Agent) openDrillView(at pointSpec, path string, limit int64) (*view, Point, error) {
	var p Point
	var err error
	if at.word != "" {
		if p, err = a.v.resolve(at, time.Now()); err != nil {
			return nil, p, err
		}
	}
	w, err := a.v.openView(lsnOf(p), limit, func(size int64) (blockdev.Device, error) { return openScratch(path, size) })
	if err != nil {
		return nil, p, err
	}
	if at.word == "" {
		p.LSN = uint64(w.at)
		if p.Time, err = a.v.timeBefore(w.at); err != nil {
			w.end(err)
			return nil, p, err
		}
	}
	return w, p, nil
}

// measureRPO says how old the point is beside the newest that is known.
func (a *Agent) measureRPO(s *DrillStatus, now time.Time) {
	head := a.v.log.Head()
	newest := Point{LSN: uint64(head)}
	newest.Time, _ = a.v.timeBefore(head) // rot is told elsewhere
	a.mu.Lock()
	if a.inbound != nil {
		a.noteHeard(a.inbound)
	}
	source := a.source
	a.mu.Unlock()
	if a.v.Role() == RoleSecondary && source.head > head {
		newest = Point{LSN: uint64(source.head), Time: source.at}
	}
	s.Newest = newest
	s.RPOBytes = int64(newest.LSN - min(newest.LSN, s.Point.LSN))
	if s.RPOBytes > 0 && !newest.Time.IsZero() && !s.Point.Time.IsZero() {
		s.RPOSeconds = max(0, newest.Time.Sub(s.Point.Time).Seconds())
	}
}

// watchDrill ends a drill whose view has ended, and every drill with the agent.
func (a *Agent) watchDrill(d *drill) {
	select {
	case <-d.done:
	case <-d.view.done:
		a.endDrillIf(d, d.view.why())
	case <-a.tasks.Done():
		a.endDrillIf(d, errDrillAgent)
	}
}

// Drill returns the drill that runs, or the last one, and a channel that is closed when it has ended; false before the first.
func (a *Agent) Drill() (DrillStatus, <-chan struct{}, bool) {
	a.drills.mu.Lock()
	defer a.drills.mu.Unlock()
	if d := a.drills.now; d != nil {
		s := d.status
		s.ScratchBytes, s.Clients = d.view.used.Load(), d.clients(a.drills.front.Stats())
		return s, d.done, true
	}
	ended := make(chan struct{})
	close(ended)
	if a.drills.last == nil {
		return DrillStatus{}, ended, false
	}
	return *a.drills.last, ended, true
}

// clients is what those of this drill have done.
func (d *drill) clients(s FrontStats) FrontStats {
	s.Reads, s.Writes, s.Flushes = s.Reads-d.before.Reads, s.Writes-d.before.Writes, s.Flushes-d.before.Flushes
	s.ReadBytes, s.WrittenBytes = s.ReadBytes-d.before.ReadBytes, s.WrittenBytes-d.before.WrittenBytes
	return s
}

// StopDrill ends a drill and throws its scratch away; id 0 is the one that runs.
func (a *Agent) StopDrill(_ context.Context, id uint64, why string) (DrillStatus, error) {
	a.drills.mu.Lock()
	d := a.drills.now
	a.drills.mu.Unlock()
	if d == nil || id != 0 && d.status.ID != id {
		return DrillStatus{}, errNoDrill
	}
	reason := errViewClosed
	if why != "" {
		reason = errors.New(why)
	}
	a.endDrillIf(d, reason)
	st, _, _ := a.Drill()
	return st, nil
}

// endDrill ends the drill that runs, if any.
func (a *Agent) endDrill(why error) {
	a.drills.mu.Lock()
	d := a.drills.now
	a.drills.mu.Unlock()
	if d != nil {
		a.endDrillIf(d, why)
	}
}

// endDrillIf ends d, unless somebody has or does; it returns when d has ended.
func (a *Agent) endDrillIf(d *drill, why error) {
	a.drills.turn.Lock()
	defer a.drills.turn.Unlock()
	a.drills.mu.Lock()
	over := a.drills.now != d
	a.drills.mu.Unlock()
	if over {
		return
	}
	scratch := d.view.used.Load()
	clients := d.clients(a.drills.front.Stats())
	d.view.end(why) // the first reason counts
	a.drills.front.Abort()
	last := d.status
	last.Running, last.Ended, last.Reason, last.ScratchBytes, last.Clients = false, time.Now(), d.view.why().Error(), scratch, clients
	a.drills.mu.Lock()
	a.drills.now, a.drills.last = nil, &last
	a.drills.mu.Unlock()
	close(d.done)
	a.event("drill-ended", "", "drill %d after %s: %s", last.ID, last.Ended.Sub(last.Started).Round(time.Millisecond), last.Reason)
}
