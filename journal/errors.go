package journal

import (
	"errors"
	"fmt"
)

// What a caller did, or asked for, that cannot be.
var (
	// ErrInvalid: an entry, an anchor or an argument breaks a rule of the format.
	ErrInvalid = errors.New("invalid")
	// ErrTooLarge: one call's records can never fit into this ring, however empty it is.
	ErrTooLarge = errors.New("larger than the journal")
	// ErrNotBoundary: no record starts at this LSN.
	ErrNotBoundary = errors.New("not a record boundary")
	// ErrBeyondHead: the LSN lies past the end of the log.
	ErrBeyondHead = errors.New("beyond the head of the log")
	// ErrCommitted: a cut below what is applied to the backing device.
	ErrCommitted = errors.New("already applied, cannot be cut")
	// ErrStale: the caller of AppendUnless found its entries out of date when it was their turn.
	ErrStale = errors.New("out of date when it was to be appended")
	// ErrChain: raw records that do not continue this log (another LSN or another history).
	ErrChain = errors.New("does not continue this log")
)

// What the log has come to.
var (
	// ErrFull: no room until the tail moves. Nothing of the call was written.
	ErrFull = errors.New("journal is full")
	// ErrGone: the bytes lie below the tail (recycled) or were cut while they were being read.
	ErrGone = errors.New("no longer in the journal")
	// ErrCut: the records waited for were cut (Cut, Reset) before they became durable.
	ErrCut = errors.New("cut from the log")
	// ErrClosed: the log is closed.
	ErrClosed = errors.New("journal is closed")
	// ErrFailed: a write or fdatasync failed once; the log accepts nothing any more (G9). The cause is wrapped.
	ErrFailed = errors.New("journal failed and must be reopened")
)

// What lies in the file.
var (
	// ErrNoAnchor: the file never was a journal, or its Format did not come to an end.
	ErrNoAnchor = errors.New("no journal in this file")
	// ErrCorrupt: bytes changed that had been written whole. CorruptError says where.
	ErrCorrupt = errors.New("journal is corrupt")
	// ErrTooSmall: the file is smaller than MinSize, or shorter than the ring in it.
	ErrTooSmall = errors.New("journal file is too small")
)

// CorruptError is rot: bytes that were durable and are not what they were. It wraps ErrCorrupt.
type CorruptError struct {
	LSN    LSN    // first record that is bad; 0 for an anchor
	Offset int64  // where in the file
	Reason string // what was found

	Payload bool // of the record; its header, and the way to the next one, are sound
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%v at LSN %d (file offset %d): %s", ErrCorrupt, e.LSN, e.Offset, e.Reason)
}

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// ErrShortBuffer is returned by ReadRaw (as a value) when not even the first record fits.
type ErrShortBuffer struct{ Need int } // bytes

func (e ErrShortBuffer) Error() string {
	return fmt.Sprintf("buffer too short: the record takes %d bytes", e.Need)
}

func isInvalid(err error) bool { return errors.Is(err, ErrInvalid) }
