package mirror

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// What becomes of a disk that fails:
//
//	backing device  no space, on a write or trim   trouble: tried again for ever; the log takes the writes until it is full
//	                another error of a write       trouble: tried again maxErrorTries times, then the volume stops
//	                fdatasync                      the volume stops at once (G9)
//	journal         anything, anchors too          the volume stops at once
//	staging file    anything                       the resync is given up, begun again later; the volume is not touched
//
// A write that failed may be tried again because all of its bytes are still in the log, and the fdatasync behind it tells
// whether they arrived. A failed fdatasync tells nothing about which bytes did.
//
// The journal is not tried again, though an append that found no space could be: its space was allocated when it was made, so that no
// space means a filesystem that copies on write (or a sparse copy of a journal), where the next anchor may fail
// as well, and an anchor is a promise.

// maxErrorTries is how often a write to the backing device that fails is tried again, unless for lack of space.
const maxErrorTries = 5

// retryAfter is the pause before the next try; false: there is none.
func retryAfter(full bool, tries int) (time.Duration, bool) {
	if full {
		return min(250*time.Millisecond<<min(tries, 5), 5*time.Second), true
	}
	return 100 * time.Millisecond << min(tries, maxErrorTries), tries < maxErrorTries
}

// noSpace: a disk, quota or file is full.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// deviceError is an error of the backing device while it was written.
type deviceError struct {
	sync bool // of fdatasync: final
	err  error
}

func (e *deviceError) Error() string { return e.err.Error() }
func (e *deviceError) Unwrap() error { return e.err }

// deviceWrite marks an error of a write, zero or trim.
func deviceWrite(err error) error {
	if err == nil {
		return nil
	}
	return &deviceError{err: err}
}

// trouble is a backing device that does not take writes now, and is tried again.
type trouble struct {
	full  bool
	err   error
	since time.Time
	tries int
}

// Kinds of trouble as an acknowledgement carries them.
const (
	troubleNone uint8 = iota
	troubleFull
	troubleError
)

func (t *trouble) kind() uint8 {
	switch {
	case t == nil:
		return troubleNone
	case t.full:
		return troubleFull
	}
	return troubleError
}

// troubled takes an error of the applier: after the pause it returns the applier tries again; false: the volume has stopped.
func (v *Volume) troubled(err error) (time.Duration, bool) {
	var d *deviceError
	if !errors.As(err, &d) || d.sync {
		_ = v.applyError(err)
		return 0, false
	}
	full := noSpace(err)
	v.stateMu.Lock()
	t := v.trouble
	if t == nil || t.full != full {
		t = &trouble{full: full, since: time.Now()}
	}
	wait, again := retryAfter(full, t.tries)
	v.trouble = &trouble{full: full, err: err, since: t.since, tries: t.tries + 1}
	v.stateMu.Unlock()
	if !again {
		_ = v.applyError(fmt.Errorf("%w (tried %d times)", err, t.tries+1))
		return 0, false
	}
	return wait, true
}

// untroubled: the applier has written again.
func (v *Volume) untroubled() {
	v.stateMu.Lock()
	v.trouble = nil
	v.stateMu.Unlock()
}

// Trouble of the backing device, nil when there is none.
func (v *Volume) troubleNow() *trouble {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	return v.trouble
}

// sound says why what was just read may not be shown although reading went well, or nil. Once the journal has failed, what was
// not durable in it may be anything: pages of a writeback that failed are marked clean, and are read from the
// disk as they were before as soon as the kernel has let them go.
func (v *Volume) sound(pieces []extent) error {
	err := v.log.Failed()
	if err == nil {
		return nil
	}
	durable := v.log.Durable()
	for _, x := range pieces {
		if !x.base && !x.zero && x.lsn >= durable {
			return v.fail("journal", err)
		}
	}
	return nil
}

// readable: may anything be read? A volume that stopped is still read where it is sound: the device's content up to applied
// was made durable before the anchor said so, and all after that is in the log.
func (v *Volume) readable() error {
	v.stateMu.Lock()
	defer v.stateMu.Unlock()
	switch {
	case v.closed:
		return blockdev.ErrShutdown
	case v.failed != nil && v.log.Anchor().State&(stateMerging|stateBlank) != 0:
		return v.failed
	}
	return nil
}

// dropCache has f read from its disk. The process before this one may have met a writeback that failed and cannot have
// told (G9): what is cached proves nothing after an end that was not clean.
func dropCache(f any, off, length int64) error {
	if c, ok := f.(blockdev.CacheDropper); ok {
		return c.DropCache(off, length)
	}
	return nil
}

// readAnchor reads the anchor from the disk.
func readAnchor(f journal.File) (journal.Anchor, error) {
	if err := dropCache(f, 0, anchorBytes); err != nil {
		return journal.Anchor{}, fmt.Errorf("journal: %w", err)
	}
	return journal.ReadAnchor(f)
}

// anchorBytes at the start of a journal hold its anchors.
const anchorBytes = 8192
