package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"mirror-agent/blockdev"
)

// moveWorld is a host with two journal files and a directory that names one of them: its first byte.
type moveWorld struct {
	power    *blockdev.Power
	dir      *blockdev.Memory
	files    [2]*blockdev.Memory
	l        *Log
	appended [][]byte // payloads, in order
	durable  int      // of them
	lastTail LSN
}

// busyFile appends to the log before each of its writes, so that the log never stands still while it is copied.
type busyFile struct {
	*blockdev.Memory
	before func()
}

func (f busyFile) WriteAt(p []byte, off int64) (int, error) {
	f.before()
	return f.Memory.WriteAt(p, off)
}

func newMoveWorld(t *testing.T, from, to int64) *moveWorld {
	p := blockdev.NewPower()
	w := &moveWorld{power: p, dir: blockdev.NewMemory(512, p)}
	w.files = [2]*blockdev.Memory{blockdev.NewMemory(ringStart+from, p), blockdev.NewMemory(ringStart+to, p)}
	mustFormat(t, w.files[0], Anchor{Name: "move", Role: RolePrimary, Applied: 4096, AppliedChain: 9})
	w.l = mustOpen(t, w.files[0], Options{})
	for range 40 { // two laps and a half
		w.append(t, 60<<10)
		w.sync(t)
		if used := int64(w.l.Head() - w.l.Tail()); used > minRing/2 {
			to, _, err := w.l.BoundaryBefore(w.l.Head() - minRing/4)
			if err == nil {
				err = w.l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = to, to })
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	w.append(t, 1000) // not durable
	w.lastTail = w.l.Tail()
	return w
}

func (w *moveWorld) append(t *testing.T, size int) {
	p := bytes.Repeat([]byte{byte(len(w.appended))}, size)
	le.PutUint64(p, uint64(len(w.appended)))
	err := w.l.Append([]*Entry{write(uint64(len(w.appended)), p)})
	switch {
	case err == nil:
		w.appended = append(w.appended, p)
	case w.power.Lost() && errors.Is(err, ErrFailed):
		w.appended = append(w.appended, p) // it may be there
	case !errors.Is(err, ErrFull):
		t.Fatalf("append: %v", err)
	}
}

func (w *moveWorld) sync(t *testing.T) {
	n := len(w.appended)
	if _, err := w.l.Sync(w.l.Head()); err == nil {
		w.durable = n
	} else if !w.power.Lost() {
		t.Fatalf("sync: %v", err)
	}
}

func (w *moveWorld) place() error {
	_, err := w.dir.WriteAt([]byte{1}, 0)
	return errors.Join(err, w.dir.Sync())
}

func (w *moveWorld) move(t *testing.T) error {
	calls := 0
	f := busyFile{w.files[1], func() {
		if calls++; w.l.qmuFree() { // also in the last round: there is a rest to copy when the appends stop
			w.append(t, 3000)
			if calls%3 == 0 {
				w.sync(t)
			}
		}
	}}
	return w.l.MoveTo(context.Background(), f, w.place)
}

// qmuFree: nobody has the lead, so that an append from here would not wait for the caller.
func (l *Log) qmuFree() bool {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return !l.leading
}

// check opens the file that the directory names: everything durable is there, and nothing that was not appended.
func (w *moveWorld) check(t *testing.T) (moved bool, err error) {
	var name [1]byte
	if _, err := w.dir.ReadAt(name[:], 0); err != nil {
		return false, err
	}
	l, _, err := Open(w.files[name[0]], Options{})
	if err != nil {
		return false, fmt.Errorf("file %d: %w", name[0], err)
	}
	if l.Tail() < w.lastTail {
		return false, fmt.Errorf("tail went back from %d to %d", w.lastTail, l.Tail())
	}
	recs, err := readBack(l, l.Tail())
	if err != nil {
		return false, err
	}
	next := -1
	for _, r := range recs {
		p := r.raw[HeaderSize : HeaderSize+int(le.Uint32(r.raw[28:]))]
		n := int(le.Uint64(p))
		if next >= 0 && n != next || n >= len(w.appended) || !bytes.Equal(p, w.appended[n]) {
			return false, fmt.Errorf("record %d after %d", n, next-1)
		}
		next = n + 1
	}
	if next < w.durable {
		return false, fmt.Errorf("the log ends after %d records, %d were durable", next, w.durable)
	}
	if err := l.Verify(l.Tail(), l.Head()); err != nil {
		return false, err
	}
	if err := l.Append([]*Entry{write(0, []byte("on"))}); err != nil {
		return false, err
	}
	_, err = l.Sync(l.Head())
	return name[0] == 1, err
}

// The power goes at every write and every sync of a move, to a larger ring and to a smaller one: there is one whole log.
func TestMoveCrash(t *testing.T) {
	seed := uint64(20261123)
	for name, sizes := range map[string][2]int64{"grow": {minRing, 3 << 20}, "shrink": {3 << 20, minRing}, "same": {minRing, minRing}} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			seen := map[bool]int{}
			for n := 1; ; n++ {
				ended := false
				for range 5 { // what a disk may have kept
					w := newMoveWorld(t, sizes[0], sizes[1])
					w.power.CutAfter(n)
					err := w.move(t)
					if ended = err == nil; ended {
						w.power.Cut()
					}
					_ = w.l.Close()
					w.power.Restore(rng)
					moved, err := w.check(t)
					if err != nil {
						t.Fatalf("power lost at operation %d (seed %d): %v", n, seed, err)
					}
					if ended && !moved {
						t.Error("the move came to its end, and the old file bears the name")
					}
					seen[moved]++
				}
				if ended {
					t.Logf("%d operations, %v", n-1, seen)
					break
				}
			}
			if seen[false] < 50 || seen[true] < 6 {
				t.Errorf("old file %d times, new file %d times", seen[false], seen[true])
			}
		})
	}
}

