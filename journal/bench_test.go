package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// benchLog is a log in a real file whose space has been written before.
func benchLog(b *testing.B) *Log {
	f, err := os.OpenFile(filepath.Join(b.TempDir(), "journal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	for range 64 {
		if _, err := f.Write(zero); err != nil {
			b.Fatal(err)
		}
	}
	file := osFile{f}
	mustFormat(b, file, Anchor{})
	l := mustOpen(b, file, Options{})
	b.Cleanup(func() { _ = l.Close() })
	return l
}

func appendOrMove(b *testing.B, l *Log, es []*Entry) {
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
