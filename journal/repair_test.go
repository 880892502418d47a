package journal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// rotten is a journal with a promise, of this role, in which record number bad is damaged in one way; and the log as it was.
func rottenAt(t *testing.T, role uint8, bad int, how string) (damaged, whole []byte, promised LSN, want state) {
	t.Helper()
	image, promised, want := journalWithPromise(t, RolePrimary)
	d, err := readSlots(memFileOf(image))
	if err != nil {
		t.Fatal(err)
	}
	d.Sequence++
	d.Role = role
	if role != RolePrimary {
		d.Durable = promised
	}
	copy(image[slotOffset(d.Sequence):], d.encode())
	whole = bytes.Clone(image)
	r, rec := &ring{size: minRing}, want.recs[bad]
	switch how {
	case "payload":
		image[r.offset(rec.at+HeaderSize+3)] ^= 1
	case "header":
		image[r.offset(rec.at+20)] ^= 1
	case "gone":
		for at := rec.at; at < rec.at+HeaderSize; at++ {
			image[r.offset(at)] = 0
		}
	}
	return image, whole, promised, want
}

// TestRepair: whatever record rots, on either side: the log opens at it without a write, keeps its promise over anchors
// and reopening, takes nothing but raw records of its own history, and is whole again with the one that was damaged.
func TestRepair(t *testing.T) {
	for _, role := range []uint8{RolePrimary, RoleSecondary} {
		for _, how := range []string{"payload", "header", "gone"} {
			for bad := range 4 {
				t.Run(fmt.Sprintf("role %d, %s of record %d", role, how, bad), func(t *testing.T) {
					image, whole, promised, want := rottenAt(t, role, bad, how)
					rec := want.recs[bad]
					f := memFileOf(image)
					seen := 0
					o := Options{Damaged: true, OnRecover: func(Record) error { seen++; return nil }}
					l, r, err := Open(f, o)
					if err != nil || r.Rot == nil || r.Rot.LSN != rec.at || r.Head != rec.at || r.Promise != promised || l.Damaged() != promised || f.ops != 0 {
						t.Fatalf("%v, %+v, %d writes", err, r, f.ops)
					}
					if err := l.Append([]*Entry{write(0, []byte("no"))}); !errors.Is(err, ErrCorrupt) {
						t.Errorf("append to a damaged log: %v", err)
					}
					if err := l.WriteAnchor(func(a *Anchor) { a.State = 7 }); err != nil {
						t.Fatal(err)
					}
					if _, _, err := Open(memFileOf(bytes.Clone(f.data)), Options{}); !errors.Is(err, ErrCorrupt) {
						t.Fatalf("an anchor has forgotten the promise: %v", err)
					}
					if r, err := l.Resume(); err != nil || r.Rot == nil || l.Head() != rec.at {
						t.Fatalf("resumed without a repair: %v, %+v", err, r)
					}
					raw := rawRecord(t, whole, rec.at)
					foreign := bytes.Clone(raw)
					foreign[HeaderSize] ^= 1
					if _, err := l.AppendRaw(rec.at, foreign); err == nil {
						t.Fatal("a record with another payload was taken")
					}
					if _, err := l.AppendRaw(rec.at, ofAnotherHistory(t, raw)); !errors.Is(err, ErrChain) {
						t.Fatalf("a record of another history: %v", err)
					}
					if _, err := l.AppendRaw(rec.at, raw); err != nil {
						t.Fatal(err)
					}
					crashed := memFileOf(bytes.Clone(f.data))
					r, err = l.Resume()
					if err != nil || r.Rot != nil || l.Damaged() != 0 || l.Durable() != l.Head() {
						t.Fatalf("after the repair: %v, %+v", err, r)
					}
					if err := want.equals(l, l.Head()); err != nil || l.Head() != want.head() || seen != len(want.recs)-1 {
						t.Fatalf("not as it was: %v, head %d of %d, %d records", err, l.Head(), want.head(), seen)
					}
					if err := l.Append([]*Entry{write(0, []byte("on"))}); err != nil {
						t.Fatal(err)
					}
					l, _, err = Open(crashed, Options{})
					if err != nil {
						t.Fatalf("killed after the repair: %v", err)
					}
					if err := want.equals(l, l.Head()); err != nil || l.Head() != want.head() {
						t.Errorf("killed after the repair: %v, head %d of %d", err, l.Head(), want.head())
					}
				})
			}
		}
	}
}

