package mirror

import (
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// Errors of the volume.
var (
	// ErrClosed: the volume or agent has ended.
	ErrClosed = errors.New("mirror: closed")
	// ErrNotPrimary: a write or read by a front on a volume that is not served.
	ErrNotPrimary = errors.New("mirror: volume is not primary")
	// ErrFenced: a higher generation exists; this side must not write any more.
	ErrFenced = errors.New("mirror: superseded by a higher generation")
	// ErrNotPromotable: the volume has never been consistent.
	ErrNotPromotable = errors.New("mirror: not promotable")
	// ErrBehind: records do not continue this log.
	ErrBehind = errors.New("mirror: records do not continue the log")
)

// FailedError says that the volume stopped because a part of it failed (G9).
// It recovers by a restart, which reads what really is on the disk.
type FailedError struct {
	Part string // journal, device, staging file
	Err  error
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("mirror: %s failed: %v (the volume has stopped; %s)", e.Part, e.Err, e.next())
}

// next is what the operator can do.
func (e *FailedError) next() string {
	switch {
	case errors.Is(e.Err, journal.ErrCorrupt):
		return "restart the agent: the log is then repaired from the other side, or refused with the way out"
	case noSpace(e.Err):
		return "free space on the filesystem of the " + e.Part + ", then restart the agent"
	}
	return "mend the disk of the " + e.Part + ", then restart the agent"
}

func (e *FailedError) Unwrap() error { return e.Err }
