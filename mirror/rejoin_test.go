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

func TestParted(t *testing.T) {
	g := func(id byte, first journal.LSN) journal.Generation {
		return journal.Generation{ID: [16]byte{id}, First: first}
	}
	for _, tt := range []struct {
		name         string
		mine, theirs []journal.Generation
		head, at     journal.LSN
		ok           bool
	}{
		{"written after the promotion", []journal.Generation{g(1, 10)}, []journal.Generation{g(1, 10), g(2, 50)}, 80, 50, true},
		{"nothing of its own", []journal.Generation{g(1, 10)}, []journal.Generation{g(1, 10), g(2, 50)}, 50, 50, true},
		{"lost its tail", []journal.Generation{g(1, 10)}, []journal.Generation{g(1, 10), g(2, 50)}, 30, 30, true},
		{"started anew before", []journal.Generation{g(1, 10), g(3, 30)}, []journal.Generation{g(1, 10), g(2, 50)}, 80, 30, true},
		{"started anew after", []journal.Generation{g(1, 10), g(3, 60)}, []journal.Generation{g(1, 10), g(2, 50), g(4, 90)}, 80, 50, true},
		{"an older common one is left", []journal.Generation{g(1, 10), g(2, 20), g(3, 60)}, []journal.Generation{g(2, 20), g(4, 55)}, 80, 55, true},
		{"strangers", []journal.Generation{g(1, 10)}, []journal.Generation{g(2, 10)}, 80, 0, false},
	} {
		if at, ok := parted(tt.mine, tt.theirs, tt.head); at != tt.at || ok != tt.ok {
			t.Errorf("%s: %d %v, want %d %v", tt.name, at, ok, tt.at, tt.ok)
		}
	}
}

// exchange promotes the follower, which is not connected, and gives up the source.
func (d *duo) exchange(t testing.TB) {
	t.Helper()
	o := d.v[srcHost]
	if err := o.giveUp(0); err != nil {
		t.Fatal(err)
	}
	d.v[srcHost], d.v[dstHost] = d.v[dstHost], o
	d.hosts[srcHost], d.hosts[dstHost] = d.hosts[dstHost], d.hosts[srcHost]
	if _, err := d.v[srcHost].beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	d.promise.close()
	d.lead()
	var err error
	if d.model, err = content(d.v[srcHost]); err != nil {
		t.Fatal(err)
	}
	d.states = [][]byte{bytes.Clone(d.model)}
	d.flushed, d.answered = 0, 0
}

// divorce lets the source write on alone and exchanges both; then the new one is written to. It returns what the old one has.
func (d *duo) divorce(t testing.TB, alone, after int) (old []byte) {
	t.Helper()
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync(), d.awaitEntry(), d.awaitTold()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	if err := d.apart(0, alone); err != nil {
		t.Fatal(err)
	}
	old, err := content(d.v[srcHost])
	if err != nil {
		t.Fatal(err)
	}
	d.exchange(t)
	if err := d.apart(3, after); err != nil {
		t.Fatal(err)
	}
	return old
}

// awaitTold waits until the follower knows of its source as a member.
func (d *duo) awaitTold() error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if len(d.v[dstHost].dirty.followers()) == 1 {
			return nil
		}
	}
	return errors.New("the follower does not know its source")
}

// rejoined: the last resync was one of what differs after a divorce.
func (s *session) rejoined() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.said, "what either side has changed since is copied")
}

// newMarriedDuo's members know what the other lacks, whoever leads.
func newMarriedDuo(t testing.TB) *duo {
	src, dst := newHost(t, RolePrimary), newHost(t, RoleSecondary)
	src.track()
	dst.track()
	src.newStage()
	dst.newStage()
	return duoOf(t, src, dst)
}

func (d *duo) remarry(t testing.TB) {
	t.Helper()
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, d.hosts[dstHost].stagedIn(d.v[dstHost]))
	if err := d.session.awaitSync(); err != nil {
		t.Fatalf("%v (%s)", err, d.session.said)
	}
}

