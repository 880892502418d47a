package blockdev

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DirectReader is a device that can be read below the system's cache.
type DirectReader interface {
	// ReadDirect reads len(p) bytes at off from the disk itself, what is not written yet included. errors.ErrUnsupported where
	// that cannot be.
	ReadDirect(p []byte, off int64) error
}

// directAlign fits every disk: logical sectors have 512 or 4096 bytes.
const directAlign = 4096

// alignedBuffer has n bytes that begin where a disk can write them.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directAlign - 1)
	return b[skip : skip+n]
}

// ReadDirect reads by O_DIRECT, through a descriptor of its own that is opened by the first call. The system writes dirty pages of
// the range out before.
func (f *File) ReadDirect(p []byte, off int64) error {
	if err := f.begin(off, int64(len(p)), false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	fd, err := f.directFD()
	if err != nil {
		return err
	}
	const most = 1 << 20
	for len(p) > 0 {
		from := off / directAlign * directAlign
		n := min((off-from+int64(len(p))+directAlign-1)/directAlign*directAlign, most)
		b := alignedBuffer(int(n))
		m, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, b, from) })
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("read %s directly: %w", f.path, errors.ErrUnsupported)
		}
		if err != nil {
			return fmt.Errorf("read %d bytes at %d of the disk of %s: %w", len(p), off, f.path, err)
		}
		if int64(m) <= off-from {
			return fmt.Errorf("read %d bytes at %d of the disk of %s: %w", len(p), off, f.path, io.ErrUnexpectedEOF)
		}
		done := copy(p, b[off-from:m])
		p, off = p[done:], off+int64(done)
	}
	return nil
}

// directFD opens the file once more. Its locks are those of the first descriptor.
func (f *File) directFD() (int, error) {
	f.directMu.Lock()
	defer f.directMu.Unlock()
	if f.direct == 0 {
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.fd), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return 0, fmt.Errorf("open %s for direct reads: %w: %w", f.path, errors.ErrUnsupported, err)
		}
		f.direct = fd
	}
	return f.direct, nil
}

// Forget lets clean pages of the range leave the system's cache; the next read comes from the disk.
func (f *File) Forget(off, length int64) error {
	if err := f.begin(off, length, false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	return fadvise(f.fd, off, length, unix.FADV_DONTNEED)
}
