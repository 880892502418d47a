package mirror

import (
	"bytes"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// beats writes and flushes: a number is so many writes at once, a negative one with a FLUSH by who writes, 0 is a FLUSH. It returns after which words a FLUSH was foreseen.
func beats(f *foresight, words ...int) (at []int) {
	for i, n := range words {
		if n != 0 && f.wrote(max(n, -n), n < 0) {
			at = append(at, i)
		}
		if n <= 0 {
			f.flushed()
		}
	}
	return at
}

func TestForesightBeat(t *testing.T) {
	steady := func(beat ...int) (words []int) {
		for range steadyBeats {
			words = append(append(words, beat...), 0)
		}
		return words
	}
	next := len(steady(1)) // the word behind four beats of one write
	for name, tt := range map[string]struct {
		words []int
		at    []int
	}{
		"not when who writes flushes":       {append(steady(1), -1, -1, 1), []int{next + 2}},
		"write and flush":                   {append(steady(1), 1), []int{next}},
		"not before the beat is steady":     {steady(1)[:next-1], nil},
		"once for each":                     {append(steady(1), 1, 0, 1, 0), []int{next, next + 2}},
		"eight at once":                     {append(steady(8), 8), []int{next}},
		"eight one by one":                  {append(steady(8), 1, 1, 1, 1, 1, 1, 1, 1), []int{next + 7}},
		"not one too early":                 {append(steady(8), 7), nil},
		"more than the beat, at once":       {append(steady(8), 9), nil},
		"more than the beat, one by one":    {append(steady(2), 2, 1, 1), []int{next}},
		"another flush behind one":          {append(steady(1), 0, 0, 1), []int{next + 2}},
		"a flush that comes early":          {append(steady(2), 1, 0, 2), nil},
		"a new beat, when it is steady":     {append(append(steady(2), steady(3)...), 3), []int{2 * next}},
		"by turns":                          {[]int{1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2}, nil},
		"a beat too long to be worth while": {append(steady(longestBeat+1), longestBeat+1), nil},
	} {
		f := newForesight()
		got := beats(f, tt.words...)
		if !slices.Equal(got, tt.at) {
			t.Errorf("%s: foreseen after %v, not %v, of %v", name, got, tt.at, tt.words)
		}
	}
}

// foreseeing is a volume on whose disks nothing happens that it is not told to, but for what it foresees.
func foreseeing(t *testing.T) (*Volume, *blockdev.Faulty) {
	t.Helper()
	h := newHost(t, RolePrimary)
	o := quietOptions()
	o.Foresight, o.Now = true, nil
	f := blockdev.NewFaulty(h.journal)
	v, _, err := openVolume(f, keepOpen{h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Abort() })
	return v, f
}

func (v *Volume) beat(t *testing.T, writes int) {
	t.Helper()
	for i := range writes {
		if _, err := v.WriteAt(bytes.Repeat([]byte{byte(i)}, 512), int64(i)*512); err != nil {
			t.Fatal(err)
		}
	}
}

// waitingGate lets writes wait.
type waitingGate struct{ openGate }

func (waitingGate) answersAtOnce() bool { return false }

// TestForesight: what is written in a steady beat is durable before its FLUSH: when who answers the write says that it has, or, where
// the answer waits for something, by itself.
func TestForesight(t *testing.T) {
	for _, c := range []struct {
		name string
		gate gate
		tell func(v *Volume)
	}{
		{"here", openGate{}, func(v *Volume) {
			v.Foresee(true)
			if v.log.Durable() != v.log.Head() {
				t.Error("it is not durable when Foresee returns")
			}
		}},
		{"elsewhere", openGate{}, func(v *Volume) { v.Foresee(false) }},
		{"by itself", waitingGate{}, func(*Volume) {}},
	} {
		v, _ := foreseeing(t)
		v.gate.Store(&gateBox{c.gate})
		for range steadyBeats {
			v.beat(t, 3)
			v.Foresee(true)
			if v.log.Durable() == v.log.Head() {
				t.Fatalf("%s: foreseen before the beat is steady", c.name)
			}
			if err := v.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		v.beat(t, 2)
		v.Foresee(true)
		if v.log.Durable() == v.log.Head() {
			t.Errorf("%s: foreseen in the middle of the beat", c.name)
		}
		v.beat(t, 1)
		c.tell(v)
		awaitVolume(t, "it is durable", func() bool { return v.log.Durable() == v.log.Head() })
		if err := v.Sync(); err != nil {
			t.Error(err)
		}
	}
}

// askedGate notes what followers are asked for.
type askedGate struct {
	openGate
	asked atomic.Uint64
}

func (g *askedGate) request(lsn journal.LSN) { g.asked.Store(uint64(lsn)) }

// TestForesightFollowers: followers are asked by the write that a FLUSH is expected after, before it is answered, and by no other.
func TestForesightFollowers(t *testing.T) {
	v, _ := foreseeing(t)
	g := &askedGate{}
	v.gate.Store(&gateBox{g})
	for range steadyBeats {
		v.beat(t, 3)
		if err := v.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	before := g.asked.Load()
	v.beat(t, 2)
	if now := g.asked.Load(); now != before {
		t.Errorf("asked for LSN %d in the middle of the beat", now)
	}
	v.beat(t, 1)
	if now := g.asked.Load(); now != uint64(v.log.Head()) {
		t.Errorf("asked for LSN %d, the log ends at %d", now, v.log.Head())
	}
}

// TestForesightFails: a sync that was begun early and fails stops the volume like any other (G9); the FLUSH that joins it fails.
func TestForesightFails(t *testing.T) {
	for _, here := range []bool{true, false} {
		v, f := foreseeing(t)
		for range steadyBeats {
			v.beat(t, 1)
			if err := v.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		f.Set(blockdev.Rule{Op: blockdev.OpSync, Err: errors.New("no disk")})
		v.beat(t, 1)
		v.Foresee(here)
		awaitVolume(t, "the volume fails", func() bool { return v.Err() != nil })
		if err := v.Sync(); err == nil {
			t.Error("a FLUSH was answered")
		}
	}
}
