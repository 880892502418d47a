package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// Volume is a log and a backing device on one host: the same thing on source
// and target. A primary is fed by its front (WriteAt, WriteBatch, Zero, Trim,
// Sync), a secondary by the data port (appendRaw, declare).
//
// All methods may be called from any goroutine. Lock order: applyMu, then
// the overlay's lock, then stateMu.
type Volume struct {
	log  *journal.Log
	dev  blockdev.Device
	size atomic.Int64 // bytes, at the head of the log; see grow.go
	opts VolumeOptions

	id    [16]byte // tells this volume from all others of the mirror
	dirty *tracker // what the followers lack

	foresight *foresight // nil: without
	overlay   *overlay
	// layerBytes of log make a layer of the overlay; a frozen layer is
	// applied as one.
	layerBytes atomic.Int64

	role     atomic.Uint32 // Role
	declared atomic.Uint64 // secondary: what the source has declared durable
	mixed    atomic.Uint64 // the device may hold parts of what lies below this LSN and is not applied
	// unclean: a primary whose last end was not clean, and that has not begun
	// the generation that this asks for. Until then no end is a clean one.
	unclean atomic.Bool

	settling atomic.Bool // nothing is retained any more

	gate atomic.Pointer[gateBox] // what a primary's writes and flushes wait for beside the log

	// restamp writes an anchor and marks the device anew with it; nil without a
	// device file. Set before the volume is used.
	restamp func(update func(*journal.Anchor)) error

	badReads badReads // of the backing device
	// differs of samples of the device were otherwise than they were left when the volume was opened: see witness.go.
	differs, samples int

	damage atomic.Pointer[damage] // rot in the log, until it is repaired
	rotten atomic.Uint64          // LSN behind the newest rot met below applied
	found  []journal.Record       // generation records that recovery met; of who recovers

	refused atomic.Pointer[error] // why nothing may be written any more

	pulse pulse // how fast the log grows

	line waitLine // of the writers that the log or the gate lets wait

	viewsMu sync.Mutex // guards views; held for no I/O
	views   []*view    // that are open; one comes with applyMu held

	backMu  sync.Mutex // guards backEnd, and the taking back of a record
	backEnd bool       // nothing more is taken back: see fetchback.go

	applyMu sync.Mutex // one applier, cut, takeover or promotion at a time

	stateMu     sync.Mutex // guards all below
	generations []journal.Generation
	baseSize    int64    // size at applied
	resizes     []resize // above applied, in order
	failed      error
	trouble     *trouble // of the backing device, while it is tried again
	closed      bool
	holds       []*hold       // of the connected followers
	waiting     int           // writers that wait for room in the log
	moved       chan struct{} // closed when applied, committed, declared or failed moved

	kick    chan struct{} // wakes the background goroutine, capacity 1
	stop    context.CancelFunc
	stopped chan struct{}

	flushes, flushTook atomic.Uint64 // that have ended, and how long they took in all, ns

	holdMark atomic.Uint64 // the slowest hold's LSN, or noHold
	drain    drainMeter    // of the ring; used by the first in line only, as the next
	applying drainMeter    // of the overlay; its debt is drain's

	applyBuf []byte
}

// VolumeOptions of a Volume.
type VolumeOptions struct {
	// SyncInterval and SyncBytes: the log's own pace, see Config.
	SyncInterval time.Duration
	SyncBytes    int64
	// ApplyInterval is the longest time that a committed record waits for the
	// applier.
	ApplyInterval time.Duration
	// Damaged opens a volume whose log has rotted, to be repaired.
	Damaged bool
	// RetainTime is how long a record stays unapplied, so that the volume can
	// go back to any point of that time; but not more than RetainBytes of log,
	// and never more than the ring can spare. 0: no limit of that kind; both
	// 0: nothing is retained.
	RetainTime  time.Duration
	RetainBytes int64
	// OverlayExtents is how many extents the map of what is not applied yet
	// may have; 0: as the machine's memory allows (memory.go).
	OverlayExtents int64
	// Dirty is where bitmaps are kept; nil: nowhere.
	Dirty dirtyStore
	// OnFull and PushBack: see Config. The zero value is OnFullWait.
	OnFull   OnFull
	PushBack time.Duration
	// Foresight begins a sync before the FLUSH that will ask for it, see foresight.go.
	Foresight bool
	// Now is the clock of the records' time stamps; nil means time.Now.
	Now func() time.Time
}

