package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchFile is a formatted journal in a real file.
func benchFile(b testing.TB, size int64) osFile {
	f, err := os.OpenFile(filepath.Join(b.TempDir(), "journal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		b.Fatal(err)
	}
	file := osFile{f}
	mustFormat(b, file, Anchor{Role: RolePrimary})
	return file
}

// benchLog is a log in a real file.
func benchLog(b *testing.B) *Log {
	l := mustOpen(b, benchFile(b, 64<<20), Options{})
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// The first lap of a ring: a record of 4 KiB and a sync, in space that Format has written, and in space that is only
// reserved, as it was before Format wrote it.
func BenchmarkFirstLap(b *testing.B) {
	payload := make([]byte, 4096)
	for _, kind := range []string{"reserved", "written"} {
		b.Run(kind, func(b *testing.B) {
			f := benchFile(b, 256<<20)
			if kind == "reserved" {
				if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, ringStart, 256<<20-ringStart); err != nil {
					b.Skipf("this filesystem cannot make space unwritten again: %v", err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
			l := mustOpen(b, f, Options{})
			defer l.Close()
			es := []*Entry{write(0, payload)}
			took := make([]time.Duration, 0, 1<<16)
			for b.Loop() {
				began := time.Now()
				if err := l.Append(es); err != nil {
					b.Fatalf("%v: run it with fewer iterations", err)
				}
				if _, err := l.Sync(l.Head()); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}

func appendOrMove(b testing.TB, l *Log, es []*Entry) {
	for {
		err := l.Append(es)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrFull) {
			b.Error(err)
			return
		}
		if _, err := l.Sync(l.Head()); err != nil {
			b.Error(err)
			return
		}
		to, _, err := l.BoundaryBefore(l.Durable())
		if err == nil {
			err = l.WriteAnchor(func(a *Anchor) { a.Applied, a.Tail = max(a.Applied, to), max(a.Tail, to) })
		}
		if err != nil {
			b.Error(err)
			return
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	payload := make([]byte, 4096)
	b.Run("1", func(b *testing.B) {
		l, es := benchLog(b), []*Entry{write(0, payload)}
		b.ReportAllocs()
		b.SetBytes(4096)
		for b.Loop() {
			appendOrMove(b, l, es)
		}
	})
	b.Run("batch32", func(b *testing.B) {
		l := benchLog(b)
		var es []*Entry
		for range 32 {
			es = append(es, write(0, payload))
		}
		b.ReportAllocs()
		b.SetBytes(32 * 4096)
		for b.Loop() {
			appendOrMove(b, l, es)
		}
	})
	b.Run("goroutines32", func(b *testing.B) {
		l := benchLog(b)
		b.ReportAllocs()
		b.SetBytes(4096)
		b.SetParallelism(16) // × GOMAXPROCS
		b.RunParallel(func(p *testing.PB) {
			es := []*Entry{write(0, payload)}
			for p.Next() {
				appendOrMove(b, l, es)
			}
		})
	})
}
