package journal

import (
	"fmt"
	"testing"
)

// Records are appended without garbage: buffers go from group to group.
func TestAppendAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, n := range []int{1, 32} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := mustOpen(t, benchFile(t, 32<<20), Options{})
			defer l.Close()
			es := make([]*Entry, n)
			for i := range es {
				es[i] = write(uint64(i)<<12, make([]byte, 4096))
			}
			append1 := func() { appendOrMove(t, l, es) }
			append1() // makes the buffers
			if allocs := testing.AllocsPerRun(100, append1); allocs > 0 {
				t.Errorf("%v allocations for %d records", allocs, n)
			}
		})
	}
}
