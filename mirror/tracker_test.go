package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"mirror-agent/journal"
)

// partially says whether a session copied only what was marked.
func (s *session) partially() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.said, "what changed since is copied")
}

// apart is what a source does while its follower is away: a block of its own
// every few operations, which nothing else touches, and much traffic in a
// corner of the device that makes the log leave its tail behind.
func (d *duo) apart(from, n int) error {
	v := d.v[srcHost]
	for i := from; i < from+n; i++ {
		d.fill++
		p := bytes.Repeat([]byte{d.fill}, 20<<10)
		off := int64(testDevice - len(p))
		if i%6 == 0 {
			off, p = int64(i/6%40)*minDirtyBlock+int64(i%512), p[:1+i%700]
		}
		copy(d.model[off:], p)
		if _, err := v.WriteAt(p, off); err != nil {
			return err
		}
		if i%9 == 8 {
			if err := v.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitEntry waits until the anchor tells of the follower.
func (d *duo) awaitEntry() error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if fs := d.v[srcHost].log.Anchor().Followers; len(fs) == 1 && fs[0].Acked >= firstLSN && fs[0].Flags == 0 {
			return nil
		}
	}
	return errors.New("the anchor does not tell of the follower")
}

// rejoin connects again, with a staging beside the follower.
func (d *duo) rejoin() error {
	d.hosts[dstHost].newStage()
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
	return d.session.awaitSync()
}

// reopen opens the volume of one side again.
func (d *duo) reopen(t testing.TB, side int) {
	t.Helper()
	d.v[side] = d.hosts[side].mustOpen(t)
	if side == srcHost {
		d.lead()
	}
}

// TestTrackedPowerLoss cuts the source's power at every disk operation while
// its follower is away and the tail passes what it has. Whenever that was,
// the follower comes back by a partial resync or from the log, and misses no
// block.
func TestTrackedPowerLoss(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 5))
	step := 1
	if testing.Short() || raceEnabled {
		step = 13
	}
	cuts, partial := 0, 0
	for n := 1; ; n += step {
		d := newTrackedDuo(t)
		lost, part, err := trackedCrash(t, d, n, rng)
		d.close()
		if err != nil {
			t.Fatalf("cut at operation %d (seed %d): %v", n, seed, err)
		}
		if !lost {
			break
		}
		cuts++
		if part {
			partial++
		}
	}
	if cuts < 60/step || partial < cuts/2 {
		t.Fatalf("%d cuts, %d of them needed a partial resync", cuts, partial)
	}
	t.Logf("%d cuts, %d of them needed a partial resync", cuts, partial)
}

func trackedCrash(t *testing.T, d *duo, n int, rng *rand.Rand) (lost, partial bool, err error) {
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync(), d.awaitEntry()); err != nil {
		return false, false, err
	}
	d.session.close()
	power := d.hosts[srcHost].power
	power.CutAfter(n)
	err = d.apart(0, 220)
	power.CutAfter(0)
	if lost = power.Lost(); !lost && err != nil { // the log goes on by itself: the cut may come after the last write was answered
		return false, false, err
	}
	if lost {
		_ = d.v[srcHost].Abort()
		power.Restore(rng)
		d.reopen(t, srcHost)
	}
	// On, so that most cuts lie before the need for a resync and count.
	if err := d.apart(1, 60); err != nil {
		return lost, false, err
	}
	if err := d.rejoin(); err != nil {
		return lost, false, err
	}
	partial = d.session.partially()
	if d.session.had(followerNeedsResync) != partial {
		return lost, partial, fmt.Errorf("all blocks were compared: %s", d.session.said)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		return lost, partial, err
	}
	return lost, partial, equalLogs(d.v[srcHost], d.v[dstHost])
}

