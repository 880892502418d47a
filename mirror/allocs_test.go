package mirror

import (
	"fmt"
	"path/filepath"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// A write makes no garbage on its way into the log: at the rates that this is for, the collector would be what clients wait
// for. The blocks are written again and again, so that the overlay does not grow; nothing is applied meanwhile.
func TestWriteBatchAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	const journalBytes, deviceBytes, block = 128 << 20, 4 << 20, 4096 // no anchor comes meanwhile
	for _, n := range []int{1, 32} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			open := func(name string, size int64) *blockdev.File {
				f, err := blockdev.OpenFile(filepath.Join(t.TempDir(), name), blockdev.FileOptions{Create: true, Size: size})
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
			log := open("journal", journalBytes)
			c := Config{Name: "vol", Role: RolePrimary}
			if err := journal.Format(log, c.firstAnchor(deviceBytes)); err != nil {
				t.Fatal(err)
			}
			v, _, err := openVolume(log, open("device", deviceBytes), quietOptions())
			if err != nil {
				t.Fatal(err)
			}
			defer v.Abort()
			if _, err := v.beginGeneration(true); err != nil {
				t.Fatal(err)
			}
			p, ws := make([]byte, block), make([]blockdev.Write, n)
			at := int64(0)
			write := func() {
				for i := range ws {
					at = (at + 37*block) % (256 * block)
					ws[i] = blockdev.Write{Offset: at, Data: p}
				}
				v.WriteBatch(ws)
				if ws[0].Err != nil {
					t.Fatal(ws[0].Err)
				}
			}
			for range 300 / n {
				write()
			}
			if allocs := testing.AllocsPerRun(100, write); allocs > 0 {
				t.Errorf("%v allocations for a group of %d writes", allocs, n)
			}
		})
	}
}
