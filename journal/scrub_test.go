package journal

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// scrubbed reads a log from tail to head as an owner does, and returns where it met rot first.
func scrubbed(l *Log, slice int64) (at LSN, err error) {
	for at = l.Tail(); at < l.Head(); {
		next, err := l.Scrub(at, l.Head(), slice)
		if err != nil {
			return next, err
		}
		if next <= at {
			return at, errors.New("no step forward")
		}
		at = next
	}
	return at, nil
}

// TestMend: a few bytes of records rot, anywhere, in a ring that has gone around. A scrub finds them, and a copy of the log puts
// them right: byte for byte what was there, and nothing else is touched. A copy of another history is refused.
func TestMend(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l, f := newLogFile(t, MinSize, Options{})
		defer l.Close()
		sizes := rapid.SliceOfN(rapid.IntRange(0, 30000), 30, 60).Draw(rt, "sizes")
		for i, n := range sizes {
			if err := l.Append([]*Entry{write(uint64(i), bytes.Repeat([]byte{byte(i + 1)}, n+1))}); errors.Is(err, ErrFull) {
				if _, err := l.Sync(l.Head()); err != nil {
					rt.Fatal(err)
				}
				at, _, err := l.BoundaryBefore(l.Head() - 300<<10)
				if err == nil {
					err = l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = at, at })
				}
				if err != nil {
					rt.Fatal(err)
				}
			} else if err != nil {
				rt.Fatal(err)
			}
		}
		if _, err := l.Sync(l.Head()); err != nil {
			rt.Fatal(err)
		}
		var recs []Record
		if err := l.Scan(l.Tail(), l.Head(), func(r Record) error { recs = append(recs, r); return nil }); err != nil {
			rt.Fatal(err)
		}
		good := bytes.Clone(f.data)
		first := rapid.IntRange(0, len(recs)-1).Draw(rt, "record")
		last := min(len(recs)-1, first+rapid.IntRange(0, 3).Draw(rt, "records"))
		for i := first; i <= last; i++ {
			in := recs[i].LSN + LSN(rapid.Int64Range(0, HeaderSize+int64(recs[i].PayloadLen)-1).Draw(rt, "byte"))
			f.data[l.ring.Load().offset(in)] ^= byte(rapid.IntRange(1, 255).Draw(rt, "bits"))
		}
		slice := rapid.Int64Range(1, 1<<20).Draw(rt, "slice")
		copied := good[ringStart:]
		raw := func(from, to LSN) []byte {
			b := make([]byte, to-from)
			for i := range b {
				b[i] = copied[(uint64(from)+uint64(i))%uint64(l.ring.Load().size)]
			}
			return b
		}
		for range last - first + 1 {
			_, err := scrubbed(l, slice)
			if err == nil {
				break
			}
			var rot *CorruptError
			if !errors.As(err, &rot) || rot.LSN < recs[first].LSN || rot.LSN > recs[last].LSN {
				rt.Fatalf("rot in [%d, %d]: %v", recs[first].LSN, recs[last].LSN, err)
			}
			bad := bytes.Clone(f.data)
			wrong := raw(rot.LSN, l.Head())
			wrong[HeaderSize] ^= 1
			if r, err := decodeHeader(wrong); err != nil {
				rt.Fatal(err)
			} else { // with the hash that belongs to it: another history
				le.PutUint64(wrong[48:], checksum(wrong[HeaderSize:HeaderSize+int(r.PayloadLen)]))
			}
			if _, err := l.Mend(rot.LSN, wrong); err == nil || !bytes.Equal(f.data, bad) {
				rt.Fatalf("another history was taken: %v", err)
			}
			rotten := raw(rot.LSN, l.Head())
			rotten[HeaderSize] ^= 1 // of this history, and not what it says
			if _, err := l.Mend(rot.LSN, rotten); !errors.Is(err, ErrCorrupt) || !bytes.Equal(f.data, bad) {
				rt.Fatalf("a rotten copy was taken: %v", err)
			}
			end, err := l.Mend(rot.LSN, raw(rot.LSN, l.Head()))
			if err != nil || end > recs[last].End() {
				rt.Fatalf("mended up to %d, rot ends at %d: %v", end, recs[last].End(), err)
			}
		}
		if at, err := scrubbed(l, slice); err != nil || at != l.Head() {
			rt.Fatalf("after it was mended: %d, %v", at, err)
		}
		if !bytes.Equal(f.data, good) {
			rt.Fatal("not byte for byte what it was")
		}
	})
}

