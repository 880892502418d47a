package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

const noLimit = int64(1) << 40

// memoryScratch is a scratch in memory that may have no more room.
func memoryScratch(p *blockdev.Power) func(int64) (blockdev.Device, error) {
	return func(n int64) (blockdev.Device, error) { return blockdev.NewMemory(n, p), nil }
}

// shown is a view and what it has to show.
type shown struct {
	w    *view
	want []byte
}

// check reads all of it, or finds that it ended for a reason that a view may have.
func (s *shown) check(rt fataler) (open bool) {
	got := make([]byte, len(s.want))
	if _, err := s.w.ReadAt(got, 0); err != nil {
		if s.w.why() == nil {
			rt.Fatalf("view at LSN %d: %v", s.w.at, err)
		}
		return false
	}
	if i := difference(got, s.want); i >= 0 {
		rt.Fatalf("view at LSN %d shows %d at %d, then it was %d (applied %d)", s.w.at, got[i], i, s.want[i], s.w.v.log.Applied())
	}
	return true
}

type fataler interface {
	Fatalf(format string, args ...any)
}

func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// TestViewModel: at every LSN that the log still has a view shows the device as it was, whatever is written and applied
// meanwhile, and what is written to it stays in it. The volume itself never sees any of it.
func TestViewModel(t *testing.T) {
	opened, lost := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		h := newHost(rt, RolePrimary)
		o := testOptions()
		o.RetainBytes = rapid.SampledFrom([]int64{0, 64 << 10, 256 << 10}).Draw(rt, "retain")
		v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = v.Abort() }()
		if _, err := v.beginGeneration(true); err != nil {
			rt.Fatal(err)
		}
		model := make([]byte, testDevice)
		states := map[journal.LSN][]byte{}
		order := []journal.LSN{}
		note := func() {
			at := v.log.Head()
			states[at] = bytes.Clone(model)
			order = append(order, at)
			if len(order) > 60 {
				delete(states, order[0])
				order = order[1:]
			}
		}
		note()
		var views []*shown
		extent := func(rt *rapid.T) (int64, int64) {
			off := rapid.Int64Range(0, testDevice-1).Draw(rt, "off")
			return off, min(testDevice-off, rapid.Int64Range(1, 40<<10).Draw(rt, "length"))
		}
		change := func(rt *rapid.T, d blockdev.Device, model []byte) error {
			off, n := extent(rt)
			fill := rapid.Byte().Draw(rt, "byte")
			var err error
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0:
				fill, err = 0, d.Zero(off, n)
			case 1:
				fill, err = 0, d.Trim(off, n)
			default:
				_, err = d.WriteAt(bytes.Repeat([]byte{fill}, int(n)), off)
			}
			if err == nil {
				copy(model[off:], bytes.Repeat([]byte{fill}, int(n)))
			}
			return err
		}
		keepOpenViews := func(rt *rapid.T) {
			kept := views[:0]
			for _, s := range views {
				if s.check(rt) {
					kept = append(kept, s)
				} else {
					lost++
				}
			}
			views = kept
		}
		rt.Repeat(map[string]func(*rapid.T){
			"change": func(rt *rapid.T) {
				if err := change(rt, v, model); err != nil {
					rt.Fatal(err)
				}
				note()
			},
			"sync": func(rt *rapid.T) {
				if err := v.Sync(); err != nil {
					rt.Fatal(err)
				}
				v.overlay.freeze()
				v.poke()
			},
			"apply": func(rt *rapid.T) { // all of it, and wait
				if err := v.Sync(); err != nil {
					rt.Fatal(err)
				}
				v.overlay.freeze()
				v.settling.Store(true)
				defer v.settling.Store(false)
				if err := v.applyReady(t.Context()); err != nil {
					rt.Fatal(err)
				}
			},
			"open": func(rt *rapid.T) {
				if len(views) > 4 {
					rt.Skip()
				}
				at := rapid.SampledFrom(order).Draw(rt, "at")
				limit := noLimit
				if rapid.IntRange(0, 5).Draw(rt, "small") == 0 {
					limit = rapid.Int64Range(0, 128<<10).Draw(rt, "limit")
				}
				w, err := v.openView(at, limit, memoryScratch(h.power))
				if outside := (*OutsideError)(nil); errors.As(err, &outside) {
					if journal.LSN(outside.Window.From.LSN) <= at {
						rt.Fatalf("LSN %d was refused, and the window is %v", at, outside.Window)
					}
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				opened++
				views = append(views, &shown{w, bytes.Clone(states[at])})
			},
			"change a view": func(rt *rapid.T) {
				if len(views) == 0 {
					rt.Skip()
				}
				s := rapid.SampledFrom(views).Draw(rt, "view")
				if err := change(rt, s.w, s.want); err != nil && s.w.why() == nil && !errors.Is(err, unix.ENOSPC) {
					rt.Fatal(err)
				}
			},
			"close": func(rt *rapid.T) {
				if len(views) == 0 {
					rt.Skip()
				}
				views[0].w.end(errViewClosed)
				_, err := views[0].w.ReadAt(make([]byte, 1), 0)
				full := views[0].w.limit < noLimit && errors.Is(err, errScratchFull) // what was applied just now may have filled it before
				if !errors.Is(err, errViewClosed) && !full {
					rt.Fatalf("a closed view is read: %v", err)
				}
				views = views[1:]
			},
			"": func(rt *rapid.T) {
				keepOpenViews(rt)
				got, err := content(v)
				if err != nil {
					rt.Fatal(err)
				}
				if i := difference(got, model); i >= 0 {
					rt.Fatalf("the volume has %d at %d instead of %d", got[i], i, model[i])
				}
			},
		})
		for _, s := range views {
			s.w.end(errViewClosed)
		}
		if n := len(v.viewsNow()); n != 0 {
			rt.Fatalf("%d views are left", n)
		}
	})
	if opened == 0 || lost > opened/2 {
		t.Errorf("%d views were opened and %d ended by themselves: nothing was shown", opened, lost)
	}
}

