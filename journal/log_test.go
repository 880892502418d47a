package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// A log behaves like a slice of records, whatever is done to it.
func TestLogLikeSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { // it shrinks what fails, and prints the seed, when it is told by its own t
		w := newWorld(t, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3)))
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, allSteps-1), 1, 40).Draw(t, "steps") {
			w.step(n)
		}
		w.mustEqual()
	})
}

func newLogFile(t testing.TB, size int64, o Options) (*Log, *memFile) {
	t.Helper()
	f := newMemFile(size)
	mustFormat(t, f, Anchor{Role: RolePrimary})
	return mustOpen(t, f, o), f
}

func TestFormatRefusesSmallFile(t *testing.T) {
	if err := Format(newMemFile(MinSize-1), Anchor{}); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	if _, err := ReadAnchor(newMemFile(MinSize)); !errors.Is(err, ErrNoAnchor) {
		t.Error(err)
	}
	if _, _, err := Open(newMemFile(100), Options{}); !errors.Is(err, ErrNoAnchor) {
		t.Error(err)
	}
	f := newMemFile(MinSize + 1<<20)
	mustFormat(t, f, Anchor{})
	f.data = f.data[:MinSize]
	if _, _, err := Open(f, Options{}); !errors.Is(err, ErrTooSmall) {
		t.Errorf("truncated file: %v", err)
	}
}

