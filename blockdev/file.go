package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FileOptions say how OpenFile opens.
type FileOptions struct {
	// Create makes a regular file of Size bytes when there is none at the path, or an empty one.
	Create bool
	// Size in bytes. With Create: of the new file. Else, and when the file is already there: what it must have; 0 means
	// whatever it has.
	Size int64
	// ReadOnly refuses every change with ErrReadOnly.
	ReadOnly bool
	// Preallocate takes the space of a created file from the filesystem at once, so that a write cannot run out of it.
	Preallocate bool
	// NoLock leaves out the lock against other processes.
	NoLock bool
}

// File is a regular file or a raw block device. It implements Device, VectorWriter, BatchWriter, DataFinder and Grower.
// After the first Sync that failed it changes nothing any more; see the package comment.
type File struct {
	path     string
	fd       int
	size     atomic.Int64
	block    bool // a block device, not a regular file
	readOnly bool

	mu     sync.RWMutex // held shared by every operation, alone by Close: no operation meets a reused descriptor
	closed bool         // guarded by mu

	growMu sync.Mutex // one Grow at a time

	syncMu      sync.Mutex                 // one fdatasync at a time: the kernel tells an error to one caller only
	syncStarted atomic.Uint64              // fdatasyncs begun; changed under syncMu
	failed      atomic.Pointer[latchedErr] // the first Sync that failed

	directMu sync.Mutex
	direct   int // a descriptor for ReadDirect, 0 before the first; guarded by directMu

	noZeroRange, noPunch atomic.Bool // the filesystem said that it cannot
}

type latchedErr struct{ err error }

// OpenFile opens the regular file or block device at path and locks it exclusively (flock, and O_EXCL on a block device,
// which also refuses one that is mounted). It fails with an error that wraps ErrInUse when somebody else has it. A file
// that it created is durable, name and size, when it returns.
func OpenFile(path string, o FileOptions) (*File, error) {
	f := &File{path: path, fd: -1, readOnly: o.ReadOnly}
	created, err := f.open(o)
	if err == nil {
		err = f.prepare(o, created)
	}
	if err != nil {
		if f.fd >= 0 {
			unix.Close(f.fd)
		}
		if created && !errors.Is(err, ErrInUse) {
			os.Remove(path)
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

// open sets fd, and created when there was nothing at the path before.
func (f *File) open(o FileOptions) (created bool, err error) {
	mode := unix.O_CLOEXEC
	if o.ReadOnly {
		mode |= unix.O_RDONLY
	} else {
		mode |= unix.O_RDWR
	}
	if info, err := os.Stat(f.path); err == nil && isBlock(info) && !o.NoLock {
		mode |= unix.O_EXCL
	}
	f.fd, err = ignoringEINTR(func() (int, error) { return unix.Open(f.path, mode, 0) })
	if errors.Is(err, unix.ENOENT) && o.Create && !o.ReadOnly {
		if o.Size <= 0 {
			return false, errors.New("a size is needed to create it")
		}
		f.fd, err = ignoringEINTR(func() (int, error) {
			return unix.Open(f.path, mode|unix.O_CREAT|unix.O_EXCL, 0o600)
		})
		created = err == nil
	}
	if errors.Is(err, unix.EBUSY) {
		err = ErrInUse
	}
	return created, err
}

// prepare locks the open descriptor, finds out its kind and size and gives a new file its size.
func (f *File) prepare(o FileOptions, created bool) error {
	if !o.NoLock {
		_, err := ignoringEINTR(func() (int, error) { return 0, unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrInUse
		}
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.size.Store(st.Size)
		if o.Create && !o.ReadOnly && f.size.Load() == 0 && o.Size > 0 {
			return f.give(o)
		}
	case unix.S_IFBLK:
		f.block = true
		size, err := blockSize(f.fd)
		if err != nil {
			return fmt.Errorf("size of the block device: %w", err)
		}
		f.size.Store(size)
	default:
		return errors.New("neither a regular file nor a block device")
	}
	if size := f.size.Load(); o.Size != 0 && o.Size != size {
		return fmt.Errorf("it has %d bytes, not the %d asked for; leave the size out or name another file", size, o.Size)
	}
	return nil
}

// give gives an empty file its size and makes that and its name durable.
func (f *File) give(o FileOptions) error {
	f.size.Store(o.Size)
	if o.Preallocate {
		_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fallocate(f.fd, 0, 0, o.Size) })
		if err != nil && !unsupported(err) {
			_ = unix.Ftruncate(f.fd, 0)
			return fmt.Errorf("allocate %d bytes: %w", o.Size, err)
		}
	}
	if err := unix.Ftruncate(f.fd, o.Size); err != nil {
		return fmt.Errorf("set the size to %d bytes: %w", o.Size, err)
	}
	if err := unix.Fsync(f.fd); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync its directory: %w", err)
	}
	return nil
}

func isBlock(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

// Path returns what the file was opened by.
func (f *File) Path() string { return f.path }

// Size returns the size in bytes: that when the file was opened, until Grow.
func (f *File) Size() (int64, error) { return f.size.Load(), nil }

// Grow makes a regular file at least size bytes long, durably, and takes notice of what somebody else has added; a block
// device can only be looked at again. It returns how many bytes there are now, with an error when they are too few. What is
// added reads as zeroes in a regular file that Grow made longer, and as anything where others did.
func (f *File) Grow(size int64) (int64, error) {
	if err := f.begin(0, 0, true); err != nil {
		return f.size.Load(), err
	}
	defer f.mu.RUnlock()
	f.growMu.Lock()
	defer f.growMu.Unlock()
	now, err := f.measure()
	if err == nil && now < size && !f.block {
		if err = unix.Ftruncate(f.fd, size); err == nil {
			now, err = size, unix.Fsync(f.fd)
		}
	}
	if now > f.size.Load() && err == nil {
		f.size.Store(now)
	}
	switch {
	case err != nil:
		return f.size.Load(), fmt.Errorf("grow %s to %d bytes: %w", f.path, size, err)
	case now < size:
		return f.size.Load(), fmt.Errorf("grow %s: it has %d bytes, %d are needed: enlarge it first: %w", f.path, now, size, ErrOutOfRange)
	}
	return now, nil
}

// measure asks the system for the size.
func (f *File) measure() (int64, error) {
	if f.block {
		return blockSize(f.fd)
	}
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size, err
}

// Failed returns the error of the first Sync that failed, nil while there was none.
func (f *File) Failed() error {
	if l := f.failed.Load(); l != nil {
		return l.err
	}
	return nil
}

// begin starts an operation on [off, off+length); every nil is followed by f.mu.RUnlock.
func (f *File) begin(off, length int64, change bool) error {
	if err := CheckRange(off, length, f.size.Load()); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if change {
		if f.readOnly {
			return fmt.Errorf("%s: %w", f.path, ErrReadOnly)
		}
		if err := f.Failed(); err != nil {
			return err
		}
	}
	f.mu.RLock()
	if f.closed {
		f.mu.RUnlock()
		return fmt.Errorf("%s: %w", f.path, ErrClosed)
	}
	return nil
}

// ReadAt reads len(p) bytes at off or returns an error.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, f.path, err)
		case n == 0: // somebody truncated the file
			return done, fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, f.path, io.ErrUnexpectedEOF)
		default:
			done += n
		}
	}
	return done, nil
}

