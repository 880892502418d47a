package mirror

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// TestPaceDelay: no delay in the normal range, none to speak of where it
// begins, the drain's own pace where the ring is 85 % full, never more than
// the bound, and never less for more of the ring, more bytes or a slower drain.
func TestPaceDelay(t *testing.T) {
	const ring, drain = 1 << 30, 100e6
	for _, tt := range []struct {
		name        string
		used, bytes int64
		drain       float64
		least, most time.Duration
	}{
		{"empty", 0, 4096, drain, 0, 0},
		{"half full", ring / 2, 1 << 20, drain, 0, 0},
		{"half full and nothing drains", ring / 2, 1 << 20, 0, 0, 0},
		{"just over half", ring/2 + ring/1000, 4096, drain, 0, time.Microsecond},
		{"at 85 %", ring / 100 * 85, 1e6, drain, 9900 * time.Microsecond, 10100 * time.Microsecond},
		{"nearly full", ring / 1000 * 999, 1e6, drain, maxPace, maxPace},
		{"full", ring, 1, drain, maxPace, maxPace},
		{"beyond", ring * 2, 1, drain, maxPace, maxPace},
		{"nothing drains", ring / 4 * 3, 4096, 0, maxPace, maxPace},
	} {
		if d := paceDelay(tt.used, ring, tt.bytes, tt.drain); d < tt.least || d > tt.most {
			t.Errorf("%s: %v, want %v to %v", tt.name, d, tt.least, tt.most)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		used := rapid.Int64Range(0, ring).Draw(t, "used")
		bytes := rapid.Int64Range(1, 32<<20).Draw(t, "bytes")
		rate := rapid.Float64Range(1, 1e10).Draw(t, "drain")
		d := paceDelay(used, ring, bytes, rate)
		more := rapid.Int64Range(0, ring).Draw(t, "more")
		switch {
		case d < 0 || d > maxPace || used <= ring/2 && d != 0:
			t.Fatalf("%v", d)
		case paceDelay(min(used+more, ring), ring, bytes, rate) < d:
			t.Fatal("shorter with more of the ring in use")
		case paceDelay(used, ring, bytes+more, rate) < d:
			t.Fatal("shorter for more bytes")
		case paceDelay(used, ring, bytes, rate/2) < d:
			t.Fatal("shorter with a slower drain")
		}
		// No cliff: a hundredth more of the ring, but for its last tenth, is
		// worth at most as much as the ring's worth of the delay there.
		if next := paceDelay(used+ring/100, ring, bytes, rate); used < ring/10*9 && next-d > maxPace/2 && float64(bytes)/rate < 0.02 {
			t.Fatalf("from %v to %v", d, next)
		}
	})
}

// TestDrainMeter: the rate follows what is measured within some seconds, a
// pause between two times of pressure is not measured, and before anything is
// known a ring's worth in a second is taken.
func TestDrainMeter(t *testing.T) {
	var m drainMeter
	now, lsn := time.Unix(1000, 0), journal.LSN(4096)
	is := func(what string, want float64) {
		t.Helper()
		if m.rate < want*0.9-1 || m.rate > want*1.1+1 {
			t.Fatalf("%s: %.0f bytes/s, want about %.0f", what, m.rate, want)
		}
	}
	run := func(steps int, rate float64) {
		for range steps {
			now = now.Add(100 * time.Millisecond)
			lsn += journal.LSN(rate / 10)
			m.update(now, lsn, 1<<20)
		}
	}
	m.update(now, lsn, 1<<20)
	is("at first", 1<<20)
	run(100, 5000)
	is("after 10 s of 5000 bytes/s", 5000)
	now = now.Add(time.Hour)
	run(1, 0)
	is("after a pause", 5000)
	run(100, 300)
	is("after 10 s of 300 bytes/s", 300)
	run(1000, 0)
	is("after 100 s of standstill", 5)
	now = now.Add(time.Microsecond)
	m.update(now, lsn+1<<30, 1<<20)
	is("too soon to tell", 5)
}