// A file that was formatted again has forgotten everything, also what would continue the new chain.
func TestFormatForgets(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	for i := range 10 {
		if err := l.Append([]*Entry{write(0, make([]byte, 100*i+1))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sync(l.Head()); err != nil {
		t.Fatal(err)
	}
	mustFormat(t, f, Anchor{Role: RolePrimary})
	l, r, err := Open(f, Options{})
	if err != nil || l.Head() != 0 || r.Cut {
		t.Fatalf("head %d, %+v, %v", l.Head(), r, err)
	}
}

func TestFullAndReserve(t *testing.T) {
	for _, vectors := range []bool{true, false} {
		t.Run(fmt.Sprintf("vectors=%v", vectors), func(t *testing.T) {
			f := newMemFile(MinSize)
			mustFormat(t, f, Anchor{})
			var file File = f
			if !vectors {
				file = plainFile{f}
			}
			l := mustOpen(t, file, Options{})
			payload := bytes.Repeat([]byte("abcdefg"), 1000)
			var err error
			n := 0
			for ; err == nil; n++ {
				if free := l.Free(); free < RecordSize(len(payload)) {
					err = l.Append([]*Entry{write(0, payload)})
					if !errors.Is(err, ErrFull) {
						t.Fatalf("%d bytes free, append: %v", free, err)
					}
					break
				}
				err = l.Append([]*Entry{write(uint64(n), payload)})
			}
			head := l.Head()
			two := []*Entry{{Op: OpTrim, Length: 1}, write(0, payload)}
			if err := l.Append(two); !errors.Is(err, ErrFull) || !errors.Is(two[0].Err, ErrFull) || l.Head() != head {
				t.Fatalf("half a call was written: %v, head %d → %d", err, head, l.Head())
			}
			for err = nil; err == nil; { // the reserve, to the last byte
				err = l.Append([]*Entry{{Op: OpCheckpoint, Payload: payload[:4096-64]}})
			}
			for err = nil; err == nil; {
				err = l.Append([]*Entry{{Op: OpGeneration}})
			}
			if left := l.Capacity() - int64(l.Head()); left >= HeaderSize || l.Free() != 0 {
				t.Errorf("%d bytes left, %d free", left, l.Free())
			}
			if err := l.Append([]*Entry{write(0, make([]byte, l.Capacity()-Reserve))}); !errors.Is(err, ErrTooLarge) {
				t.Error(err)
			}
			end := l.Head()
			l = mustOpen(t, file, Options{}) // the tail's own header lies right behind the head
			if l.Head() != end {
				t.Fatalf("reopened: head %d of %d", l.Head(), end)
			}
			if err := l.Verify(0, end); err != nil {
				t.Fatal(err)
			}
			if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = head, head }); err != nil {
				t.Fatal(err)
			}
			if err := l.Append([]*Entry{write(0, payload)}); err != nil {
				t.Fatal(err)
			}
			if _, err := l.ReadRaw(0, make([]byte, 100)); !errors.Is(err, ErrGone) {
				t.Error(err)
			}
		})
	}
}

func TestReaders(t *testing.T) {
	l, _ := newLogFile(t, MinSize, Options{})
	es := []*Entry{write(5, []byte("hello")), {Op: OpTrim, Offset: 1, Length: 2}, write(6, make([]byte, 1000))}
	if err := l.Append(es); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if err := l.ReadData(p, es[0].Data); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	if err := l.ReadData(p, l.Head()-4); !errors.Is(err, ErrBeyondHead) {
		t.Error(err)
	}
	var short ErrShortBuffer
	if _, err := l.ReadRaw(0, make([]byte, 10)); !errors.As(err, &short) || short.Need != 72 {
		t.Error(err)
	}
	if _, err := l.ReadRaw(es[2].LSN, make([]byte, 500)); !errors.As(err, &short) || short.Need != 1064 {
		t.Error(err)
	}
	if n, err := l.ReadRaw(0, make([]byte, 1000)); n != 136 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := l.ReadRaw(l.Head(), nil); err != io.EOF {
		t.Error(err)
	}
	if _, err := l.ReadRaw(8, make([]byte, 1000)); !errors.Is(err, ErrNotBoundary) {
		t.Error(err)
	}
	if _, err := l.ReadRaw(l.Head()-8, make([]byte, 1000)); !errors.Is(err, ErrNotBoundary) {
		t.Error(err)
	}
	if _, err := l.ReadRaw(l.Head()+8, make([]byte, 1000)); !errors.Is(err, ErrBeyondHead) {
		t.Error(err)
	}
	if _, err := l.ChainAt(16); !errors.Is(err, ErrNotBoundary) {
		t.Error(err)
	}
	if _, err := l.ChainAt(l.Head() + 8); !errors.Is(err, ErrBeyondHead) {
		t.Error(err)
	}
	var ops []Op
	if err := l.Scan(72, l.Head(), func(r Record) error { ops = append(ops, r.Op); return nil }); err != nil || !slices.Equal(ops, []Op{OpTrim, OpWrite}) {
		t.Error(ops, err)
	}
	if err := l.Scan(0, l.Head(), func(r Record) error { return io.ErrNoProgress }); err != io.ErrNoProgress {
		t.Error(err)
	}
}

// What a follower gets is what the source has; what is damaged on the way is not taken.
func TestAppendRaw(t *testing.T) {
	source, _ := newLogFile(t, MinSize, Options{})
	var got []LSN
	target, _ := newLogFile(t, MinSize, Options{OnAppend: func(es []*Entry) {
		for _, e := range es {
			got = append(got, e.LSN)
		}
	}})
	for i := range 30 {
		if err := source.Append([]*Entry{write(uint64(i), make([]byte, 1+i*100)), {Op: OpZero, Length: 9}}); err != nil {
			t.Fatal(err)
		}
	}
	raw := make([]byte, 64<<10)
	n, err := source.ReadRaw(0, raw)
	if err != nil {
		t.Fatal(err)
	}
	raw = raw[:n]
	for i := 0; i < n; i += 7 {
		raw[i] ^= 0x10
		if _, err := target.AppendRaw(0, raw); !errors.Is(err, ErrChain) && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d damaged: %v", i, err)
		}
		raw[i] ^= 0x10
	}
	if _, err := target.AppendRaw(0, raw[:n-8]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half a record: %v", err)
	}
	if _, err := target.AppendRaw(8, raw); !errors.Is(err, ErrChain) {
		t.Error(err)
	}
	if target.Head() != 0 || len(got) != 0 {
		t.Fatal("something refused was written")
	}
	end, err := target.AppendRaw(0, raw)
	if err != nil || end != source.Head() || len(got) != 60 {
		t.Fatalf("%d, %v, %d entries", end, err, len(got))
	}
	a, ca := source.HeadChain()
	b, cb := target.HeadChain()
	if a != b || ca != cb {
		t.Errorf("%d %x, %d %x", a, ca, b, cb)
	}
	if _, err := target.AppendRaw(end, raw); !errors.Is(err, ErrChain) {
		t.Error(err)
	}
}