// TestView_concurrent: a view stands still while writers go round the ring many times and the applier follows.
func TestView_concurrent(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(rng *rand.Rand) error {
		p := bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(24<<10))
		_, err := v.WriteAt(p, rng.Int64N(testDevice-int64(len(p))))
		return err
	}
	for range 40 {
		if err := write(rng); err != nil {
			t.Fatal(err)
		}
	}
	want, err := content(v)
	if err != nil {
		t.Fatal(err)
	}
	w, err := v.openView(0, noLimit, memoryScratch(h.power))
	if err != nil {
		t.Fatal(err)
	}
	from := v.log.Tail()
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	for i := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for v.log.Tail() < from+3*testJournal && w.why() == nil {
				if err := write(rng); err != nil {
					failed <- err
					return
				}
				// As a client that flushes: the drill has to give way to who fills the ring.
				if err := v.Sync(); err != nil {
					failed <- err
					return
				}
			}
		})
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 8))
			for v.log.Tail() < from+3*testJournal && w.why() == nil {
				off := rng.Int64N(testDevice - 64<<10)
				p := make([]byte, 1+rng.IntN(64<<10))
				if _, err := w.ReadAt(p, off); err != nil {
					if w.why() == nil {
						failed <- err
					}
					return
				}
				if !bytes.Equal(p, want[off:off+int64(len(p))]) {
					failed <- fmt.Errorf("%d bytes at %d are not what they were", len(p), off)
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if why := w.why(); why != nil {
		t.Errorf("the view ended: %v", why)
	}
	if s := (&shown{w, want}); w.why() == nil {
		s.check(t)
	}
	w.end(errViewClosed)
}

// TestView_groups: nobody sees a part of a group. One write at a time let what a client had given up go on between what it sent again on its next
// connection.
func TestView_groups(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	w, err := v.openView(0, noLimit, memoryScratch(h.power))
	if err != nil {
		t.Fatal(err)
	}
	defer w.end(errViewClosed)
	const members, bytesEach = 8, 4096
	var writers sync.WaitGroup
	for k := range 2 {
		writers.Go(func() {
			for i := range 1000 {
				var ws []blockdev.Write
				for m := range int64(members) {
					ws = append(ws, blockdev.Write{Offset: m * bytesEach, Data: bytes.Repeat([]byte{byte(2*i + k + 1)}, bytesEach)})
				}
				blockdev.ApplyBatch(w, ws)
				for _, x := range ws {
					if x.Err != nil {
						t.Error(x.Err)
					}
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { writers.Wait(); close(written) }()
	p := make([]byte, members*bytesEach)
	for torn, done := 0, false; !done && torn == 0; {
		select {
		case <-written:
			done = true // look once more
		default:
		}
		if _, err := w.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		for m := range members {
			if p[m*bytesEach] != p[0] {
				torn++
			}
		}
		if torn > 0 {
			t.Errorf("a part of a group is seen: %d of %d members differ from the first", torn, members)
		}
	}
	<-written
	ws := []blockdev.Write{
		{Offset: 0, Length: 5000, Zero: true},
		{Offset: testDevice, Data: []byte("x")},
		{Offset: 100, Data: []byte("y")},
		{Offset: 0, Length: 1, Trim: true, Fast: true},
	}
	blockdev.ApplyBatch(w, ws)
	if ws[0].Err != nil || !errors.Is(ws[1].Err, blockdev.ErrOutOfRange) || ws[2].Err != nil || !errors.Is(ws[3].Err, errors.ErrUnsupported) {
		t.Errorf("a mixed group: %v, %v, %v, %v", ws[0].Err, ws[1].Err, ws[2].Err, ws[3].Err)
	}
	if _, err := w.ReadAt(p, 0); err != nil || p[0] != 0 || p[100] != 'y' || p[4999] != 0 || p[5000] == 0 {
		t.Errorf("after a mixed group: %v", err)
	}
}

// TestView_scratchFull: a full scratch refuses a client's writes with "no space" and goes on; when the applier needs room the view
// ends with the reason, and the applier does not wait.
func TestView_scratchFull(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	if _, err := v.WriteAt(bytes.Repeat([]byte{1}, testDevice), 0); err != nil {
		t.Fatal(err)
	}
	w, err := v.openView(0, 16<<10, memoryScratch(h.power))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 32<<10), 0); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("32 KiB into a scratch of 16: %v", err)
	}
	want := bytes.Repeat([]byte{1}, testDevice)
	if !(&shown{w, want}).check(t) {
		t.Fatal("the view ended by a client's write")
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{2}, 16<<10), 4096); err != nil {
		t.Fatal(err)
	}
	copy(want[4096:], bytes.Repeat([]byte{2}, 16<<10))
	(&shown{w, want}).check(t)
	if _, err := v.WriteAt(bytes.Repeat([]byte{3}, testDevice/2), 0); err != nil {
		t.Fatal(err)
	}
	head := v.log.Head()
	for end := time.Now().Add(20 * time.Second); v.log.Applied() < head; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the applier waits for a view")
		}
		v.poke()
	}
	if why := w.why(); !errors.Is(why, errScratchFull) {
		t.Fatalf("the view's scratch is full: %v", why)
	}
	if _, err := w.ReadAt(make([]byte, 1), 0); !errors.Is(err, errScratchFull) {
		t.Fatalf("read of a view that ended: %v", err)
	}
}

