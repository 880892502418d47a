package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// goldenJournal is a small journal with every operation, as this program writes it: [0, end) of its file, and the rest is
// zeroes.
func goldenJournal(t testing.TB) (image []byte, end int64) {
	f := newMemFile(MinSize)
	mustFormat(t, f, Anchor{
		Mirror: [16]byte{1, 2, 3}, Name: "golden", DeviceSize: 1 << 20, Role: RolePrimary,
		Generations: []Generation{{Major: 1, ID: [16]byte{7}}},
	})
	now := int64(1_700_000_000_000_000_000)
	l := mustOpen(t, f, Options{Now: func() time.Time { now++; return time.Unix(0, now) }})
	for _, es := range [][]*Entry{
		{{Op: OpGeneration, Payload: []byte("a generation is the owner's")}},
		{write(4096, []byte("hello")), {Op: OpZero, Offset: 512, Length: 4096}, {Op: OpTrim, Offset: 1 << 19, Length: 1 << 19, Flags: 1, Volume: 2}},
		{{Op: OpCheckpoint, Payload: []byte("before the upgrade")}, {Op: OpResize, Offset: 2 << 20}},
	} {
		if err := l.Append(es); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Sync(l.Head()); err != nil {
			t.Fatal(err)
		}
		if err := l.WriteAnchor(func(a *Anchor) {
			a.Applied = es[0].LSN
			a.Followers = []Follower{{Name: "fra2", Acked: es[0].LSN, Flags: 1}}
			a.State, a.Extra = 5, []byte{9, 8, 7}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append([]*Entry{write(0, []byte("not yet durable"))}); err != nil {
		t.Fatal(err)
	}
	return f.data, ringStart + int64(l.Head())
}

// readGolden is the committed file: what older versions have on their disks.
func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for line := range strings.Lines(string(text)) {
		if len(line) < 60 {
			continue
		}
		p, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(line[9:59]), " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, p...)
	}
	return b
}

// TestGoldenJournal: a journal that lies on somebody's disk is read, and every byte of it is what would be written again.
func TestGoldenJournal(t *testing.T) {
	image, end := goldenJournal(t)
	golden(t, "journal.hex", image[:end])
	file := make([]byte, MinSize)
	n := copy(file, readGolden(t, "journal.hex"))
	if int64(n) != end {
		t.Fatalf("%d golden bytes, %d are written now", n, end)
	}
	for i := range 2 {
		b := file[i*slotSize:][:slotSize]
		s := parseSlot(b, i)
		if s.anchor == nil || !bytes.Equal(s.anchor.encode(), b) {
			t.Errorf("anchor %d is not what it decodes to: %v", i, s.err)
		}
	}
	chain, at := uint64(0), LSN(0)
	var ops []Op
	if err := ParseRaw(file[ringStart:end], func(r Record, p []byte) error {
		old := file[ringStart+int64(at):][:r.End()-r.LSN]
		again := make([]byte, len(old))
		same := r
		same.encode(again, chain)
		copy(again[HeaderSize:], p)
		if r.LSN != at || checksum(p) != r.PayloadHash || !bytes.Equal(again, old) {
			t.Errorf("record %v at %d is not what it decodes to", r.Op, at)
		}
		ops = append(ops, r.Op)
		chain, at = r.Chain, r.End()
		return nil
	}); err != nil || len(ops) != 7 {
		t.Fatalf("%v, %v", ops, err)
	}
	l, rec, err := Open(memFileOf(file), Options{})
	if err != nil || l.Head() != at || rec.Cut {
		t.Fatalf("open: %v, %+v", err, rec)
	}
	a := l.Anchor()
	if a.Name != "golden" || a.DeviceSize != 1<<20 || len(a.Followers) != 1 || a.Followers[0].Name != "fra2" || a.State != 5 || a.Applied == 0 || a.Durable <= a.Applied {
		t.Errorf("anchor %+v", a)
	}
}

// TestJournalWithoutHorizon: one that was written before anchors said how far records can reach is read all the same.
func TestJournalWithoutHorizon(t *testing.T) {
	file := make([]byte, MinSize)
	n := copy(file, readGolden(t, "journal-without-horizon.hex"))
	l, rec, err := Open(memFileOf(file), Options{})
	if err != nil || l.Head() != LSN(n-ringStart) || rec.Cut || l.Anchor().Name != "golden" {
		t.Fatalf("open: %v, %+v", err, rec)
	}
}

// FuzzRaw hands anything to a follower's log: what is taken is exactly what continues it, byte for byte, and what is refused
// leaves no trace.
func FuzzRaw(f *testing.F) {
	image, end := goldenJournal(f)
	raw := image[ringStart:end]
	f.Add(raw)
	f.Add(raw[:len(raw)-8])
	f.Add(raw[:RecordSize(27)])
	f.Add(append(bytes.Clone(raw), raw...))
	for _, at := range []int{0, 4, 8, 24, 28, 40, 48, 56, 70} {
		bad := bytes.Clone(raw)
		bad[at] ^= 0x10
		f.Add(bad)
	}
	file := newMemFile(MinSize)
	mustFormat(f, file, Anchor{})
	scratch := scratchFile(file.data)
	f.Fuzz(func(t *testing.T, in []byte) {
		defer scratch.rollback()
		announced := 0
		l := mustOpen(t, scratch, Options{OnAppend: func(es []*Entry) { announced += len(es) }})
		ops := scratch.ops
		head, err := l.AppendRaw(0, in)
		if err != nil {
			if !errors.Is(err, ErrChain) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFull) && !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			if head != 0 || announced != 0 || scratch.ops != ops {
				t.Fatalf("refused, yet head %d, %d entries, %d writes", head, announced, scratch.ops-ops)
			}
			return
		}
		if int(head) != len(in) || l.Verify(0, head) != nil {
			t.Fatalf("%d of %d bytes taken, and they are damaged", head, len(in))
		}
		back := make([]byte, len(in))
		if n, err := l.ReadRaw(0, back); len(in) > 0 && (err != nil || !bytes.Equal(back[:n], in[:n])) {
			t.Fatalf("taken and changed: %v", err)
		}
	})
}

// FuzzSlots reads two anchor slots of any bytes: never a panic, never an anchor that is not written in one of them, and a
// slot that one flip away from complete is no anchor.
func FuzzSlots(f *testing.F) {
	image, _ := goldenJournal(f)
	f.Add(image[:slotSize], image[slotSize:ringStart], uint16(0))
	f.Add(image[:slotSize], make([]byte, slotSize), uint16(600))
	f.Add(image[slotSize:ringStart], image[:slotSize], uint16(4095))
	f.Fuzz(func(t *testing.T, a, b []byte, at uint16) {
		var slots [2][]byte
		for i, in := range [][]byte{a, b} {
			slots[i] = make([]byte, slotSize)
			copy(slots[i], in)
		}
		parsed := [2]slot{parseSlot(slots[0], 0), parseSlot(slots[1], 1)}
		d, err := pickAnchor(parsed)
		if err != nil {
			if !errors.Is(err, ErrNoAnchor) && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if d.check() != nil || d.Sequence == 0 {
			t.Fatalf("an anchor that breaks the rules: %+v", d)
		}
		home := int(d.Sequence+1) % 2
		if parsed[home].anchor != d {
			t.Fatal("an anchor of nowhere")
		}
		slots[home][at%slotSize] ^= 0x20
		if parseSlot(slots[home], home).anchor != nil {
			t.Fatalf("byte %d was flipped, and nobody sees it", at%slotSize)
		}
	})
}
