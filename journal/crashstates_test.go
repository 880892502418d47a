package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"mirror-agent/blockdev/crashtest"
)

// moment: what the log must be once so many operations on the disk are done.
type moment struct {
	pos int
	state
}

// crashShare of the states is visited; MIRROR_AGENT_CRASH=full: all.
func crashShare(share float64) float64 {
	switch {
	case os.Getenv("MIRROR_AGENT_CRASH") == "full":
		return 1
	case testing.Short() || raceEnabled:
		return share / 20
	}
	return share
}

// recordLife runs random steps on a recorded disk. Nothing is opened or cut off in between: that is what the states are for.
func recordLife(t *testing.T, seed uint64, steps int) (*crashtest.Trace, []moment) {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 4)), counts: map[string]int{}, small: true}
	trace := crashtest.New()
	disk := trace.Disk(ringStart + worldRing)
	// The log begins a little before the end of the ring, so that it wraps soon.
	at := LSN(worldRing - 3000)
	mustFormat(t, disk, Anchor{Name: "world", Role: RolePrimary, DeviceSize: 1 << 30, Applied: at, AppliedChain: 77, Generations: []Generation{{Major: 1, First: at}}})
	trace.Begin()
	w.start, w.durable = at, at
	w.l = mustOpen(t, disk, w.options())
	w.anchor = w.l.Anchor()
	moments := []moment{{0, w.state}}
	weight := 0
	ops := []weighted{
		{"append", 30, w.append},
		{"raw", 10, w.appendRaw},
		{"sync", 7, w.sync},
		{"anchor", 8, w.moveTail},
		{"cut", 5, w.cutLog},
		{"reset", 2, w.resetLog},
		{"role", 4, w.changeRole},
	}
	for _, o := range ops {
		weight += o.weight
	}
	for range steps {
		w.take(w.rng.IntN(weight), ops)
		moments = append(moments, moment{trace.Len(), w.state})
	}
	w.mustEqual()
	return trace, moments
}

// doneAt finds the last moment at or before n operations.
func doneAt(moments []moment, n int) int {
	i, _ := slices.BinarySearchFunc(moments, n+1, func(m moment, n int) int { return m.pos - n })
	return i - 1
}

// judge opens a state: it is what was before or after the step that was under way, less what nobody promised.
func judge(moments []moment, s *crashtest.State) error {
	i := doneAt(moments, s.N)
	before, after := &moments[i], &moments[min(i+1, len(moments)-1)]
	if before.pos == s.N {
		after = before
	}
	l, _, err := Open(s.Disks[0], Options{})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := allows(&before.state, &after.state, l); err != nil {
		return err
	}
	if s.Killed >= 0 {
		i := doneAt(moments, s.Killed)
		least := min(moments[i].head(), moments[min(i+1, len(moments)-1)].head())
		if l.Head() < least {
			return fmt.Errorf("killed: head %d, records up to %d had been appended", l.Head(), least)
		}
	}
	if s.Sum%16 == 0 { // it goes on from there
		if err := l.Append([]*Entry{write(8, []byte("after the crash"))}); err != nil && !errors.Is(err, ErrFull) {
			return err
		}
		end := l.Head()
		again, _, err := Open(s.Disks[0], Options{})
		if err != nil {
			return fmt.Errorf("open again: %w", err)
		}
		if again.Head() != end {
			return fmt.Errorf("appended up to %d, opened again: %d", end, again.Head())
		}
		return again.Verify(again.Tail(), end)
	}
	return nil
}

// TestCrashStates visits what any power cut in random lives of a log may leave on the disk. MIRROR_AGENT_SEED draws other
// lives; there are enough states in any.
func TestCrashStates(t *testing.T) {
	const lives, share = 3, 0.02
	least := 0
	switch crashShare(share) {
	case 1:
		least = 150_000
	case share:
		least = 4_000
	}
	total, visited, began, first := 0, 0, time.Now(), uint64(0)
	if s := os.Getenv("MIRROR_AGENT_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for seed := first; seed < first+lives; seed++ {
		t.Run(fmt.Sprint("life ", seed), func(t *testing.T) {
			trace, moments := recordLife(t, seed, 220)
			if t.Failed() {
				return
			}
			n, err := trace.States(crashtest.Config{
				Seed: seed, All: 10, Samples: 200, Tears: 1500, Share: crashShare(share),
				Stamp: func(n int) int {
					i := doneAt(moments, n)
					return 2*i + min(n-moments[i].pos, 1) // done, or the next under way
				},
			}, func(s *crashtest.State) error { return judge(moments, s) })
			total, visited = total+n, visited+1
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d operations on the disk, %d states", trace.Len(), n)
		})
	}
	if visited == lives && total < least {
		t.Errorf("MIRROR_AGENT_SEED=%d: only %d states, at least %d are wanted: make the lives longer", first, total, least)
	}
	t.Logf("%d states in %v", total, time.Since(began).Round(time.Millisecond))
}

// TestCrashFormat: a Format that did not come to its end leaves no journal, or an empty one.
func TestCrashFormat(t *testing.T) {
	trace := crashtest.New()
	disk := trace.Disk(MinSize)
	mustFormat(t, disk, Anchor{Name: "new", Applied: 4096, AppliedChain: 3})
	formatted := 0
	n, err := trace.States(crashtest.Config{All: 10, Tears: 100, Share: 1, Workers: 1}, func(s *crashtest.State) error {
		l, _, err := Open(s.Disks[0], Options{})
		switch {
		case errors.Is(err, ErrNoAnchor) && s.N < trace.Len():
			return nil
		case err != nil:
			return err
		case l.Head() != 4096 || l.Anchor().Name != "new":
			return fmt.Errorf("head %d of %q", l.Head(), l.Anchor().Name)
		}
		formatted++
		return nil
	})
	if err != nil || formatted == 0 || formatted == n {
		t.Errorf("%d states, %d of them formatted: %v", n, formatted, err)
	}
}
