package mirror

import (
	"bytes"
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// What comes in between at the worst moment, on purpose.

// hookGate calls admitted once, when the next record is about to be entered.
type hookGate struct {
	gate
	armed    atomic.Bool
	admitted func()
}

func (g *hookGate) admit(ctx context.Context) error {
	if g.armed.CompareAndSwap(true, false) {
		g.admitted()
	}
	return g.gate.admit(ctx)
}

// TestVerifyRepairOvertaken: an application writes to a block after the repair has read it and before its record is entered. The
// write stays, on both sides, whichever side's bytes count.
func TestVerifyRepairOvertaken(t *testing.T) {
	for name, side := range map[string]verifySide{"source": sideSource, "target": sideTarget} {
		t.Run(name, func(t *testing.T) {
			d := newDuo(t)
			defer d.close()
			src := d.v[srcHost]
			want := bytes.Repeat([]byte("before"), testDevice/6+1)[:testDevice]
			if _, err := src.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			d.settled(t)
			d.hosts[dstHost].spoil(t, 100000, 4096)
			g := &hookGate{gate: d.promise}
			g.admitted = func() {
				copy(want[98304:], bytes.Repeat([]byte{0xEE}, 8192))
				if _, err := src.WriteAt(want[98304:98304+8192], 98304); err != nil {
					t.Error(err)
				}
			}
			src.gate.Store(&gateBox{g})
			g.armed.Store(true)
			r := d.mustVerify(t, side)
			src.gate.Store(&gateBox{d.promise})
			if g.armed.Load() {
				t.Fatal("nothing was repaired")
			}
			if r.Bad() != 0 || !slices.ContainsFunc(r.Differences, func(d Difference) bool { return d.Repaired == "by an application's write" }) {
				t.Errorf("%+v", r)
			}
			if side == sideTarget { // of what nobody has written the target's bytes count
				if _, err := d.v[dstHost].ReadAt(want[98304+8192:], 98304+8192); err != nil {
					t.Fatal(err)
				}
			}
			mustContent(t, "the source", src, want)
			if err := src.Sync(); err != nil {
				t.Fatal(err)
			}
			mustContent(t, "the target", d.v[dstHost], want)
		})
	}
}

// TestCaptureMoves: while a block is read from the device a record changes it there. What was read is what the block held at the
// LSN that comes with it.
func TestCaptureMoves(t *testing.T) {
	var faults [2]*blockdev.Faulty
	d := faultyDuo(t, &faults)
	defer d.close()
	src := d.v[srcHost]
	fill := byte(1)
	write := func() {
		fill++
		if _, err := src.WriteAt(bytes.Repeat([]byte{fill}, 8192), 4096); err != nil {
			t.Error(err)
		}
	}
	write()
	d.settled(t)
	moves := 0
	faults[srcHost].Set(blockdev.Rule{Op: blockdev.OpRead, Offset: 4096, Length: 8192, Hook: func(blockdev.Op, int64, int64) error {
		if moves++; moves <= captureTries {
			write()
			d.settled(t)
		}
		return nil
	}})
	p, bad, at, err := newVerifyReader(src, false).capture(t.Context(), 0, 65536, verifyUnitBytes)
	if err != nil || slices.Contains(bad, true) {
		t.Fatal(err, bad)
	}
	if moves != captureTries+1 {
		t.Errorf("it was read %d times", moves)
	}
	if p[4096] != fill || at != src.log.Head() {
		t.Errorf("it holds %d at LSN %d, and was %d at the head, LSN %d", p[4096], at, fill, src.log.Head())
	}
}

// TestCaptureExact: what capture reads is the state at its LSN: the log's records from there on make of it what is there in the
// end, and those before have made it.
func TestCaptureExact(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	src := d.v[srcHost]
	if _, err := src.WriteAt(make([]byte, 65536), 0); err != nil {
		t.Fatal(err)
	}
	d.settled(t)
	start := src.log.Head()
	base, err := content(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range d.v { // all of it stays in the log
		v.applyMu.Lock()
		defer v.applyMu.Unlock()
	}
	if _, err := src.WriteAt(make([]byte, 65536), 0); err != nil { // and nothing is read from the device
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if src.log.Free() < 300<<10 {
				time.Sleep(time.Millisecond)
				continue
			}
			if _, err := src.WriteAt(bytes.Repeat([]byte{byte(i)}, 700), int64(i*331%64000)); err != nil {
				done <- err
				return
			}
		}
	}()
	r := newVerifyReader(src, false)
	for range 200 {
		p := make([]byte, 65536)
		at, err := r.captureOnce(p, make([]bool, 16), 0, 65536, verifyUnitBytes, false)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(base[:65536])
		if err := src.replay(want, 0, start, at); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("at LSN %d it was something else, at %d", at, firstDifference(p, want))
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestWatch: against a plain list of what was written since.
func TestWatch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := newOverlay(0)
		const device = 1 << 20
		block := rapid.SampledFrom([]int64{4096, 65536}).Draw(rt, "block")
		off := rapid.Int64Range(0, device-1).Draw(rt, "off")
		end := rapid.Int64Range(off+1, device).Draw(rt, "end")
		lsn := journal.LSN(0)
		add := func() (int64, int64) {
			a := rapid.Int64Range(0, device-1).Draw(rt, "a")
			b := min(device, a+rapid.Int64Range(1, 200000).Draw(rt, "n"))
			lsn += 64
			o.add([]extent{{off: a, end: b, zero: true, lsn: lsn}}, lsn, 1<<30, 1<<30)
			return a, b
		}
		add()
		w, at := o.watch(off, end, block)
		if at != lsn || w.any() {
			rt.Fatalf("begins at %d, not %d; any %v", at, lsn, w.any())
		}
		lowest, touched := end, map[int64]bool{}
		for range rapid.IntRange(0, 4).Draw(rt, "writes") {
			a, b := add()
			a, b = max(a, off), min(b, end)
			if a >= b {
				continue
			}
			lowest = min(lowest, a)
			for i := a / block; i*block < b; i++ {
				touched[i] = true
			}
		}
		w.stop()
		w.stop()
		add() // not seen any more
		if w.untouchedTo() != lowest || w.any() != (lowest < end) || len(o.watches) != 0 {
			rt.Errorf("untouched to %d, want %d", w.untouchedTo(), lowest)
		}
		sums := w.mark(make([]blockSum, units(off, end, block)))
		for i, s := range sums {
			if n := off/block + int64(i); (s.state == sumTouched) != touched[n] {
				rt.Errorf("block %d: state %d, touched %v", n, s.state, touched[n])
			}
		}
	})
}
