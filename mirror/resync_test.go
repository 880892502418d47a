package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// stagedIn stages a resync of v beside it, in a memory device of its host.
func (h *host) stagedIn(v *Volume) func(int64) (*staging, error) {
	return func(size int64) (*staging, error) {
		if v.flags()&stateBlank != 0 {
			return openStaging(v, "", size)
		}
		return newStaging(v, keepOpen{h.stage}, func() error { h.removed = true; return nil })
	}
}

func (h *host) newStage() { h.stage, h.removed = blockdev.NewMemory(testDevice, h.power), false }

// fill writes random stripes until stop is closed.
func fill(v *Volume, seed uint64, stop <-chan struct{}, done chan<- error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for {
		select {
		case <-stop:
			done <- nil
			return
		default:
		}
		p := bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(6000))
		off := int64(rng.IntN(testDevice - len(p)))
		var err error
		switch rng.IntN(12) {
		case 0:
			err = v.Trim(off, int64(len(p)))
		case 1:
			err = v.Zero(off, int64(len(p)))
		default:
			_, err = v.WriteAt(p, off)
		}
		if err != nil {
			done <- err
			return
		}
	}
}

// TestResyncUnderWrites: an empty follower becomes equal while the source is
// written to, and stays so when the stream goes on.
func TestResyncUnderWrites(t *testing.T) {
	for round := range 12 {
		d := &duo{hosts: [2]*host{newHost(t, RolePrimary), newHost(t, RoleSecondary)}, model: make([]byte, testDevice)}
		d.v[srcHost], d.v[dstHost] = d.hosts[srcHost].mustOpen(t), d.hosts[dstHost].mustOpen(t)
		d.lead()
		stop, done := make(chan struct{}), make(chan error, 1)
		if err := d.scenario(30, never); err != nil {
			t.Fatal(err)
		}
		go fill(d.v[srcHost], uint64(round), stop, done)
		d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, inPlace(d.v[dstHost]))
		err := d.session.awaitSync()
		close(stop)
		err = errors.Join(err, <-done)
		if err == nil {
			err = d.v[srcHost].Sync()
		}
		if err == nil {
			err = equalLogs(d.v[srcHost], d.v[dstHost])
		}
		if !d.session.had(followerNeedsResync) {
			err = errors.Join(err, errors.New("there was no resync"))
		}
		d.close()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// TestCompareUnderWrites: a follower that was consistent, and of which nothing was kept, becomes equal by hashes while the source is
// written to.
func TestCompareUnderWrites(t *testing.T) {
	for round := range 12 {
		d := newDuo(t)
		defer d.close()
		if err := d.scenario(20, never); err != nil {
			t.Fatal(err)
		}
		d.session.close()
		if err := d.scenario(600, never); err != nil { // more than the log keeps
			t.Fatal(err)
		}
		stop, done := make(chan struct{}), make(chan error, 1)
		go fill(d.v[srcHost], uint64(round), stop, done)
		d.hosts[dstHost].newStage()
		d.session = connectAs("", d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
		err := d.session.awaitSync()
		close(stop)
		if err = errors.Join(err, <-done); err == nil {
			err = d.v[srcHost].Sync()
		}
		if err == nil {
			err = equalLogs(d.v[srcHost], d.v[dstHost])
		}
		if !d.session.had(followerNeedsResync) {
			err = errors.Join(err, errors.New("there was no resync"))
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// TestResyncLimited: a resync that may not go on for now does not hold up the stream.
func TestResyncLimited(t *testing.T) {
	d := &duo{hosts: [2]*host{newHost(t, RolePrimary), newHost(t, RoleSecondary)}, model: make([]byte, testDevice)}
	d.v[srcHost], d.v[dstHost] = d.hosts[srcHost].mustOpen(t), d.hosts[dstHost].mustOpen(t)
	defer d.close()
	d.lead()
	src := d.v[srcHost]
	write := func() journal.LSN {
		if _, err := src.WriteAt(bytes.Repeat([]byte{1}, testDevice), 0); err != nil {
			t.Fatal(err)
		}
		if err := src.Sync(); err != nil {
			t.Fatal(err)
		}
		return src.log.Head()
	}
	write()
	var atWork atomic.Bool
	var ops uint64
	load := func() loadSample {
		if atWork.Load() {
			ops++
		}
		return loadSample{ops: ops}
	}
	d.session = connectWith(func(s *sender) { s.resyncRate, s.load = 1, load }, src, d.v[dstHost], d.promise, inPlace(d.v[dstHost]))
	progress := &d.session.sender.resync
	awaitVolume(t, "the first chunk is copied", func() bool { return progress.done.Load() == resyncBlockBytes })
	head := write()
	awaitVolume(t, "what is written meanwhile arrives", func() bool {
		r := d.session.receiver
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.received == head
	})
	if p := progress.status(); p.YieldsTo != 0 {
		t.Errorf("it yields to %d, nobody is at work", p.YieldsTo)
	}
	atWork.Store(true)
	awaitVolume(t, "it says that it yields", func() bool { return progress.status().YieldsTo > 0 })
	atWork.Store(false)
	awaitVolume(t, "and that it does not any more", func() bool { return progress.status().YieldsTo == 0 })
	if done := progress.done.Load(); done != resyncBlockBytes {
		t.Errorf("%d bytes in no time at a byte per second", done)
	}
	d.session.close()
}

// TestCatchUp: a follower that was away for less than the log reaches back
// catches up from it; one that was away for longer is resynced.
func TestCatchUp(t *testing.T) {
	for _, away := range []int{10, 600} {
		t.Run(fmt.Sprintf("%d operations", away), func(t *testing.T) {
			d := newDuo(t)
			defer d.close()
			if err := d.scenario(20, never); err != nil {
				t.Fatal(err)
			}
			d.session.close()
			if err := d.scenario(away, never); err != nil {
				t.Fatal(err)
			}
			d.hosts[dstHost].newStage()
			d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
			if err := d.session.awaitSync(); err != nil {
				t.Fatal(err)
			}
			if got, want := d.session.had(followerNeedsResync), away > 100; got != want {
				t.Fatalf("resync: %v, want %v", got, want)
			}
			if err := d.finish(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestResyncPowerLoss cuts the follower's power at every disk operation of a
// resync of a volume that was consistent before: it comes back with its old
// state or with the new one, whole, and promotable (G4).
func TestResyncPowerLoss(t *testing.T) {
	for name, duo := range map[string]func(testing.TB) *duo{"compared": newDuo, "by bitmap": newTrackedDuo} {
		t.Run(name, func(t *testing.T) { resyncPowerLoss(t, duo) })
	}
}

func resyncPowerLoss(t *testing.T, duo func(testing.TB) *duo) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 3))
	step := 1
	if testing.Short() || raceEnabled {
		step = 7
	}
	cuts, taken := 0, 0
	for n := 1; ; n += step {
		lost, merged := resyncCrash(t, duo(t), n, seed, rng)
		if !lost {
			break
		}
		cuts++
		if merged {
			taken++
		}
	}
	if cuts*step < 30 || taken == 0 {
		t.Fatalf("%d cuts, %d of them after the takeover", cuts, taken)
	}
	t.Logf("%d cuts, %d of them after the takeover", cuts, taken)
}

func resyncCrash(t *testing.T, d *duo, n int, seed uint64, rng *rand.Rand) (lost, merged bool) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("cut at operation %d (seed %d): %v", n, seed, err)
		}
	}
	defer d.close()
	h := d.hosts[dstHost]
	fail(d.scenario(30, never))
	fail(d.v[srcHost].Sync())
	before, err := content(d.v[dstHost])
	fail(err)
	d.session.close()
	fail(d.scenario(500, never)) // the log reaches back no more
	after := bytes.Clone(d.model)
	h.newStage()
	h.power.CutAfter(n)
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, h.stagedIn(d.v[dstHost]))
	err = d.session.awaitSync()
	h.power.CutAfter(1 << 30) // whatever goes on behind the scenes is not cut any more
	if !h.power.Lost() {
		fail(err)
		if !h.removed {
			t.Fatal("the staging was not removed")
		}
		fail(d.finish())
		return false, false
	}
	d.session.close()
	_ = d.v[dstHost].Abort()
	h.power.Restore(rng)
	v, err := h.open()
	fail(err)
	d.v[dstHost] = v
	if v.flags()&stateMerging != 0 {
		merged = true
		st, err := newStaging(v, keepOpen{h.stage}, func() error { return nil })
		fail(err)
		fail(st.merge())
	}
	got, err := content(v)
	fail(err)
	switch {
	case v.flags()&stateBlank != 0:
		t.Fatalf("cut at operation %d: a consistent volume became blank", n)
	case merged && !bytes.Equal(got, after):
		t.Fatalf("cut at operation %d: after the takeover byte %d differs", n, firstDifference(got, after))
	case !merged && !bytes.Equal(got, before) && !bytes.Equal(got, after):
		t.Fatalf("cut at operation %d: byte %d is neither old nor new", n, firstDifference(got, before))
	}
	// And it can be resynced again, from where it is.
	d.session = connect(d.v[srcHost], v, d.promise, h.stagedIn(v))
	fail(d.session.awaitSync())
	fail(d.finish())
	return true, merged
}

// TestStagedRecordIsChecked: a record that comes during a resync and does not
// match its hash breaks the stream instead of reaching the copy.
func TestStagedRecordIsChecked(t *testing.T) {
	src, dst := newHost(t, RolePrimary).mustOpen(t), newHost(t, RoleSecondary).mustOpen(t)
	defer src.Abort()
	defer dst.Abort()
	from := src.log.Head()
	if _, err := src.WriteAt([]byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 4096)
	n, err := src.log.ReadRaw(from, raw)
	if err != nil {
		t.Fatal(err)
	}
	a, b := pair()
	defer a.cut()
	told := make(chan string, 1)
	var wg sync.WaitGroup
	b.serve(&wg, func(_ context.Context, m []byte) ([]byte, error) {
		if m[0] == kindBroken {
			told <- string(m[1:])
		}
		return nil, nil
	})
	r := newReceiver(dst, a)
	defer r.close()
	r.newStage = inPlace(dst)
	if _, err := r.handle(t.Context(), encodeJSON(kindResync, resyncBegin{From: from, Size: testDevice})); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, recordsHeaderBytes+n)
	recordsHeader{From: from}.put(msg)
	copy(msg[recordsHeaderBytes:], raw[:n])
	msg[recordsHeaderBytes+journal.HeaderSize] ^= 1
	if _, err := r.handle(t.Context(), msg); !errors.Is(err, journal.ErrCorrupt) {
		t.Fatalf("a rotten record was taken: %v", err)
	}
	if why := <-told; why == "" {
		t.Fatal("the source was not told")
	}
	got, err := content(dst)
	if err != nil || !allZero(got) {
		t.Fatalf("a rotten record reached the device (%v)", err)
	}
	if r.staging != nil {
		t.Fatal("the resync goes on")
	}
}

// TestResyncKeepsWhatIsInTheLogOnly: blocks that a follower has in its log and not yet in its device are equal to the
// source's, so nobody sends them; they were gone with the log when the new state was taken over.
func TestResyncKeepsWhatIsInTheLogOnly(t *testing.T) {
	d := &duo{hosts: [2]*host{newHost(t, RolePrimary), newHost(t, RoleSecondary)}, model: make([]byte, testDevice)}
	d.states = [][]byte{bytes.Clone(d.model)}
	d.v[srcHost] = d.hosts[srcHost].mustOpen(t)
	h := d.hosts[dstHost]
	o := testOptions()
	o.ApplyInterval = time.Hour
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	d.v[dstHost] = v
	d.lead()
	d.session = connect(d.v[srcHost], v, d.promise, inPlace(v))
	defer d.close()
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	if err := d.scenario(20, never); err != nil {
		t.Fatal(err)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	if _, _, n := v.overlay.pending(); n == 0 {
		t.Fatal("nothing is in the log only")
	}
	for range 2 * testJournal / (16 << 10) { // one place, again and again: everything else stays equal
		if _, err := d.v[srcHost].WriteAt(d.model[:16<<10], 0); err != nil {
			t.Fatal(err)
		}
	}
	h.newStage()
	d.session = connect(d.v[srcHost], v, d.promise, h.stagedIn(v))
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	if !d.session.had(followerNeedsResync) {
		t.Fatal("the log reached back")
	}
	if err := equalLogs(d.v[srcHost], v); err != nil {
		t.Fatal(err)
	}
}