// TestMendNeedsMore: a copy that ends before the log is sound again changes nothing and says so.
func TestMendNeedsMore(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	defer l.Close()
	var ends []LSN
	for i := range 5 {
		e := write(uint64(i), bytes.Repeat([]byte{byte(i)}, 100))
		if err := l.Append([]*Entry{e}); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, e.End)
	}
	good := make([]byte, l.Head())
	if _, err := l.ReadRaw(0, good); err != nil {
		t.Fatal(err)
	}
	for _, at := range []LSN{ends[0], ends[1]} { // two headers
		f.data[l.ring.Load().offset(at)+20] ^= 1
	}
	bad := bytes.Clone(f.data)
	if _, err := l.Mend(ends[0], good[ends[0]:ends[1]]); !errors.Is(err, ErrNotMended) || !bytes.Equal(bad, f.data) {
		t.Errorf("one record of two: %v", err)
	}
	if _, err := l.Mend(ends[0], good[ends[0]:ends[1]-8]); !errors.Is(err, ErrChain) && !errors.Is(err, ErrInvalid) || !bytes.Equal(bad, f.data) {
		t.Errorf("half a record: %v", err)
	}
	if _, err := l.Mend(ends[0], good[ends[1]:]); !errors.Is(err, ErrChain) || !bytes.Equal(bad, f.data) {
		t.Errorf("records of another place: %v", err)
	}
	if _, err := l.Mend(l.Head()+64, good); !errors.Is(err, ErrBeyondHead) {
		t.Errorf("beyond the head: %v", err)
	}
	if end, err := l.Mend(ends[0], good[ends[0]:]); err != nil || end != ends[2] {
		t.Errorf("%d, %v", end, err)
	}
	if err := l.Verify(0, l.Head()); err != nil {
		t.Error(err)
	}
}

// TestAppendUnless: whoever asks sees all that was appended before, and nothing comes in between: of many who append what they saw
// plus one, unless somebody else did meanwhile, all numbers get in, each once.
func TestAppendUnless(t *testing.T) {
	var newest atomic.Uint64
	var seen []uint64
	f := newMemFile(MinSize + 1<<20)
	mustFormat(t, f, Anchor{Role: RolePrimary})
	l := mustOpen(t, f, Options{OnAppend: func(es []*Entry) {
		for _, e := range es {
			if e.Op == OpWrite {
				newest.Store(e.Offset)
				seen = append(seen, e.Offset)
			}
		}
	}})
	defer l.Close()
	var wg sync.WaitGroup
	var stale atomic.Int64
	const all, writers = 400, 8
	for w := range writers {
		wg.Go(func() {
			for {
				saw := newest.Load()
				if saw >= all {
					return
				}
				if w%2 == 0 { // others, who ask nothing
					if err := l.Append([]*Entry{{Op: OpTrim, Offset: 0, Length: 1}}); err != nil {
						t.Error(err)
						return
					}
				}
				err := l.AppendUnless([]*Entry{write(saw+1, []byte{1})}, func() bool { return newest.Load() != saw })
				if errors.Is(err, ErrStale) {
					stale.Add(1)
				} else if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != all {
		t.Fatalf("%d records of %d", len(seen), all)
	}
	for i, n := range seen {
		if n != uint64(i)+1 {
			t.Fatalf("record %d is number %d", i, n)
		}
	}
	if stale.Load() == 0 {
		t.Log("nobody was ever late: this run shows little")
	}
	before := l.Head()
	if err := l.AppendUnless([]*Entry{write(1, []byte{1})}, func() bool { return true }); !errors.Is(err, ErrStale) || l.Head() != before {
		t.Errorf("%v, head %d → %d", err, before, l.Head())
	}
}

// TestAppendUnlessAsksLast: entries that wait behind others in one queue are asked after these were told to OnAppend.
func TestAppendUnlessAsksLast(t *testing.T) {
	var told atomic.Int64
	hold, held := make(chan struct{}), make(chan struct{})
	f := newMemFile(MinSize)
	mustFormat(t, f, Anchor{Role: RolePrimary})
	l := mustOpen(t, f, Options{OnAppend: func(es []*Entry) {
		if es[0].Op == OpTrim {
			close(held)
			<-hold
		}
		told.Add(int64(len(es)))
	}})
	defer l.Close()
	var wg sync.WaitGroup
	begin := func(n int, append func() error) {
		t.Helper()
		wg.Go(func() {
			if err := append(); err != nil {
				t.Error(err)
			}
		})
		for queued := 0; queued != n; {
			l.qmu.Lock()
			queued = 0
			for k := l.first; k != nil; k = k.next {
				queued++
			}
			l.qmu.Unlock()
			runtime.Gosched()
		}
	}
	begin(0, func() error { return l.Append([]*Entry{{Op: OpTrim, Length: 1}}) })
	<-held
	begin(1, func() error { return l.Append([]*Entry{write(0, []byte{1})}) })
	asked := int64(-1)
	begin(2, func() error {
		return l.AppendUnless([]*Entry{write(0, []byte{2})}, func() bool { asked = told.Load(); return false })
	})
	begin(3, func() error { return l.Append([]*Entry{write(0, []byte{3})}) })
	close(hold)
	wg.Wait()
	if asked != 2 || told.Load() != 4 {
		t.Errorf("asked when %d records were told, 2 came before; %d in all", asked, told.Load())
	}
}