// TestRejoin: an old source that wrote on alone, and was given up, is brought in sync by what differs on either side. Until that
// is complete it holds its own old state; its power may be cut at any time.
func TestRejoin(t *testing.T) {
	for _, tt := range []struct {
		name         string
		alone, after int
		between      func(t *testing.T, d *duo)
		partially    bool
		say          string
	}{
		{"both wrote", 24, 24, nil, true, "rejoins from LSN"},
		{"only the old one wrote", 24, 0, nil, true, "rejoins from LSN"},
		{"nobody wrote", 0, 0, nil, false, ""},
		{"only the new one wrote", 0, 24, nil, false, ""},
		{"all of it was applied", 24, 24, func(t *testing.T, d *duo) {
			if err := d.v[dstHost].Close(); err != nil {
				t.Fatal(err)
			}
			d.reopen(t, dstHost)
		}, true, "rejoins from LSN"},
		{"power lost", 24, 24, func(t *testing.T, d *duo) {
			h := d.hosts[dstHost]
			h.power.Cut()
			_ = d.v[dstHost].Abort()
			h.power.Restore(rand.New(rand.NewPCG(1, 1)))
			d.reopen(t, dstHost)
		}, true, "rejoins from LSN"},
		{"the new one wrote its log over", 24, 300, nil, true, "rejoins from LSN"},
		{"the old one wrote its log over", 400, 40, nil, false, "where the histories part: all blocks are compared"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newMarriedDuo(t)
			defer d.close()
			old := d.divorce(t, tt.alone, tt.after)
			if tt.between != nil {
				tt.between(t, d)
			}
			if got, err := content(d.v[dstHost]); err != nil || !bytes.Equal(got, old) {
				t.Fatalf("given up, it does not hold its own state any more (%v)", err)
			}
			d.remarry(t)
			if err := d.finish(); err != nil {
				t.Fatal(err)
			}
			if got := d.session.rejoined(); got != tt.partially || !strings.Contains(d.session.said, tt.say) {
				t.Errorf("partially %v: %s", got, d.session.said)
			}
			if f := d.v[dstHost].flags(); f != 0 {
				t.Errorf("flags %x", f)
			}
			if n := d.session.sender.resync.sent.Load(); tt.say == "" && n != 0 {
				t.Errorf("%d bytes were copied, none differed", n)
			}
		})
	}
}

// TestRejoinBytes: what is copied is what either side has changed since, in blocks of 4 KiB, each once.
func TestRejoinBytes(t *testing.T) {
	d := newMarriedDuo(t)
	defer d.close()
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync(), d.awaitEntry()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	write := func(fill byte, blocks ...int64) {
		t.Helper()
		for _, b := range blocks {
			if _, err := d.v[srcHost].WriteAt(bytes.Repeat([]byte{fill}, minDirtyBlock), b*minDirtyBlock); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(251, 1, 2, 9, 30)
	d.exchange(t)
	write(252, 2, 30, 31, 50, 51)
	d.remarry(t)
	if got, want := d.session.sender.resync.sent.Load(), int64(7*(minDirtyBlock+blockHeaderBytes)); got > want || got < 7*minDirtyBlock {
		t.Errorf("%d bytes were sent, %d at most", got, want)
	}
	if err := d.finish(); err != nil {
		t.Fatal(err)
	}
}

// TestRejoinInterrupted cuts the old source's power at every operation of its disks while it rejoins. After each cut it holds its
// own old state or the new one, says so by its flags, and comes into sync without a full copy.
func TestRejoinInterrupted(t *testing.T) {
	step := 3
	if testing.Short() || raceEnabled {
		step = 11
	}
	cuts := 0
	for n := 1; ; n += step {
		cut, err := rejoinCut(t, n)
		if err != nil {
			t.Fatalf("cut at operation %d: %v", n, err)
		}
		if !cut {
			break
		}
		cuts++
	}
	if cuts < 4 {
		t.Errorf("only %d cuts", cuts)
	}
	t.Logf("%d cuts", cuts)
}

func rejoinCut(t *testing.T, n int) (bool, error) {
	d := newMarriedDuo(t)
	defer d.close()
	old := d.divorce(t, 24, 24)
	h := d.hosts[dstHost]
	h.power.CutAfter(n)
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, h.stagedIn(d.v[dstHost]))
	_ = d.session.awaitSync()
	h.power.CutAfter(1 << 30)
	lost := h.power.Lost()
	d.session.close()
	if !lost {
		return false, nil
	}
	_ = d.v[dstHost].Abort()
	h.power.Restore(rand.New(rand.NewPCG(uint64(n), 1)))
	d.reopen(t, dstHost)
	if v := d.v[dstHost]; v.flags()&stateMerging != 0 { // as resumeMerge does
		st, err := newStaging(v, keepOpen{h.stage}, func() error { return nil })
		if err := errors.Join(err, st.merge()); err != nil {
			return true, err
		}
	}
	got, err := content(d.v[dstHost])
	if err != nil {
		return true, err
	}
	given := d.v[dstHost].flags()&stateDiverged != 0
	if given != bytes.Equal(got, old) {
		return true, fmt.Errorf("given up: %v, but its old state: %v", given, !given)
	}
	d.remarry(t)
	if d.session.had(followerNeedsResync) && !d.session.rejoined() {
		return true, fmt.Errorf("a full copy: %s", d.session.said)
	}
	return true, d.finish()
}
