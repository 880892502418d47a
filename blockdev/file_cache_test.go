package blockdev

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskDir is a directory on a filesystem with a disk under it: tmpfs keeps its pages whatever one advises.
func diskDir(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{t.TempDir(), "."} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
			return dir
		}
	}
	t.Skip("needs a filesystem that is not in memory")
	return ""
}

// resident counts the pages of a file that are in the page cache.
func resident(t *testing.T, path string, size int) (n int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m) //nolint:errcheck // the test is over
	vec := make([]byte, size/os.Getpagesize())
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&vec[0]))); e != 0 {
		t.Fatal(e)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

// What a killed process left dirty is written, then nothing of the file is cached, and it reads as before.
func TestDropCache(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(diskDir(t), "dropcache.img")
	t.Cleanup(func() { os.Remove(path) })
	f, err := OpenFile(path, FileOptions{Create: true, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := slices.Repeat([]byte{7}, size)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, path, size); n == 0 {
		t.Fatal("nothing is cached after a write: this test would test nothing")
	}
	if err := f.DropCache(0, 0); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, path, size); n != 0 {
		t.Errorf("%d pages are still cached", n)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !slices.Equal(got, p) {
		t.Errorf("reads differently after it (%v)", err)
	}
}

// The kernel is told to write, without the flags that would wait and take away an error of an earlier writeback (G9).
func TestStartWriteback(t *testing.T) {
	real := syncFileRange
	defer func() { syncFileRange = real }()
	f, err := OpenFile(filepath.Join(diskDir(t), "writeback.img"), FileOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.path) })
	type call struct{ off, length int64 }
	var calls []call
	fails := error(nil)
	syncFileRange = func(fd int, off, length int64, flags int) error {
		if flags != unix.SYNC_FILE_RANGE_WRITE {
			t.Errorf("flags %#x", flags)
		}
		calls = append(calls, call{off, length})
		return cmp.Or(fails, real(fd, off, length, flags))
	}
	if err := NewFaulty(f).StartWriteback(4096, 8192); err != nil || !slices.Equal(calls, []call{{4096, 8192}}) {
		t.Errorf("%v, %v", err, calls)
	}
	if err := f.StartWriteback(4096, 0); err != nil || len(calls) != 1 {
		t.Errorf("of nothing: %v, %v", err, calls)
	}
	if err := f.StartWriteback(1<<20-4096, 8192); !errors.Is(err, ErrOutOfRange) || len(calls) != 1 {
		t.Errorf("beyond the end: %v, %v", err, calls)
	}
	fails = unix.EIO
	if err := f.StartWriteback(0, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("it fails: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.StartWriteback(0, 4096); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Dirty pages are not dropped by advice: fdatasync comes first, and when that fails nothing is dropped and the file is at
// its end.
func TestDropCacheSyncs(t *testing.T) {
	realSync, realAdvise := fdatasync, fadvise
	defer func() { fdatasync, fadvise = realSync, realAdvise }()
	var calls []string
	var fail error
	fdatasync = func(int) error { calls = append(calls, "sync"); return fail }
	fadvise = func(_ int, off, length int64, advice int) error {
		if off != 4096 || length != 8192 || advice != unix.FADV_DONTNEED {
			t.Errorf("fadvise(%d, %d, %d)", off, length, advice)
		}
		calls = append(calls, "drop")
		return nil
	}
	f, err := OpenFile(filepath.Join(t.TempDir(), "f"), FileOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := NewFaulty(f).DropCache(4096, 8192); err != nil || !slices.Equal(calls, []string{"sync", "drop"}) {
		t.Errorf("%v, %v", calls, err)
	}
	calls, fail = nil, unix.EIO
	if err := f.DropCache(4096, 8192); !errors.Is(err, unix.EIO) || !slices.Equal(calls, []string{"sync"}) {
		t.Errorf("%v, %v", calls, err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("the file goes on after that: %v", err)
	}
}

// Allocate takes space and changes neither content nor size.
func TestAllocate(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "f")
	f, err := OpenFile(path, FileOptions{Create: true, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("kept"), 100); err != nil {
		t.Fatal(err)
	}
	if err := NewFaulty(f).Allocate(0, size); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 < size || st.Size != size {
		t.Errorf("%d bytes of space, size %d (%v)", st.Blocks*512, st.Size, err)
	}
	got := make([]byte, size)
	want := slices.Concat(make([]byte, 100), []byte("kept"), make([]byte, size-104))
	if _, err := f.ReadAt(got, 0); err != nil || !slices.Equal(got, want) {
		t.Errorf("content changed (%v)", err)
	}
	if err := f.Allocate(size-1, 2); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
}
