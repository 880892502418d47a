package mirror

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// verifyOnce compares all of a duo's device.
func (d *duo) verifyOnce(chunk int64, repair verifySide) (VerifyReport, error) {
	t := &verifyTally{}
	c, err := newComparer(d.session.sender, false, repair, t)
	if err != nil {
		return VerifyReport{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for off := int64(0); off < d.v[srcHost].size.Load(); {
		if off, err = c.step(ctx, off, func() (int64, error) { return chunk, nil }); err != nil {
			return t.report(true, time.Now()), err
		}
	}
	return t.report(true, time.Now()), nil
}

func (d *duo) mustVerify(t *testing.T, repair verifySide) VerifyReport {
	t.Helper()
	r, err := d.verifyOnce(maxVerifyChunk, repair)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// settled flushes and waits until both devices have everything.
func (d *duo) settled(t *testing.T) {
	t.Helper()
	if err := d.v[srcHost].Sync(); err != nil {
		t.Fatal(err)
	}
	for i, v := range d.v {
		awaitVolume(t, "both have applied everything", func() bool {
			d.v[i].overlay.freeze()
			d.v[i].poke()
			_, _, over := v.overlay.next(0) // left a moment after the anchor says so
			return v.log.Applied() == d.v[srcHost].log.Head() && !over
		})
	}
}

// spoil changes bytes of a host's device behind its back.
func (h *host) spoil(t testing.TB, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	if _, err := h.device.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if _, err := h.device.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyNoFalseAlarm: whatever is written while a verify runs, whole blocks and parts of them, again and again the same ones,
// with flushes and the applier at work on both sides, it finds nothing; and it does not wait for the writers to end.
func TestVerifyNoFalseAlarm(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDuo(t)
		defer d.close()
		seed := rapid.Uint64().Draw(rt, "seed")
		hot := rapid.Int64Range(1, testDevice/4096).Draw(rt, "hot pages") // how many pages are written at all
		chunk := rapid.SampledFrom([]int64{verifyBlockBytes, 2 * verifyBlockBytes, maxVerifyChunk}).Draw(rt, "chunk")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(w)))
				v := d.v[srcHost]
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					off, n := rng.Int64N(hot)*4096+rng.Int64N(4096), 1+rng.Int64N(9000)
					n = min(n, testDevice-off)
					var err error
					switch rng.IntN(12) {
					case 0:
						err = v.Trim(off, n)
					case 1:
						err = v.Zero(off, n)
					case 2:
						err = v.Sync()
					default:
						_, err = v.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, int(n)), off)
					}
					if err != nil {
						t.Errorf("write: %v", err)
						return
					}
				}
			})
		}
		for range 2 {
			r, err := d.verifyOnce(chunk, 0)
			if err != nil || r.DifferentBytes != 0 {
				rt.Errorf("%v: %s: %+v", err, r.Found(), r.Differences)
				break
			}
			if r.ComparedBytes+r.HoleBytes != testDevice {
				rt.Errorf("%d bytes compared and %d skipped of %d", r.ComparedBytes, r.HoleBytes, testDevice)
			}
		}
		close(stop)
		wg.Wait()
	})
}

// TestVerifyFinds: a difference anywhere is found, to the 4 KiB, and repaired: where data is and where there is a hole, at the
// ends, on either side.
func TestVerifyFinds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDuo(t)
		defer d.close()
		if rapid.Bool().Draw(rt, "data") {
			if err := d.scenario(40, never); err != nil {
				rt.Fatal(err)
			}
		}
		d.settled(t)
		want, err := content(d.v[srcHost])
		if err != nil {
			rt.Fatal(err)
		}
		side := rapid.IntRange(0, 1).Draw(rt, "side")
		off := rapid.OneOf(rapid.Int64Range(0, testDevice-1), rapid.SampledFrom([]int64{0, testDevice - 1, 4095, 4096, 65535, 65536})).Draw(rt, "off")
		n := min(testDevice-off, rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(1, 9000)).Draw(rt, "length"))
		d.hosts[side].spoil(t, off, n)
		chunk := rapid.SampledFrom([]int64{verifyBlockBytes, maxVerifyChunk}).Draw(rt, "chunk")
		r, err := d.verifyOnce(chunk, 0)
		first, last := off/verifyUnitBytes*verifyUnitBytes, (off+n-1)/verifyUnitBytes*verifyUnitBytes+verifyUnitBytes
		if err != nil || len(r.Differences) == 0 || r.DifferentBytes != last-first || r.Bad() != r.DifferentBytes ||
			r.Differences[0].Offset != first || r.Differences[0].Kind != "differs" {
			rt.Fatalf("[%d, %d) was changed on side %d: %v, %+v", off, off+n, side, err, r)
		}
		repair := sideSource
		if side == srcHost {
			repair = sideTarget
		}
		r, err = d.verifyOnce(chunk, repair)
		if err != nil || r.RepairedBytes != last-first || r.Bad() != 0 {
			rt.Fatalf("repair: %v, %+v", err, r)
		}
		if r = d.mustVerify(t, 0); r.DifferentBytes != 0 {
			rt.Fatalf("after the repair: %+v", r)
		}
		d.settled(t)
		for i, h := range d.hosts {
			got := make([]byte, testDevice)
			if _, err := h.device.ReadAt(got, 0); err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				rt.Fatalf("device %d is not what it was, at %d", i, firstDifference(got, want))
			}
		}
	})
}

