package mirror

import (
	"context"
	"sync"
	"sync/atomic"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// promise is the gate of a primary that has followers: it holds the mode's
// word. A FLUSH is answered when the active target is durable up to it, a write
// in ModeReceive when it has received it, in ModeDurable when it is durable; when
// no target counts, on-loss decides. The log is in order, so what was answered
// before the target counted is there too as soon as a later record is.
//
// A target that was in sync and lost its connection is still expected: what
// would break the word waits for it until it is given up (unreachable,
// refused, suspended, or away for longer than a reconnect takes).
type promise struct {
	frozen atomic.Bool   // writes must wait: the fast path of admit
	pushes atomic.Uint32 // recordsFlags of the mode: the fast path of written

	mu       sync.Mutex // guards all below
	mode     Mode
	onLoss   OnLoss
	remote   bool        // there is any target configured
	counts   bool        // the active target is in sync
	expected bool        // it was, and is not given up yet
	durable  journal.LSN // the active target is durable up to here
	received journal.LSN // and has this in its journal file
	wanted   journal.LSN // a FLUSH waits for this
	answered journal.LSN // a FLUSH was answered up to here
	synced   uint64      // how often a target came into sync
	closed   bool
	moved    chan struct{} // closed when anything above changed
	kick     func()        // wakes the sender; must not block
}

func newPromise(mode Mode, onLoss OnLoss, remote bool, answered journal.LSN) *promise {
	p := &promise{mode: mode, onLoss: onLoss, remote: remote, answered: answered, moved: make(chan struct{}), kick: func() {}}
	p.update(func() {})
	return p
}

// update changes the state under the lock and wakes who waits.
func (p *promise) update(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.frozen.Store(p.remote && p.onLoss == OnLossFreeze && !p.counts)
	p.pushes.Store(uint32(p.mode.pushes()))
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *promise) admit(ctx context.Context) error {
	for p.frozen.Load() {
		p.mu.Lock()
		moved, closed := p.moved, p.closed
		p.mu.Unlock()
		if closed {
			return blockdev.ErrShutdown
		}
		if !p.frozen.Load() {
			break
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (p *promise) request(lsn journal.LSN) {
	p.mu.Lock()
	need := p.mode != ModeAsync && lsn > p.wanted
	if need {
		p.wanted = lsn
	}
	kick := p.kick
	p.mu.Unlock()
	if need {
		kick()
	}
}

func (p *promise) wait(ctx context.Context, lsn journal.LSN) error {
	return p.await(ctx, func() bool {
		if !p.doneLocked(lsn) {
			return false
		}
		p.answered = max(p.answered, lsn)
		return true
	})
}

// written: see gate. What a write waits for is the mode of the moment: who waits when the mode becomes weaker is let go.
func (p *promise) written(ctx context.Context, lsn journal.LSN) (durable bool, err error) {
	if p.pushes.Load() == 0 {
		return false, nil
	}
	err = p.await(ctx, func() bool {
		durable = p.mode == ModeDurable
		return durable || p.receivedLocked(lsn)
	})
	return durable, err
}

// await returns once ok, which is asked with the lock held.
func (p *promise) await(ctx context.Context, ok func() bool) error {
	for {
		p.mu.Lock()
		if ok() {
			p.mu.Unlock()
			return nil
		}
		if p.closed {
			p.mu.Unlock()
			return blockdev.ErrShutdown
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// doneLocked: may a FLUSH up to lsn be answered, given that lsn is durable here?
func (p *promise) doneLocked(lsn journal.LSN) bool {
	switch {
	case !p.remote:
		return true
	case p.counts:
		return p.mode == ModeAsync || p.durable >= lsn
	case p.onLoss == OnLossFreeze:
		return false
	case p.mode == ModeAsync:
		return true
	}
	return !p.expected && !p.closed
}

// receivedLocked: may a write up to lsn be answered, which is in the log here?
func (p *promise) receivedLocked(lsn journal.LSN) bool {
	switch {
	case !p.remote || p.mode != ModeReceive:
		return true
	case p.counts:
		return p.received >= lsn
	case p.onLoss == OnLossFreeze:
		return false
	}
	return !p.expected && !p.closed
}

// acknowledge takes what a follower has. It starts to count once it has
// everything that a FLUSH was answered for (behind: and not more than
// maxBehind is missing). Reports whether it counts now.
func (p *promise) acknowledge(received, durable, head journal.LSN) (counts, began bool) {
	p.mu.Lock()
	was, news := p.counts, durable > p.durable || received > p.received && p.mode == ModeReceive
	ready := was || durable >= p.answered && int64(head-min(head, durable)) <= maxBehindBytes
	p.mu.Unlock()
	if !news && ready == was {
		return was, false
	}
	p.update(func() {
		p.durable, p.received = max(p.durable, durable), max(p.received, received)
		// answered may have moved since: decide again under the lock.
		if !p.counts && ready && p.durable >= p.answered {
			p.counts, p.expected, began = true, true, true
			p.synced++
		}
		counts = p.counts
	})
	return counts, began
}

// maxBehindBytes: a follower that lacks more of the log than this is not yet
// in sync; a FLUSH would wait for all of it.
const maxBehindBytes = 16 << 20

// session: a new session begins; what its follower has is not known yet.
func (p *promise) session() {
	p.update(func() { p.counts, p.durable, p.received = false, 0, 0 })
}

// lost: the session is gone, the target still expected, until expire is
// called with what lost returned.
func (p *promise) lost() (synced uint64) {
	p.update(func() { p.counts, p.durable, p.received, synced = false, 0, 0, p.synced })
	return synced
}

// expire: a target that has not been in sync since is not expected any more.
func (p *promise) expire(synced uint64) {
	p.update(func() {
		if !p.counts && p.synced == synced {
			p.expected = false
		}
	})
}

// giveUp: the target does not count until it is in sync again.
func (p *promise) giveUp() {
	p.update(func() { p.counts, p.expected, p.durable, p.received = false, false, 0, 0 })
}

// close lets everybody go who waits; their flush is not answered.
func (p *promise) close() { p.update(func() { p.closed = true }) }

// flags are what the follower has to do at once.
func (p *promise) flags() recordsFlags { return recordsFlags(p.pushes.Load()) }

func (p *promise) want() journal.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wanted
}

// setMode changes the mode; who waits is asked again.
func (p *promise) setMode(m Mode) {
	p.update(func() { p.mode = m })
	p.mu.Lock()
	kick := p.kick
	p.mu.Unlock()
	kick()
}

// setKick says whom a new wish wakes; f must not block.
func (p *promise) setKick(f func()) { p.update(func() { p.kick = f }) }
