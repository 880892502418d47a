package mirror

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// image is a copy of a disk.
func image(t testing.TB, m *blockdev.Memory) []byte {
	t.Helper()
	size, _ := m.Size()
	b := make([]byte, size)
	if _, err := m.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func restore(t testing.TB, m *blockdev.Memory, b []byte) {
	t.Helper()
	if _, err := m.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestPartialOrNot: when the set may be used, and what is said when not. In
// all cases both sides are equal in the end.
func TestPartialOrNot(t *testing.T) {
	slots := func(d *duo) *dirtySlots { return d.hosts[srcHost].dirty.(*dirtySlots) }
	tests := []struct {
		name    string
		between func(t *testing.T, d *duo)
		say     string // of a full resync; "" is a partial one
	}{
		{"nothing else", func(*testing.T, *duo) {}, ""},
		{"the source restarts", func(t *testing.T, d *duo) {
			if err := d.v[srcHost].Close(); err != nil {
				t.Fatal(err)
			}
			d.reopen(t, srcHost)
		}, ""},
		{"the source is killed twice", func(t *testing.T, d *duo) {
			for range 2 {
				_ = d.v[srcHost].Abort()
				d.reopen(t, srcHost)
				if err := d.apart(3, 40); err != nil {
					t.Fatal(err)
				}
			}
		}, ""},
		{"the follower loses power", func(t *testing.T, d *duo) {
			h := d.hosts[dstHost]
			h.power.Cut()
			_ = d.v[dstHost].Abort()
			h.power.Restore(rand.New(rand.NewPCG(1, 1)))
			d.reopen(t, dstHost)
		}, ""},
		{"another follower comes and goes", func(t *testing.T, d *duo) {
			other := newHost(t, RoleSecondary).mustOpen(t)
			for range 2 { // two switch-overs
				s := connectAs("other", d.v[srcHost], other, d.promise, inPlace(other))
				if err := s.awaitSync(); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(d.apart(5, 80), d.v[srcHost].Sync()); err != nil {
					t.Fatal(err)
				}
				s.close()
			}
			_ = other.Abort()
		}, ""},
		{"both bitmap files are gone", func(t *testing.T, d *duo) {
			_ = d.v[srcHost].Abort()
			for _, m := range slots(d) {
				restore(t, m, make([]byte, 1<<20))
			}
			d.reopen(t, srcHost)
		}, "bitmap of what it lacks cannot be used"},
		{"a bit of the bitmap has rotted", func(t *testing.T, d *duo) {
			_ = d.v[srcHost].Abort()
			for _, m := range slots(d) {
				b := image(t, m)
				b[dirtyHeaderBytes+dirtySetBytes+9] ^= 4
				restore(t, m, b)
			}
			d.reopen(t, srcHost)
		}, "checksum"},
		{"an old bitmap file", func(t *testing.T, d *duo) {
			var old [2][]byte
			for i, m := range slots(d) {
				old[i] = image(t, m)
			}
			if err := d.apart(7, 200); err != nil {
				t.Fatal(err)
			}
			_ = d.v[srcHost].Abort()
			for i, m := range slots(d) {
				restore(t, m, old[i])
			}
			d.reopen(t, srcHost)
		}, "the journal names"},
		{"another volume at its place", func(t *testing.T, d *duo) {
			a := d.v[dstHost].log.Anchor()
			if err := d.v[dstHost].log.WriteAnchor(func(x *journal.Anchor) { withSidecar(x, func(s *sidecar) { s.id = newVolumeID() }) }); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(a.Extra, d.v[dstHost].log.Anchor().Extra) {
				t.Fatal("the same id")
			}
			_ = d.v[dstHost].Abort()
			d.reopen(t, dstHost)
		}, "another volume"},
		{"an empty volume at its place", func(t *testing.T, d *duo) {
			_ = d.v[dstHost].Abort()
			d.hosts[dstHost] = newHost(t, RoleSecondary)
			d.reopen(t, dstHost)
		}, "is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newTrackedDuo(t)
			defer d.close()
			if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync(), d.awaitEntry()); err != nil {
				t.Fatal(err)
			}
			d.session.close()
			if err := d.apart(0, 200); err != nil {
				t.Fatal(err)
			}
			tt.between(t, d)
			d.mustRejoin(t, tt.say)
		})
	}
}

// mustRejoin connects again; the resync says so, or is a partial one with "".
func (d *duo) mustRejoin(t *testing.T, say string) {
	t.Helper()
	if err := d.rejoin(); err != nil {
		t.Fatal(err)
	}
	if d.session.partially() != (say == "") || !strings.Contains(d.session.said, say) {
		t.Fatalf("resync says %q, want %q", d.session.said, say)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		t.Fatal(err)
	}
	if err := equalLogs(d.v[srcHost], d.v[dstHost]); err != nil {
		t.Fatal(err)
	}
}