func TestAnchorRules(t *testing.T) {
	l, _ := newLogFile(t, MinSize, Options{})
	var lsns []LSN
	for range 5 {
		e := write(0, make([]byte, 64))
		if err := l.Append([]*Entry{e}); err != nil {
			t.Fatal(err)
		}
		lsns = append(lsns, e.LSN)
	}
	if err := l.WriteAnchor(func(a *Anchor) { a.Applied = 128 }); !errors.Is(err, ErrInvalid) {
		t.Errorf("applied beyond durable: %v", err)
	}
	if _, err := l.Sync(1 << 40); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(a *Anchor){
		"tail beyond applied": func(a *Anchor) { a.Tail = 128 },
		"applied inside":      func(a *Anchor) { a.Applied = 136 },
		"followers":           func(a *Anchor) { a.Followers = make([]Follower, 9) },
		"extra":               func(a *Anchor) { a.Extra = make([]byte, 513) },
		"name":                func(a *Anchor) { a.Name = string(make([]byte, 65)) },
	} {
		if err := l.WriteAnchor(change); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotBoundary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = lsns[3], lsns[2] }); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteAnchor(func(a *Anchor) { a.Applied = lsns[2] }); !errors.Is(err, ErrInvalid) {
		t.Errorf("applied backwards: %v", err)
	}
	if err := l.Cut(lsns[2]); !errors.Is(err, ErrCommitted) {
		t.Error(err)
	}
	if err := l.Cut(l.Head() + 8); !errors.Is(err, ErrBeyondHead) {
		t.Error(err)
	}
	if err := l.Cut(lsns[3] + 8); !errors.Is(err, ErrNotBoundary) {
		t.Error(err)
	}
	chain, err := l.ChainAt(lsns[2])
	if a := l.Anchor(); err != nil || a.TailChain != chain || a.Durable != l.Head() {
		t.Errorf("%+v, %x, %v", a, chain, err)
	}
}