// TestTrackerStates: what moves a follower from covered to tracked, to lost
// and back, and that only the tail's way is remembered.
func TestTrackerStates(t *testing.T) {
	h := newHost(t, RolePrimary)
	h.track()
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, VolumeOptions{SyncInterval: time.Hour, SyncBytes: 1 << 30, ApplyInterval: time.Hour, Dirty: h.dirty})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Abort() }()
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	write := func(off int64) (end journal.LSN) {
		if _, err := v.WriteAt(make([]byte, 100), off); err != nil {
			t.Fatal(err)
		}
		end, err := v.log.Sync(v.log.Head())
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	is := func(what string, base journal.LSN, dirty int64, lost bool) {
		t.Helper()
		w := v.dirty.view("f")
		if w.base != base || v.dirty.dirtyBytes("f") != dirty || (w.lost != "") != lost {
			t.Fatalf("%s: base %d, %d bytes dirty, lost %q; want %d, %d, %v", what, w.base, v.dirty.dirtyBytes("f"), w.lost, base, dirty, lost)
		}
	}
	id, tr := v.id, v.dirty
	at1 := write(0)
	if _, err := v.WriteAt(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	head := v.log.Head()
	tr.acked("f", id, head)
	is("acknowledged, and not all of it is durable here", at1, 0, false)
	at1 = write(0)
	is("now it is", head, 0, false)
	tr.acked("f", id, at1)
	at2 := write(8192)
	at3 := write(8192 + 4000) // into the next block
	tr.leave(at1, v.Committed(), v.History())
	is("the tail is at the base", at1, 0, false)
	tr.leave(at2, v.Committed(), v.History())
	is("the tail passes the base; all that is durable is marked", at1, 2*minDirtyBlock, false)
	if w := tr.view("f"); w.upTo != at3 {
		t.Fatalf("marked up to %d, the log has %d", w.upTo, at3)
	}
	tr.acked("f", id, at2-8)
	is("acknowledged below the tail", at1, 2*minDirtyBlock, false)
	tr.acked("f", id, at2)
	is("acknowledged where the tail is", at2, 0, false)
	at4 := write(40960)
	tr.store = nil
	tr.leave(at3, v.Committed(), v.History())
	is("no place for the bitmap", at2, 0, true)
	if why, since := tr.lostTrack("f"); !strings.Contains(why, "could not be marked") || since.IsZero() {
		t.Fatalf("lost since %v: %q", since, why)
	}
	if fs := tr.followers(); len(fs) != 1 || fs[0].Flags != followerLostTrack {
		t.Fatalf("the anchor would say %+v", fs)
	}
	tr.acked("f", id, at4)
	is("acknowledged again", at4, 0, false)
	if why, _ := tr.lostTrack("f"); why != "" {
		t.Fatal("still lost:", why)
	}
	for i := range maxFollowers + 2 {
		tr.acked(fmt.Sprint(i), id, at4)
	}
	if n := len(tr.followers()); n != maxFollowers {
		t.Fatalf("%d followers", n)
	}
	tr.keepOnly([]string{"f", "3", "none"})
	if n := len(tr.followers()); n != 2 {
		t.Fatalf("%d followers are left", n)
	}
	tr.acked("g", [16]byte{}, at4)
	if tr.view("g").known {
		t.Fatal("a follower without an id is kept")
	}
}

// TestTrackedChaos: for long, the follower goes and comes, and either side
// loses its power at any disk operation, also in a resync. Whenever they are
// in sync they are equal.
func TestTrackedChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 11))
	rounds := 400
	if testing.Short() || raceEnabled {
		rounds = 50
	}
	d := newTrackedDuo(t)
	defer d.close()
	for _, h := range d.hosts {
		h.newStage()
	}
	partial, compared, crashes := 0, 0, 0
	crash := func(side int) {
		t.Helper()
		d.session.close()
		_ = d.v[side].Abort()
		d.hosts[side].power.Restore(rng)
		d.reopen(t, side)
		v := d.v[side]
		if v.flags()&stateMerging != 0 {
			st, err := newStaging(v, keepOpen{d.hosts[side].stage}, func() error { return nil })
			if err == nil {
				err = st.merge()
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		crashes++
	}
	for round := range rounds {
		side := rng.IntN(2)
		d.hosts[side].power.CutAfter(1 + rng.IntN(150))
		if rng.IntN(4) > 0 {
			d.session.close()
		}
		err := d.apart(rng.IntN(240), rng.IntN(160))
		if err == nil && d.session.a != nil {
			d.session.close()
			if !d.hosts[side].power.Lost() {
				d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
				_ = d.session.awaitSync() // in which the power may go
			}
		}
		d.hosts[side].power.CutAfter(0)
		if d.hosts[side].power.Lost() {
			crash(side)
		} else if err != nil {
			t.Fatalf("round %d (seed %d): %v", round, seed, err)
		} else {
			d.session.close()
		}
		d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
		err = errors.Join(d.session.awaitSync(), d.v[srcHost].Sync())
		if err == nil {
			err = equalLogs(d.v[srcHost], d.v[dstHost])
		}
		if err != nil {
			t.Fatalf("round %d (seed %d): %s: %v", round, seed, d.session.said, err)
		}
		switch {
		case d.session.partially():
			partial++
		case d.session.had(followerNeedsResync):
			compared++
			t.Log(d.session.said)
		}
	}
	t.Logf("%d rounds, %d crashes: %d partial resyncs, %d of all blocks (seed %d)", rounds, crashes, partial, compared, seed)
	if partial < rounds/8 || crashes < rounds/4 {
		t.Fatal("too little happened")
	}
}
