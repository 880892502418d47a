package journal

import (
	"context"
	"errors"
	"fmt"
)

// MoveTo makes the log live in another file, of another size, while it is in use. Positions are LSN mod ring size, so a ring is
// not resized but written anew:
//
//	1 the new file: anchors blank, ring zeroes                     appends go on
//	2 copy tail … head, and again what came since; fdatasync       appends go on
//	3 with the lead and the sync turn: copy the rest, two anchors,
//	  each fdatasynced, place, and the new ring is the log's       appends wait
//
// The old file is complete until place has put the new one in its stead, and the new one is complete before: whichever of the
// two bears the name after a crash, Open finds the whole log in it.

const (
	moveBytes  = 1 << 20 // copied at once
	moveEnough = 4 << 20 // left to copy when the appends are stopped
	moveRounds = 16      // as many at most: a writer may be as fast as the copy
)

// ErrMoving: the log is being moved already.
var ErrMoving = errors.New("journal is being moved to another file already")

// MoveTo moves the log to f, all of which becomes the new journal; f is the Log's when it succeeds, and the old file is closed.
// place makes f the file that the next Open will be given, durably. Readers go on undisturbed. While the log moves to a smaller
// ring, appends get ErrFull as if they were in that one already.
//
// Any error before place is called leaves the log as it is and f the caller's: ErrTooSmall when what is between tail and head
// does not fit, ErrCut when the log was cut meanwhile, ErrCorrupt for a damaged log, ctx's. Once place was called nobody knows which file bears the name:
// its error ends the log (ErrFailed).
func (l *Log) MoveTo(ctx context.Context, f File, place func() error) error {
	if !l.mmu.TryLock() {
		return ErrMoving
	}
	defer l.mmu.Unlock()
	if err := l.whole(); err != nil {
		return err
	}
	fileSize, err := f.Size()
	if err != nil {
		return fmt.Errorf("size of the new journal: %w", err)
	}
	size, err := ringFor(fileSize)
	if err != nil {
		return err
	}
	if size < l.room.Load() {
		l.room.Store(size)
		defer func() { l.room.Store(l.ring.Load().size) }()
	}
	m := mover{l: l, to: newRing(f, size), epoch: l.epoch.Load(), at: l.Tail(), buf: make([]byte, moveBytes)}
	if err := m.fits(); err != nil {
		return err
	}
	if err := blankAnchors(f); err != nil {
		return fmt.Errorf("prepare the new journal: %w", err)
	}
	if err := zeroRing(ctx, f, size, nil); err != nil {
		return fmt.Errorf("prepare the new journal: %w", err)
	}
	if err := m.follow(ctx); err != nil {
		return fmt.Errorf("copy the log: %w", err)
	}
	return m.change(place)
}

// whole: beyond the head of a damaged log lie records that are promised, and would not be copied.
func (l *Log) whole() error {
	if promise := l.Damaged(); promise > 0 {
		return fmt.Errorf("move the log: %w: promised up to %d, to be repaired before it is moved", ErrCorrupt, promise)
	}
	return nil
}

type mover struct {
	l     *Log
	to    ring
	epoch uint64
	at    LSN // copied up to here
	buf   []byte
}

func (m *mover) fits() error {
	if used := int64(m.l.Head() - m.l.Tail()); used > m.to.size-Reserve {
		return fmt.Errorf("%w: %d bytes are in the log, the new ring has room for %d", ErrTooSmall, used, m.to.size-Reserve)
	}
	return nil
}

// follow copies while appends go on.
func (m *mover) follow(ctx context.Context) error {
	for range moveRounds {
		head := m.l.Head()
		if err := m.copy(ctx, head); err != nil {
			return err
		}
		if err := m.to.f.Sync(); err != nil {
			return err
		}
		if m.l.Head()-min(m.at, m.l.Head()) <= moveEnough {
			return nil
		}
	}
	return nil
}

// copy writes what lies between at and head; what the tail has passed is left out.
func (m *mover) copy(ctx context.Context, head LSN) error {
	for m.at < head {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		m.at = max(m.at, m.l.Tail())
		p := m.buf[:min(LSN(len(m.buf)), head-min(m.at, head))]
		err := m.l.ReadData(p, m.at)
		switch {
		case m.epoch != m.l.epoch.Load():
			return fmt.Errorf("move the log: %w", ErrCut)
		case errors.Is(err, ErrGone):
			continue
		case err != nil:
			return err
		}
		if err := m.to.write(p, m.at); err != nil {
			return err
		}
		m.at += LSN(len(p))
	}
	return nil
}

// change makes the new ring the log's.
func (m *mover) change(place func() error) error {
	l := m.l
	if err := l.alone(); err != nil {
		return err
	}
	defer l.leave()
	l.amu.Lock()
	defer l.amu.Unlock()
	if err := l.takeTurn(); err != nil {
		return err
	}
	durable := LSN(0)
	defer func() { l.endTurn(durable) }()
	if err := l.whole(); err != nil {
		return err
	}
	head := l.Head()
	if m.epoch != l.epoch.Load() {
		return fmt.Errorf("move the log: %w", ErrCut)
	}
	if err := m.fits(); err != nil { // a group under way may have been judged by the old size
		return err
	}
	if err := m.copy(context.Background(), head); err != nil {
		return fmt.Errorf("copy the log: %w", err)
	}
	next, err := m.anchors(head)
	if err != nil {
		return err
	}
	old := l.ring.Load()
	if err := place(); err != nil {
		return l.fail(fmt.Errorf("put the new journal in the place of the old one: %w", err))
	}
	l.use(m.to)
	l.anchor.Store(next)
	l.horizon.Store(uint64(next.horizon))
	durable = head
	_ = old.f.Close() // nothing in it is wanted any more
	return nil
}

// anchors writes both slots of the new file: the newest durable anchor, and all of the log is promised. Their fdatasync makes
// what was copied durable as well; that it comes in any order before that does not matter in a file without a name.
func (m *mover) anchors(head LSN) (*diskAnchor, error) {
	next := m.l.anchor.Load().clone()
	next.ringSize, next.Durable = m.to.size, head
	next.horizon = head + horizonStep(m.to.size)
	for range 2 {
		next.Sequence++
		if err := next.check(); err != nil {
			return nil, err
		}
		if err := writeSlot(m.to.f, next); err != nil {
			return nil, fmt.Errorf("the new journal: %w", err)
		}
	}
	return next, nil
}