// TestOlderCopy: a follower that was given back from a copy older than what
// it acknowledged is not resynced by a set that begins there.
func TestOlderCopy(t *testing.T) {
	d := newTrackedDuo(t)
	defer d.close()
	h := d.hosts[dstHost]
	if err := errors.Join(d.scenario(10, never), d.v[srcHost].Sync()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	_ = d.v[dstHost].Abort()
	log, dev := image(t, h.journal), image(t, h.device)
	d.reopen(t, dstHost)
	if err := d.rejoin(); err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{9}, 5000)
	if _, err := d.v[srcHost].WriteAt(p, 90<<10); err != nil {
		t.Fatal(err)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	if err := d.apart(1, 200); err != nil {
		t.Fatal(err)
	}
	_ = d.v[dstHost].Abort()
	restore(t, h.journal, log)
	restore(t, h.device, dev)
	d.reopen(t, dstHost)
	d.mustRejoin(t, "an older state now")
}

// TestUncommittedTailIsCut: what only the follower has, of a generation that
// ended in a power cut, does not shine through a partial resync.
func TestUncommittedTailIsCut(t *testing.T) {
	d := newTrackedDuo(t)
	defer d.close()
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync(), d.awaitEntry()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	src, dst := d.v[srcHost], d.v[dstHost]
	// The source lost this, the follower had got it.
	e := &journal.Entry{Op: journal.OpWrite, Offset: 180 << 10, Payload: bytes.Repeat([]byte{0xee}, 3000)}
	if err := dst.log.Append([]*journal.Entry{e}); err != nil {
		t.Fatal(err)
	}
	_ = src.Abort()
	d.reopen(t, srcHost) // a new generation
	if err := d.apart(1, 200); err != nil {
		t.Fatal(err)
	}
	d.mustRejoin(t, "")
}

// TestInterruptedPartial: a partial resync that broke off goes on with what is
// staged, also when the source has changed that since; and until it is taken
// over nothing is forgotten.
func TestInterruptedPartial(t *testing.T) {
	d := newTrackedDuo(t)
	defer d.close()
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	if err := d.apart(0, 200); err != nil {
		t.Fatal(err)
	}
	h := d.hosts[dstHost]
	h.newStage()
	for round := range 6 {
		before := d.v[srcHost].dirty.view("dst")
		// Half of the staging's writes, then its disk is full.
		n := 0
		stage := func(int64) (*staging, error) {
			return newStaging(d.v[dstHost], &brokenStage{keepOpen{h.stage}, &n, 1}, func() error { return nil })
		}
		d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, stage)
		if err := d.session.awaitSync(); err == nil {
			t.Fatalf("round %d: the resync was not interrupted", round)
		}
		d.session.close()
		if after := d.v[srcHost].dirty.view("dst"); after.set == nil || after.base != before.base {
			t.Fatalf("round %d: the set is gone: %+v", round, after)
		}
		if err := d.apart(round*31, 30); err != nil {
			t.Fatal(err)
		}
	}
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, h.stagedIn(d.v[dstHost]))
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	if !d.session.partially() {
		t.Fatalf("resync says %q", d.session.said)
	}
	if err := errors.Join(d.v[srcHost].Sync(), equalLogs(d.v[srcHost], d.v[dstHost])); err != nil {
		t.Fatal(err)
	}
	if w := d.v[srcHost].dirty.view("dst"); w.set != nil {
		t.Fatalf("the set is still there after the takeover: base %d, %d bytes", w.base, w.set.bytes())
	}
}

// brokenStage is a staging file whose disk is full after some writes.
type brokenStage struct {
	keepOpen
	n    *int
	most int
}

func (b *brokenStage) WriteAt(p []byte, off int64) (int, error) {
	if *b.n++; *b.n > b.most {
		return 0, errors.New("no space left")
	}
	return b.keepOpen.WriteAt(p, off)
}