// slowScratch takes a write only when the ring has filled up.
type slowScratch struct {
	blockdev.Device
	v *Volume
}

func (s slowScratch) WriteAt(p []byte, off int64) (int, error) {
	for end := time.Now().Add(20 * time.Second); !s.v.hurried() && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	return s.Device.WriteAt(p, off)
}

// TestView_givesWay: copying into a slow scratch while writers wait for room ends the view, and no write fails for it.
func TestView_givesWay(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	if _, err := v.WriteAt(bytes.Repeat([]byte{1}, testDevice), 0); err != nil {
		t.Fatal(err)
	}
	w, err := v.openView(0, noLimit, func(n int64) (blockdev.Device, error) {
		return slowScratch{blockdev.NewMemory(n, h.power), v}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.patience = 0
	for i, open := 0, true; open; i++ {
		if i > 100 {
			t.Fatal("the view stays in the way")
		}
		if _, err := v.WriteAt(bytes.Repeat([]byte{2}, testDevice), 0); err != nil {
			t.Fatal(err)
		}
		select { // why waits for the scratch
		case <-w.done:
			open = false
		default:
		}
	}
	if why := w.why(); !errors.Is(why, errDrillInTheWay) {
		t.Fatal(why)
	}
}

// tornScratch writes half of what it is given and fails, while it is told to.
type tornScratch struct {
	blockdev.Device
	torn *bool
}

func (s tornScratch) WriteAt(p []byte, off int64) (int, error) {
	if !*s.torn {
		return s.Device.WriteAt(p, off)
	}
	n, err := s.Device.WriteAt(p[:len(p)/2], off)
	return n, errors.Join(err, unix.ENOSPC)
}

// TestView_failedWrite: a write that failed in the scratch's disk changes nothing, also not where zeroes come to lie later.
func TestView_failedWrite(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Abort() }()
	torn := true
	w, err := v.openView(0, noLimit, func(n int64) (blockdev.Device, error) {
		return tornScratch{blockdev.NewMemory(n, h.power), &torn}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	torn = false
	want := make([]byte, testDevice)
	(&shown{w, want}).check(t)
	if err := w.bring(0, testDevice); err != nil { // as the applier would
		t.Fatal(err)
	}
	(&shown{w, want}).check(t)
}
