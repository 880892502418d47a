package journal

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// stallFile holds back every write until it is told to go on.
type stallFile struct {
	*memFile
	in, out chan struct{}
}

func (f *stallFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	f.in <- struct{}{}
	<-f.out
	return f.memFile.WritevAt(bufs, off)
}

// TestGroupAnswersEach: of a group that does not fit as a whole each caller is told what became of its own records, and
// nobody before they are in the file.
func TestGroupAnswersEach(t *testing.T) {
	for range 10 {
		f := newMemFile(MinSize)
		mustFormat(t, f, Anchor{})
		s := &stallFile{memFile: f, in: make(chan struct{}), out: make(chan struct{})}
		l := mustOpen(t, f, Options{})
		l.ring.Load().f, l.ring.Load().v = s, s
		answerGroup(t, l, s)
		if err := l.Verify(0, l.Head()); err != nil {
			t.Error(err)
		}
	}
}

func answerGroup(t *testing.T, l *Log, s *stallFile) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Append([]*Entry{write(0, []byte("holds the lead"))}); err != nil {
			t.Error(err)
		}
	})
	<-s.in
	// Behind it queue, in this order: one that fits, one that does not, two that fit again.
	room := int(l.Capacity() - Reserve - RecordSize(14))
	sizes := []int{room / 2, room/2 + 8192, 4096, 100}
	entries, errs := make([]*Entry, len(sizes)), make([]error, len(sizes))
	queue := make([]*ticket, len(sizes))
	var answered atomic.Int32
	for i, n := range sizes {
		entries[i] = write(uint64(i), bytes.Repeat([]byte{byte(i + 1)}, n))
		wg.Go(func() {
			errs[i] = l.Append([]*Entry{entries[i]})
			answered.Add(1)
		})
		for ; queue[i] == nil; runtime.Gosched() {
			l.qmu.Lock()
			if l.last != nil && (i == 0 || l.last != queue[i-1]) {
				queue[i] = l.last
			}
			l.qmu.Unlock()
		}
	}
	s.out <- struct{}{}
	<-s.in // the group is about to be written
	early := 0
	for range 100 { // let those run who should not
		runtime.Gosched()
	}
	for _, x := range queue[1:] {
		early += len(x.wake)
	}
	if n := answered.Load(); early > 0 || n > 0 {
		t.Errorf("%d calls were answered, and %d about to be, before their records were written", n, early)
	}
	s.out <- struct{}{}
	wg.Wait()
	for i, err := range errs {
		if full := i == 1; errors.Is(err, ErrFull) != full || errors.Is(entries[i].Err, ErrFull) != full {
			t.Errorf("call %d of %d bytes: %v, entry %v", i, sizes[i], err, entries[i].Err)
		}
		if err != nil {
			continue
		}
		p := make([]byte, sizes[i])
		if err := l.ReadData(p, entries[i].Data); err != nil || !bytes.Equal(p, entries[i].Payload) {
			t.Errorf("call %d was answered, and the log has something else: %v", i, err)
		}
	}
}