// failing fails its n-th operation, once.
type failing struct {
	*blockdev.Memory
	left *int
}

func (f failing) op() error {
	if *f.left--; *f.left == 0 {
		return errIO
	}
	return nil
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if err := f.op(); err != nil {
		return 0, err
	}
	return f.Memory.WriteAt(p, off)
}

func (f failing) Sync() error {
	if err := f.op(); err != nil {
		return err
	}
	return f.Memory.Sync()
}

// Every operation on the new file fails once: the log goes on in the old one. When place fails the log is at its end.
func TestMoveFailures(t *testing.T) {
	for n := 1; ; n++ {
		w := newMoveWorld(t, minRing, 2<<20)
		left := n
		err := w.l.MoveTo(t.Context(), failing{w.files[1], &left}, w.place)
		if err == nil {
			if n < 6 {
				t.Errorf("only %d operations", n-1)
			}
			break
		}
		if !errors.Is(err, errIO) || errors.Is(err, ErrFailed) || w.l.Failed() != nil || w.l.Capacity() != minRing {
			t.Fatalf("operation %d: %v; log: %v, capacity %d", n, err, w.l.Failed(), w.l.Capacity())
		}
		w.append(t, 2000)
		w.sync(t)
		if w.durable != len(w.appended) {
			t.Fatal("nothing was appended")
		}
		if moved, err := w.check(t); err != nil || moved {
			t.Fatalf("operation %d: moved %v, %v", n, moved, err)
		}
	}
	w := newMoveWorld(t, minRing, 2<<20)
	if err := w.l.MoveTo(t.Context(), w.files[1], func() error { return errIO }); !errors.Is(err, ErrFailed) || !errors.Is(err, errIO) {
		t.Errorf("place failed: %v", err)
	}
	if err := w.l.Append([]*Entry{write(0, []byte("a"))}); !errors.Is(err, ErrFailed) {
		t.Errorf("append after that: %v", err)
	}
}

