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

// fillLog appends batches of 4 KiB writes until bytes of the ring are in use.
func fillLog(b testing.TB, l *Log, bytes int64) {
	payload := make([]byte, 4096)
	es := make([]*Entry, 64)
	for i := 0; int64(l.Head()) < bytes; i++ {
		for j := range es {
			le.PutUint64(payload, uint64(i*64+j))
			es[j] = write(uint64(i*64+j)*4096, payload)
		}
		if err := l.Append(es); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := l.Sync(l.Head()); err != nil {
		b.Fatal(err)
	}
}

// Open after a kill, nothing of the file in the page cache: a ring of 1 GiB full of records of 4 KiB that are not applied, and
// one with next to nothing in it.
func BenchmarkOpen(b *testing.B) {
	for name, fill := range map[string]int64{"full": 1 << 30, "empty": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			f := benchFile(b, 1<<30)
			l := mustOpen(b, f, Options{})
			fillLog(b, l, fill)
			path := f.Name()
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
			for _, cache := range []string{"cold", "warm"} {
				b.Run(cache, func(b *testing.B) {
					b.SetBytes(1 << 30)
					for range b.N {
						b.StopTimer()
						file, err := os.OpenFile(path, os.O_RDWR, 0)
						if err != nil {
							b.Fatal(err)
						}
						if cache == "cold" {
							if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
								b.Fatal(err)
							}
						}
						records := 0
						b.StartTimer()
						l := mustOpen(b, osFile{file}, Options{OnRecover: func(Record) error { records++; return nil }})
						b.StopTimer()
						if l.Head() == 0 || int64(records) < fill/8192 {
							b.Fatalf("%d records, head %d", records, l.Head())
						}
						if err := l.Close(); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				})
			}
		})
	}
}
