package blockdev

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// directFile is a file of odd size on a filesystem that can be read directly.
func directFile(t *testing.T, size int64) (*File, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	f, err := OpenFile(path, FileOptions{Create: true, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadDirect(make([]byte, 1), 0); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("the filesystem of %s has no direct reads: %v", path, err)
	}
	return f, want
}

// TestReadDirect: any extent reads as it does through the cache, also what is not on the disk yet, and the odd end of the file.
func TestReadDirect(t *testing.T) {
	const size = 3<<20 + 512*3
	f, want := directFile(t, size)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 200 {
		off := rng.Int64N(size)
		n := 1 + rng.Int64N(min(size-off, 1<<uint(1+rng.IntN(21))))
		switch i {
		case 0:
			off, n = 0, size
		case 1:
			off, n = size-1, 1
		}
		p := make([]byte, n)
		if err := f.ReadDirect(p, off); err != nil || !bytes.Equal(p, want[off:off+n]) {
			t.Fatalf("%d bytes at %d: %v", n, off, err)
		}
		if _, err := f.WriteAt([]byte{byte(i)}, off); err != nil { // dirty from here on
			t.Fatal(err)
		}
		want[off] = byte(i)
	}
	if err := f.ReadDirect(make([]byte, 2), size-1); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadDirect(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to == f.Path() {
				t.Errorf("descriptor %s is still open", fd.Name())
			}
		}
	}
}

// TestForget: the hint goes to the system for the range that was asked for, and takes nothing that is not written yet.
func TestForget(t *testing.T) {
	f, err := OpenFile(filepath.Join(t.TempDir(), "f"), FileOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var hints [][3]int64
	old := fadvise
	fadvise = func(fd int, off, length int64, advice int) error {
		hints = append(hints, [3]int64{off, length, int64(advice)})
		return old(fd, off, length, advice)
	}
	defer func() { fadvise = old }()
	if _, err := f.WriteAt([]byte("dirty"), 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Forget(4096, 8192); err != nil {
		t.Fatal(err)
	}
	if len(hints) != 1 || hints[0] != [3]int64{4096, 8192, unix.FADV_DONTNEED} {
		t.Errorf("%v", hints)
	}
	p := make([]byte, 5)
	if _, err := f.ReadAt(p, 4096); err != nil || string(p) != "dirty" {
		t.Errorf("%q, %v", p, err)
	}
}
