package mirror

import (
	"context"
	"errors"
	"fmt"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// maxRecordBytes bounds the payload of one record; longer writes take several.
const maxRecordBytes = 4 << 20

// maxZeroBytes bounds a zero or trim record, whose length has 32 bits.
const maxZeroBytes = 1 << 31

// Size returns the size of the mirrored device in bytes.
func (v *Volume) Size() (int64, error) { return v.size, nil }

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

// WriteBatch enters ws into the log as one group, in order. Each write's Err
// says what became of it. While the log has no room it waits for the applier;
// it never fails for a full log (G6).
func (v *Volume) WriteBatch(ws []blockdev.Write) {
	b := batchPool.Get().(*batch)
	defer b.release()
	var sync bool
	for i := range ws {
		ws[i].Err = b.add(v.size, &ws[i])
		sync = sync || ws[i].Sync
	}
	if es := b.seal(); len(es) > 0 {
		if err := v.append(es); err != nil {
			b.fail(ws, err)
			return
		}
	}
	if !sync {
		return
	}
	// FUA covers the write itself only; the whole log up to it is as cheap.
	if err := v.flush(context.Background(), v.log.Head()); err != nil {
		for i := range ws {
			if ws[i].Sync && ws[i].Err == nil {
				ws[i].Err = err
			}
		}
	}
}

// append enters entries, waiting for room and for the mode's leave.
func (v *Volume) append(es []*journal.Entry) error {
	ctx := context.Background()
	for {
		moved, err := v.watch()
		if err != nil {
			return err
		}
		if err := v.gate.Load().admit(ctx); err != nil {
			return err
		}
		if err := v.writable(); err != nil {
			return err
		}
		err = v.log.Append(es)
		if err == nil {
			v.pace()
			return nil
		}
		if !errors.Is(err, journal.ErrFull) && !errors.Is(err, journal.ErrTooLarge) {
			return v.journalError(err)
		}
		if entriesSize(es) > v.log.Capacity()/2 {
			if len(es) == 1 {
				return fmt.Errorf("a record of %d bytes does not fit into the log: %w", entriesSize(es), err)
			}
			if err := v.append(es[:len(es)/2]); err != nil {
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

func (v *Volume) flush(ctx context.Context, lsn journal.LSN) error {
	if _, err := v.watch(); err != nil {
		return err
	}
	if err := v.writable(); err != nil {
		return err
	}
	g := v.gate.Load()
	g.request(lsn) // the followers' disks work while ours does
	if _, err := v.log.Sync(lsn); err != nil {
		return v.journalError(err)
	}
	return g.wait(ctx, lsn)
}
