package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// maxRecordBytes bounds the payload of one record; longer writes take several.
const maxRecordBytes = 4 << 20

// maxZeroBytes bounds a zero or trim record, whose length has 32 bits.
const maxZeroBytes = 1 << 31

// Size returns the size of the mirrored device in bytes.
func (v *Volume) Size() (int64, error) { return v.size.Load(), nil }

// WriteAt writes p at off. It returns once the record is in the journal file,
// that is, in the hands of the OS (G1); durable it is after Sync.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	ws := [1]blockdev.Write{{Offset: off, Data: p}}
	v.WriteBatch(ws[:])
	if ws[0].Err != nil {
		return 0, ws[0].Err
	}
	return len(p), nil
}

// Zero makes the extent read back as zeroes and keeps its space.
func (v *Volume) Zero(off, length int64) error {
	ws := [1]blockdev.Write{{Offset: off, Length: length, Zero: true}}
	v.WriteBatch(ws[:])
	return ws[0].Err
}

// Trim makes the extent read back as zeroes; its space may be given back.
func (v *Volume) Trim(off, length int64) error {
	ws := [1]blockdev.Write{{Offset: off, Length: length, Trim: true}}
	v.WriteBatch(ws[:])
	return ws[0].Err
}

// ZeroFast is Trim when hole is set, else Zero (blockdev.FastZeroer). It is
// always faster than writing the same bytes, so it never refuses: a record
// without payload goes into the log and over the network for every 2 GiB, where
// the bytes would go whole. On the backing device it costs at most a write of
// zeroes, and neighbours are zeroed together as they would be written together.
func (v *Volume) ZeroFast(off, length int64, hole bool) error {
	if hole {
		return v.Trim(off, length)
	}
	return v.Zero(off, length)
}

// WriteBatch enters ws into the log as one group, in order. Each write's Err
// says what became of it. While the log has no room it waits for the applier;
// it never fails for a full log (G6). A write that asks to be Fast is fast, see
// ZeroFast.
func (v *Volume) WriteBatch(ws []blockdev.Write) {
	b := batchPool.Get().(*batch)
	defer b.release()
	var sync bool
	var end journal.LSN // of what was entered
	size := v.size.Load()
	for i := range ws {
		ws[i].Err = b.add(size, &ws[i])
		sync = sync || ws[i].Sync
	}
	if es := b.seal(); len(es) > 0 {
		err := v.append(es)
		end = es[len(es)-1].End
		if err == nil && v.foresight != nil && v.foresight.wrote(len(es), sync) {
			g := v.gate.Load()
			g.request(end)
			if g.answersAtOnce() {
				v.foresight.near.Store(true) // the answer first: see Foresee
			} else {
				v.foresight.begin()
			}
		}
		if err == nil && !sync {
			err = v.answerable(end)
		}
		if err != nil {
			b.fail(ws, err)
			return
		}
	}
	if !sync {
		return
	}
	// FUA covers the write itself only; the whole log up to it is as cheap.
	if err := v.flush(context.Background(), v.log.Head()); err != nil {
		b.failSynced(ws, err)
		if end > 0 { // the others wait for what a write waits for, which a FLUSH would have covered
			if err := v.answerable(end); err != nil {
				b.fail(ws, err)
			}
		}
	}
}

// append enters entries, waiting for room and for the mode's leave.
//
// Who has to wait does so in line, and who comes while others wait stands behind them: writes get their LSNs in the order
// in which they came. A client that gave up waiting and sent a request again, and what it wrote after that, must not be
// overtaken by the first one.
func (v *Volume) append(es []*journal.Entry) error {
	if v.line.empty() && !v.paced() {
		if _, err := v.tryAppend(noWait, es); !isFull(err) && !errors.Is(err, noWait.Err()) {
			return err
		}
	}
	leave := v.line.enter()
	defer leave()
	if err := v.slow(entriesSize(es)); err != nil {
		return err
	}
	return v.appendInTurn(es)
}

// appendInTurn is for the first in line.
func (v *Volume) appendInTurn(es []*journal.Entry) error {
	ctx := context.Background()
	for {
		moved, err := v.tryAppend(ctx, es)
		if !isFull(err) {
			return err
		}
		if entriesSize(es) > v.log.Capacity()/2 {
			if len(es) == 1 {
				return fmt.Errorf("a record of %d bytes does not fit into the log: %w", entriesSize(es), err)
			}
			if err := v.appendInTurn(es[:len(es)/2]); err != nil {
				return err
			}
			es = es[len(es)/2:]
			continue
		}
		if err := v.awaitRoom(ctx, moved); err != nil {
			return err
		}
	}
}

// tryAppend enters entries if the log has room; moved is closed when there may be more. While the mode holds writes back it
// waits for its leave or the end of ctx.
func (v *Volume) tryAppend(ctx context.Context, es []*journal.Entry) (moved <-chan struct{}, err error) {
	moved, err = v.watch()
	if err != nil {
		return nil, err
	}
	if err := v.gate.Load().admit(ctx); err != nil {
		return nil, err
	}
	if err := v.writable(); err != nil {
		return nil, err
	}
	err = v.log.Append(es)
	if err == nil {
		v.pace()
		return nil, nil
	}
	if !isFull(err) {
		return nil, v.journalError(err)
	}
	return moved, err
}

func isFull(err error) bool {
	return errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrTooLarge)
}

// noWait is a context that is over: to try and not to wait.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// waitLine is where writers wait, first come, first served.
type waitLine struct {
	waiting atomic.Int32
	turn    *semaphore.Weighted // 1; serves in order
}

func newWaitLine() waitLine { return waitLine{turn: semaphore.NewWeighted(1)} }

func (l *waitLine) empty() bool { return l.waiting.Load() == 0 }

// enter returns when it is the caller's turn; leave gives the turn to the next.
func (l *waitLine) enter() (leave func()) {
	l.waiting.Add(1)
	_ = l.turn.Acquire(context.Background(), 1) // fails only with its context
	return func() {
		l.waiting.Add(-1)
		l.turn.Release(1)
	}
}

func (v *Volume) writable() error {
	if why := v.refused.Load(); why != nil {
		return *why
	}
	if v.Role() != RolePrimary {
		return ErrNotPrimary
	}
	return nil
}

func entriesSize(es []*journal.Entry) (n int64) {
	for _, e := range es {
		n += journal.RecordSize(len(e.Payload))
	}
	return n
}

// Sync is FLUSH: it returns once everything written and answered before is
// durable as the mode promises.
func (v *Volume) Sync() error {
	return v.flush(context.Background(), v.log.Head())
}

// answerable waits until the write that ends at lsn may be answered as the mode promises.
func (v *Volume) answerable(lsn journal.LSN) error {
	durable, err := v.gate.Load().written(context.Background(), lsn)
	if err == nil && durable {
		err = v.flush(context.Background(), lsn)
	}
	return err
}

func (v *Volume) flush(ctx context.Context, lsn journal.LSN) error {
	if _, err := v.watch(); err != nil {
		return err
	}
	if err := v.writable(); err != nil {
		return err
	}
	defer v.timed(time.Now())
	if v.foresight != nil {
		v.foresight.flushed()
	}
	g := v.gate.Load()
	g.request(lsn) // the followers' disks work while ours does
	if _, err := v.log.Sync(lsn); err != nil {
		return v.journalError(err)
	}
	return g.wait(ctx, lsn)
}

// timed counts a flush that has ended, for who yields to them.
func (v *Volume) timed(began time.Time) {
	v.flushTook.Add(uint64(time.Since(began)))
	v.flushes.Add(1)
}