// ofAnotherHistory is a record that is sound and lies at the same LSN, but follows other records.
func ofAnotherHistory(t *testing.T, raw []byte) []byte {
	t.Helper()
	r, err := decodeHeader(raw)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(raw)
	r.encode(other, r.Chain+1)
	return other
}

// rawRecord reads one record of a journal as ReadRaw gives it.
func rawRecord(t *testing.T, image []byte, at LSN) []byte {
	t.Helper()
	l := mustOpen(t, memFileOf(bytes.Clone(image)), Options{})
	buf := make([]byte, 1<<16)
	n, err := l.ReadRaw(at, buf)
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeHeader(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	return buf[:r.End()-r.LSN]
}

// TestRepairTwice: two records have rotted; the repair of the first finds the second.
func TestRepairTwice(t *testing.T) {
	image, whole, _, want := rottenAt(t, RolePrimary, 0, "payload")
	image[(&ring{size: minRing}).offset(want.recs[2].at+70)] ^= 1
	l, r, err := Open(memFileOf(image), Options{Damaged: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		if r.Rot == nil || r.Rot.LSN != want.recs[i].at || l.Head() != want.recs[i].at {
			t.Fatalf("record %d: %+v", i, r)
		}
		if _, err := l.AppendRaw(l.Head(), rawRecord(t, whole, l.Head())); err != nil {
			t.Fatal(err)
		}
		if r, err = l.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	if r.Rot != nil || l.Head() != want.head() {
		t.Errorf("%+v", r)
	}
}

// TestGiveUpRepair: a cut at the damage gives up the promise, and nothing beyond it ever comes back.
func TestGiveUpRepair(t *testing.T) {
	for _, role := range []uint8{RolePrimary, RoleSecondary} {
		image, _, _, want := rottenAt(t, role, 1, "payload")
		f := memFileOf(image)
		l, _, err := Open(f, Options{Damaged: true})
		if err != nil {
			t.Fatal(err)
		}
		bad := want.recs[1].at
		if err := l.Cut(bad); err != nil || l.Damaged() != 0 || l.Head() != bad {
			t.Fatalf("%v, head %d", err, l.Head())
		}
		again, _, err := Open(memFileOf(bytes.Clone(f.data)), Options{})
		if err != nil || again.Head() != bad {
			t.Fatalf("reopened: %v", err)
		}
		if err := l.Append([]*Entry{write(0, []byte("on"))}); err != nil {
			t.Fatal(err)
		}
		again, r, err := Open(memFileOf(bytes.Clone(f.data)), Options{})
		if err != nil || again.Head() != l.Head() || r.Cut {
			t.Errorf("reopened after an append: %v, %+v", err, r)
		}
	}
}

// TestRepairBeyondAnchorsPromise: the anchor promises less than the records do, and the second rot lies between the two: it is
// found by Resume, and not cut as a torn tail.
func TestRepairBeyondAnchorsPromise(t *testing.T) {
	image, whole, promised, want := rottenAt(t, RolePrimary, 0, "payload")
	d, err := readSlots(memFileOf(image))
	if err != nil {
		t.Fatal(err)
	}
	d.Sequence++
	d.Durable = want.recs[2].at
	copy(image[slotOffset(d.Sequence):], d.encode())
	second := want.recs[3].at
	image[(&ring{size: minRing}).offset(second+70)] ^= 1
	l, r, err := Open(memFileOf(image), Options{Damaged: true})
	if err != nil || r.Promise != want.recs[2].at {
		t.Fatalf("%v, %+v", err, r)
	}
	if _, err := l.AppendRaw(l.Head(), rawRecord(t, whole, l.Head())); err != nil {
		t.Fatal(err)
	}
	if r, err = l.Resume(); err != nil || r.Rot == nil || r.Rot.LSN != second || l.Damaged() != promised {
		t.Errorf("%v, %+v; the second rot is at %d", err, r, second)
	}
}
