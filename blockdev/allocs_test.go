package blockdev

import (
	"fmt"
	"path/filepath"
	"testing"
)

// Groups are written without garbage, of whatever size: the vectors of a pwritev were made anew for all of more than eight.
func TestGroupsAllocateNothing(t *testing.T) {
	f, err := OpenFile(filepath.Join(t.TempDir(), "f"), FileOptions{Create: true, Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1, 9, 65, maxVector} {
		bufs, ws := make([][]byte, n), make([]Write, n)
		for i := range ws {
			bufs[i] = []byte(fmt.Sprintf("%6d", i))
			ws[i] = Write{Offset: int64(6 * i), Data: bufs[i]}
		}
		for name, do := range map[string]func() error{
			"vector": func() error { _, err := f.WritevAt(bufs, 0); return err },
			"batch":  func() error { f.WriteBatch(ws); return ws[0].Err },
		} {
			allocs := testing.AllocsPerRun(100, func() {
				if err := do(); err != nil {
					t.Fatal(err)
				}
			})
			if allocs > 0 { // pools that the race detector empties make less than one
				t.Errorf("%s of %d: %v allocations", name, n, allocs)
			}
			got := make([]byte, 6)
			if _, err := f.ReadAt(got, int64(6*(n-1))); err != nil || string(got) != string(bufs[n-1]) {
				t.Errorf("%s of %d: %q, %v", name, n, got, err)
			}
		}
	}
}