// TestVerifyFindsInLog: what is not applied yet, and has rotted in one log only, differs too.
func TestVerifyFindsInLog(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	d.settled(t)
	for _, v := range d.v { // nothing is applied
		v.applyMu.Lock()
		defer v.applyMu.Unlock()
	}
	src := d.v[srcHost]
	at := src.log.Head()
	if _, err := src.WriteAt(bytes.Repeat([]byte{7}, 20000), 10000); err != nil {
		t.Fatal(err)
	}
	if err := src.Sync(); err != nil {
		t.Fatal(err)
	}
	if r := d.mustVerify(t, 0); r.DifferentBytes != 0 {
		t.Fatalf("false alarm: %+v", r)
	}
	d.hosts[dstHost].flipLog(t, at+journal.HeaderSize+10000)
	r := d.mustVerify(t, 0)
	if len(r.Differences) != 1 || r.Differences[0].Offset != 16384 || r.Differences[0].Length != 4096 {
		t.Errorf("%+v", r)
	}
}

// TestVerifyUnreadable: a disk that does not give a sector is repaired from the other side, and says so when neither does.
func TestVerifyUnreadable(t *testing.T) {
	eio := errors.New("input/output error")
	for _, c := range []struct {
		name     string
		bad      []int
		kind     string
		repaired string
	}{
		{"source", []int{srcHost}, "unreadable on the source", "from the target"},
		{"target", []int{dstHost}, "unreadable on the target", "from the source"},
		{"both", []int{srcHost, dstHost}, "unreadable on both", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var faults [2]*blockdev.Faulty
			d := faultyDuo(t, &faults)
			defer d.close()
			if _, err := d.v[srcHost].WriteAt(bytes.Repeat([]byte("verify"), 30000), 0); err != nil {
				t.Fatal(err)
			}
			d.settled(t)
			want, err := content(d.v[srcHost])
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range c.bad {
				d.hosts[i].spoil(t, 70000, 10) // what comes from this disk is not what is wanted
				faults[i].Set(
					blockdev.Rule{Op: blockdev.OpRead, Offset: 70000, Length: 1, Err: eio},
					// A disk gives a sector again that was written.
					blockdev.Rule{Op: blockdev.OpWrite, Offset: 70000, Length: 1, Hook: func(blockdev.Op, int64, int64) error { faults[i].Set(); return nil }},
				)
			}
			r := d.mustVerify(t, 0)
			if len(r.Differences) != 1 || r.Differences[0].Kind != c.kind || r.Differences[0].Offset != 69632 || r.UnreadableBytes != 4096 || r.Differences[0].Repaired != "" {
				t.Fatalf("%+v", r)
			}
			for _, i := range c.bad {
				if x, n := d.v[i].badReads.worst(); n != 1 || x.off != 69632 || x.end != 73728 {
					t.Errorf("host %d tells of %d places, %+v", i, n, x)
				}
			}
			r = d.mustVerify(t, sideSource)
			if len(r.Differences) != 1 || r.Differences[0].Repaired != c.repaired || (r.Bad() > 0) != (c.repaired == "") {
				t.Fatalf("%+v", r)
			}
			if c.repaired == "" {
				if r.Differences[0].Why == "" {
					t.Error("it does not say why not")
				}
				return
			}
			d.settled(t)
			for _, i := range c.bad {
				if x, n := d.v[i].badReads.worst(); n != 0 {
					t.Errorf("repaired, and host %d still tells of %+v", i, x)
				}
			}
			mustContent(t, "the source", d.v[srcHost], want)
			mustContent(t, "the target", d.v[dstHost], want)
		})
	}
}

