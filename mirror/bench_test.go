package mirror

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// BenchmarkWriteBatch enters groups of random 4 KiB writes into a volume on
// files; the applier works beside it. Nothing is flushed.
func BenchmarkWriteBatch(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			c := DefaultConfig()
			c.Name, c.Role, c.Device, c.Size, c.JournalSize = "vol", RolePrimary, filepath.Join(dir, "d"), 256<<20, 256<<20
			c.SyncInterval = time.Second
			o, err := openVolumeFiles(b.Context(), &c)
			if err != nil {
				b.Fatal(err)
			}
			defer o.v.Abort()
			rng := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, 4096)
			ws := make([]blockdev.Write, n)
			b.SetBytes(int64(n * len(p)))
			b.ReportAllocs()
			for b.Loop() {
				for i := range ws {
					ws[i] = blockdev.Write{Offset: int64(rng.IntN(256<<20/4096)) * 4096, Data: p}
				}
				o.v.WriteBatch(ws)
				if ws[0].Err != nil {
					b.Fatal(ws[0].Err)
				}
			}
		})
	}
}
