package mirror

import (
	"mirror-agent/journal"
)

// watch notes which blocks of a range are changed by records while somebody reads them. It begins at one place in the order of
// writes: every record that ends beyond it is noted, before reads can see it, and none that ends before. So a block that was
// read, and is found unchanged after that, was read as it was at that place.
type watch struct {
	off, end int64
	block    int64  // bytes; blocks are aligned to it
	first    int64  // number of the block that off lies in
	changed  []bool // guarded by the overlay's lock; nil: only lowest is kept
	lowest   int64  // least offset that was changed, end when none was; guarded by the overlay's lock
	o        *overlay
}

// watch begins a watch over [off, end) in blocks of so many bytes, 0 for only the lowest change, and returns where.
func (o *overlay) watch(off, end, block int64) (*watch, journal.LSN) {
	w := &watch{off: off, end: end, block: block, lowest: end, o: o}
	if block > 0 {
		w.first = off / block
		w.changed = make([]bool, (end+block-1)/block-w.first)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watches = append(o.watches, w)
	return w, o.active.end
}

// stop ends the watch. It may be called twice.
func (w *watch) stop() {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	for i, x := range w.o.watches {
		if x == w {
			w.o.watches = append(w.o.watches[:i:i], w.o.watches[i+1:]...)
			return
		}
	}
}

// markLocked notes what a record changes. The overlay's lock is held.
func (w *watch) markLocked(x extent) {
	off, end := max(x.off, w.off), min(x.end, w.end)
	if off >= end {
		return
	}
	w.lowest = min(w.lowest, off)
	if w.changed == nil {
		return
	}
	for i := off/w.block - w.first; i <= (end-1)/w.block-w.first; i++ {
		w.changed[i] = true
	}
}

// any says whether anything at all was changed.
func (w *watch) any() bool { return w.untouchedTo() < w.end }

// untouchedTo is up to where nothing was changed.
func (w *watch) untouchedTo() int64 {
	w.o.mu.RLock()
	defer w.o.mu.RUnlock()
	return w.lowest
}
