package mirror

import (
	"sync"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// batch is the reusable scratch of one WriteBatch.
type batch struct {
	room    []journal.Entry
	entries []*journal.Entry
}

var batchPool = sync.Pool{New: func() any { return &batch{} }}

// add turns a write into entries; an extent outside the device is refused.
func (b *batch) add(size int64, w *blockdev.Write) error {
	length := w.Length
	if !w.Zero && !w.Trim {
		length = int64(len(w.Data))
	}
	if w.Offset < 0 || length < 0 || w.Offset > size || length > size-w.Offset {
		return blockdev.ErrOutOfRange
	}
	op, step := journal.OpWrite, int64(maxRecordBytes)
	if w.Zero {
		op, step = journal.OpZero, maxZeroBytes
	} else if w.Trim {
		op, step = journal.OpTrim, maxZeroBytes
	}
	for at := int64(0); at < length; at += step {
		n := min(step, length-at)
		e := journal.Entry{Op: op, Offset: uint64(w.Offset + at), Length: uint32(n)}
		if op == journal.OpWrite {
			e.Payload = w.Data[at : at+n]
		}
		b.room = append(b.room, e)
	}
	return nil
}

// seal returns the entries of all writes added; none may be added after it.
func (b *batch) seal() []*journal.Entry {
	for i := range b.room {
		b.entries = append(b.entries, &b.room[i])
	}
	return b.entries
}

func (b *batch) fail(ws []blockdev.Write, err error) {
	for i := range ws {
		if ws[i].Err == nil {
			ws[i].Err = err
		}
	}
}

// failSynced is fail of those that ask for a sync.
func (b *batch) failSynced(ws []blockdev.Write, err error) {
	for i := range ws {
		if ws[i].Sync && ws[i].Err == nil {
			ws[i].Err = err
		}
	}
}

func (b *batch) release() {
	clear(b.room)
	b.room, b.entries = b.room[:0], b.entries[:0]
	batchPool.Put(b)
}
