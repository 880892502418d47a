package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// noise is bytes that only this seed gives.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(p) // never fails
	return p
}

// TestWitnesses: a volume is not opened with a device that is not the one its log was last used with, or an older copy of it. That
// some of it is otherwise, as of a disk that rots, keeps nobody from starting.
func TestWitnesses(t *testing.T) {
	image := func(t *testing.T, d *blockdev.Memory) []byte {
		t.Helper()
		p := make([]byte, testDevice)
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	random := noise(5, testDevice)
	for _, c := range []struct {
		name  string
		spoil func(old, now []byte, ws []witness) []byte
		say   string
		some  int // that differ, and are borne
	}{
		{"its own", func(_, now []byte, _ []witness) []byte { return now }, "", 0},
		{"an older copy", func(old, _ []byte, _ []witness) []byte { return old }, "of 6 samples differ", 0},
		{"another device", func(_, _ []byte, _ []witness) []byte { return random }, "6 of 6 samples differ", 0},
		{"a blank device", func(_, _ []byte, _ []witness) []byte { return make([]byte, testDevice) }, "6 of 6 samples differ", 0},
		{"rot in three places", func(_, now []byte, ws []witness) []byte {
			for _, w := range ws[:3] {
				now[w.off+100] ^= 1
			}
			return now
		}, "", 3},
		{"four", func(_, now []byte, ws []witness) []byte {
			for _, w := range ws[:4] {
				now[w.off+witnessBytes-1] ^= 0x80
			}
			return now
		}, "4 of 6 samples differ", 0},
	} {
		for _, end := range []string{"clean", "crash"} {
			t.Run(c.name+", "+end, func(t *testing.T) {
				h := newHost(t, RolePrimary)
				var v *Volume
				open := func() (err error) {
					v, _, err = openVolume(keepOpen{h.journal}, keepOpen{h.device}, testOptions())
					return err
				}
				write := func(seed uint64) {
					t.Helper()
					for i := range 20 {
						if _, err := v.WriteAt(noise(seed+uint64(i), 3000), int64(i)*8192+100); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := open(); err != nil {
					t.Fatal(err)
				}
				if _, err := v.beginGeneration(true); err != nil {
					t.Fatal(err)
				}
				write(100)
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
				old := image(t, h.device)
				if err := open(); err != nil {
					t.Fatal(err)
				}
				write(200)
				if end == "clean" {
					if err := v.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					if err := v.Sync(); err != nil {
						t.Fatal(err)
					}
					v.overlay.freeze()
					awaitVolume(t, "all applied", func() bool { return v.log.Applied() == v.log.Head() })
					if err := v.Abort(); err != nil {
						t.Fatal(err)
					}
				}
				ws := parseSidecar(v.log.Anchor().Extra).witnesses
				if len(ws) != maxWitnesses {
					t.Fatalf("%d witnesses", len(ws))
				}
				if _, err := h.device.WriteAt(c.spoil(old, image(t, h.device), ws), 0); err != nil {
					t.Fatal(err)
				}
				before := image(t, h.device)
				err := open()
				if c.say != "" {
					if err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), "move the journal away") {
						t.Fatalf("opened: %v", err)
					}
					if !bytes.Equal(before, image(t, h.device)) {
						t.Fatal("the device was changed")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if v.differs != c.some || v.samples != maxWitnesses {
					t.Errorf("%d of %d differ", v.differs, v.samples)
				}
				if err := v.Abort(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestWitnessesGo: a witness that is trimmed or written over is none any more, and one of before stays when there is room.
func TestWitnessesGo(t *testing.T) {
	_, v := quietVolume(t, RolePrimary)
	witnesses := func() []witness {
		t.Helper()
		if err := v.settle(); err != nil {
			t.Fatal(err)
		}
		ws := parseSidecar(v.log.Anchor().Extra).witnesses
		slices.SortFunc(ws, func(a, b witness) int { return int(a.off - b.off) })
		return ws
	}
	for i := range 3 {
		if _, err := v.WriteAt(noise(uint64(i), 512), int64(i)*8192); err != nil {
			t.Fatal(err)
		}
	}
	first := witnesses()
	if len(first) != 3 || first[1].off != 8192 {
		t.Fatalf("witnesses %v", first)
	}
	if err := v.Trim(8192+300, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(noise(9, 700), 16384); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(noise(9, 100), 30000); err != nil { // too small for one
		t.Fatal(err)
	}
	now := witnesses()
	if len(now) != 2 || now[0] != first[0] || now[1].off != 16384 || now[1] == first[2] {
		t.Errorf("witnesses %v, before %v", now, first)
	}
	if err := v.restart(v.log.Head()+4096, 1, nil, func(*journal.Anchor) {}); err != nil {
		t.Fatal(err)
	}
	if s := parseSidecar(v.log.Anchor().Extra); len(s.witnesses) != 0 || s.applying != 0 {
		t.Errorf("after a resync there are witnesses of what was there before: %+v", s)
	}
}

// TestSidecarRoom: names as long as they come leave everything else in the anchor.
func TestSidecarRoom(t *testing.T) {
	s := sidecar{stamp: "0123456789abcdef", id: newVolumeID(), applying: 1 << 60, candidate: newVolumeID(), fork: 1 << 60}
	for i := range maxWitnesses {
		s.witnesses = append(s.witnesses, witness{int64(i) << 50, uint32(i)})
	}
	if got := parseSidecar(s.encode()); fmt.Sprint(got) != fmt.Sprint(s) {
		t.Errorf("%+v became %+v", s, got)
	}
	s.nbd = strings.Repeat("n", 300)
	got := parseSidecar(s.encode())
	if len(s.encode()) > maxExtra || got.witnesses != nil {
		t.Errorf("%d bytes with %d witnesses", len(s.encode()), len(got.witnesses))
	}
	if s.witnesses = nil; fmt.Sprint(got) != fmt.Sprint(s) {
		t.Errorf("%+v became %+v", s, got)
	}
}

// TestHalfApplied: a device that failed, or a crash, in the middle of a layer leaves parts of the layer on it. No point before the
// layer's end can be gone back to; and a follower whose source declared the layer does not let another history part there.
func TestHalfApplied(t *testing.T) {
	for _, role := range []Role{RolePrimary, RoleSecondary} {
		h := newHost(t, RolePrimary)
		broken := errors.New("no")
		dev := blockdev.NewFaulty(keepOpen{h.device}, blockdev.Rule{Op: blockdev.OpWrite, Offset: 64 << 10, Length: 1 << 10, Err: broken})
		v, _, err := openVolume(keepOpen{h.journal}, dev, quietOptions())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.beginGeneration(true); err != nil {
			t.Fatal(err)
		}
		applied := v.log.Applied()
		for i := range 3 { // the third one does not reach the device
			if _, err := v.WriteAt(noise(uint64(i), 1024), int64(i)*32<<10); err != nil {
				t.Fatal(err)
			}
		}
		middle := v.log.Head()
		if _, err := v.WriteAt(noise(7, 1024), 0); err != nil {
			t.Fatal(err)
		}
		end := v.log.Head()
		if err := v.Sync(); err != nil {
			t.Fatal(err)
		}
		v.overlay.freeze()
		if err := v.applyReady(t.Context()); !errors.Is(err, broken) {
			t.Fatalf("applied: %v", err)
		}
		check := func(when string) {
			t.Helper()
			w, err := v.window()
			if err != nil || w.From.LSN != uint64(end) || v.log.Applied() != applied {
				t.Errorf("%s, %s: one can go back to %d, want %d (%v)", role, when, w.From.LSN, end, err)
			}
			var outside *OutsideError
			if _, err := v.goBack(Point{LSN: uint64(middle)}, t.TempDir()+"/export", "here"); !errors.As(err, &outside) {
				t.Errorf("%s, %s: went back into the middle of what was half applied: %v", role, when, err)
			}
		}
		check("with a broken device")
		if _, err := v.WriteAt(noise(8, 1024), 0); err != nil {
			t.Fatal(err)
		}
		if role == RoleSecondary {
			if err := v.log.WriteAnchor(func(a *journal.Anchor) { a.Role = uint8(RoleSecondary) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Abort(); err != nil {
			t.Fatal(err)
		}
		if v, _, err = openVolume(keepOpen{h.journal}, dev, quietOptions()); err != nil {
			t.Fatal(err)
		}
		check("after a crash")
		if err := v.cut(middle); !errors.Is(err, journal.ErrCommitted) {
			t.Errorf("%s: cut in the middle of what was half applied: %v", role, err)
		}
		if err := v.Abort(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnnouncedAndGone: a layer that the anchor announces, and whose records are given up before anything of them is applied, does
// not hold back what comes to lie there: on a follower nothing counts as committed for it.
func TestAnnouncedAndGone(t *testing.T) {
	h, v := quietVolume(t, RolePrimary)
	for i := range 4 {
		if _, err := v.WriteAt(noise(uint64(i), 1024), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		v.overlay.freeze()
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	l := v.overlay.oldest()
	v.applyMu.Lock()
	err := v.applyLayer(l)
	v.applyMu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := parseSidecar(v.log.Anchor().Extra).applying; got != v.overlay.oldest().end {
		t.Fatalf("applying %d is announced, the next layer ends at %d", got, v.overlay.oldest().end)
	}
	if v.firstPoint() != l.end {
		t.Fatalf("what is only announced is out of reach: %d, applied is %d", v.firstPoint(), l.end)
	}
	if _, err := v.goBack(Point{LSN: uint64(l.end)}, t.TempDir()+"/export", "here"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(noise(9, 9000), 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := v.Abort(); err != nil {
		t.Fatal(err)
	}
	v = h.reopenAsItWas(t)
	defer func() { _ = v.Abort() }()
	if v.firstPoint() != l.end {
		t.Errorf("the first point is %d, want %d", v.firstPoint(), l.end)
	}
}
