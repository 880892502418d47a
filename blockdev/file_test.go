package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newFile(t *testing.T, o FileOptions) *File {
	t.Helper()
	f, err := OpenFile(filepath.Join(t.TempDir(), "device"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing")
	if err := os.WriteFile(existing, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		o          FileOptions
		says       string
	}{
		{"nothing there", filepath.Join(dir, "none"), FileOptions{}, "no such file"},
		{"create without a size", filepath.Join(dir, "none"), FileOptions{Create: true}, "a size is needed"},
		{"another size", existing, FileOptions{Create: true, Size: 8192}, "4096 bytes, not the 8192"},
		{"a directory", dir, FileOptions{ReadOnly: true}, "neither a regular file"},
		{"a character device", "/dev/null", FileOptions{}, "neither a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := OpenFile(c.path, c.o)
			if err == nil {
				f.Close()
				t.Fatal("it opens")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.path) {
				t.Fatal(err)
			}
		})
	}
	if info, err := os.Stat(existing); err != nil || info.Size() != 4096 {
		t.Fatal("the file with another size was changed:", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Fatal("a refused file was left behind:", err)
	}
}

func TestFileIsLocked(t *testing.T) {
	f := newFile(t, FileOptions{Create: true, Size: 4096})
	_, err := OpenFile(f.Path(), FileOptions{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), f.Path()) {
		t.Fatal(err)
	}
	if other, err := OpenFile(f.Path(), FileOptions{NoLock: true}); err != nil {
		t.Fatal(err)
	} else {
		other.Close()
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenFile(f.Path(), FileOptions{Create: true, Size: 4096})
	if err != nil {
		t.Fatal("after Close:", err)
	}
	again.Close()
}

func TestFileReadOnlyAndClosed(t *testing.T) {
	f := newFile(t, FileOptions{Create: true, Size: 4096})
	f.Close()
	if err := f.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
	changes := func(f *File) map[string]error {
		_, write := f.WriteAt(make([]byte, 1), 0)
		_, writev := f.WritevAt([][]byte{{1}, {2}}, 0)
		return map[string]error{"write": write, "writev": writev, "zero": f.Zero(0, 1), "trim": f.Trim(0, 1)}
	}
	for name, err := range changes(f) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Error("read after Close:", err)
	}
	ro, err := OpenFile(f.Path(), FileOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	for name, err := range changes(ro) {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s read-only: %v", name, err)
		}
	}
}

// The kernel reports a failed fdatasync once and marks the pages clean, so a second one would succeed and lie.
func TestFailedSyncIsFinal(t *testing.T) {
	real := fdatasync
	defer func() { fdatasync = real }()
	calls := 0
	fdatasync = func(int) error {
		if calls++; calls == 1 {
			return unix.EIO
		}
		return nil
	}
	f := newFile(t, FileOptions{Create: true, Size: 4096})
	first := f.Sync()
	if !errors.Is(first, unix.EIO) {
		t.Fatal(first)
	}
	_, write := f.WriteAt([]byte{1}, 0)
	for name, err := range map[string]error{
		"sync": f.Sync(), "write": write, "zero": f.Zero(0, 1), "trim": f.Trim(0, 1), "failed": f.Failed(),
	} {
		if err != first {
			t.Errorf("%s: %v", name, err)
		}
	}
	if calls != 1 {
		t.Errorf("fdatasync was called %d times", calls)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Error("read:", err)
	}
}

// All who come while one fdatasync runs share the next one, and none of them is content with the one that ran already.
func TestSyncIsShared(t *testing.T) {
	real := fdatasync
	defer func() { fdatasync = real }()
	const callers = 50
	entered, leave := make(chan struct{}, callers+1), make(chan struct{})
	fdatasync = func(int) error { entered <- struct{}{}; <-leave; return nil }
	f := newFile(t, FileOptions{Create: true, Size: 4096})
	var wg sync.WaitGroup
	wg.Go(func() { f.Sync() })
	<-entered // runs
	var arrived sync.WaitGroup
	arrived.Add(callers)
	for range callers {
		wg.Go(func() {
			arrived.Done()
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
	arrived.Wait()
	close(leave)
	wg.Wait()
	if n := f.syncStarted.Load(); n < 2 || n == callers+1 && callers > 1 {
		t.Fatalf("%d fdatasyncs for %d callers", n, callers+1)
	}
}

func TestPreallocateTakesSpace(t *testing.T) {
	const size = 4 << 20
	blocks := func(o FileOptions) int64 {
		o.Create, o.Size = true, size
		var st unix.Stat_t
		if err := unix.Stat(newFile(t, o).Path(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if got := blocks(FileOptions{Preallocate: true}); got < size {
		t.Errorf("%d of %d bytes allocated", got, size)
	}
	if got := blocks(FileOptions{}); got >= size {
		t.Errorf("%d bytes allocated of a sparse file", got)
	}
}

func TestTrimGivesSpaceBackAndZeroKeepsIt(t *testing.T) {
	const size = 4 << 20
	f := newFile(t, FileOptions{Create: true, Size: size})
	if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
		t.Fatal(err)
	}
	allocated := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(f.Path(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if err := f.Zero(0, size/2); err != nil {
		t.Fatal(err)
	}
	if f.noZeroRange.Load() {
		t.Skip("the filesystem of the test directory has no ZERO_RANGE")
	}
	if got := allocated(); got < size {
		t.Errorf("after Zero %d of %d bytes are allocated", got, size)
	}
	if err := f.Trim(0, size/2); err != nil {
		t.Fatal(err)
	}
	if got := allocated(); got > size*3/4 {
		t.Errorf("after Trim of half %d of %d bytes are allocated", got, size)
	}
}

func TestFileThatWasTruncatedBySomebody(t *testing.T) {
	f := newFile(t, FileOptions{Create: true, Size: 8192})
	if err := os.Truncate(f.Path(), 100); err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 200), 0); err == nil || n != 100 {
		t.Fatal(n, err)
	}
}
