package blockdev

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Zero makes the range read as zeroes and keeps it allocated: fallocate(ZERO_RANGE) or BLKZEROOUT, and where the
// filesystem has neither, written zeroes.
func (f *File) Zero(off, length int64) error {
	if err := f.begin(off, length, true); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if err := f.zero(off, length); err != nil {
		return fmt.Errorf("zero %d bytes at %d of %s: %w", length, off, f.path, err)
	}
	return nil
}

// Trim punches a hole. On a block device that is the kernel's "zero and unmap", which reads as zeroes for sure;
// BLKDISCARD promises nothing about what is read afterwards and is not used. Where there is no such thing it zeroes.
func (f *File) Trim(off, length int64) error {
	if err := f.begin(off, length, true); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	err := f.fallocate(&f.noPunch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if unsupported(err) {
		err = f.zero(off, length)
	}
	if err != nil {
		return fmt.Errorf("trim %d bytes at %d of %s: %w", length, off, f.path, err)
	}
	return nil
}

// ZeroFast zeroes only where the filesystem or the block device does it without writing.
func (f *File) ZeroFast(off, length int64, hole bool) error {
	if err := f.begin(off, length, true); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	no, mode := &f.noPunch, uint32(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
	if !hole {
		if f.block { // the kernel would write where the device cannot
			return fmt.Errorf("zero %s fast: %w", f.path, errors.ErrUnsupported)
		}
		no, mode = &f.noZeroRange, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE
	}
	if err := f.fallocate(no, mode, off, length); err != nil {
		return fmt.Errorf("zero %d bytes at %d of %s fast: %w", length, off, f.path, err)
	}
	return nil
}

func (f *File) zero(off, length int64) error {
	if length == 0 {
		return nil
	}
	if f.block {
		return f.zeroBlock(off, length)
	}
	err := f.fallocate(&f.noZeroRange, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if unsupported(err) {
		return f.writeZeroes(off, length)
	}
	return err
}

// sectorAlign is what BLKZEROOUT needs on every device, also on those with sectors of 4096 bytes.
const sectorAlign = 4096

// zeroBlock zeroes a block device: the aligned middle by BLKZEROOUT, the edges by writing.
func (f *File) zeroBlock(off, length int64) error {
	end := off + length
	from := (off + sectorAlign - 1) &^ (sectorAlign - 1)
	to := end &^ (sectorAlign - 1)
	if from >= to {
		return f.writeZeroes(off, length)
	}
	span := [2]uint64{uint64(from), uint64(to - from)}
	_, err := ignoringEINTR(func() (int, error) {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span))); e != 0 {
			return 0, e
		}
		return 0, nil
	})
	if unsupported(err) {
		return f.writeZeroes(off, length)
	}
	if err != nil {
		return err
	}
	if err := f.writeZeroes(off, from-off); err != nil {
		return err
	}
	return f.writeZeroes(to, end-to)
}

var zeroes [256 << 10]byte

func (f *File) writeZeroes(off, length int64) error {
	for length > 0 {
		n, err := f.pwrite(zeroes[:min(length, int64(len(zeroes)))], off)
		if err != nil {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

// fallocate remembers in no that the filesystem does not have the mode.
func (f *File) fallocate(no interface {
	Load() bool
	Store(bool)
}, mode uint32, off, length int64,
) error {
	if length == 0 {
		return nil
	}
	// The kernel takes only whole sectors on a block device.
	if no.Load() || f.block && (off|length)%sectorAlign != 0 {
		return unix.EOPNOTSUPP
	}
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fallocate(f.fd, mode, off, length) })
	if unsupported(err) {
		no.Store(true)
	}
	return err
}

// Allocate is fallocate without a change of size.
func (f *File) Allocate(off, length int64) error {
	if err := f.begin(off, length, true); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if f.block || length == 0 {
		return nil
	}
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, off, length) })
	if err != nil && !unsupported(err) {
		return fmt.Errorf("allocate %d bytes at %d of %s: %w", length, off, f.path, err)
	}
	return nil
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTTY)
}

func blockSize(fd int) (int64, error) {
	var size uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); e != 0 {
		return 0, e
	}
	return int64(size), nil
}

// NextData finds data by SEEK_DATA; a block device, or a filesystem without it, is data all over.
func (f *File) NextData(off int64) (start, end int64, err error) {
	if err := f.begin(off, 0, false); err != nil {
		return 0, 0, err
	}
	defer f.mu.RUnlock()
	if off == f.size.Load() {
		return 0, 0, io.EOF
	}
	if f.block {
		return off, f.size.Load(), nil
	}
	for at := off; at < f.size.Load(); at = start {
		start, err = unix.Seek(f.fd, at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return 0, 0, io.EOF
		case errors.Is(err, unix.EINVAL) || unsupported(err):
			return at, f.size.Load(), nil
		case err != nil:
			return 0, 0, fmt.Errorf("find data at %d of %s: %w", at, f.path, err)
		}
		end, err = unix.Seek(f.fd, start, unix.SEEK_HOLE)
		if err != nil {
			return 0, 0, fmt.Errorf("find a hole at %d of %s: %w", start, f.path, err)
		}
		if end > start && start < f.size.Load() { // else a hole was punched between the two calls
			return start, min(end, f.size.Load()), nil
		}
	}
	return 0, 0, io.EOF
}

// Prefetch has the kernel read the range into its cache.
func (f *File) Prefetch(off, length int64) error {
	if err := f.begin(off, length, false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if length == 0 { // that would mean everything
		return nil
	}
	if err := unix.Fadvise(f.fd, off, length, unix.FADV_WILLNEED); err != nil {
		return fmt.Errorf("prefetch %d bytes at %d of %s: %w", length, off, f.path, err)
	}
	return nil
}
