package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestCrashModel checks every sector after a crash against all the values it may have: what was synced, or what any
// write since then put there.
func TestCrashModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const sectors = 40
		p := NewPower()
		devs := []*Memory{NewMemory(sectors*sectorBytes, p), NewMemory(sectors*sectorBytes, p)}
		may := make([][sectors][]byte, len(devs)) // the values that a sector may have; the first is durable
		for i := range may {
			for s := range may[i] {
				may[i][s] = []byte{0}
			}
		}
		cut := rapid.IntRange(1, 30).Draw(t, "cut")
		p.CutAfter(cut)
		for n := 1; n <= cut+3; n++ {
			i := rapid.IntRange(0, len(devs)-1).Draw(t, "device")
			s := rapid.IntRange(0, sectors-1).Draw(t, "sector")
			k := rapid.IntRange(1, sectors-s).Draw(t, "sectors")
			value, err := byte(n), error(nil)
			op := rapid.IntRange(0, 5).Draw(t, "op")
			switch op {
			case 0:
				err = devs[i].Sync()
			case 1:
				value, err = 0, devs[i].Zero(int64(s*sectorBytes), int64(k*sectorBytes))
			case 2:
				value, err = 0, devs[i].Trim(int64(s*sectorBytes), int64(k*sectorBytes))
			default:
				_, err = devs[i].WriteAt(bytes.Repeat([]byte{value}, k*sectorBytes), int64(s*sectorBytes))
			}
			if want := n >= cut; errors.Is(err, ErrPowerLost) != want {
				t.Fatalf("operation %d with a cut at %d: %v", n, cut, err)
			}
			switch {
			case n > cut || op == 0 && err != nil:
			case op == 0:
				for s, v := range may[i] {
					may[i][s] = v[len(v)-1:]
				}
			default:
				for at := s; at < s+k; at++ {
					may[i][at] = append(may[i][at], value)
				}
			}
		}
		if p.Ops() != cut {
			t.Fatalf("%d operations counted, want %d", p.Ops(), cut)
		}
		if _, err := devs[0].ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrPowerLost) {
			t.Fatal("read without power:", err)
		}
		p.Restore(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		for i, d := range devs {
			got := make([]byte, sectors*sectorBytes)
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			for s := range sectors {
				sector := got[s*sectorBytes:][:sectorBytes]
				if !bytes.Equal(sector, bytes.Repeat(sector[:1], sectorBytes)) {
					t.Fatalf("device %d: sector %d is torn inside", i, s)
				}
				if !bytes.Contains(may[i][s], sector[:1]) {
					t.Fatalf("device %d: sector %d has %d, may have %v", i, s, sector[0], may[i][s])
				}
			}
		}
		// What survived stays: a second cut without a write changes nothing, and the device works again.
		before := make([]byte, sectors*sectorBytes)
		devs[0].ReadAt(before, 0)
		p.Cut()
		p.Restore(rand.New(rand.NewPCG(1, 1)))
		after := make([]byte, sectors*sectorBytes)
		if _, err := devs[0].ReadAt(after, 0); err != nil || !bytes.Equal(before, after) {
			t.Fatal("a second crash changed the device", err)
		}
	})
}

// Over many seeds a crash must show everything that a disk may do: nothing, all, a torn write, the later without the
// earlier of two writes. A crash test that never sees one of these proves less than it says.
func TestCrashShowsEverything(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(300) {
		p := NewPower()
		a, b := NewMemory(8192, p), NewMemory(8192, p)
		a.WriteAt(bytes.Repeat([]byte{1}, 2048), 0)
		b.WriteAt([]byte{9}, 100)
		a.WriteAt(bytes.Repeat([]byte{2}, 512), 4096)
		p.CutAfter(1)
		if _, err := a.WriteAt(bytes.Repeat([]byte{3}, 1024), 6144); !errors.Is(err, ErrPowerLost) {
			t.Fatal("the write that the cut hits:", err)
		}
		p.Restore(rand.New(rand.NewPCG(seed, 7)))
		var got, other [8192]byte
		a.ReadAt(got[:], 0)
		b.ReadAt(other[:], 0)
		kept := 0
		for s := range 4 {
			kept += int(got[s*512])
		}
		seen[fmt.Sprintf("first %d of 4", kept)]++
		seen[fmt.Sprintf("second %v", got[4096] == 2)]++
		if kept == 0 && got[4096] == 2 {
			seen["later without earlier"]++
		}
		if kept > 0 && kept < 4 && got[(kept-1)*512] == 1 && got[kept*512] == 0 {
			seen["torn prefix"]++
		}
		seen[fmt.Sprintf("hit by the cut: %v %v", got[6144] == 3, got[6144+512] == 3)]++
		seen[fmt.Sprintf("other device %v", other[100] == 9)]++
	}
	for _, want := range []string{
		"first 0 of 4", "first 1 of 4", "first 2 of 4", "first 3 of 4", "first 4 of 4", "second true", "second false",
		"later without earlier", "torn prefix", "other device true", "other device false",
		"hit by the cut: true true", "hit by the cut: true false", "hit by the cut: false true", "hit by the cut: false false",
	} {
		if seen[want] < 5 {
			t.Errorf("%s: %d times of 300", want, seen[want])
		}
	}
}

func TestCutAfterCanBeTakenBack(t *testing.T) {
	p := NewPower()
	m := NewMemory(512, p)
	p.CutAfter(1)
	p.CutAfter(0)
	if err := m.Sync(); err != nil || p.Lost() {
		t.Fatal(err)
	}
}

// A caller may use its buffer again once the write has returned.
func TestMemoryKeepsNoCallersBuffer(t *testing.T) {
	p := NewPower()
	m := NewMemory(512, p)
	buf := []byte{1, 2, 3}
	m.WriteAt(buf, 0)
	clear(buf)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	p.Restore(rand.New(rand.NewPCG(1, 1)))
	m.ReadAt(buf, 0)
	if !bytes.Equal(buf, []byte{1, 2, 3}) {
		t.Fatal(buf)
	}
}
