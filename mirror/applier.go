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
	tick := time.NewTicker(v.opts.SyncInterval)
	defer tick.Stop()
	lastApply := time.Now()
	var seen journal.LSN      // head at the last tick
	var held <-chan time.Time // while the backing device is in trouble: until the next try
	for {
		var due bool
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			due = true
		case <-v.kick:
		case <-held:
			held = nil
		}
		head := v.log.Head()
		if due {
			v.pulse.beat(head, time.Now())
		}
		if behind := head - v.log.Durable(); behind > 0 && (due && seen > v.log.Durable() || int64(behind) >= v.opts.SyncBytes) {
			if _, err := v.log.Sync(head); v.over(err) {
				return
			}
			v.changed()
		}
		seen = head
		if v.freezeDue(time.Since(lastApply)) || v.pressure() {
			v.overlay.freeze()
			lastApply = time.Now()
			if v.pressure() {
				// The ring is what writers wait for: hurry.
				if _, err := v.log.Sync(v.log.Head()); v.over(err) {
					return
				}
			}
		}
		if v.damageNow() != nil && v.Role() == RolePrimary {
			continue // nothing is changed before the log is whole again
		}
		if held == nil {
			if err := v.applyReady(ctx); err != nil {
				if ctx.Err() != nil {
					return
				}
				wait, again := v.troubled(err)
				if !again {
					return
				}
				held = time.After(wait)
			}
		}
		if v.dirty.takeNews() {
			if err := v.noteFollowers(); err != nil {
				return
			}
		}
		if err := v.relieve(); err != nil {
			_ = v.journalError(err)
			return
		}
	}
}

func (v *Volume) applyError(err error) error {
	if d := (*deviceError)(nil); errors.As(err, &d) {
		return v.fail("device", err)
	}
	return v.fail("journal", err)
}

// pace wakes the background goroutine when the log grew enough.
func (v *Volume) pace() {
	head := v.log.Head()
	if int64(head-v.log.Durable()) >= v.opts.SyncBytes || int64(head-v.log.Applied()) >= 2*v.layerBytes.Load() || v.pressure() || v.overlayFull() {
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
		if l == nil || l.end > v.Committed() || !v.ripe(l) {
			return nil
		}
		if err := v.applyLayer(l); err != nil {
			return err
		}
		v.untroubled()
	}
}

// applyLayer writes a committed layer to the backing device in device order,
// makes it durable there, says so in the anchor, and lets the layer go.
// applyMu is held.
func (v *Volume) applyLayer(l *layer) error {
	if err := v.announce(l); err != nil {
		return err
	}
	v.preserve(l)
	seen, err := v.writeLayer(l)
	if err != nil {
		return fmt.Errorf("apply up to LSN %d: %w", l.end, err)
	}
	v.viewsApplied(l)
	if err := v.dev.Sync(); err != nil {
		return &deviceError{sync: true, err: fmt.Errorf("sync the device: %w", err)}
	}
	chain, err := v.log.ChainAt(l.end)
	if err != nil {
		return fmt.Errorf("chain at LSN %d: %w", l.end, err)
	}
	tail, tailChain, move := v.chooseTail(l.end)
	if move {
		v.dirty.leave(tail, v.Committed(), v.History())
	}
	if err := v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Applied, a.AppliedChain = l.end, chain
		if move {
			moveTail(a, tail, tailChain)
		}
		withSidecar(a, func(s *sidecar) {
			s.applying = 0
			if next := v.overlay.after(l); next != nil && next.end <= v.Committed() && v.ripe(next) {
				s.applying = next.end
			}
			s.witnesses = seen.renew(s.witnesses, l)
		})
		v.fillAnchor(a)
	}); err != nil {
		return err
	}
	v.sizeApplied(l.end)
	v.overlay.drop(l)
	v.changed()
	return nil
}

