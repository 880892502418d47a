package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// journalWithPromise is a closed journal: four records durable, then two more that promise them, of which the
// anchor knows nothing.
func journalWithPromise(t testing.TB, role uint8) (image []byte, promised LSN, want state) {
	f := newMemFile(MinSize)
	mustFormat(t, f, Anchor{Name: "rot", Role: role, Applied: 1<<20 - 96, AppliedChain: 5}) // the first header wraps
	l := mustOpen(t, f, Options{Now: func() time.Time { return time.Unix(1, 0) }})
	for i := range 4 {
		if err := l.Append([]*Entry{write(uint64(i), []byte(strings.Repeat("x", 50+i*31)))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sync(l.Head()); err != nil {
		t.Fatal(err)
	}
	promised = l.Durable()
	for i := range 2 {
		if err := l.Append([]*Entry{write(uint64(i), []byte("later"))}); err != nil {
			t.Fatal(err)
		}
	}
	recs, err := readBack(l, l.Tail())
	if err != nil {
		t.Fatal(err)
	}
	return f.data, promised, state{recs: recs, start: l.Tail()}
}

// Every byte of the records and the anchors rots: Open or Verify sees it, or only what nobody promised is cut.
func TestFlipEveryByte(t *testing.T) {
	image, promised, want := journalWithPromise(t, RolePrimary)
	head, tail := want.head(), want.start
	r := newRing(nil, minRing)
	rng := rand.New(rand.NewPCG(1, 1))
	seen := map[string]int{}
	f := scratchFile(image)
	flip := func(off int64, bits byte, at LSN, ring bool) {
		image[off] ^= bits
		defer func() { f.rollback(); image[off] ^= bits }()
		l, rec, err := Open(f, Options{})
		switch {
		case errors.Is(err, ErrCorrupt):
			seen["refused"]++
			if ring && at >= promised {
				t.Errorf("byte %d (LSN %d) is beyond the promise, yet: %v", off, at, err)
			}
			return
		case err != nil:
			t.Fatalf("byte %d: %v", off, err)
		}
		if err := want.equals(l, l.Head()); err != nil {
			t.Errorf("byte %d (LSN %d) changed what is read: %v", off, at, err)
		}
		if l.Head() < promised {
			t.Errorf("byte %d (LSN %d): promised %d, cut to %d", off, at, promised, l.Head())
		}
		if l.Head() != head {
			seen["cut"]++
			if !rec.Cut && at < head-80 {
				t.Errorf("byte %d: the cut to %d was not told", off, l.Head())
			}
			return
		}
		seen["harmless"]++
	}
	step := 1
	if raceEnabled {
		step = 3
	}
	for at := tail; at < head; at += LSN(step) {
		flip(r.offset(at), 1<<rng.IntN(8), at, true)
	}
	for off := int64(0); off < ringStart; off += int64(5 * step) {
		flip(off, 1<<rng.IntN(8), 0, false)
	}
	t.Logf("%v", seen)
	if seen["refused"] == 0 || seen["cut"] == 0 || seen["harmless"] == 0 {
		t.Errorf("the test saw only %v", seen)
	}
}

// The promise of an anchor counts for every role; those of records only for a primary.
func TestPromises(t *testing.T) {
	for _, c := range []struct {
		name   string
		role   uint8
		first  LSN
		refuse bool
	}{
		{"primary", RolePrimary, 0, true},
		{"primary, promise of an older generation", RolePrimary, 1 << 30, false},
		{"secondary", RoleSecondary, 0, false},
		{"no role", 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, promised, want := journalWithPromise(t, RolePrimary)
			d, err := readSlots(memFileOf(image))
			if err != nil {
				t.Fatal(err)
			}
			d.Sequence++
			d.Role, d.Generations = c.role, []Generation{{Major: 1, First: c.first}}
			copy(image[slotOffset(d.Sequence):], d.encode())
			bad := want.recs[1]
			off := (&ring{size: minRing}).offset(bad.at + 70)
			image[off] ^= 4
			f := memFileOf(image)
			l, _, err := Open(f, Options{})
			var corrupt *CorruptError
			if c.refuse {
				if !errors.As(err, &corrupt) || corrupt.LSN != bad.at || f.ops != 0 {
					t.Fatalf("%v, %d writes; want rot at %d, untouched", err, f.ops, bad.at)
				}
				return
			}
			if err != nil || l.Head() != bad.at {
				t.Fatalf("%v; want a cut at %d", err, bad.at)
			}
			d.Sequence++
			d.Durable = promised
			copy(image[slotOffset(d.Sequence):], d.encode())
			f = memFileOf(image)
			if _, _, err := Open(f, Options{}); !errors.As(err, &corrupt) || corrupt.LSN != bad.at || f.ops != 0 {
				t.Fatalf("with the anchor's promise: %v", err)
			}
		})
	}
}

// Damage that takes a whole header away is seen through two records that continue each other.
func TestRotOfWholeHeader(t *testing.T) {
	image, _, want := journalWithPromise(t, RolePrimary)
	r := newRing(nil, minRing)
	for i, rec := range want.recs[:4] {
		damaged := memFileOf(image)
		for at := rec.at; at < rec.at+HeaderSize; at++ {
			damaged.data[r.offset(at)] = 0
		}
		var corrupt *CorruptError
		if _, _, err := Open(damaged, Options{}); !errors.As(err, &corrupt) || corrupt.LSN != rec.at {
			t.Errorf("header %d zeroed: %v", i, err)
		}
	}
}

// One later record is proof when any of the damaged header's chain is left: every byte of it may rot.
func TestOneLaterRecord(t *testing.T) {
	image, _, want := journalWithPromise(t, RolePrimary)
	r := newRing(nil, minRing)
	for at := want.recs[5].at; at < want.head(); at++ {
		image[r.offset(at)] = 0
	}
	f, bad := scratchFile(image), want.recs[3].at
	for at := bad; at < bad+HeaderSize; at++ {
		image[r.offset(at)] ^= 0x41
		var corrupt *CorruptError
		if _, _, err := Open(f, Options{}); !errors.As(err, &corrupt) || corrupt.LSN != bad {
			t.Errorf("byte %d of the header: %v", at-bad, err)
		}
		f.rollback()
		image[r.offset(at)] ^= 0x41
	}
}

// The table in slots.go, case by case.
func TestAnchorSlots(t *testing.T) {
	encode := func(sequence uint64, state uint32) []byte {
		d := sampleAnchor()
		d.Sequence, d.State, d.Extra = sequence, state, bytes.Repeat([]byte{byte(state)}, maxExtra)
		return d.encode()
	}
	mix := func(a, b []byte, sectors ...int) []byte {
		m := append([]byte(nil), a...)
		for _, s := range sectors {
			copy(m[s*sectorSize:(s+1)*sectorSize], b[s*sectorSize:])
		}
		return m
	}
	rot := func(b []byte, at int) []byte {
		m := append([]byte(nil), b...)
		m[at] ^= 1
		return m
	}
	blank := make([]byte, slotSize)
	for _, c := range []struct {
		name string
		a, b []byte // slots 0 and 1
		want uint64 // sequence; 0: no anchor; 99: corrupt
	}{
		{"blank", blank, blank, 0},
		{"format torn in its first anchor", mix(blank, encode(1, 0), 0, 5), blank, 0},
		{"format after its first anchor", encode(1, 0), blank, 1},
		{"format torn in its second anchor", encode(1, 0), mix(blank, encode(2, 0), 3), 1},
		{"both", encode(5, 0), encode(6, 0), 6},
		{"both, the other order", encode(7, 0), encode(6, 0), 7},
		{"torn", mix(encode(5, 0), encode(7, 0), 0, 1, 2), encode(6, 0), 6},
		{"torn twice", mix(encode(7, 1), encode(7, 2), 0), encode(6, 0), 6},
		{"torn twice, and old", mix(mix(encode(7, 1), encode(7, 2), 0), encode(5, 0), 3), encode(6, 0), 6},
		{"older rotten", rot(encode(5, 0), 700), encode(6, 0), 6},
		{"newest rotten", rot(encode(7, 0), 700), encode(6, 0), 99},
		{"newest has lost a sector", mix(encode(7, 0), blank, 2), encode(6, 0), 99},
		{"a slot was zeroed", encode(5, 0), blank, 99},
		{"a slot is garbage", encode(5, 0), []byte(strings.Repeat("garbage!", 512)), 99},
		{"all garbage", []byte(strings.Repeat("garbage!", 512)), []byte(strings.Repeat("garbage!", 512)), 99},
		{"both rotten", rot(encode(5, 0), 1), rot(encode(6, 0), 1), 99},
	} {
		d, err := pickAnchor([2]slot{parseSlot(c.a, 0), parseSlot(c.b, 1)})
		switch {
		case c.want == 0 && errors.Is(err, ErrNoAnchor):
		case c.want == 99 && errors.Is(err, ErrCorrupt):
		case err == nil && d.Sequence == c.want:
		default:
			t.Errorf("%s: %v, want %d", c.name, err, c.want)
		}
	}
}

// FuzzOpen opens a small journal whose ring was overwritten with anything.
func FuzzOpen(f *testing.F) {
	image, _, want := journalWithPromise(f, RolePrimary)
	r := newRing(nil, minRing)
	raw := make([]byte, want.head()-want.start)
	for i := range raw {
		raw[i] = image[r.offset(want.start+LSN(i))]
	}
	f.Add(raw, false)
	f.Add(raw[:200], true)
	pristine := bytes.Clone(image)
	f.Fuzz(func(t *testing.T, in []byte, clear bool) {
		copy(image, pristine)
		damaged := scratchFile(image)
		for i := range raw {
			if clear {
				damaged.data[r.offset(want.start+LSN(i))] = 0
			}
		}
		for i, b := range in[:min(len(in), minRing)] {
			damaged.data[r.offset(want.start+LSN(i))] = b
		}
		l, _, err := Open(damaged, Options{})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if err := want.equals(l, l.Head()); err != nil {
			t.Fatal(err) // the fuzzer would have had to forge a chain
		}
		if err := l.Append([]*Entry{write(0, []byte("on"))}); err != nil {
			t.Fatal(err)
		}
		if err := l.Verify(l.Tail(), l.Head()); err != nil {
			t.Fatal(err)
		}
	})
}