func TestMoveRefusals(t *testing.T) {
	l, _ := newLogFile(t, ringStart+4<<20, Options{})
	for range 20 {
		if err := l.Append([]*Entry{write(0, make([]byte, 100<<10))}); err != nil {
			t.Fatal(err)
		}
	}
	never := func() error { t.Error("place was called"); return nil }
	err := l.MoveTo(t.Context(), newMemFile(MinSize), never)
	if !errors.Is(err, ErrTooSmall) || l.Capacity() != 4<<20 || !bytes.Contains([]byte(err.Error()), []byte(fmt.Sprint(int64(l.Head())))) {
		t.Errorf("%v; capacity %d", err, l.Capacity())
	}
	if err := l.MoveTo(t.Context(), newMemFile(MinSize-1), never); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.MoveTo(ctx, newMemFile(ringStart+4<<20), never); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	cutting := &cutFile{memFile: newMemFile(ringStart + 4<<20), l: l}
	if err := l.MoveTo(t.Context(), cutting, never); !errors.Is(err, ErrCut) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.MoveTo(t.Context(), newMemFile(ringStart+4<<20), never); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// A damaged log has promised records beyond its head, which would stay behind.
func TestMoveDamaged(t *testing.T) {
	image, _, want := journalWithPromise(t, RolePrimary)
	image[(&ring{size: minRing}).offset(want.recs[1].at+70)] ^= 4
	l := mustOpen(t, memFileOf(image), Options{Damaged: true})
	if l.Damaged() == 0 {
		t.Fatal("not damaged")
	}
	err := l.MoveTo(t.Context(), newMemFile(ringStart+2<<20), func() error { t.Error("place was called"); return nil })
	if !errors.Is(err, ErrCorrupt) || l.Failed() != nil {
		t.Errorf("%v; log: %v", err, l.Failed())
	}
}

// cutFile cuts the log once the copy has begun.
type cutFile struct {
	*memFile
	l    *Log
	syns int
}

func (f *cutFile) Sync() error {
	if f.syns++; f.syns == 3 {
		if err := f.l.Cut(0); err != nil {
			return err
		}
	}
	return f.memFile.Sync()
}

// A move to a smaller ring holds the writers to that one at once; when it is broken off they get the old one back.
func TestMoveHoldsWriters(t *testing.T) {
	l, _ := newLogFile(t, ringStart+4<<20, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	full := false
	f := &hookFile{memFile: newMemFile(MinSize), before: func() {
		for !full {
			err := l.Append([]*Entry{write(0, make([]byte, 10<<10))})
			full = errors.Is(err, ErrFull)
			if err != nil && !full {
				t.Error(err)
				return
			}
		}
		if used := int64(l.Head()); used > minRing-Reserve || used < minRing-Reserve-20<<10 {
			t.Errorf("full with %d bytes", used)
		}
		cancel()
	}}
	if err := l.MoveTo(ctx, f, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := l.Append([]*Entry{write(0, make([]byte, 10<<10))}); err != nil {
		t.Errorf("broken off: %v", err)
	}
}

// The old file is closed in the middle of a read: it is read in the new one.
func TestMoveUnderReader(t *testing.T) {
	old := &closingReader{closingFile: closingFile{memFile: newMemFile(MinSize)}}
	mustFormat(t, old, Anchor{Role: RolePrimary})
	l := mustOpen(t, old, Options{})
	e := write(0, bytes.Repeat([]byte("data"), 1000))
	if err := l.Append([]*Entry{e, {Op: OpTrim, Length: 8}}); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() error{
		"data": func() error {
			p := make([]byte, 4000)
			err := l.ReadData(p, e.Data)
			if err == nil && !bytes.Equal(p, e.Payload) {
				err = errors.New("other bytes")
			}
			return err
		},
		"raw":  func() error { _, err := l.ReadRaw(0, make([]byte, 8000)); return err },
		"scan": func() error { return l.Scan(0, l.Head(), func(Record) error { return nil }) },
	} {
		next := &closingReader{closingFile: closingFile{memFile: newMemFile(ringStart + 2<<20)}}
		moved := false
		l.ring.Load().f.(*closingReader).before = func() {
			if !moved {
				moved = true
				if err := l.MoveTo(t.Context(), next, func() error { return nil }); err != nil {
					t.Error(err)
				}
			}
		}
		if err := read(); err != nil || !moved {
			t.Errorf("%s: %v, moved %v", name, err, moved)
		}
	}
}

type closingReader struct {
	closingFile
	before func()
}

func (f *closingReader) ReadAt(p []byte, off int64) (int, error) {
	if f.before != nil {
		f.before()
	}
	return f.closingFile.ReadAt(p, off)
}

// The horizon of the new file counts, also when the old one's lay further.
func TestMoveHorizon(t *testing.T) {
	l, _ := newLogFile(t, ringStart+8<<20, Options{})
	f := newMemFile(MinSize)
	if err := l.MoveTo(t.Context(), f, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	for int64(l.Head()) < minRing-Reserve-20<<10 {
		if err := l.Append([]*Entry{write(0, make([]byte, 10<<10))}); err != nil {
			t.Fatal(err)
		}
	}
	if r := mustOpen(t, f, Options{}); r.Head() != l.Head() {
		t.Errorf("reopened: head %d, was %d", r.Head(), l.Head())
	}
}

type hookFile struct {
	*memFile
	before func()
}

func (f *hookFile) WriteAt(p []byte, off int64) (int, error) {
	f.before()
	return f.memFile.WriteAt(p, off)
}

// closingFile refuses to be read once it is closed, as a real one does.
type closingFile struct {
	*memFile
	gone atomic.Bool
}

func (f *closingFile) ReadAt(p []byte, off int64) (int, error) {
	if f.gone.Load() {
		return 0, errors.New("file is closed")
	}
	return f.memFile.ReadAt(p, off)
}

func (f *closingFile) Close() error {
	f.gone.Store(true)
	return nil
}

// Writers, a tail mover, readers of every kind, and moves between three sizes, all at once.
func TestMoveConcurrent(t *testing.T) {
	sizes := []int64{2 << 20, minRing, 3 << 20}
	f := &closingFile{memFile: newMemFile(ringStart + sizes[0])}
	mustFormat(t, f, Anchor{Role: RolePrimary})
	l := mustOpen(t, f, Options{})
	var wg, readers sync.WaitGroup
	var done atomic.Bool
	for i := range 4 {
		wg.Go(func() {
			e := []*Entry{nil}
			for n := 0; !done.Load(); n++ {
				changed := l.Changed()
				e[0] = write(uint64(i), bytes.Repeat([]byte{byte(i), byte(n)}, 50+(n*997)%3000))
				err := l.Append(e)
				if errors.Is(err, ErrFull) && !done.Load() {
					<-changed
				} else if err != nil && !errors.Is(err, ErrFull) {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	readers.Go(func() { // the tail follows
		for !done.Load() {
			head, err := l.Sync(l.Head())
			if err != nil {
				t.Errorf("sync: %v", err)
				return
			}
			to, _, err := l.BoundaryBefore(head - min(head, 200<<10))
			if err == nil {
				err = l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = max(to, a.Applied), max(to, a.Tail) })
			}
			if err != nil {
				t.Errorf("anchor: %v", err)
				return
			}
		}
	})
	readers.Go(func() { readEverything(t, l, &done) })
	readers.Go(func() {
		for !done.Load() {
			if err := l.Verify(l.Tail(), l.Head()); err != nil && !errors.Is(err, ErrGone) {
				t.Errorf("verify: %v", err)
				return
			}
		}
	})
	moves := 0
	for i := 1; moves < 12; i++ {
		next := &closingFile{memFile: newMemFile(ringStart + sizes[i%len(sizes)])}
		err := l.MoveTo(t.Context(), next, func() error { return nil })
		if errors.Is(err, ErrTooSmall) { // a writer was faster than the tail
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !f.gone.Load() || l.Capacity() != sizes[i%len(sizes)] {
			t.Fatalf("old file closed: %v, capacity %d", f.gone.Load(), l.Capacity())
		}
		f = next
		moves++
	}
	done.Store(true)
	l.notify()
	wg.Wait()
	l.notify()
	readers.Wait()
	end, chain := l.HeadChain()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, f.memFile, Options{})
	if head, c := l.HeadChain(); head != end || c != chain {
		t.Errorf("reopened: %d %x, was %d %x", head, c, end, chain)
	}
	if err := l.Verify(l.Tail(), l.Head()); err != nil {
		t.Error(err)
	}
}
