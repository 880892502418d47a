package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// BenchmarkOpenVolume is a restart after a kill, with nothing of the log in the page cache: a ring of 1 GiB full of random
// writes of 4 KiB of which none is applied, and one with next to nothing in it. The log alone is in package journal.
func BenchmarkOpenVolume(b *testing.B) {
	for name, fill := range map[string]int64{"full": 1 << 30, "empty": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			c := DefaultConfig()
			c.Name, c.Role, c.Device, c.Size, c.JournalSize = "vol", RolePrimary, filepath.Join(dir, "d"), 16<<30, 1<<30
			c.SyncInterval = time.Hour // the applier stays out of it
			o, err := openVolumeFiles(b.Context(), &c)
			if err != nil {
				b.Fatal(err)
			}
			o.v.stop() // the applier
			<-o.v.stopped
			rng := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, 4096)
			ws := make([]blockdev.Write, 64)
			for int64(o.v.log.Head()) < fill && o.v.log.Free() > 64*5000 {
				for i := range ws {
					ws[i] = blockdev.Write{Offset: rng.Int64N(c.Size/4096) * 4096, Data: p}
				}
				o.v.WriteBatch(ws)
			}
			if err := o.v.Abort(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(1 << 30)
			for range b.N {
				b.StopTimer()
				f, err := os.Open(c.journalPath())
				if err == nil {
					err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				o, err := openVolumeFiles(b.Context(), &c)
				b.StopTimer()
				if err != nil || int64(o.v.log.Head()) < min(fill, 1000<<20) {
					b.Fatal(err)
				}
				o.v.stop()
				<-o.v.stopped
				if _, _, n := o.v.overlay.pending(); fill > 1<<20 && n < 200_000 {
					b.Fatalf("%d extents", n)
				}
				if err := o.v.Abort(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
