package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
)

// sectors writes n sectors of c.
func sectors(t *testing.T, d *Disk, at, n int64, c byte) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{c}, int(n*SectorBytes)), at*SectorBytes); err != nil {
		t.Fatal(err)
	}
}

// first returns the first byte of each of n sectors.
func first(im *Image, n int) string {
	b := make([]byte, n*SectorBytes)
	_, _ = im.ReadAt(b, 0)
	out := make([]byte, n)
	for i := range out {
		if out[i] = b[i*SectorBytes]; out[i] == 0 {
			out[i] = '.'
		}
	}
	return string(out)
}

// states returns what was visited, and for each whether it is (also) what a kill leaves.
func states(t *testing.T, tr *Trace, c Config, sectorsPerDisk int) map[string]bool {
	t.Helper()
	var mu sync.Mutex
	seen, killed := map[string]bool{}, map[string]bool{}
	n, err := tr.States(c, func(s *State) error {
		key := fmt.Sprint(c.Stamp(s.N))
		for _, im := range s.Disks {
			key += " " + first(im, sectorsPerDisk)
		}
		mu.Lock()
		defer mu.Unlock()
		once := key
		if killed[key] = killed[key] || s.Killed >= 0; s.Killed >= 0 {
			once += fmt.Sprint(" killed with ", c.Stamp(s.Killed))
		}
		if seen[once] {
			return fmt.Errorf("%s comes twice", once)
		}
		seen[once] = true
		return nil
	})
	if err != nil || n != len(seen) {
		t.Fatalf("%d of %d states: %v", len(seen), n, err)
	}
	return killed
}

// Every combination of what is not synced, of several disks, torn at every sector, and each only once.
func TestStates(t *testing.T) {
	tr := New()
	a, b := tr.Disk(4*SectorBytes), tr.Disk(4*SectorBytes)
	sectors(t, a, 0, 4, 'o')
	tr.Begin()
	sectors(t, a, 0, 1, 'x')
	sectors(t, b, 1, 1, 'y')
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}
	sectors(t, a, 1, 3, 'z')
	got := states(t, tr, Config{All: 10, Tears: 100, Share: 1, Stamp: func(n int) int { return n / 3 }}, 4)
	want := map[string]bool{
		"0 oooo ....": true, "0 xooo ....": true, "0 oooo .y..": false, "0 xooo .y..": true,
		"1 xooo ....": false, "1 xooo .y..": true, "1 xzoo .y..": true, "1 xzzo .y..": true, "1 xzzz .y..": true,
	}
	for _, z := range []string{"zoo", "zzo", "ozz", "ooz", "zoz", "zzz"} {
		for _, y := range []string{"....", ".y.."} {
			if key := "1 x" + z + " " + y; !want[key] {
				want[key] = false
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// A protocol that forgets a sync is found out, also in the recovery from a first crash.
func TestStatesFindFault(t *testing.T) {
	for _, c := range []struct {
		name        string
		sync, finds bool
	}{{"data synced before its mark", true, false}, {"not synced", false, true}} {
		tr := New()
		d := tr.Disk(8 * SectorBytes)
		sectors(t, d, 1, 2, 'd')
		if c.sync {
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		sectors(t, d, 0, 1, 'm')
		broken := errors.New("a mark without its data")
		check := func(s *State) error {
			if got := first(s.Disks[0], 3); got[0] == 'm' && got != "mdd" {
				return broken
			}
			return nil
		}
		config := Config{All: 10, Tears: 100, Share: 1}
		_, err := tr.States(config, check)
		if errors.Is(err, broken) != c.finds {
			t.Errorf("%s: %v", c.name, err)
		}
		// The same work as the recovery of an empty disk.
		outer := New()
		outer.Disk(8 * SectorBytes)
		_, err = outer.States(config, func(s *State) error {
			again, disks := s.Record()
			sectors(t, disks[0], 1, 2, 'd')
			if c.sync {
				_ = disks[0].Sync()
			}
			sectors(t, disks[0], 0, 1, 'm')
			_, err := again.States(config, check)
			return err
		})
		if errors.Is(err, broken) != c.finds {
			t.Errorf("%s, in a recovery: %v", c.name, err)
		}
	}
}

// With too many operations for all combinations, those that disks mostly leave are among the drawn.
func TestManyUnsynced(t *testing.T) {
	tr := New()
	d := tr.Disk(16 * SectorBytes)
	for i := range int64(14) {
		sectors(t, d, i, 1, 'a'+byte(i))
	}
	got := states(t, tr, Config{All: 4, Samples: 50, Tears: 10, Share: 1, Stamp: func(int) int { return 0 }}, 14)
	for _, s := range []string{"0 abcdefg.......", "0 ......ghijklmn", "0 abcdef.hijklmn", "0 abcdefghijklmn"} {
		if _, ok := got[s]; !ok {
			t.Errorf("%s is missing of %d", s, len(got))
		}
	}
}