// gate is what the writes and flushes of a primary pass: the mode.
type gate interface {
	// admit returns once a write may enter the log.
	admit(ctx context.Context) error
	// request asks the followers to become durable up to lsn, without waiting.
	request(lsn journal.LSN)
	// answersAtOnce says that written returns at once, as things are.
	answersAtOnce() bool
	// written returns once the mode's promise of a write holds for lsn; or durable: it does when that of a FLUSH does.
	written(ctx context.Context, lsn journal.LSN) (durable bool, err error)
	// wait returns once the mode's promise of a FLUSH holds for lsn.
	wait(ctx context.Context, lsn journal.LSN) error
}

type gateBox struct{ gate }

// openGate lets everything pass: a volume alone.
type openGate struct{}

func (openGate) admit(context.Context) error { return nil }
func (openGate) request(journal.LSN)         {}
func (openGate) answersAtOnce() bool         { return true }
func (openGate) written(context.Context, journal.LSN) (bool, error) {
	return false, nil
}
func (openGate) wait(context.Context, journal.LSN) error { return nil }

// State flags in the anchor.
const (
	// stateBlank: the device has never been consistent, a first resync is not
	// complete. Not promotable.
	stateBlank uint32 = 1 << iota
	// stateMerging: a resync is complete in the staging file, which is being
	// merged into the device; until then it lies over it.
	stateMerging
	// stateFenced: a higher generation was met; never serve again unasked.
	stateFenced
	// stateLeft: the source moved its data flow to another target and said so.
	// What is here is old; a promotion must be forced.
	stateLeft
	// stateDiverged: an old primary's volume that was given up (rejoin.go). Promotable by force only, to its own old state.
	stateDiverged
)

// openVolume opens the volume of f (its log) and dev, recovers it, and starts
// its background goroutine. The volume owns both from now on, also when an
// error is returned.
func openVolume(f journal.File, dev blockdev.Device, o VolumeOptions) (*Volume, *journal.Recovery, error) {
	o.OverlayExtents = cmp.Or(o.OverlayExtents, overlayExtents())
	v := &Volume{dev: dev, opts: o, line: newWaitLine(), moved: make(chan struct{}), kick: make(chan struct{}, 1)}
	v.gate.Store(&gateBox{openGate{}})
	v.holdMark.Store(noHold)
	a, err := readAnchor(f)
	if err == nil && !a.Clean {
		err = errors.Join(dropCache(f, 0, 0), dropCache(dev, 0, 0))
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close(), dev.Close())
	}
	v.sizeReset(a.DeviceSize)
	v.overlay = newOverlay(a.Applied)
	v.layerBytes.Store(maxLayerBytes)
	l, rec, err := journal.Open(f, journal.Options{OnAppend: v.onAppend, OnRecover: v.onRecover, Damaged: o.Damaged, Now: o.Now})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close(), dev.Close())
	}
	v.log = l
	v.layerBytes.Store(layerBytesFor(l.Capacity()))
	v.role.Store(uint32(a.Role))
	v.generations = append([]journal.Generation(nil), a.Generations...)
	if err := v.tookRecovery(rec); err != nil {
		return nil, nil, errors.Join(err, v.closeFiles())
	}
	if err := v.checkSize(); err != nil {
		return nil, nil, errors.Join(err, v.closeFiles())
	}
	known := parseSidecar(a.Extra)
	if rec.Rot == nil { // else it is not known what lies over the witnesses
		if v.differs, v.samples, err = v.testify(known.witnesses); err != nil {
			return nil, nil, errors.Join(err, v.closeFiles())
		}
	}
	v.mixed.Store(uint64(min(known.applying, l.Head())))
	v.id = known.id
	if a.Clean || v.id == [16]byte{} {
		if err := l.WriteAnchor(func(a *journal.Anchor) { a.Clean = false; identify(a) }); err != nil {
			return nil, nil, errors.Join(err, v.closeFiles())
		}
		v.id = parseSidecar(l.Anchor().Extra).id
	}
	v.dirty = newTracker(l, o.Dirty, v.size.Load())
	// What a crash left committed on a secondary is at least what the device got
	// parts of before it; the source declares the rest anew.
	v.declared.Store(uint64(v.firstPoint()))
	v.unclean.Store(v.Role() == RolePrimary && !rec.Clean)
	if rec.Rot == nil {
		if err := v.undoPromotion(); err != nil {
			return nil, nil, errors.Join(err, v.closeFiles())
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	v.stop, v.stopped = stop, make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() { v.background(ctx) })
	if o.Foresight {
		v.foresight = newForesight()
		tasks.Go(func() { v.foresee(ctx) })
	}
	go func() {
		tasks.Wait()
		close(v.stopped)
	}()
	return v, rec, nil
}