// faultyDuo is a duo whose devices fail at will.
func faultyDuo(t *testing.T, faults *[2]*blockdev.Faulty) *duo {
	t.Helper()
	d := newDuo(t)
	d.session.close()
	for i, h := range d.hosts {
		if err := d.v[i].Close(); err != nil {
			t.Fatal(err)
		}
		faults[i] = blockdev.NewFaulty(keepOpen{h.device})
		v, _, err := openVolume(keepOpen{h.journal}, faults[i], h.options())
		if err != nil {
			t.Fatal(err)
		}
		d.v[i] = v
	}
	d.lead()
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, nil)
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestVerifyRepairLosesNoWrite: blocks differ and are repaired while applications write into the same ones. What they wrote last
// is what is there, on both sides.
func TestVerifyRepairLosesNoWrite(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	src := d.v[srcHost]
	const page = 4096
	last := make([]byte, testDevice/page) // the fill of each page
	for i := range last {
		last[i] = 1
	}
	if _, err := src.WriteAt(bytes.Repeat([]byte{1}, testDevice), 0); err != nil {
		t.Fatal(err)
	}
	for round := range 12 {
		d.settled(t)
		d.hosts[dstHost].spoil(t, 0, testDevice)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(round), 9))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k := rng.IntN(len(last))
				fill := byte(2 + i%250)
				if _, err := src.WriteAt(bytes.Repeat([]byte{fill}, page), int64(k)*page); err != nil {
					t.Error(err)
					return
				}
				last[k] = fill
			}
		})
		r, err := d.verifyOnce(maxVerifyChunk, sideSource)
		close(stop)
		wg.Wait()
		if err != nil || r.Bad() != 0 {
			t.Fatalf("%v, %+v", err, r)
		}
		want := make([]byte, 0, testDevice)
		for _, fill := range last {
			want = append(want, bytes.Repeat([]byte{fill}, page)...)
		}
		mustContent(t, "the source", src, want)
		if err := src.Sync(); err != nil {
			t.Fatal(err)
		}
		mustContent(t, "the target", d.v[dstHost], want)
		if r = d.mustVerify(t, 0); r.DifferentBytes != 0 {
			t.Fatalf("round %d, after the repair: %+v", round, r)
		}
	}
}

// TestVerifyTargetLost: the session ends in the middle: an error that says that it is worth another try, and no difference.
func TestVerifyTargetLost(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	if err := d.scenario(30, never); err != nil {
		t.Fatal(err)
	}
	tally := &verifyTally{}
	c, err := newComparer(d.session.sender, false, 0, tally)
	if err != nil {
		t.Fatal(err)
	}
	off, err := c.step(t.Context(), 0, func() (int64, error) { return verifyBlockBytes, nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.step(t.Context(), off, func() (int64, error) { d.session.cut(); return verifyBlockBytes, nil }); !errors.Is(err, errNotInSync) {
		t.Errorf("%v", err)
	}
	if r := tally.report(true, time.Now()); r.DifferentBytes != 0 {
		t.Errorf("%+v", r)
	}
}

// TestVerifyRuns: every suspect is in a run, nothing else is, and none is longer than what one request may ask for.
func TestVerifyRuns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		off := rapid.Int64Range(0, 1<<20).Draw(rt, "off")
		end := off + rapid.Int64Range(1, 1<<20).Draw(rt, "length")
		suspects := rapid.SliceOfN(rapid.Bool(), units(off, end, verifyBlockBytes), units(off, end, verifyBlockBytes)).Draw(rt, "suspects")
		seen := make([]bool, len(suspects))
		last := off
		for from, to := range runs(suspects, off, end) {
			if from < last || to <= from || to > end || to-from > exactBlocks*verifyBlockBytes {
				rt.Fatalf("[%d, %d) after %d", from, to, last)
			}
			for at := from; at < to; at = (at/verifyBlockBytes + 1) * verifyBlockBytes {
				seen[at/verifyBlockBytes-off/verifyBlockBytes] = true
			}
			last = to
		}
		if !slices.Equal(seen, suspects) {
			rt.Errorf("%v of %v", seen, suspects)
		}
	})
}
