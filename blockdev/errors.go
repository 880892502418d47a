package blockdev

import (
	"errors"
	"fmt"
)

// What a caller did wrong, or may not do.
var (
	// ErrOutOfRange is returned for an access that does not lie wholly inside the device.
	ErrOutOfRange = errors.New("out of range")
	// ErrReadOnly is returned for a change of a device that was opened for reading only.
	ErrReadOnly = errors.New("read-only")
	// ErrClosed is returned by every operation after Close.
	ErrClosed = errors.New("device is closed")
)

// What keeps a device from working.
var (
	// ErrInUse is returned by OpenFile when another process holds the file or device.
	ErrInUse = errors.New("in use by another process")
	// ErrShutdown is returned by a device whose owner is going away; a client may try again elsewhere.
	ErrShutdown = errors.New("shutting down")
	// ErrPowerLost is returned by a Memory whose Power was cut.
	ErrPowerLost = errors.New("power lost")
)

// CheckRange returns nil when [off, off+length) lies inside a device of the given size, all in bytes, and an error that
// wraps ErrOutOfRange when it does not. A length of zero is in range up to and including the end.
func CheckRange(off, length, size int64) error {
	if off < 0 || length < 0 || off > size || length > size-off {
		return fmt.Errorf("%d bytes at %d of a device of %d bytes: %w", length, off, size, ErrOutOfRange)
	}
	return nil
}
