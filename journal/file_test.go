package journal

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	// How often each model is checked: MIRROR_AGENT_RAPID=10000 for long runs.
	if n := os.Getenv("MIRROR_AGENT_RAPID"); n != "" {
		if err := flag.Set("rapid.checks", n); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

var errIO = errors.New("input/output error")

// memFile is a file in memory that knows what is synced.
type memFile struct {
	mu      sync.Mutex
	data    []byte             // what the OS has
	synced  []byte             // what the disk has, for sure
	dirty   map[int64][][]byte // sector → its contents after each write since the last sync
	ops     int
	onOp    func(f *memFile) // mutating operation, after it is done and (a sync) before it is durable; mu held
	failNow func(op string) error
	closed  bool
	undo    []undo // of a scratchFile
}

func newMemFile(size int64) *memFile {
	return &memFile{data: make([]byte, size), synced: make([]byte, size), dirty: map[int64][][]byte{}}
}

func memFileOf(image []byte) *memFile {
	return &memFile{data: append([]byte(nil), image...), synced: append([]byte(nil), image...), dirty: map[int64][][]byte{}}
}

// scratchFile is image itself: no crash, but rollback.
func scratchFile(image []byte) *memFile { return &memFile{data: image} }

type undo struct {
	off int64
	old []byte
}

// rollback takes back all writes to a scratchFile.
func (f *memFile) rollback() {
	for i := len(f.undo) - 1; i >= 0; i-- {
		copy(f.data[f.undo[i].off:], f.undo[i].old)
	}
	f.undo, f.ops = nil, 0
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < 0 || off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) { return f.WritevAt([][]byte{p}, off) }

func (f *memFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops++
	if f.failNow != nil {
		if err := f.failNow("write"); err != nil {
			return 0, err
		}
	}
	n := 0
	for _, b := range bufs {
		if off+int64(n+len(b)) > int64(len(f.data)) {
			return n, fmt.Errorf("write past the end")
		}
		at := off + int64(n)
		if f.dirty == nil {
			f.undo = append(f.undo, undo{at, append([]byte(nil), f.data[at:at+int64(len(b))]...)})
		}
		n += copy(f.data[at:], b)
	}
	if f.dirty != nil {
		for s := off / 512; s*512 < off+int64(n); s++ {
			f.dirty[s] = append(f.dirty[s], append([]byte(nil), f.data[s*512:s*512+512]...))
		}
	}
	if f.onOp != nil {
		f.onOp(f)
	}
	return n, nil
}

func (f *memFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops++
	if f.failNow != nil {
		if err := f.failNow("sync"); err != nil {
			return err
		}
	}
	if f.onOp != nil {
		f.onOp(f)
	}
	for s, versions := range f.dirty {
		copy(f.synced[s*512:], versions[len(versions)-1])
	}
	if f.dirty != nil {
		clear(f.dirty)
	}
	return nil
}

func (f *memFile) Size() (int64, error) { return int64(len(f.data)), nil }

func (f *memFile) Close() error {
	f.closed = true
	return nil
}

// crash returns what may be on the disk after a power cut now: each sector as it was at some moment since the last sync; keep is the
// share of sectors that have their newest content (0 nothing new survives, 1 everything). mu is held or nobody writes.
func (f *memFile) crash(rng *rand.Rand, keep float64) []byte {
	image := append([]byte(nil), f.synced...)
	for s := int64(0); s*512 < int64(len(image)) && len(f.dirty) > 0; s++ { // in order: the seed decides
		versions, ok := f.dirty[s]
		switch {
		case !ok:
		case rng.Float64() < keep:
			copy(image[s*512:], versions[len(versions)-1])
		case keep > 0:
			if i := rng.IntN(len(versions) + 1); i > 0 {
				copy(image[s*512:], versions[i-1])
			}
		}
	}
	return image
}

// plainFile hides WritevAt.
type plainFile struct{ f *memFile }

func (p plainFile) ReadAt(b []byte, off int64) (int, error)  { return p.f.ReadAt(b, off) }
func (p plainFile) WriteAt(b []byte, off int64) (int, error) { return p.f.WriteAt(b, off) }
func (p plainFile) Sync() error                              { return p.f.Sync() }
func (p plainFile) Size() (int64, error)                     { return p.f.Size() }
func (p plainFile) Close() error                             { return p.f.Close() }

// osFile is a real file, for benchmarks.
type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func mustFormat(t rapid.TB, f File, a Anchor) {
	t.Helper()
	if err := Format(f, a); err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t rapid.TB, f File, o Options) *Log {
	t.Helper()
	l, _, err := Open(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(off uint64, payload []byte) *Entry {
	return &Entry{Op: OpWrite, Offset: off, Payload: payload}
}
