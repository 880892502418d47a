package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// usedImage is a journal in which every lap of the ring has left records.
func usedImage(t testing.TB) []byte {
	f := newMemFile(MinSize)
	mustFormat(t, f, Anchor{Name: "old", Role: RolePrimary})
	l := mustOpen(t, f, Options{})
	for l.Head() < minRing+minRing/2 {
		appendOrMove(t, l, []*Entry{write(8, bytes.Repeat([]byte{7}, 3000))})
	}
	if _, err := l.Sync(l.Head()); err != nil {
		t.Fatal(err)
	}
	return f.data
}

// Whatever was in the file, after Format there is nothing but zeroes and two anchors, and all of it is durable.
func TestFormatWritesAll(t *testing.T) {
	for name, image := range map[string][]byte{
		"blank":       make([]byte, MinSize),
		"a journal":   usedImage(t),
		"other bytes": bytes.Repeat([]byte{0xa5}, MinSize),
	} {
		t.Run(name, func(t *testing.T) {
			f := memFileOf(image)
			written := int64(0)
			f.onOp = func(f *memFile) { written = max(written, int64(len(f.dirty))*512) }
			mustFormat(t, f, Anchor{Name: "new", Role: RolePrimary})
			if !bytes.Equal(f.data, f.synced) {
				t.Error("Format returned before all of it was durable")
			}
			if !allZero(f.synced[ringStart:]) {
				t.Error("the ring is not all zeroes")
			}
			if written < minRing {
				t.Errorf("only %d bytes of the ring were written", written)
			}
			l, r, err := Open(f, Options{})
			if err != nil || l.Head() != 0 || r.Cut || l.Anchor().Name != "new" {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// The power goes at every operation of a Format: what is left is no journal, the new one, or what is known to be damaged.
func TestFormatCrash(t *testing.T) {
	rng := rand.New(rand.NewPCG(20261123, 1))
	for name, image := range map[string][]byte{"blank": make([]byte, MinSize), "a journal": usedImage(t)} {
		f := memFileOf(image)
		var disks [][]byte
		f.onOp = func(f *memFile) {
			for _, keep := range []float64{0, 0.3, 0.7, 1} {
				disks = append(disks, f.crash(rng, keep))
			}
		}
		mustFormat(t, f, Anchor{Name: "new", Role: RolePrimary})
		seen := map[string]int{}
		for i, d := range disks {
			l, _, err := Open(memFileOf(d), Options{})
			switch {
			case errors.Is(err, ErrNoAnchor):
				seen["none"]++
			case err == nil && l.Anchor().Name == "new" && l.Head() == 0 && allZero(d[ringStart:]):
				seen["new"]++
			case err == nil && l.Anchor().Name == "old" && name == "a journal" && bytes.Equal(d[ringStart:], image[ringStart:]):
				seen["old"]++
			case errors.Is(err, ErrCorrupt) && name == "a journal":
				seen["damaged"]++
			default:
				t.Fatalf("%s, disk %d of %d: %v", name, i, len(disks), err)
			}
		}
		if seen["none"] == 0 || seen["new"] == 0 {
			t.Errorf("%s: only %v seen", name, seen)
		}
	}
}

// bigFile counts; it keeps nothing but the anchors' place.
type bigFile struct {
	memFile
	size, written, unsynced, most int64
	cancelAt                      int64
	cancel                        func()
}

func (f *bigFile) Size() (int64, error) { return f.size, nil }

func (f *bigFile) WriteAt(p []byte, off int64) (int, error) {
	if !allZero(p) && off >= ringStart {
		return 0, fmt.Errorf("something else than zeroes at %d", off)
	}
	f.written += int64(len(p))
	f.unsynced += int64(len(p))
	f.most = max(f.most, f.unsynced)
	if f.cancel != nil && f.written >= f.cancelAt {
		f.cancel()
	}
	return len(p), nil
}

func (f *bigFile) Sync() error {
	f.unsynced = 0
	return nil
}

// A large ring is synced at intervals and told of; its Format can be broken off, and leaves no anchor.
func TestFormatLarge(t *testing.T) {
	const size = ringStart + 200<<20 + 4096
	f := &bigFile{size: size}
	last := int64(0)
	err := FormatContext(t.Context(), f, Anchor{}, func(done, total int64) {
		if done <= last || total != size-ringStart {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || last != size-ringStart || f.written != size+2*slotSize {
		t.Errorf("%v; %d told, %d written", err, last, f.written)
	}
	if f.most > zeroSyncBytes+zeroBytes || f.unsynced != 0 {
		t.Errorf("%d bytes were unsynced at once, %d at the end", f.most, f.unsynced)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	f = &bigFile{size: size, cancelAt: 70 << 20, cancel: func() { cancel(io.ErrClosedPipe) }}
	if err := FormatContext(ctx, f, Anchor{}, nil); !errors.Is(err, io.ErrClosedPipe) || f.written > 72<<20 {
		t.Errorf("%v after %d bytes", err, f.written)
	}
}
