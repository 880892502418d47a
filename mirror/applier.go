package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// maxApplyBytes is the largest write to the backing device.
const maxApplyBytes = 1 << 20

// background keeps the log's own pace and applies what is committed.
func (v *Volume) background(ctx context.Context) {
	defer close(v.stopped)
	tick := time.NewTicker(v.opts.SyncInterval)
	defer tick.Stop()
	lastApply := time.Now()
	var seen journal.LSN // head at the last tick
	for {
		var due bool
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			due = true
		case <-v.kick:
		}
		head := v.log.Head()
		if due {
			v.pulse.beat(head, time.Now())
		}
		if behind := head - v.log.Durable(); behind > 0 && (due && seen > v.log.Durable() || int64(behind) >= v.opts.SyncBytes) {
			if _, err := v.log.Sync(head); err != nil {
				_ = v.journalError(err)
				return
			}
			v.changed()
		}
		seen = head
		if time.Since(lastApply) >= v.opts.ApplyInterval || v.pressure() {
			v.overlay.freeze()
			lastApply = time.Now()
			if v.pressure() {
				// The ring is what writers wait for: hurry.
				if _, err := v.log.Sync(v.log.Head()); err != nil {
					_ = v.journalError(err)
					return
				}
			}
		}
		if err := v.applyReady(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			_ = v.applyError(err)
			return
		}
		if err := v.relieve(); err != nil {
			_ = v.journalError(err)
			return
		}
	}
}

func (v *Volume) applyError(err error) error {
	if errors.Is(err, journal.ErrFailed) {
		return v.journalError(err)
	}
	return v.fail("device", err)
}

// pace wakes the background goroutine when the log grew enough.
func (v *Volume) pace() {
	head := v.log.Head()
	if int64(head-v.log.Durable()) >= v.opts.SyncBytes || int64(head-v.log.Applied()) >= 2*v.layerBytes.Load() || v.pressure() {
		v.poke()
	}
}

// pressure: a writer waits for room, or the ring is so full that the tail
// should move.
func (v *Volume) pressure() bool {
	v.stateMu.Lock()
	waits := v.waiting > 0
	v.stateMu.Unlock()
	return waits || int64(v.log.Head()-v.log.Tail()) > v.log.Capacity()/4*3 && int64(v.log.Head()-v.log.Applied()) > v.log.Capacity()/4
}

// applyReady applies every frozen layer that is committed.
func (v *Volume) applyReady(ctx context.Context) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := v.overlay.oldest()
		if l == nil || l.end > v.Committed() {
			return nil
		}
		if err := v.applyLayer(l); err != nil {
			return err
		}
	}
}

// applyLayer writes a committed layer to the backing device in device order,
// makes it durable there, says so in the anchor, and lets the layer go.
// applyMu is held.
func (v *Volume) applyLayer(l *layer) error {
	if err := v.writeLayer(l); err != nil {
		return fmt.Errorf("apply up to LSN %d: %w", l.end, err)
	}
	if err := v.dev.Sync(); err != nil {
		return fmt.Errorf("sync the device: %w", err)
	}
	chain, err := v.log.ChainAt(l.end)
	if err != nil {
		return fmt.Errorf("chain at LSN %d: %w", l.end, err)
	}
	tail, tailChain, move := v.chooseTail(l.end)
	if err := v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Applied, a.AppliedChain = l.end, chain
		if move {
			a.Tail, a.TailChain = tail, tailChain
		}
		v.fillAnchor(a)
	}); err != nil {
		return err
	}
	v.overlay.drop(l)
	v.changed()
	return nil
}

// writeLayer issues the device writes of a layer: adjoining extents become
// one write of at most maxApplyBytes.
func (v *Volume) writeLayer(l *layer) error {
	if v.applyBuf == nil {
		v.applyBuf = make([]byte, maxApplyBytes)
	}
	var at int64 // where applyBuf's content belongs
	n := 0
	var err error
	write := func() bool {
		if n > 0 {
			_, err = v.dev.WriteAt(v.applyBuf[:n], at)
			n = 0
		}
		return err == nil
	}
	l.extents.Scan(func(x extent) bool {
		if x.zero {
			if !write() {
				return false
			}
			if x.trim {
				err = v.dev.Trim(x.off, x.len())
			} else {
				err = v.dev.Zero(x.off, x.len())
			}
			return err == nil
		}
		if n > 0 && at+int64(n) != x.off && !write() {
			return false
		}
		for x.len() > 0 {
			if n == 0 {
				at = x.off
			}
			m := min(x.len(), int64(maxApplyBytes-n))
			if err = v.log.ReadData(v.applyBuf[n:n+int(m)], x.data); err != nil {
				return false
			}
			n += int(m)
			x = x.slice(x.off+m, x.end)
			if n == maxApplyBytes && !write() {
				return false
			}
		}
		return true
	})
	if err == nil {
		write()
	}
	return err
}

// chooseTail keeps as much history as the ring allows, since a follower that
// comes back catches up from it: the tail moves only when the ring is three
// quarters full, then to half, never past applied, nor past what a connected
// follower still needs. When a writer waits for room it moves as far as it
// may.
func (v *Volume) chooseTail(applied journal.LSN) (journal.LSN, uint64, bool) {
	head, tail, size := v.log.Head(), v.log.Tail(), v.log.Capacity()
	limit := applied
	v.stateMu.Lock()
	if v.holding {
		limit = min(limit, v.holdAt)
	}
	waits := v.waiting > 0
	v.stateMu.Unlock()
	if limit <= tail {
		return 0, 0, false
	}
	if waits {
		// Both bounds are record boundaries.
		chain, err := v.log.ChainAt(limit)
		return limit, chain, err == nil
	}
	if int64(head-tail) <= size/4*3 {
		return 0, 0, false
	}
	lsn, chain, err := v.log.BoundaryBefore(min(limit, head-journal.LSN(size/2)))
	return lsn, chain, err == nil && lsn > tail
}

// relieve moves the tail without applying anything, when that is possible:
// after a follower that held it has caught up.
func (v *Volume) relieve() error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	tail, chain, move := v.chooseTail(v.log.Applied())
	if !move {
		return nil
	}
	if err := v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Tail, a.TailChain = tail, chain
		v.fillAnchor(a)
	}); err != nil {
		return err
	}
	v.changed()
	return nil
}

// hold keeps the tail from passing lsn, for a connected follower that still
// reads there; release ends it.
func (v *Volume) hold(lsn journal.LSN) {
	v.stateMu.Lock()
	moved := !v.holding || lsn > v.holdAt
	v.holding, v.holdAt = true, lsn
	waits := v.waiting > 0
	v.stateMu.Unlock()
	if moved && (waits || int64(v.log.Head()-v.log.Tail()) > v.log.Capacity()/4*3) {
		v.poke()
	}
}

func (v *Volume) release() {
	v.stateMu.Lock()
	v.holding = false
	v.stateMu.Unlock()
	v.poke()
}

// fillAnchor puts what the volume knows beside the log's positions.
func (v *Volume) fillAnchor(a *journal.Anchor) {
	a.Role = uint8(v.Role())
	a.Generations = v.History()
}

// settle makes everything durable, applies what is committed, and writes the
// anchor of a clean end when nothing is left in the log.
func (v *Volume) settle() error {
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		return v.journalError(err)
	}
	v.overlay.freeze()
	if err := v.applyReady(context.Background()); err != nil {
		return v.applyError(err)
	}
	clean := v.log.Applied() == v.log.Head() && !v.unclean.Load()
	return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Clean = clean
		v.fillAnchor(a)
	}))
}