// TestPendingIsStaged: what a follower has in its log and not yet in its
// device, and what the resync finds equal and does not copy, is still there
// when the resync has begun a new log. It was lost with the old one.
func TestPendingIsStaged(t *testing.T) {
	for name, newDuo := range map[string]func(testing.TB) *duo{"compared": newDuo, "by bitmap": newTrackedDuo} {
		t.Run(name, func(t *testing.T) {
			d := newDuo(t)
			defer d.close()
			d.session.close()
			_ = d.v[dstHost].Abort()
			o := testOptions()
			o.ApplyInterval = time.Hour
			v, _, err := openVolume(keepOpen{d.hosts[dstHost].journal}, keepOpen{d.hosts[dstHost].device}, o)
			if err != nil {
				t.Fatal(err)
			}
			d.v[dstHost] = v
			if err := d.rejoin(); err != nil {
				t.Fatal(err)
			}
			if _, err := d.v[srcHost].WriteAt(bytes.Repeat([]byte{7}, 9000), 70<<10); err != nil {
				t.Fatal(err)
			}
			if err := d.v[srcHost].Sync(); err != nil {
				t.Fatal(err)
			}
			d.session.close()
			if _, _, n := v.overlay.pending(); n == 0 {
				t.Fatal("all is applied already")
			}
			p := make([]byte, 20<<10)
			for i := range 200 {
				p[0] = byte(i)
				if _, err := d.v[srcHost].WriteAt(p, 200<<10); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.rejoin(); err != nil {
				t.Fatal(err)
			}
			if !d.session.had(followerNeedsResync) {
				t.Fatal("there was no resync")
			}
			if err := equalLogs(d.v[srcHost], v); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestStaleStaging: what an earlier try left in the staging file, of a history
// that a power cut of the source has ended, does not get into the copy.
func TestStaleStaging(t *testing.T) {
	d := newTrackedDuo(t)
	defer d.close()
	if err := errors.Join(d.scenario(20, never), d.v[srcHost].Sync()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	if err := d.apart(1, 200); err != nil {
		t.Fatal(err)
	}
	h := d.hosts[dstHost]
	h.newStage()
	if _, err := h.stage.WriteAt(bytes.Repeat([]byte{0xee}, resyncBlockBytes), 2*resyncBlockBytes); err != nil {
		t.Fatal(err)
	}
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, h.stagedIn(d.v[dstHost]))
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	if !d.session.partially() {
		t.Fatalf("resync says %q", d.session.said)
	}
	if err := errors.Join(d.v[srcHost].Sync(), equalLogs(d.v[srcHost], d.v[dstHost])); err != nil {
		t.Fatal(err)
	}
}

// TestPartialIsChecked: a follower builds upon its state only when its log
// proves that it is the one that the source means; else it says why, and
// changes nothing.
func TestPartialIsChecked(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	dst := d.v[dstHost]
	head, chain := dst.log.HeadChain()
	e := &journal.Entry{Op: journal.OpZero, Length: 512} // not committed
	if err := dst.log.Append([]*journal.Entry{e}); err != nil {
		t.Fatal(err)
	}
	full, tail := dst.log.Head(), dst.log.Tail()
	tailChain, err := dst.log.ChainAt(tail)
	if err != nil || tail == head {
		t.Fatalf("tail %d, head %d, %v", tail, head, err)
	}
	blank := newHost(t, RoleSecondary).mustOpen(t)
	defer blank.Abort()
	for _, tt := range []struct {
		name string
		v    *Volume
		m    partialBegin
		say  string
		head journal.LSN
	}{
		{"another chain", dst, partialBegin{At: head, Base: head, Chain: chain + 1}, "differs", full},
		{"no record boundary", dst, partialBegin{At: head, Base: head - 4, Chain: chain}, "does not show", full},
		{"before the log", dst, partialBegin{At: head, Base: 8, Chain: chain}, "does not show", full},
		{"base beyond the state", dst, partialBegin{At: head, Base: head + 8, Chain: chain}, "up to LSN", full},
		{"a state beyond the log", dst, partialBegin{At: full + 8, Base: head, Chain: chain}, "up to LSN", full},
		{"less than is committed", dst, partialBegin{At: tail, Base: tail, Chain: tailChain}, "committed", full},
		{"never consistent", blank, partialBegin{At: firstLSN, Base: firstLSN}, "never been consistent", firstLSN},
		{"its own", dst, partialBegin{At: head, Base: head, Chain: chain}, "", head},
	} {
		a, _ := pair()
		r := newReceiver(tt.v, a)
		d.hosts[dstHost].newStage()
		r.node, r.newStage = "dst", d.hosts[dstHost].stagedIn(tt.v)
		b, err := r.handle(t.Context(), encodeJSON(kindResync, resyncBegin{From: full, Size: testDevice, Partial: &tt.m}))
		var reply resyncReply
		if err := errors.Join(err, decodeJSON(b, &reply)); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		taken := tt.name == "its own"
		if !strings.Contains(reply.Compare, tt.say) || (reply.Compare == "") != taken || reply.Refused != "" || (r.staging != nil) != taken {
			t.Errorf("%s: %+v, staging %v", tt.name, reply, r.staging != nil)
		}
		if got := tt.v.log.Head(); got != tt.head {
			t.Errorf("%s: the log ends at %d, want %d", tt.name, got, tt.head)
		}
		a.cut()
		r.close()
	}
}
