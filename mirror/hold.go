package mirror

import (
	"fmt"
	"time"
)

// A resync that fails where it is built (no space for the staging file, a disk that does not take it) is held back: each try
// compares all of both devices. What was staged so far is kept, so the next try sends only what is missing.

const (
	firstStageWait = 2 * time.Second
	maxStageWait   = time.Minute
)

// resyncHold is why no resync is taken before a time.
type resyncHold struct {
	err   error
	wait  time.Duration
	until time.Time
	since time.Time
}

// next is the hold after another failure.
func (h resyncHold) next(err error, now time.Time) resyncHold {
	if h.err == nil {
		return resyncHold{err: err, wait: firstStageWait, until: now.Add(firstStageWait), since: now}
	}
	wait := min(2*h.wait, maxStageWait)
	return resyncHold{err: err, wait: wait, until: now.Add(wait), since: h.since}
}

// heldError refuses a resync for a while.
type heldError struct {
	left time.Duration
	err  error
}

func (e *heldError) Error() string {
	return fmt.Sprintf("%v; it is tried again in %s", e.err, e.left.Round(time.Second))
}
func (e *heldError) Unwrap() error { return e.err }

// holdResync takes how the last resync went: an error of its place, or nil when it is complete.
func (a *Agent) holdResync(err error) {
	a.mu.Lock()
	if err == nil {
		a.held = resyncHold{}
	} else {
		a.held = a.held.next(err, time.Now())
	}
	a.mu.Unlock()
	if err != nil {
		a.event("resync-held", "", "%v", err)
	}
}

// openStage opens the place for a resync, unless that failed a moment ago.
func (a *Agent) openStage(size int64) (*staging, error) {
	a.mu.Lock()
	h := a.held
	a.mu.Unlock()
	if left := time.Until(h.until); h.err != nil && left > 0 {
		return nil, &heldError{left: left, err: h.err}
	}
	st, err := openStaging(a.v, a.c.stagingPath(), size)
	if err != nil {
		a.holdResync(err)
		a.mu.Lock()
		left := a.held.wait
		a.mu.Unlock()
		return nil, &heldError{left: left, err: err}
	}
	return st, nil
}

// States and alarms of a disk that does not take what it should.
const (
	stateDeviceFull  = "device full"
	stateDeviceError = "device error"
	stateResyncHeld  = "resync held"
)

func troubleName(kind uint8) string {
	switch kind {
	case troubleFull:
		return stateDeviceFull
	case troubleError:
		return stateDeviceError
	}
	return ""
}

func (a *Agent) failedStateLocked(failed error) stateReport {
	s := stateReport{state: "failed", reason: failed.Error(), next: "mend the disk, then restart the agent"}
	if f, ok := failed.(*FailedError); ok { //nolint:errorlint // as Volume.fail made it
		s.next = f.next()
	}
	if a.v.Role() == RolePrimary {
		s.next += "; until then what is sound can be read here, and the other side can be promoted once this agent is stopped"
	}
	return s
}

// troubleState: the backing device does not take what is applied to it.
func (a *Agent) troubleState(t *trouble) stateReport {
	full := a.v.log.Capacity()
	used := int64(a.v.log.Head() - a.v.log.Applied())
	s := stateReport{
		state: stateDeviceFull, next: fmt.Sprintf("free space on the filesystem of %s; it goes on by itself", a.c.Device),
		reason: fmt.Sprintf("%s: %v; the log takes the writes, %d %% of it are used; when it is full they wait", a.c.Device, t.err, used*100/full),
	}
	if !t.full {
		s.state, s.next = stateDeviceError, fmt.Sprintf("it is tried again, %d times in all, then this volume stops; look at the disk of %s", maxErrorTries, a.c.Device)
	}
	return s
}

func (a *Agent) resyncHeldState(blank bool) stateReport {
	place, what := a.c.stagingPath(), "the last consistent state stays, and can be promoted"
	if blank {
		place, what = a.c.Device, "this volume has never been in sync"
	}
	s := stateReport{
		state: stateResyncHeld, reason: fmt.Sprintf("a resync could not go on: %v; %s", a.held.err, what),
		next: fmt.Sprintf("look at the disk of %s; it is tried again by itself", place),
	}
	if noSpace(a.held.err) {
		s.next = fmt.Sprintf("free space on the filesystem of %s; it is tried again by itself", place)
	}
	return s
}