// writeLayer issues the device writes of a layer: adjoining extents become
// one write of at most maxApplyBytes, adjoining zeroes of one kind one call.
func (v *Volume) writeLayer(l *layer) (seen witnessed, err error) {
	if v.applyBuf == nil {
		v.applyBuf = make([]byte, maxApplyBytes)
	}
	// What is gathered and not issued yet: data, or zeroes, never both.
	var at int64 // where applyBuf's content belongs
	n := 0
	var zeroes extent
	issue := func() bool {
		switch {
		case n > 0:
			_, err = v.dev.WriteAt(v.applyBuf[:n], at)
			err = deviceWrite(err)
			seen.wrote(v.applyBuf[:n], at)
		case zeroes.len() == 0:
		case zeroes.trim:
			err = deviceWrite(v.dev.Trim(zeroes.off, zeroes.len()))
		default:
			err = deviceWrite(v.dev.Zero(zeroes.off, zeroes.len()))
		}
		if err == nil {
			v.badReads.good(at, at+int64(n))
			v.badReads.good(zeroes.off, zeroes.end)
		}
		n, zeroes = 0, extent{}
		return err == nil
	}
	l.extents.Scan(func(x extent) bool {
		if x.zero {
			if zeroes.len() > 0 && zeroes.end == x.off && zeroes.trim == x.trim {
				zeroes.end = x.end
				return true
			}
			if !issue() {
				return false
			}
			zeroes = x
			return true
		}
		if (zeroes.len() > 0 || n > 0 && at+int64(n) != x.off) && !issue() {
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
			if n == maxApplyBytes && !issue() {
				return false
			}
		}
		return true
	})
	if err == nil {
		issue()
	}
	return seen, err
}

// chooseTail keeps as much history as the ring allows, since a follower that
// comes back catches up from it: the tail moves only when the ring is three
// quarters full, then to half, never past applied, nor past what a connected
// follower still needs. When a writer waits for room it moves as far as it
// may.
func (v *Volume) chooseTail(applied journal.LSN) (journal.LSN, uint64, bool) {
	head, tail, size := v.log.Head(), v.log.Tail(), v.log.Capacity()
	v.stateMu.Lock()
	limit := min(applied, journal.LSN(v.holdMark.Load()))
	waits := v.waiting > 0
	v.stateMu.Unlock()
	if limit <= tail {
		return 0, 0, false
	}
	if waits && !v.heldByFork() {
		// Both bounds are record boundaries.
		chain, err := v.log.ChainAt(limit)
		return limit, chain, err == nil
	}
	if int64(head-tail) <= size/4*3 || v.heldByFork() {
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
	v.dirty.leave(tail, v.Committed(), v.History())
	if err := v.log.WriteAnchor(func(a *journal.Anchor) {
		moveTail(a, tail, chain)
		v.fillAnchor(a)
	}); err != nil {
		return err
	}
	v.changed()
	return nil
}

// noteFollowers writes an anchor that tells of the followers, after what it
// names of their bitmaps.
func (v *Volume) noteFollowers() error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.dirty.leave(v.log.Tail(), v.Committed(), v.History())
	return v.setFlags(0, 0)
}

// fillAnchor puts what the volume knows beside the log's positions.
func (v *Volume) fillAnchor(a *journal.Anchor) {
	a.Role = uint8(v.Role())
	a.Generations = v.History()
	v.stateMu.Lock()
	a.DeviceSize = v.sizeAtLocked(a.Applied)
	v.stateMu.Unlock()
	a.Followers = v.dirty.followers()
}

// settle makes everything durable, applies what is committed, and writes the
// anchor of a clean end when nothing is left in the log.
func (v *Volume) settle() error {
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		return v.journalError(err)
	}
	v.overlay.freeze()
	v.settling.Store(true)
	if err := v.applyReady(context.Background()); err != nil {
		if d := (*deviceError)(nil); errors.As(err, &d) && !d.sync {
			return fmt.Errorf("device: %w; nothing is lost: what it lacks stays in the log and is applied after the next start", err)
		}
		return v.applyError(err)
	}
	clean := v.log.Applied() == v.log.Head() && !v.unclean.Load()
	update := func(a *journal.Anchor) {
		a.Clean = clean
		v.fillAnchor(a)
	}
	if v.restamp != nil {
		return v.restamp(update)
	}
	return v.journalError(v.log.WriteAnchor(update))
}