// WriteAt writes len(p) bytes at off or returns an error.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	return f.pwrite(p, off)
}

func (f *File) pwrite(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return done, fmt.Errorf("write %d bytes at %d of %s: %w", len(p), off, f.path, err)
		}
		done += max(n, 0)
	}
	return done, nil
}

// maxIOVec is IOV_MAX of Linux: the buffers one pwritev takes.
const maxIOVec = 1024

// WritevAt writes the buffers one after the other from off on, by as few system calls as it can, or returns an error.
func (f *File) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := int64(0)
	for _, b := range bufs {
		total += int64(len(b))
	}
	if err := f.begin(off, total, true); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	done := 0
	for int64(done) < total {
		some := bufs[:min(len(bufs), maxIOVec)]
		n, err := pwritev(f.fd, some, off+int64(done))
		if err == nil && n == 0 && sizeOf(some) > 0 {
			err = io.ErrShortWrite
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return done, fmt.Errorf("write %d bytes at %d of %s: %w", total, off, f.path, err)
		}
		n = max(n, 0)
		done += n
		bufs = skip(bufs, n)
	}
	return done, nil
}

func sizeOf(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// skip returns what is left of bufs after n bytes, without changing the caller's slice.
func skip(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs
}

// WriteBatch runs a group in order, neighbours joined, and syncs once when a member asks for it.
func (f *File) WriteBatch(ws []Write) { applyEach(f, ws) }

// Sync is fdatasync. Callers that come while one is running share the next. A failed one is final.
func (f *File) Sync() error {
	if err := f.begin(0, 0, false); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	before := f.syncStarted.Load()
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if err := f.Failed(); err != nil {
		return err
	}
	if f.syncStarted.Load() > before { // one began after this call did, and it is over
		return nil
	}
	f.syncStarted.Add(1)
	_, err := ignoringEINTR(func() (int, error) { return 0, fdatasync(f.fd) })
	if err != nil {
		err = fmt.Errorf("sync %s (not tried again; reopen it to see what is on disk): %w", f.path, err)
		f.failed.Store(&latchedErr{err})
	}
	return err
}

// fdatasync is a variable so that tests can have it fail.
var fdatasync = unix.Fdatasync

// Close waits for running operations and gives up the lock. It does not sync. A second Close does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.direct > 0 {
		_ = unix.Close(f.direct) // nothing was written by it
	}
	if err := unix.Close(f.fd); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