const maxLayerBytes = 64 << 20

func layerBytesFor(ring int64) int64 { return min(maxLayerBytes, ring/8) }

func (v *Volume) checkSize() error {
	n, err := v.dev.Size()
	if err != nil {
		return fmt.Errorf("size of the device: %w", err)
	}
	if size := v.size.Load(); n < size {
		return fmt.Errorf("the device has %d bytes, its journal was made for %d: it was shrunk or replaced; give back the old device", n, size)
	}
	return nil
}

// spare is what the device has beyond the mirrored size.
func (v *Volume) spare() int64 {
	return max(0, v.capacity()-v.size.Load())
}

// recovered puts a record that recovery found back into the overlay.
func (v *Volume) recovered(r journal.Record) error {
	if r.Op == journal.OpResize {
		if err := checkResize(r, v.size.Load()); err != nil {
			return err
		}
		v.grown(r.End(), int64(r.Offset))
	}
	x, ok, err := extentOf(v.size.Load(), r.Op, r.Offset, r.Length, r.LSN, r.Data())
	if err != nil {
		return err
	}
	var xs []extent
	if ok {
		xs = []extent{x}
	}
	v.overlay.add(xs, r.End(), v.layerBytes.Load(), v.layerExtents())
	return nil
}

// extentOf returns what a record changes on a device of size bytes, if it changes anything.
func extentOf(size int64, op journal.Op, off uint64, length uint32, lsn, data journal.LSN) (extent, bool, error) {
	switch op {
	case journal.OpWrite, journal.OpZero, journal.OpTrim:
	default:
		return extent{}, false, nil
	}
	if off > uint64(size) || uint64(length) > uint64(size)-off {
		return extent{}, false, fmt.Errorf("record at LSN %d: extent %d+%d lies outside the device of %d bytes", lsn, off, length, size)
	}
	x := extent{off: int64(off), end: int64(off) + int64(length), lsn: lsn, data: data}
	if op != journal.OpWrite {
		x.zero, x.trim, x.data = true, op == journal.OpTrim, 0
	}
	return x, true, nil
}

// onAppend is called by the log in LSN order, before the writers are answered.
func (v *Volume) onAppend(es []*journal.Entry) {
	var room [64]extent
	xs := room[:0]
	var end journal.LSN
	for _, e := range es {
		if e.Op == journal.OpResize {
			v.grown(e.End, int64(e.Offset))
		}
		x, ok, err := extentOf(v.size.Load(), e.Op, e.Offset, e.Length, e.LSN, e.Data)
		if err != nil {
			// Both feeds check extents before they append.
			panic("mirror: " + err.Error())
		}
		if ok {
			xs = append(xs, x)
		}
		end = e.End
	}
	v.overlay.add(xs, end, v.layerBytes.Load(), v.layerExtents())
}