// TestDrainByLumps: what drains goes by lumps, of a layer or of what a follower made durable at once, and writers are slowed
// evenly all the same. The rate fell by two thirds in each second without a lump, and each one made it shoot up.
func TestDrainByLumps(t *testing.T) {
	const ring, drain, look = 1 << 30, 64 << 20, 50 * time.Millisecond // bytes, bytes in a second
	for _, lump := range []int64{1 << 10, 1 << 20, 64 << 20, 512 << 20} {
		var m drainMeter
		start := time.Unix(1000, 0)
		var least, most time.Duration
		for at := time.Duration(0); at < 200*time.Second; at += look {
			drained := int64(at.Seconds() * drain)
			m.update(start.Add(at), firstLSN+journal.LSN(drained-drained%lump), ring)
			if at < 100*time.Second { // until it has settled
				continue
			}
			d := paceDelay(ring/100*85, ring, 1<<20, m.rate)
			if most == 0 {
				least = d
			}
			least, most = min(least, d), max(most, d)
		}
		if even := time.Second / 64; least < even*8/10 || most > even*12/10 {
			t.Errorf("by lumps of %d bytes a call is delayed by %v to %v, want about %v", lump, least, most, even)
		}
	}
}

// TestPushBack: with track, a follower that holds writers up for longer than
// push-back loses its hold, once, and cannot take it again in that session;
// with wait it never does. Pauses do not count.
func TestPushBack(t *testing.T) {
	for _, policy := range []OnFull{OnFullTrack, OnFullWait} {
		h := newHost(t, RolePrimary)
		v := h.mustOpen(t)
		v.opts.OnFull, v.opts.PushBack = policy, 10*time.Second
		lost := 0
		at := v.log.Tail()
		hold := v.newHold("slow", at, func() { lost++ })
		if _, err := v.WriteAt(make([]byte, 8192), 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(v.Sync(), v.settle()); err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1000, 0)
		step := func(d time.Duration) { now = now.Add(d); v.heldUp(now) }
		for range 100 {
			step(3 * time.Second) // now and then
		}
		for range 9 {
			step(time.Second)
		}
		if lost != 0 || v.holdMark.Load() != uint64(at) {
			t.Fatalf("%s: lost after less than 10 s on end", policy)
		}
		for range 20 {
			step(time.Second)
		}
		hold.move(at)
		pinned, follower := v.pinned()
		if policy == OnFullTrack {
			if lost != 1 || follower || pinned != v.log.Applied() {
				t.Fatalf("track: given up %d times, the tail is held at %d (%v)", lost, pinned, follower)
			}
		} else if lost != 0 || !follower || pinned != at {
			t.Fatalf("wait: given up %d times, the tail is held at %d (%v)", lost, pinned, follower)
		}
		hold.release()
		v.newHold("slow", at, func() {})
		if _, follower := v.pinned(); !follower {
			t.Fatalf("%s: the next session cannot hold", policy)
		}
		if err := v.Abort(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOutrun: a connected follower that does not get on is left behind, and
// writers go on; when it is back it gets what it lacks by a partial resync.
func TestOutrun(t *testing.T) {
	d := newTrackedDuo(t)
	defer d.close()
	src := d.v[srcHost]
	if err := errors.Join(d.scenario(20, never), src.Sync(), d.awaitEntry()); err != nil {
		t.Fatal(err)
	}
	src.opts.OnFull, src.opts.PushBack = OnFullTrack, time.Nanosecond // the first writer held up is one too many
	d.promise.setMode(ModeAsync)                                      // or it is a flush that waits
	d.session.receiver.busy.Lock()                                    // the follower hangs
	err := d.apart(1, 300)
	d.session.receiver.busy.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-d.session.ended; !errors.Is(err, errOutrun) {
		t.Fatalf("the session ended with %v", err)
	}
	d.session.close()
	d.mustRejoin(t, "")
}

// TestHolds: the tail waits for the slowest; who holds writers up for too long loses its hold, and only who does.
func TestHolds(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	v.opts.OnFull, v.opts.PushBack = OnFullTrack, 10*time.Second
	start := v.log.Head()
	lost := map[string]int{}
	holds := map[string]*hold{}
	for _, who := range []string{"slow", "slower", "quick"} {
		holds[who] = v.newHold(who, start, func() { lost[who]++ })
	}
	var half journal.LSN
	for int64(v.log.Head()-start) < v.log.Capacity()/10*7 {
		if _, err := v.WriteAt(make([]byte, 16<<10), 0); err != nil {
			t.Fatal(err)
		}
		if half == 0 {
			half = v.log.Head() // a little further than the slowest
		}
	}
	if err := v.settle(); err != nil {
		t.Fatal(err)
	}
	holds["slow"].move(half)
	holds["quick"].move(v.log.Head())
	if at, _ := v.pinned(); at != start || v.slowest() != "slower" {
		t.Fatalf("pinned at %d by %s, the slowest is at %d", at, v.slowest(), start)
	}
	now := time.Now().Add(time.Hour) // the writes were slowed, too
	for range 12 {
		now = now.Add(time.Second)
		v.heldUp(now)
	}
	if lost["slower"] != 1 || lost["slow"] != 1 || lost["quick"] != 0 {
		t.Fatalf("lost their hold: %v", lost)
	}
	if at, follower := v.pinned(); follower || at != v.log.Applied() {
		t.Fatalf("pinned at %d", at)
	}
	holds["slower"].move(v.log.Head()) // void
	holds["quick"].release()
	if len(v.holds) != 0 || v.holdMark.Load() != noHold {
		t.Fatalf("%d holds are left", len(v.holds))
	}
	// One that does not slow anybody by itself is not blamed for another.
	slow, near := v.newHold("slow", start, func() { lost["slow"]++ }), v.newHold("near", v.log.Head()-8, func() { lost["near"]++ })
	for range 12 {
		now = now.Add(time.Second)
		v.heldUp(now)
	}
	if lost["slow"] != 2 || lost["near"] != 0 {
		t.Fatalf("lost their hold: %v", lost)
	}
	slow.release()
	near.release()
}

// TestPacedEvenly: a writer that is faster than the backing device gets even delays once it has settled. By a fake clock: what
// passes on it during a write is what the pacing ordered.
func TestPacedEvenly(t *testing.T) {
	for _, c := range []struct {
		name        string
		write, sync time.Duration // of a byte, of a sync
		call        int           // bytes of a call
	}{
		{"writes are slow", 250 * time.Nanosecond, 10 * time.Millisecond, 64 << 10},
		{"syncs are slow", time.Nanosecond, time.Second, 64 << 10}, // the cache takes all at once
		{"syncs take very long", time.Nanosecond, 4 * time.Second, 16 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 4 << 20
				file := blockdev.NewMemory(16<<20, nil)
				config := Config{Name: "vol", Role: RolePrimary}
				if err := journal.Format(file, config.firstAnchor(size)); err != nil {
					t.Fatal(err)
				}
				dev := blockdev.NewFaulty(blockdev.NewMemory(size, nil), blockdev.Rule{Hook: func(op blockdev.Op, _, length int64) error {
					switch op {
					case blockdev.OpWrite:
						time.Sleep(time.Duration(length) * c.write)
					case blockdev.OpSync:
						time.Sleep(c.sync)
					case blockdev.OpAny, blockdev.OpRead, blockdev.OpZero, blockdev.OpTrim:
					}
					return nil
				}})
				v, _, err := openVolume(file, dev, testOptions())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = v.Abort() }()
				if _, err := v.beginGeneration(true); err != nil {
					t.Fatal(err)
				}
				var delays []time.Duration
				p := make([]byte, c.call)
				for i, start := 0, time.Now(); time.Since(start) < 2*time.Minute; i++ {
					began := time.Now()
					if _, err := v.WriteAt(p, int64(i*len(p))%size); err != nil {
						t.Fatal(err)
					}
					if began.Sub(start) > time.Minute {
						delays = append(delays, time.Since(began))
					}
				}
				slices.Sort(delays)
				median, most := delays[len(delays)/2], delays[len(delays)-1]
				if median == 0 || most > 3*median {
					t.Errorf("of %d delays the longest is %v, the median %v", len(delays), most, median)
				}
			})
		})
	}
}
