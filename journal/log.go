package journal

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Options of Open. The zero value is usable.
type Options struct {
	// OnAppend is called after the bytes of a group are in the file and before any of its writers returns: in LSN
	// order, one call at a time, with all entries of the group. It must be quick. Also called by AppendRaw, with
	// entries that have Data but no Payload and are the journal's again when it returns.
	OnAppend func(es []*Entry)
	// OnRecover is called for every record from Applied to Head while the log is opened, in order.
	OnRecover func(r Record) error
	// Damaged has Open return a log with rot as one that ends before it (Recovery.Rot), to be repaired: see repair.go.
	Damaged bool
	// MaxGroupBytes bounds what one leader writes at once (one call of Append is never split); 0 is 8 MiB.
	MaxGroupBytes int64
	// Now is the clock for the records' time; nil is time.Now.
	Now func() time.Time
}

// Log is an open journal. All methods may be called from any goroutine.
//
// Lock order: the lead (append.go) → amu → the sync turn (sync.go) → imu, hmu, qmu, one at a time.
type Log struct {
	ring ring
	opts Options

	// Published positions. head is raised after the bytes are in the file; tail is raised after its anchor is
	// durable and before anything is written over what it freed, so a reader that finds from ≥ tail after it has
	// read has read no recycled bytes. epoch is raised by a cut after head was lowered and before bytes change.
	head, durable, tail, applied, epoch atomic.Uint64
	horizon                             atomic.Uint64 // of the newest durable anchor (horizon.go)

	repair atomic.Uint64 // the promise of a damaged log, 0 when it is whole

	hmu   sync.Mutex // guards the pair (head, chain); head alone is read without it
	chain uint64

	qmu     sync.Mutex // guards the queue of the group commit
	first   *ticket
	last    *ticket
	leading bool
	idle    *sync.Cond // on qmu: nobody leads
	closed  bool
	group   []*ticket   // the leader's
	w       groupWriter // the leader's
	raw     rawScratch  // the leader's

	smu     sync.Mutex // guards the sync turn
	turn    *sync.Cond // on smu
	syncing bool
	cuts    uint64 // cuts and resets so far

	amu    sync.Mutex // one anchor at a time
	anchor atomic.Pointer[diskAnchor]

	index    index
	counters counters

	failure atomic.Pointer[error]
	changed atomic.Pointer[chan struct{}]
	cmu     sync.Mutex // guards making and closing of *changed
}

func newLog(f File, d *diskAnchor, o Options) *Log {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxGroupBytes <= 0 {
		o.MaxGroupBytes = 8 << 20
	}
	l := &Log{ring: newRing(f, d.ringSize), opts: o}
	l.idle, l.turn = sync.NewCond(&l.qmu), sync.NewCond(&l.smu)
	l.anchor.Store(d)
	l.tail.Store(uint64(d.Tail))
	l.applied.Store(uint64(d.Applied))
	l.index.reset(point{d.Tail, d.TailChain})
	return l
}

// Head is where the next record goes: everything below is in the file (in the OS).
func (l *Log) Head() LSN { return LSN(l.head.Load()) }

// Durable is the end of what is fdatasynced.
func (l *Log) Durable() LSN { return LSN(l.durable.Load()) }

// Tail is the oldest record kept, by the newest durable anchor.
func (l *Log) Tail() LSN { return LSN(l.tail.Load()) }

// Applied is the anchor's.
func (l *Log) Applied() LSN { return LSN(l.applied.Load()) }

// HeadChain returns the head and the chain value there, as one.
func (l *Log) HeadChain() (LSN, uint64) {
	l.hmu.Lock()
	defer l.hmu.Unlock()
	return l.Head(), l.chain
}

// Capacity is the size of the ring, bytes.
func (l *Log) Capacity() int64 { return l.ring.size }

// Free is what writes may still take, headers and padding included, before ErrFull; bytes.
func (l *Log) Free() int64 {
	return max(0, int64(l.tail.Load())+l.ring.size-Reserve-int64(l.head.Load()))
}

func (l *Log) setHead(head LSN, chain uint64) {
	l.hmu.Lock()
	l.chain = chain
	l.head.Store(uint64(head))
	l.hmu.Unlock()
}

// Failed is nil, or what made the log fail for good; it wraps ErrFailed and the cause.
func (l *Log) Failed() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail latches the first error (G9) and returns the latched one.
func (l *Log) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	l.failure.CompareAndSwap(nil, &err)
	l.notify()
	return l.Failed()
}

// Changed returns a channel that is closed at the next append, cut, anchor, move of durable, failure, or Close. Take it first,
// then look, then wait.
func (l *Log) Changed() <-chan struct{} {
	l.cmu.Lock()
	defer l.cmu.Unlock()
	if p := l.changed.Load(); p != nil {
		return *p
	}
	c := make(chan struct{})
	l.changed.Store(&c)
	return c
}

// notify comes after the state it tells of was stored. It costs one load when nobody listens.
func (l *Log) notify() {
	if l.changed.Load() == nil {
		return
	}
	l.cmu.Lock()
	defer l.cmu.Unlock()
	if p := l.changed.Swap(nil); p != nil {
		close(*p)
	}
}

// Close waits for what is being written or synced, refuses everything after, and closes the file. It does not sync: what was
// not synced is as after a kill. It may be called twice.
func (l *Log) Close() error {
	l.qmu.Lock()
	if l.closed {
		l.qmu.Unlock()
		return nil
	}
	l.closed = true
	for l.leading {
		l.idle.Wait()
	}
	l.qmu.Unlock()
	l.amu.Lock()
	defer l.amu.Unlock()
	l.smu.Lock()
	for l.syncing {
		l.turn.Wait()
	}
	l.syncing = true // for good
	l.turn.Broadcast()
	l.smu.Unlock()
	l.notify()
	return l.ring.f.Close()
}

// isClosed is asked with no lock held.
func (l *Log) isClosed() bool {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return l.closed
}
