package mirror

import (
	"context"
	"sync"
	"sync/atomic"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// promise is the gate of a primary that has followers: it holds the mode's
// word (word.go) and lets wait who has to. A FLUSH is answered when the active
// target is durable up to it, a write in ModeReceive when it has received it, in
// ModeDurable when it is durable; when no target counts, on-loss decides.
//
// A target that was in sync and lost its connection is still expected: what
// would break the word waits for it until it is given up (unreachable,
// refused, suspended, or away for longer than a reconnect takes). Followers are
// known by their index.
type promise struct {
	frozen atomic.Bool   // writes must wait: the fast path of admit
	pushes atomic.Uint32 // recordsFlags of the mode: the fast path of written

	lease *leased // of an arbiter, or nil; set before the promise is used

	mu     sync.Mutex // guards all below; a leaf
	w      word
	wanted journal.LSN   // a FLUSH waits for this
	moved  chan struct{} // closed when anything above changed
	kicks  []func()      // wake the senders; must not block
}

// newPromise is for so many followers, the first of which is active.
func newPromise(mode Mode, onLoss OnLoss, followers int, answered journal.LSN) *promise {
	p := &promise{moved: make(chan struct{}), kicks: make([]func(), followers)}
	p.w = word{mode: mode, onLoss: onLoss, answered: answered, members: make([]memberWord, followers)}
	p.update(func(*word) {})
	return p
}

// update changes the state under the lock and wakes who waits.
func (p *promise) update(change func(w *word)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updateLocked(change)
}

func (p *promise) updateLocked(change func(w *word)) {
	change(&p.w)
	p.frozen.Store(p.w.frozen())
	p.pushes.Store(uint32(p.w.mode.pushes()))
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *promise) admit(ctx context.Context) error {
	for p.frozen.Load() || p.lease.over() {
		p.mu.Lock()
		moved, closed := p.moved, p.w.closed
		p.mu.Unlock()
		if closed {
			return blockdev.ErrShutdown
		}
		if !p.frozen.Load() && !p.lease.over() {
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
	defer p.mu.Unlock()
	if p.w.mode != ModeAsync && lsn > p.wanted {
		p.wanted = lsn
		p.kickLocked()
	}
}

func (p *promise) kickLocked() {
	for _, kick := range p.kicks {
		if kick != nil {
			kick()
		}
	}
}

func (p *promise) wait(ctx context.Context, lsn journal.LSN) error {
	return p.await(ctx, func() bool {
		if !p.w.flushed(lsn) || !p.lease.coversLocked(&p.w, lsn, true) {
			return false
		}
		p.w.answer(lsn)
		return true
	})
}

// answersAtOnce: see gate.
func (p *promise) answersAtOnce() bool { return p.pushes.Load() == 0 && !p.lease.over() }

// written: see gate. What a write waits for is the mode of the moment: who waits when the mode becomes weaker is let go.
func (p *promise) written(ctx context.Context, lsn journal.LSN) (durable bool, err error) {
	if p.answersAtOnce() {
		return false, nil
	}
	err = p.await(ctx, func() bool {
		durable = p.w.mode == ModeDurable
		return durable || p.w.written(lsn) && (p.w.mode != ModeReceive || p.lease.coversLocked(&p.w, lsn, false))
	})
	return durable, err
}

// await returns once ok, which is asked with the lock held.
func (p *promise) await(ctx context.Context, ok func() bool) error {
	for {
		p.mu.Lock()
		if !p.lease.over() && ok() {
			p.mu.Unlock()
			return nil
		}
		if p.w.closed {
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

// acknowledge takes what follower i has. Nobody waits for one that is not
// active.
func (p *promise) acknowledge(i int, received, durable, head journal.LSN) (news levelNews) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i != p.w.active {
		return p.w.acknowledge(i, received, durable, head)
	}
	m, was := p.w.members[i], p.w.standing
	news = p.w.acknowledge(i, received, durable, head)
	if now := p.w.members[i]; p.w.standing != was || now.durable > m.durable || now.received > m.received && p.w.mode == ModeReceive {
		p.updateLocked(func(*word) {})
	}
	return news
}

// counts says whether the active follower does.
func (p *promise) counts() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.w.standing == isCounting
}

// add takes one more follower, see word.add.
func (p *promise) add(expected bool) (spell uint64) {
	p.update(func(w *word) {
		p.kicks = append(p.kicks, nil)
		spell = w.add(expected)
		if p.lease != nil {
			p.lease.ids = append(p.lease.ids, memberID{})
		}
	})
	return spell
}

func (p *promise) session(i int) { p.update(func(w *word) { w.session(i) }) }

func (p *promise) lost(i int) (spell uint64) {
	p.update(func(w *word) { spell = w.lost(i) })
	return spell
}

func (p *promise) expire(spell uint64) (news levelNews) {
	p.update(func(w *word) { news = w.expire(spell) })
	return news
}

func (p *promise) giveUp(i int) { p.update(func(w *word) { w.giveUp(i) }) }

// activate makes i the active follower; all learn what is asked of them now.
func (p *promise) activate(i int, head journal.LSN) (spell uint64, news levelNews) {
	p.update(func(w *word) { spell, news = w.activate(i, head) })
	p.mu.Lock()
	p.kickLocked()
	p.mu.Unlock()
	return spell, news
}

// close lets everybody go who waits; their flush is not answered.
func (p *promise) close() { p.update(func(w *word) { w.closed = true }) }

// orders are what follower i is to do: at once with what it is sent, and up to
// where a FLUSH wants it durable.
func (p *promise) orders(i int) (recordsFlags, journal.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.w.flags(i), p.wanted
}

// setMode changes the mode; who waits is asked again.
func (p *promise) setMode(m Mode) {
	p.update(func(w *word) { w.mode = m })
	p.mu.Lock()
	p.kickLocked()
	p.mu.Unlock()
}

// setKick says what wakes the sender of follower i; f must not block.
func (p *promise) setKick(i int, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kicks[i] = f
}

func (p *promise) isActive(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.w.active == i
}
