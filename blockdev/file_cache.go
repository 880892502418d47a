package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// CacheDropper is a device whose reads come from a cache that may hold what the disk does not.
type CacheDropper interface {
	// DropCache makes durable what is still to be written in the range (length 0: up to the end), and forgets what is
	// cached of it: reads after it come from the disk.
	DropCache(off, length int64) error
}

// DropCache is fdatasync, then posix_fadvise(DONTNEED), and on a block device BLKFLSBUF too. After a writeback that failed
// the kernel holds pages that are marked clean and are not on the disk. Those are what DONTNEED drops; it does not
// drop dirty ones, which a killed process may rightly have left (G1), so these are written first. An fdatasync that fails here
// is as final as any other.
func (f *File) DropCache(off, length int64) error {
	if !f.readOnly {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.begin(off, length, false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if err := fadvise(f.fd, off, length, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop the cache of %s: %w", f.path, err)
	}
	if f.block {
		// Needs CAP_SYS_ADMIN; fadvise above has done most of it.
		_ = unix.IoctlSetInt(f.fd, unix.BLKFLSBUF, 0)
	}
	return nil
}

// StartWriteback is sync_file_range(SYNC_FILE_RANGE_WRITE). Without the flags that wait it takes no error of a writeback away
// from the fdatasync that follows (sync_file_range(2); mm/filemap.c: only file_fdatawait_range checks).
func (f *File) StartWriteback(off, length int64) error {
	if err := f.begin(off, length, false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	if length == 0 { // that would mean everything
		return nil
	}
	if err := syncFileRange(f.fd, off, length, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return fmt.Errorf("write back %d bytes at %d of %s: %w", length, off, f.path, err)
	}
	return nil
}

// syncFileRange is a variable so that tests can see it called.
var syncFileRange = unix.SyncFileRange

// fadvise is a variable so that tests can see it called.
var fadvise = unix.Fadvise
