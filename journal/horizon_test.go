package journal

import (
	"bytes"
	"testing"
)

// readCounter counts the bytes that are read of the ring.
type readCounter struct {
	*memFile
	bytes int64
}

func (r *readCounter) ReadAt(p []byte, off int64) (int, error) {
	if off >= ringStart {
		r.bytes += int64(len(p))
	}
	return r.memFile.ReadAt(p, off)
}

// Open reads no more of the free part of the ring than lies before the horizon, and that it reads.
func TestOpenReadsToHorizon(t *testing.T) {
	const ring = 16 << 20
	l, f := newLogFile(t, ringStart+ring, Options{})
	if err := l.Append([]*Entry{write(0, make([]byte, 5000))}); err != nil {
		t.Fatal(err)
	}
	c := &readCounter{memFile: f}
	mustOpen(t, c, Options{})
	step := int64(horizonStep(ring))
	if c.bytes < step || c.bytes > step+step/2 {
		t.Errorf("%d bytes read, horizon %d", c.bytes, step)
	}

	d, err := readSlots(f)
	if err != nil {
		t.Fatal(err)
	}
	d.Sequence++
	d.horizon = 0 // an older version's
	copy(f.data[slotOffset(d.Sequence):], d.encode())
	c.bytes = 0
	l = mustOpen(t, c, Options{})
	if c.bytes < ring-(1<<20) {
		t.Errorf("no horizon: %d bytes read of a ring of %d", c.bytes, ring)
	}
	if err := l.Append([]*Entry{write(0, []byte("a"))}); err != nil {
		t.Fatal(err)
	}
	if d, err := readSlots(f); err != nil || d.horizon < l.Head() || d.horizon > l.Head()+2*LSN(step) {
		t.Errorf("after the first append: %+v, %v", d, err)
	}
}

// Before a record is in the file an anchor that allows it is on the disk, also when one record goes beyond everything.
func TestHorizonFirst(t *testing.T) {
	for _, raw := range []bool{false, true} {
		l, f := newLogFile(t, MinSize, Options{})
		e := write(0, bytes.Repeat([]byte{1}, minRing-Reserve-HeaderSize))
		writes := 0
		f.onOp = func(f *memFile) {
			if n := len(f.dirty); n > slotSectors { // the record
				writes++
				if d, err := readSlots(memFileOf(f.synced)); err != nil || d.horizon < e.LSN+LSN(RecordSize(len(e.Payload))) {
					t.Errorf("raw=%v: written with the durable horizon %d, %v", raw, d.horizon, err)
				}
			}
		}
		if raw {
			other, _ := newLogFile(t, MinSize, Options{})
			if err := other.Append([]*Entry{e}); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, RecordSize(len(e.Payload)))
			if _, err := other.ReadRaw(e.LSN, b); err != nil {
				t.Fatal(err)
			}
			if _, err := l.AppendRaw(e.LSN, b); err != nil {
				t.Fatal(err)
			}
		} else if err := l.Append([]*Entry{e}); err != nil {
			t.Fatal(err)
		}
		if writes == 0 {
			t.Error("the test saw no write")
		}
		f.onOp = nil
		if l = mustOpen(t, f, Options{}); l.Head() != e.LSN+LSN(RecordSize(len(e.Payload))) {
			t.Errorf("reopened: head %d", l.Head())
		}
	}
}
