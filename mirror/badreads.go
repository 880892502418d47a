package mirror

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"mirror-agent/blockdev"
)

// badReads are the places that the backing device did not give when somebody read them. One ends when it is read well or has
// been written anew: most disks put a sector elsewhere then. A repair by a verify is such a write.
type badReads struct {
	some atomic.Bool // there are any: who reads well has nothing else to ask

	mu     sync.Mutex // guards places; a leaf
	places []badRead  // disjoint, maxBadReads at most
}

type badRead struct {
	off, end int64
	since    time.Time
	err      error
}

// maxBadReads places are known at most: a disk with more of them is no better with a longer list.
const maxBadReads = 64

// failed: reading [off, end) met err.
func (b *badReads) failed(off, end int64, now time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.cutLocked(off, end)
	if since.IsZero() {
		since = now
	}
	if len(b.places) < maxBadReads {
		b.places = append(b.places, badRead{off, end, since, err})
	}
	b.some.Store(true)
}

// good: [off, end) was read well, or has been written.
func (b *badReads) good(off, end int64) {
	if !b.some.Load() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutLocked(off, end)
	b.some.Store(len(b.places) > 0)
}

// cutLocked takes [off, end) out and returns since when some of it was bad; zero: nothing was.
func (b *badReads) cutLocked(off, end int64) (since time.Time) {
	if off >= end {
		return since
	}
	var left []badRead
	for _, x := range b.places {
		if x.end <= off || end <= x.off {
			left = append(left, x)
			continue
		}
		if since.IsZero() || x.since.Before(since) {
			since = x.since
		}
		if before := x; before.off < off {
			before.end = off
			left = append(left, before)
		}
		if x.end > end {
			x.off = end
			left = append(left, x)
		}
	}
	b.places = left[:min(len(left), maxBadReads)]
	return since
}

// worst returns the place that is bad for the longest time, and how many there are.
func (b *badReads) worst() (oldest badRead, places int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, x := range b.places {
		if i == 0 || x.since.Before(oldest.since) {
			oldest = x
		}
	}
	return oldest, len(b.places)
}

// deviceReader reads the backing device and remembers where it gives nothing.
type deviceReader struct{ v *Volume }

func (r deviceReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.v.dev.ReadAt(p, off)
	r.v.wasRead(off, len(p), err)
	return n, err
}

// wasRead takes how reading the backing device ended.
func (v *Volume) wasRead(off int64, n int, err error) {
	switch end := off + int64(n); {
	case err == nil, errors.Is(err, io.EOF):
		v.badReads.good(off, end)
	case errors.Is(err, blockdev.ErrClosed), errors.Is(err, blockdev.ErrOutOfRange): // not the disk's
	default:
		v.badReads.failed(off, end, time.Now(), err)
	}
}

// badReadAlarm is about the backing device's places that cannot be read; false: there are none.
func (a *Agent) badReadAlarm() (Alarm, bool) {
	x, places := a.v.badReads.worst()
	if places == 0 {
		return Alarm{}, false
	}
	others := ""
	if places > 1 {
		others = fmt.Sprintf(", nor what lies in %d other places", places-1)
	}
	alarm := Alarm{
		Name: "device-read-error", Since: x.since,
		Reason:   fmt.Sprintf("%s does not give %d bytes at offset %d (%v)%s: who reads there gets an error", a.c.Device, x.end-x.off, x.off, x.err, others),
		NextStep: "mirror-agent verify --repair fetches what lies there from the target and writes it anew; look at the disk (dmesg, smartctl)",
	}
	switch {
	case a.v.Role() == RoleSecondary:
		alarm.NextStep = "mirror-agent verify --repair on the source writes anew what lies there; look at the disk (dmesg, smartctl)"
	case len(a.followers) == 0:
		alarm.NextStep = "there is no other copy to fetch it from: write anew what lies there, from a backup; look at the disk (dmesg, smartctl)"
	}
	return alarm, true
}