// The first write or sync that fails is the last (G9).
func TestFailureLatches(t *testing.T) {
	for _, c := range []struct {
		op string
		do func(l *Log) error
	}{
		{"write", func(l *Log) error { return l.Append([]*Entry{write(0, []byte("a"))}) }},
		{"sync", func(l *Log) error { _, err := l.Sync(l.Head()); return err }},
		{"sync", func(l *Log) error { return l.WriteAnchor(nil) }},
		{"write", func(l *Log) error { return l.WriteAnchor(nil) }},
		{"write", func(l *Log) error { return l.Cut(0) }},
		{"sync", func(l *Log) error { return l.Reset(0, 0, nil) }},
	} {
		l, f := newLogFile(t, MinSize, Options{})
		if err := l.Append([]*Entry{write(0, []byte("before"))}); err != nil {
			t.Fatal(err)
		}
		fail := true
		f.failNow = func(op string) error {
			if op == c.op && fail {
				fail = false // only once: what follows must not be believed
				return errIO
			}
			return nil
		}
		changed := l.Changed()
		durable := l.Durable()
		if err := c.do(l); !errors.Is(err, ErrFailed) || !errors.Is(err, errIO) {
			t.Errorf("%s: %v", c.op, err)
		}
		<-changed
		ops := f.ops
		for name, do := range map[string]func() error{
			"append": func() error { return l.Append([]*Entry{write(0, []byte("a"))}) },
			"raw":    func() error { _, err := l.AppendRaw(0, nil); return err },
			"sync":   func() error { _, err := l.Sync(l.Head()); return err },
			"anchor": func() error { return l.WriteAnchor(nil) },
			"cut":    func() error { return l.Cut(0) },
			"reset":  func() error { return l.Reset(0, 0, nil) },
		} {
			if err := do(); !errors.Is(err, ErrFailed) || !errors.Is(err, errIO) {
				t.Errorf("%s after a failed %s: %v", name, c.op, err)
			}
		}
		if f.ops != ops || l.Durable() != durable || l.Failed() == nil {
			t.Errorf("after a failed %s: %d more operations, durable %d → %d", c.op, f.ops-ops, durable, l.Durable())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestClose(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	changed := l.Changed()
	if err := errors.Join(l.Close(), l.Close()); err != nil || !f.closed {
		t.Fatal(err)
	}
	<-changed
	e := write(0, []byte("a"))
	if err := l.Append([]*Entry{e}); !errors.Is(err, ErrClosed) || !errors.Is(e.Err, ErrClosed) {
		t.Error(err)
	}
	if err := l.WriteAnchor(nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := l.Cut(0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// Writers, a syncer, a tail mover, a reader that checks everything and one that reads where the tail passes: all at once.
func TestConcurrent(t *testing.T) {
	const writers, each = 6, 250
	var order []LSN
	l, _ := newLogFile(t, MinSize, Options{OnAppend: func(es []*Entry) {
		for _, e := range es {
			order = append(order, e.LSN)
		}
	}})
	var wg, readers sync.WaitGroup
	var done atomic.Bool
	for i := range writers {
		wg.Go(func() {
			for n := 0; n < each; {
				changed := l.Changed()
				payload := bytes.Repeat([]byte{byte(i), byte(n)}, 50+(n*997)%3000)
				e := []*Entry{write(uint64(i), payload), {Op: OpZero, Length: uint32(n + 1)}}
				err := l.Append(e)
				if errors.Is(err, ErrFull) {
					<-changed
					continue
				}
				if err != nil || e[1].LSN != e[0].LSN+LSN(RecordSize(len(payload))) {
					t.Errorf("append: %v", err)
					return
				}
				if n++; n%16 == 0 {
					if d, err := l.Sync(e[1].LSN); err != nil || d < e[1].LSN {
						t.Errorf("sync: %d, %v", d, err)
					}
				}
			}
		})
	}
	readers.Go(func() { // the tail follows
		for !done.Load() {
			changed := l.Changed()
			if _, err := l.Sync(l.Head()); err != nil {
				t.Error(err)
				return
			}
			to, chain, err := l.BoundaryBefore(l.Durable())
			if err != nil {
				t.Error(err)
				return
			}
			if err := l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = max(to, a.Applied), max(to, a.Tail) }); err != nil {
				t.Error(err)
				return
			}
			if a := l.Anchor(); a.Tail == to && a.TailChain != chain {
				t.Errorf("chain at %d: %x, %x", to, chain, a.TailChain)
			}
			if !done.Load() {
				<-changed
			}
		}
	})
	readers.Go(func() { readEverything(t, l, &done) })
	readers.Go(func() {
		for !done.Load() {
			err := l.Verify(l.Tail(), l.Head())
			if err != nil && !errors.Is(err, ErrGone) {
				t.Errorf("verify: %v", err)
				return
			}
		}
	})
	wg.Wait()
	done.Store(true)
	l.notify()
	readers.Wait()
	if len(order) != writers*each*2 {
		t.Errorf("%d entries announced", len(order))
	}
	for i := 1; i < len(order); i++ {
		if order[i] <= order[i-1] {
			t.Fatal("announced out of order")
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// readEverything follows the log like a sender; when the tail overtakes it, it goes on there.
func readEverything(t *testing.T, l *Log, done *atomic.Bool) {
	buf := make([]byte, 32<<10)
	at := l.Tail()
	for !done.Load() {
		n, err := l.ReadRaw(at, buf)
		switch {
		case err == io.EOF:
			changed := l.Changed()
			if at == l.Head() && !done.Load() {
				<-changed
			}
			continue
		case errors.Is(err, ErrGone):
			at = l.Tail()
			continue
		case err != nil:
			t.Errorf("read at %d: %v", at, err)
			return
		}
		err = ParseRaw(buf[:n], func(r Record, p []byte) error {
			if r.LSN != at || checksum(p) != r.PayloadHash {
				return fmt.Errorf("recycled bytes at %d", at)
			}
			at = r.End()
			return nil
		})
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// One fdatasync serves all who wait while another runs.
func TestSyncIsShared(t *testing.T) {
	l, f := newLogFile(t, MinSize, Options{})
	inside, goOn := make(chan bool), make(chan bool)
	var syncs atomic.Int32
	f.onOp = nil
	gate := &gatedFile{memFile: f, inside: inside, goOn: goOn, syncs: &syncs}
	l.ring.Load().f = gate
	l.ring.Load().v = gate
	var wg sync.WaitGroup
	add := func() LSN {
		e := write(0, []byte("x"))
		if err := l.Append([]*Entry{e}); err != nil {
			t.Fatal(err)
		}
		return e.LSN + 72
	}
	wait := func(upTo LSN) {
		wg.Go(func() {
			if d, err := l.Sync(upTo); err != nil || d < upTo {
				t.Errorf("sync up to %d: %d, %v", upTo, d, err)
			}
		})
	}
	wait(add())
	<-inside // the first is in fdatasync
	for range 10 {
		wait(add())
	}
	goOn <- true
	<-inside
	if d := l.Durable(); d != 72 {
		t.Errorf("durable %d: more than was written when the fdatasync began", d)
	}
	goOn <- true
	go func() { // should some waiter have come late
		for range inside {
			goOn <- true
		}
	}()
	wg.Wait()
	close(inside)
	if n := syncs.Load(); n > 3 {
		t.Errorf("%d fdatasyncs for 11 callers", n)
	}
}

type gatedFile struct {
	*memFile
	inside, goOn chan bool
	syncs        *atomic.Int32
}

func (g *gatedFile) Sync() error {
	g.syncs.Add(1)
	g.inside <- true
	<-g.goOn
	return g.memFile.Sync()
}