// Role of the volume now.
func (v *Volume) Role() Role { return Role(v.role.Load()) }

// Committed is how far the log may reach the backing device (G3): what is
// durable here and, on a secondary, declared durable by the source.
func (v *Volume) Committed() journal.LSN {
	d := v.log.Durable()
	if v.Role() == RolePrimary {
		return d
	}
	return min(d, journal.LSN(v.declared.Load()))
}

// Generation returns the newest generation in the volume's history.
func (v *Volume) Generation() journal.Generation {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	if len(v.generations) == 0 {
		return journal.Generation{}
	}
	return v.generations[len(v.generations)-1]
}

// History returns a copy of the volume's generations, oldest first.
func (v *Volume) History() []journal.Generation {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return append([]journal.Generation(nil), v.generations...)
}

// changed wakes everybody who waits on wait.
func (v *Volume) changed() {
	v.stateMu.Lock()
	v.changedLocked()
	v.stateMu.Unlock()
}

func (v *Volume) changedLocked() {
	close(v.moved)
	v.moved = make(chan struct{})
}

// watch returns the channel that is closed at the next change and the reason
// why the volume does not go on, if any.
func (v *Volume) watch() (<-chan struct{}, error) {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.moved, v.stuckLocked()
}

func (v *Volume) stuckLocked() error {
	switch {
	case v.failed != nil:
		return v.failed
	case v.closed:
		return blockdev.ErrShutdown
	}
	return nil
}

// Err returns why the volume stopped, or nil.
func (v *Volume) Err() error {
	if err := v.log.Failed(); err != nil {
		_ = v.fail("journal", err)
	}
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.failed
}

// fail stops the volume for good; the first reason counts.
func (v *Volume) fail(part string, err error) error {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	if v.failed == nil {
		v.failed = &FailedError{Part: part, Err: err}
		v.changedLocked()
	}
	return v.failed
}

// journalError turns an error of the log into the volume's state.
func (v *Volume) journalError(err error) error {
	if err != nil && errors.Is(err, journal.ErrFailed) {
		return v.fail("journal", err)
	}
	return err
}

// over takes the error of a sync that nobody waits for, and says whether it was the last one. It is not when the log was cut
// meanwhile: what was to become durable is gone, and who syncs looks again.
func (v *Volume) over(err error) bool {
	if err == nil || errors.Is(err, journal.ErrCut) {
		return false
	}
	_ = v.journalError(err)
	return true
}

// refuse lets no write or flush pass from now on.
func (v *Volume) refuse(why error) {
	v.refused.Store(&why)
	v.changed()
}

func (v *Volume) poke() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// closeFiles ends without applying or flushing anything.
func (v *Volume) closeFiles() error {
	return errors.Join(v.log.Close(), v.dev.Close())
}

// Close ends the volume cleanly: everything committed is applied and the
// anchor says so. Nothing may be written any more. May be called twice.
func (v *Volume) Close() error {
	v.stateMu.Lock()
	if v.closed {
		v.stateMu.Unlock()
		return nil
	}
	v.closed = true
	failed := v.failed
	v.changedLocked()
	v.stateMu.Unlock()
	v.endViews(0, blockdev.ErrShutdown)
	v.stop()
	<-v.stopped
	var err error
	if failed == nil && v.damageNow() == nil {
		err = v.settle()
	}
	return errors.Join(err, v.closeFiles())
}

// Abort ends the volume as a crash would: nothing is applied or flushed.
func (v *Volume) Abort() error {
	v.stateMu.Lock()
	if v.closed {
		v.stateMu.Unlock()
		return nil
	}
	v.closed = true
	v.changedLocked()
	v.stateMu.Unlock()
	v.endViews(0, blockdev.ErrShutdown)
	v.stop()
	<-v.stopped
	return v.closeFiles()
}
