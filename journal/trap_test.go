package journal

import (
	"bytes"
	"errors"
	"testing"
)

// readHook runs once, in the middle of the next read: after the bytes were taken or, torn, after half of them.
type readHook struct {
	*memFile
	hook func()
	torn bool
}

func (r *readHook) ReadAt(p []byte, off int64) (int, error) {
	hook := r.hook
	if r.hook = nil; hook != nil && !r.torn {
		hook()
	} else if hook != nil {
		if _, err := r.memFile.ReadAt(p[:len(p)/2], off); err != nil {
			return 0, err
		}
		hook()
		n, err := r.memFile.ReadAt(p[len(p)/2:], off+int64(len(p)/2))
		return n + len(p)/2, err
	}
	return r.memFile.ReadAt(p, off)
}

// The tail passes a reader inside its read, and the space is written again.
func TestReadWhileRecycled(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	payload := make([]byte, 100<<10)
	first := write(0, bytes.Clone(payload))
	fill := func() {
		for {
			if err := l.Append([]*Entry{write(1, payload)}); err != nil {
				return
			}
		}
	}
	if err := l.Append([]*Entry{first}); err != nil {
		t.Fatal(err)
	}
	fill()
	recycle := func() {
		if _, err := l.Sync(l.Head()); err != nil {
			t.Error(err)
		}
		head := l.Head()
		if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = head, head }); err != nil {
			t.Error(err)
		}
		for i := range payload {
			payload[i] = 0xee
		}
		fill()
	}
	h := &readHook{memFile: f, hook: recycle}
	l.ring.Load().f = h
	if err := l.ReadData(make([]byte, 1000), first.Data); !errors.Is(err, ErrGone) {
		t.Errorf("data: %v", err)
	}
	at := l.Tail()
	h.hook = recycle
	if _, err := l.ReadRaw(at, make([]byte, 200<<10)); !errors.Is(err, ErrGone) {
		t.Errorf("raw: %v", err)
	}
}

// A cut and a new append go on inside a read: it yields the old or the new, never both.
func TestReadWhileCut(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	old := write(0, bytes.Repeat([]byte{1}, 5000))
	if err := l.Append([]*Entry{old}); err != nil {
		t.Fatal(err)
	}
	h := &readHook{memFile: f, torn: true}
	l.ring.Load().f = h
	h.hook = func() {
		if err := l.Cut(0); err != nil {
			t.Error(err)
		}
		if err := l.Append([]*Entry{write(0, bytes.Repeat([]byte{2}, 5000))}); err != nil {
			t.Error(err)
		}
	}
	p := make([]byte, 5000)
	if err := l.ReadData(p, old.Data); err != nil || p[0] != p[4999] {
		t.Errorf("%v: %d … %d", err, p[0], p[4999])
	}
}

// Space is free only when the anchor that frees it is durable.
func TestTailWaitsForAnchor(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	if err := l.Append([]*Entry{write(0, []byte("a"))}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Sync(l.Head()); err != nil {
		t.Fatal(err)
	}
	seen := 0
	f.onOp = func(*memFile) {
		if seen++; l.Tail() != 0 || l.Applied() != 0 {
			t.Errorf("tail %d, applied %d before the anchor is durable", l.Tail(), l.Applied())
		}
	}
	if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = l.Head(), l.Head() }); err != nil || seen != 2 || l.Tail() != l.Head() {
		t.Errorf("%v, %d operations, tail %d", err, seen, l.Tail())
	}
}

func TestPaddingIsZero(t *testing.T) {
	l, _ := newLogFile(t, MinSize, Options{})
	for n := range 40 { // the buffers are used again, shifted
		es := []*Entry{write(1<<40-1, bytes.Repeat([]byte{0xff}, 1+n%9)), write(7, bytes.Repeat([]byte{0xff}, 1+n%5))}
		if err := l.Append(es); err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			pad := make([]byte, -len(e.Payload)&7)
			if err := l.ReadData(pad, e.Data+LSN(len(e.Payload))); err != nil || !allZero(pad) {
				t.Fatalf("padding %x, %v", pad, err)
			}
		}
	}
}

// What recovery finds beyond a torn record and must not take for proof of rot.
func TestFalseProof(t *testing.T) {
	image, _, want := journalWithPromise(t, RolePrimary)
	r := newRing(nil, minRing)
	last := want.recs[5]
	put := func(f *memFile, b []byte, at LSN) {
		for i, c := range b {
			f.data[r.offset(at+LSN(i))] = c
		}
	}
	header := func(at, promise LSN, previous uint64) ([]byte, uint64) {
		rec := Record{Op: OpTrim, Length: 8, LSN: at, Durable: promise}
		b := make([]byte, HeaderSize)
		rec.encode(b, previous)
		return b, rec.Chain
	}
	there := last.end + 800 // far beyond the torn record
	for _, c := range []struct {
		name   string
		plant  func(f *memFile)
		refuse bool
	}{
		{"nothing", func(*memFile) {}, false},
		{"two records by chain", func(f *memFile) {
			b, chain := header(there, there, 3)
			put(f, b, there)
			b, _ = header(there+64, there, chain)
			put(f, b, there+64)
		}, true},
		{"two records, not by chain", func(f *memFile) {
			b, _ := header(there, there, 3)
			put(f, b, there)
			b, _ = header(there+64, there, 4)
			put(f, b, there+64)
		}, false},
		{"two records of the next lap", func(f *memFile) {
			b, chain := header(there+minRing, there+minRing, 3)
			put(f, b, there)
			b, _ = header(there+minRing+64, there+minRing, chain)
			put(f, b, there+64)
		}, false},
		{"one record", func(f *memFile) {
			b, _ := header(there, there, 3)
			put(f, b, there)
		}, false},
	} {
		f := memFileOf(image)
		f.data[r.offset(last.at)] ^= 1 // torn: nobody promised the last record
		f.data[r.offset(last.at+57)] ^= 1
		c.plant(f)
		f.synced = bytes.Clone(f.data)
		l, rec, err := Open(f, Options{})
		if c.refuse {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || l.Head() != last.at || !rec.Cut && c.name == "one record" {
			t.Errorf("%s: %v, want a cut at %d", c.name, err, last.at)
			continue
		}
		// neither the torn header nor what lay beyond is left, on the disk
		for at := last.at; at < last.at+HeaderSize; at++ {
			if f.synced[r.offset(at)] != 0 {
				t.Fatalf("%s: the torn header is still there", c.name)
			}
		}
		err = l.ring.Load().candidates(last.at, LSN(minRing)+l.Tail(), false, func(rec Record, _ LSN) error {
			t.Errorf("%s: a record at %d is still there", c.name, rec.LSN)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
