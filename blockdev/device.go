package blockdev

import "io"

// Device is the least a mirrored or served device has: a superset of go-nbd's backend.Backend.
// The rules that all devices keep are in the package comment.
type Device interface {
	// ReadAt reads len(p) bytes or returns an error.
	io.ReaderAt
	// WriteAt writes len(p) bytes or returns an error; after an error any part of them may have been written.
	io.WriterAt
	// Size returns the size in bytes.
	Size() (int64, error)
	// Sync makes durable all that was answered before the call.
	Sync() error
	// Zero makes the range read as zeroes; it stays allocated where the device can do that.
	Zero(off, length int64) error
	// Trim makes the range read as zeroes; its space may be given back.
	Trim(off, length int64) error
	// Close gives the device up. It does not sync.
	Close() error
}

// Write is one member of a group for BatchWriter: data, zeroes or a trim.
type Write struct {
	Offset int64  // bytes from the start of the device
	Data   []byte // what to write; not kept after the group has returned
	Zero   bool   // zero Length bytes instead of writing Data
	Trim   bool   // trim Length bytes instead of writing Data
	Length int64  // bytes, for Zero and Trim
	Fast   bool   // with Zero and Trim, and only for a FastZeroer: do it fast or fail with errors.ErrUnsupported
	Sync   bool   // durable before the group returns (NBD's FUA)
	Err    error  // result, set by the device
}

// Size returns how many bytes the write covers.
func (w *Write) Size() int64 {
	if w.Zero || w.Trim {
		return w.Length
	}
	return int64(len(w.Data))
}

// BatchWriter is a Device that takes several writes as one group. The order in the slice is the order on the device.
// The result of each is in its Err. Groups of several callers may run at the same time.
type BatchWriter interface {
	WriteBatch(ws []Write)
}

// VectorWriter writes several buffers one after the other starting at off, as one operation: all or an error.
type VectorWriter interface {
	WritevAt(bufs [][]byte, off int64) (int, error)
}

// DataFinder knows where a device holds nothing but zeroes that take no space.
type DataFinder interface {
	// NextData returns the next extent [start, end) at or after off that may hold data, with start >= off;
	// io.EOF when there is none up to the end of the device.
	NextData(off int64) (start, end int64, err error)
}

// Allocator is a device whose space can be taken before it is written.
type Allocator interface {
	// Allocate sees to it that writes to the range do not run out of space. It changes nothing that is read. nil where there
	// is no such thing.
	Allocate(off, length int64) error
}

// FastZeroer is a device that knows when zeroing takes less time than writing the same bytes.
type FastZeroer interface {
	// ZeroFast is Trim when hole is set, else Zero, in less time than a write takes; or it changes nothing and returns an
	// error that is errors.ErrUnsupported.
	ZeroFast(off, length int64, hole bool) error
}

// Prefetcher is a device that can make later reads faster.
type Prefetcher interface {
	// Prefetch says that the range is going to be read soon. It need not wait until the data is there.
	Prefetch(off, length int64) error
}

// Foreseer is a device that may know what it will be asked for next.
type Foreseer interface {
	// Foresee is called by who has sent the answers to writes, and lets the device begin what it expects. here: on this goroutine,
	// since the client is one that waits for each answer; else the call returns at once.
	Foresee(here bool)
}

// Writebacker is a device with a cache whose content can be on its way to the disk before a Sync has to wait for it.
type Writebacker interface {
	// StartWriteback begins to write what is cached of the range, and need not wait. It makes nothing durable and swallows no
	// error: a Sync still has to come, and says what went wrong.
	StartWriteback(off, length int64) error
}

// Grower is a device that can become larger while it is in use. Nothing ever becomes smaller.
type Grower interface {
	// Grow sees to it that the device has at least size bytes, durably, and returns how many it has now, also with an error.
	// What was added reads as anything.
	Grow(size int64) (int64, error)
}
