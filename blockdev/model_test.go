package blockdev

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"pgregory.net/rapid"
)

// open makes the device that a run of the model is about.
type open func(t *rapid.T, size int64) Device

func devices(t *testing.T) map[string]open {
	dir := t.TempDir()
	file := func(o FileOptions) open {
		return func(rt *rapid.T, size int64) Device {
			path := filepath.Join(dir, "device")
			os.Remove(path)
			o.Create, o.Size = true, size
			f, err := OpenFile(path, o)
			if err != nil {
				rt.Fatal(err)
			}
			rt.Cleanup(func() { f.Close() })
			return f
		}
	}
	return map[string]open{
		"file":              file(FileOptions{}),
		"file preallocated": file(FileOptions{Preallocate: true}),
		"file without fallocate": func(rt *rapid.T, size int64) Device {
			f := file(FileOptions{})(rt, size).(*File)
			f.noPunch.Store(true)
			f.noZeroRange.Store(true)
			return f
		},
		"memory":            func(_ *rapid.T, size int64) Device { return NewMemory(size, nil) },
		"memory with power": func(_ *rapid.T, size int64) Device { return NewMemory(size, NewPower()) },
		"faulty":            func(_ *rapid.T, size int64) Device { return NewFaulty(NewMemory(size, nil)) },
		"backend": func(_ *rapid.T, size int64) Device {
			return FromBackend(backend.NewMemoryBackend(make([]byte, size)))
		},
	}
}

// TestModel does random operations on every device and on a byte slice, and compares what is read.
func TestModel(t *testing.T) {
	for name, open := range devices(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := &model{size: rapid.Int64Range(1, 5*pageBytes).Draw(t, "size")}
				m.want = make([]byte, m.size)
				m.d = open(t, m.size)
				t.Repeat(map[string]func(*rapid.T){
					"": m.check, "write": m.write, "writev": m.writev, "batch": m.batch,
					"zero": m.zero, "trim": m.trim, "outside": m.outside, "data": m.data,
				})
			})
		})
	}
}

type model struct {
	d    Device
	size int64
	want []byte
	seed byte
}

func (m *model) span(t *rapid.T) (off, length int64) {
	off = rapid.Int64Range(0, m.size).Draw(t, "offset")
	return off, rapid.Int64Range(0, m.size-off).Draw(t, "length")
}

func (m *model) bytes(n int64) []byte {
	m.seed++
	p := make([]byte, n)
	for i := range p {
		p[i] = m.seed + byte(i>>9)
	}
	return p
}

func (m *model) check(t *rapid.T) {
	got := make([]byte, m.size)
	if _, err := m.d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if i := firstDifference(got, m.want); i >= 0 {
		t.Fatalf("byte %d of %d is %#x, want %#x", i, m.size, got[i], m.want[i])
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func (m *model) write(t *rapid.T) {
	off, n := m.span(t)
	p := m.bytes(n)
	if got, err := m.d.WriteAt(p, off); err != nil || got != len(p) {
		t.Fatal(got, err)
	}
	copy(m.want[off:], p)
}

func (m *model) writev(t *rapid.T) {
	v, ok := m.d.(VectorWriter)
	if !ok {
		t.Skip("no WritevAt")
	}
	off, n := m.span(t)
	p := m.bytes(n)
	copy(m.want[off:], p)
	var bufs [][]byte
	for pieces := rapid.IntRange(1, 1500).Draw(t, "pieces"); pieces > 1; pieces-- { // more than IOV_MAX
		k := min(int64(len(p)), n/int64(pieces))
		bufs, p = append(bufs, p[:k]), p[k:]
	}
	if got, err := v.WritevAt(append(bufs, p), off); err != nil || got != int(n) {
		t.Fatal(got, err)
	}
}

func (m *model) batch(t *rapid.T) {
	ws := make([]Write, rapid.IntRange(1, 8).Draw(t, "members"))
	next := int64(0)
	for i := range ws {
		off, n := m.span(t)
		if rapid.Bool().Draw(t, "neighbour") {
			off, n = next, min(n, m.size-next)
		}
		ws[i] = Write{Offset: off, Length: n, Sync: rapid.Bool().Draw(t, "sync")}
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			ws[i].Zero = true
			clear(m.want[off : off+n])
		case 1:
			ws[i].Trim = true
			clear(m.want[off : off+n])
		default:
			ws[i].Data, ws[i].Length = m.bytes(n), 0
			copy(m.want[off:], ws[i].Data)
		}
		next = off + n
	}
	ApplyBatch(m.d, ws)
	for i := range ws {
		if ws[i].Err != nil {
			t.Fatal(i, ws[i].Err)
		}
	}
}

func (m *model) zero(t *rapid.T) {
	off, n := m.span(t)
	if err := m.d.Zero(off, n); err != nil {
		t.Fatal(err)
	}
	clear(m.want[off : off+n])
}

func (m *model) trim(t *rapid.T) {
	off, n := m.span(t)
	if err := m.d.Trim(off, n); err != nil {
		t.Fatal(err)
	}
	clear(m.want[off : off+n])
}

// outside tries every operation where the device is not, or not wholly.
func (m *model) outside(t *rapid.T) {
	off := rapid.OneOf(rapid.Int64Range(0, m.size), rapid.Int64Range(-10, -1), rapid.Int64Min(m.size+1)).Draw(t, "offset")
	n := rapid.Int64Range(1, 8<<10).Draw(t, "length")
	if off >= 0 && off <= m.size {
		n += m.size - off
	}
	p := m.bytes(n)
	_, read := m.d.ReadAt(p, off)
	_, write := m.d.WriteAt(m.bytes(n), off)
	batch := []Write{{Offset: off, Data: p}}
	ApplyBatch(m.d, batch)
	for name, err := range map[string]error{
		"read": read, "write": write, "zero": m.d.Zero(off, n), "trim": m.d.Trim(off, n), "batch": batch[0].Err,
	} {
		if !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("%s of %d bytes at %d of %d: %v", name, n, off, m.size, err)
		}
	}
	if size, err := m.d.Size(); size != m.size || err != nil {
		t.Fatal("the size is now", size, err)
	}
}

// data checks that everything outside the extents that NextData tells is zeroes.
func (m *model) data(t *rapid.T) {
	f, ok := m.d.(DataFinder)
	if !ok {
		t.Skip("no NextData")
	}
	for off := int64(0); ; {
		start, end, err := f.NextData(off)
		if err == io.EOF {
			start = m.size
		} else if err != nil || start < off || end <= start || end > m.size {
			t.Fatal(off, start, end, err)
		}
		if i := bytes.IndexFunc(m.want[off:start], func(r rune) bool { return r != 0 }); i >= 0 {
			t.Fatalf("byte %d is called a hole and is not zero", off+int64(i))
		}
		if err == io.EOF {
			return
		}
		off = end
	}
}
