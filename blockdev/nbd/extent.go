package nbd

import (
	"errors"
	"io"
)

// extent is a part of the device, all data or all a hole that reads as zeroes. Where it begins is known from those before.
type extent struct {
	length uint64 // bytes
	hole   bool
}

// Bounds on the extents of one reply. A read is not searched for holes at all below minHoleSearch bytes: finding out
// costs as much as reading.
const (
	maxStatusExtents = 2048
	maxReadExtents   = 32
	minHoleSearch    = 64 << 10
)

var errNoProgress = errors.New("the device reports an empty extent")

// extents appends to what [off, off+length) consists of, at most limit extents, so perhaps less than all of it. A device
// that does not know is data. Boundaries are multiples of the smallest block, and of 512, where the request is.
func (e *export) extents(to []extent, off, length uint64, limit int) ([]extent, error) {
	if e.finder == nil {
		return append(to, extent{length, false}), nil
	}
	align, end := uint64(max(e.blockMin, 512)), off+length
	for off < end && len(to) < limit {
		start, stop, err := e.nextData(off)
		if err != nil {
			return to, err
		}
		if from := min(start&^(align-1), end); from > off {
			to = append(to, extent{from - off, true})
			off = from
			continue // what comes next is asked for again only when there is a place for it
		}
		till := min((stop+align-1)&^(align-1), end)
		if till <= off {
			return to, errNoProgress
		}
		if n := len(to); n > 0 && !to[n-1].hole {
			to[n-1].length += till - off
		} else {
			to = append(to, extent{till - off, false})
		}
		off = till
	}
	return to, nil
}

// nextData is the device's; no more data is data at the very end.
func (e *export) nextData(off uint64) (start, stop uint64, err error) {
	from, to, err := e.finder.NextData(int64(off))
	switch {
	case errors.Is(err, io.EOF):
		return e.size.Load(), e.size.Load(), nil
	case err != nil:
		return 0, 0, err
	}
	return uint64(max(from, 0)), uint64(max(to, 0)), nil
}

// plan sets w.extents to the chunks that a read is answered with. What was not looked at, for whatever reason, is data, and what was
// data once stays it for w: finding the end of a long extent can take the device longer than reading from it.
func (e *export) plan(w *work, r readRequest) {
	w.extents = w.extents[:0]
	if r.length == 0 {
		return
	}
	rest := uint64(r.length)
	if e.searched(r) && (r.offset < w.dataFrom || r.offset+rest > w.dataTo) {
		start, stop, err := e.nextData(r.offset)
		if err == nil && start <= r.offset && stop >= r.offset+rest {
			w.dataFrom, w.dataTo = r.offset, stop
		} else {
			w.extents, _ = e.extents(w.extents, r.offset, rest, maxReadExtents-1)
		}
		for _, x := range w.extents {
			rest -= x.length
		}
	}
	switch n := len(w.extents); {
	case rest == 0:
	case n > 0 && !w.extents[n-1].hole:
		w.extents[n-1].length += rest
	default:
		w.extents = append(w.extents, extent{rest, false})
	}
}

// searched says whether a read is answered with holes where there are any.
func (e *export) searched(r readRequest) bool {
	return e.structured && e.finder != nil && r.flags&cmdFlagDF == 0 && r.length >= minHoleSearch
}

// overhead is how much longer than its data the answer to a read may be, in bytes.
func (e *export) overhead(r readRequest) int {
	switch {
	case !e.structured:
		return max(replySize, maxStatusSize)
	case e.searched(r):
		return maxReadExtents * holeChunkSize
	default:
		return maxStatusSize
	}
}
