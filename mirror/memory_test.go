package mirror

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// TestOverlayExtentBytes: an extent takes about as much memory as the bound of the overlay takes it to, in random order (the
// nodes are as full as they come) and in that of the device (they are half full).
func TestOverlayExtentBytes(t *testing.T) {
	const n = 1 << 18
	random := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for name, order := range map[string]func(int) int{"random": func(i int) int { return random[i] }, "ascending": func(i int) int { return i }} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		o := newOverlay(0)
		for i := range n {
			off := int64(order(i)) * 512
			o.add([]extent{{off: off, end: off + 512, zero: true}}, journal.LSN(i+1)*64, 1<<20, 1<<30)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		got := int64(after.HeapAlloc-before.HeapAlloc) / n
		if o.count.Load() != n {
			t.Fatalf("%d extents of %d", o.count.Load(), n)
		}
		if got > overlayExtentBytes*3/2 || got < overlayExtentBytes/2 {
			t.Errorf("%s: an extent takes %d bytes, %d were reckoned", name, got, overlayExtentBytes)
		}
		runtime.KeepAlive(o)
	}
}

// TestOverlayMemory: small records do not fill the memory before they fill the ring. What is retained is applied when the
// overlay has its part of the memory, and nobody is slowed for it; a volume that is opened with less does so by itself. A log of
// 100 GiB that was retained took 2 GiB of memory, and its agent as much again at every start.
func TestOverlayMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, extents, step = 4 << 20, 1024, 1024
		file, dev := blockdev.NewMemory(16<<20, nil), blockdev.NewMemory(size, nil)
		config := Config{Name: "vol", Role: RolePrimary}
		if err := journal.Format(file, config.firstAnchor(size)); err != nil {
			t.Fatal(err)
		}
		o := testOptions()
		o.RetainTime, o.OverlayExtents = time.Hour, extents
		open := func() *Volume {
			t.Helper()
			v, _, err := openVolume(keepOpen{file}, keepOpen{dev}, o)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		v := open()
		if _, err := v.beginGeneration(true); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		piece := make([]byte, step/2)
		for i := range 8 * size / step {
			off := i * step % size
			for j := range piece {
				piece[j] = byte(i + j + i/(size/step))
			}
			copy(want[off:], piece)
			if _, err := v.WriteAt(piece, int64(off)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			if v.paced() {
				t.Fatalf("a writer is slowed with %d extents of %d", v.overlay.count.Load(), extents)
			}
		}
		if n := v.overlay.count.Load(); n < extents/4 {
			t.Errorf("only %d extents are retained", n)
		}
		if err := v.Abort(); err != nil {
			t.Fatal(err)
		}
		const less = extents / 8
		o.OverlayExtents = less
		v = open()
		defer func() { _ = v.Abort() }()
		awaitVolume(t, "what the memory has no room for applied", func() bool { return v.overlay.count.Load() <= less/2 })
		got := make([]byte, size)
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("it reads otherwise than was written, from byte %d on (%v)", firstDifference(got, want), err)
		}
	})
}

// TestOverlayPaces: a device that is slower than small records come slows their writers evenly, with the ring nearly empty, and
// the overlay stays within its memory. No follower loses its hold for that.
func TestOverlayPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, extents = 16 << 20, 2000
		file := blockdev.NewMemory(64<<20, nil)
		config := Config{Name: "vol", Role: RolePrimary}
		if err := journal.Format(file, config.firstAnchor(size)); err != nil {
			t.Fatal(err)
		}
		dev := blockdev.NewFaulty(blockdev.NewMemory(size, nil), blockdev.Rule{Op: blockdev.OpSync, Hook: func(blockdev.Op, int64, int64) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		}})
		o := testOptions()
		o.OverlayExtents, o.OnFull, o.PushBack = extents, OnFullTrack, time.Second
		v, _, err := openVolume(file, dev, o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = v.Abort() }()
		if _, err := v.beginGeneration(true); err != nil {
			t.Fatal(err)
		}
		hold := v.newHold("behind", v.log.Head(), func() { t.Error("a follower lost its hold for memory that it does not take") })
		var delays []time.Duration
		most := int64(0)
		for i, start := 0, time.Now(); time.Since(start) < 2*time.Minute; i++ {
			began := time.Now()
			if err := v.Trim(int64(i)*1024%size, 512); err != nil {
				t.Fatal(err)
			}
			most = max(most, v.overlay.count.Load())
			if began.Sub(start) > time.Minute {
				delays = append(delays, time.Since(began))
			}
		}
		hold.release()
		if v.ringPaced() {
			t.Fatal("the ring is what slows")
		}
		if most > extents || most < extents/2 {
			t.Errorf("%d extents of %d", most, extents)
		}
		slices.Sort(delays)
		if median, longest := delays[len(delays)/2], delays[len(delays)-1]; longest > 3*max(median, minPace) {
			t.Errorf("of %d delays the longest is %v, the median %v", len(delays), longest, median)
		}
	})
}
