package mirror

import (
	"context"
	"errors"
	"fmt"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// How a mirrored device becomes larger while it is in use. The backing device is enlarged first; then a resize record, whose
// offset field is the new size, makes it so at one place in the order of writes, followed by trims of all that is new: what was
// there before differs from host to host. A follower enlarges its own device before it takes the record, so the device is
// always at least as large as the log needs it. A volume's size is that at its head; the anchor holds the size
// at the LSN up to which it is applied. Nothing becomes smaller, but for a follower that cuts the record again.

// ErrTooSmall: a backing device is smaller than the mirror needs it.
var ErrTooSmall = errors.New("device too small")

// resize is a resize record above applied.
type resize struct {
	end  journal.LSN // of the record
	size int64
}

// grown takes note of a resize record that ends at end.
func (v *Volume) grown(end journal.LSN, size int64) {
	v.stateMu.Lock()
	v.resizes = append(v.resizes, resize{end, size})
	v.size.Store(size)
	if v.dirty != nil { // else it is being recovered
		v.dirty.size.Store(size)
	}
	v.stateMu.Unlock()
}

// sizeAtLocked is the device's size after everything below lsn, which is not below applied. stateMu is held.
func (v *Volume) sizeAtLocked(lsn journal.LSN) int64 {
	size := v.baseSize
	for _, r := range v.resizes {
		if r.end <= lsn {
			size = r.size
		}
	}
	return size
}

// sizeApplied lets go of resize records that the anchor knows.
func (v *Volume) sizeApplied(lsn journal.LSN) {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	v.baseSize = v.sizeAtLocked(lsn)
	for len(v.resizes) > 0 && v.resizes[0].end <= lsn {
		v.resizes = v.resizes[1:]
	}
}

// sizeReset forgets all resize records above applied: size is what the anchor says.
func (v *Volume) sizeReset(size int64) {
	v.stateMu.Lock()
	v.baseSize, v.resizes = size, nil
	v.size.Store(size)
	if v.dirty != nil { // else it is being opened
		v.dirty.size.Store(size)
	}
	v.stateMu.Unlock()
}

// checkResize says whether r can follow when the device has size bytes.
func checkResize(r journal.Record, size int64) error {
	if r.Offset%sectorBytes != 0 || r.Offset > maxDeviceBytes || int64(r.Offset) < size {
		return fmt.Errorf("resize record at LSN %d: from %d to %d bytes", r.LSN, size, r.Offset)
	}
	return nil
}

// maxDeviceBytes is far above what any system has, and far from where offsets overflow.
const maxDeviceBytes = 1 << 60

// makeRoom sees to it that the backing device has at least size bytes.
func (v *Volume) makeRoom(size int64) error {
	have, err := v.dev.Size()
	if err != nil {
		return fmt.Errorf("size of the device: %w", err)
	}
	if have >= size {
		return nil
	}
	g, ok := v.dev.(blockdev.Grower)
	if !ok {
		return fmt.Errorf("%w: it has %d bytes, %d are needed", ErrTooSmall, have, size)
	}
	if _, err := g.Grow(size); err != nil {
		return fmt.Errorf("%w: %w", ErrTooSmall, err)
	}
	return nil
}

// capacity is the size of the backing device, as it is now.
func (v *Volume) capacity() int64 {
	if g, ok := v.dev.(blockdev.Grower); ok {
		if n, err := g.Grow(0); err == nil {
			return n
		}
	}
	n, err := v.dev.Size()
	if err != nil {
		return v.size.Load()
	}
	return n
}

// Grow makes the mirrored device size bytes long; 0 is as long as the backing device is now. It returns the new size when
// it is durable as the mode promises. Everything that is new reads as zeroes. For a primary; one call at a time.
func (v *Volume) Grow(ctx context.Context, size int64) (int64, error) {
	old := v.size.Load()
	size, err := v.prepareGrow(size)
	if err != nil || size == old {
		return old, err
	}
	es := []*journal.Entry{{Op: journal.OpResize, Offset: uint64(size)}}
	for at := old; at < size; at += maxZeroBytes {
		es = append(es, &journal.Entry{Op: journal.OpTrim, Offset: uint64(at), Length: uint32(min(maxZeroBytes, size-at))})
	}
	if err := v.append(es); err != nil {
		return v.size.Load(), err
	}
	return size, v.flush(ctx, v.log.Head())
}

// prepareGrow says how large the device is to become, checks that it can, and enlarges the backing device.
func (v *Volume) prepareGrow(size int64) (int64, error) {
	old := v.size.Load()
	if v.Role() != RolePrimary {
		return old, fmt.Errorf("this volume is %s: it is made larger on the source", v.Role())
	}
	if size == 0 {
		size = v.capacity() / sectorBytes * sectorBytes
	}
	switch {
	case size < old:
		return old, fmt.Errorf("size %d: the device has %d bytes and cannot be made smaller", size, old)
	case size%sectorBytes != 0 || size > maxDeviceBytes:
		return old, fmt.Errorf("size %d: must be a multiple of %d", size, sectorBytes)
	}
	if err := v.writable(); err != nil {
		return old, err
	}
	return size, v.makeRoom(size)
}
