package mirror

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"mirror-agent/journal"
)

// extent is one piece of the overlay: the bytes [off, end) of the device are,
// since the record at lsn, the bytes at data in the log, or zeroes.
type extent struct {
	off, end int64
	lsn      journal.LSN
	data     journal.LSN // position in the log of the byte at off
	zero     bool
	trim     bool // zero, and the space may be given back
	base     bool // not in the log: to be read from the backing device
}

func (e extent) len() int64 { return e.end - e.off }

// slice returns the part of e inside [off, end).
func (e extent) slice(off, end int64) extent {
	off, end = max(off, e.off), min(end, e.end)
	if !e.zero {
		e.data += journal.LSN(off - e.off)
	}
	e.off, e.end = off, end
	return e
}

// layer holds the extents of the log's records between the previous layer's
// end and its own end, newest only. It is an immutable thing once frozen.
type layer struct {
	end     journal.LSN // all records below are in this layer or an older one
	frozen  time.Time   // when it was; zero while it takes records
	bytes   int64       // log bytes that went in
	added   int64       // device bytes that went in, overwritten ones counted again
	held    int64       // device bytes that are in it
	extents *btree.BTreeG[extent]
}

func newLayer(at journal.LSN) *layer {
	return &layer{end: at, extents: btree.NewBTreeGOptions(func(a, b extent) bool { return a.off < b.off },
		btree.Options{NoLocks: true, Degree: 64})}
}

// insert puts x over what is there.
func (l *layer) insert(x extent) {
	if x.off >= x.end {
		return
	}
	var cutLeft, cutRight extent
	var gone [8]int64
	del := gone[:0]
	// The extent that begins before x may reach into it.
	l.extents.Descend(extent{off: x.off - 1}, func(e extent) bool {
		if e.end > x.off {
			cutLeft = e
		}
		return false
	})
	if cutLeft.end > x.off {
		l.held -= min(cutLeft.end, x.end) - x.off
		left := cutLeft.slice(cutLeft.off, x.off)
		l.extents.Set(left)
		if cutLeft.end > x.end {
			l.extents.Set(cutLeft.slice(x.end, cutLeft.end))
		}
	}
	l.extents.Ascend(extent{off: x.off}, func(e extent) bool {
		if e.off >= x.end {
			return false
		}
		if e.end > x.end {
			cutRight = e
		}
		l.held -= min(e.end, x.end) - e.off
		del = append(del, e.off)
		return true
	})
	for _, off := range del {
		l.extents.Delete(extent{off: off})
	}
	if cutRight.end > x.end {
		l.extents.Set(cutRight.slice(x.end, cutRight.end))
	}
	l.extents.Set(x)
	l.held += x.len()
}

// lookup calls hit for every piece of [off, end) that the layer holds and miss
// for every other piece, in order.
func (l *layer) lookup(off, end int64, hit func(extent), miss func(off, end int64)) {
	if l.extents.Len() == 0 {
		miss(off, end)
		return
	}
	start := off
	l.extents.Descend(extent{off: off}, func(e extent) bool {
		if e.end > off {
			start = e.off
		}
		return false
	})
	at := off
	l.extents.Ascend(extent{off: start}, func(e extent) bool {
		if e.off >= end {
			return false
		}
		if e.off > at {
			miss(at, e.off)
		}
		x := e.slice(off, end)
		hit(x)
		at = x.end
		return true
	})
	if at < end {
		miss(at, end)
	}
}

// overlay is the ordered map of everything that is in the log and not yet in
// the backing device: an active layer that takes the new records and frozen
// ones, oldest first, that wait to be applied. How many extents it holds is
// bounded by the volume (memory.go).
//
// A read holds mu for its look into the active layer only, over at most
// maxLookup bytes, and never while it reads. To give readers a copy of that
// layer instead (a B-tree that copies what it changes) costs every group of
// writes the nodes that it touches, 5 KiB each.
type overlay struct {
	mu     sync.RWMutex // guards all below; a frozen layer's tree needs no lock
	active *layer
	frozen []*layer // replaced, never changed below its length: who looks goes on without mu

	watches []*watch // see watch.go

	absorbed int64 // device bytes that were never written, since a later record of the same layer was

	count atomic.Int64 // extents in all layers
}

// maxLookup is how much of the device one lookup is about, bytes.
const maxLookup = 1 << 20

func newOverlay(at journal.LSN) *overlay { return &overlay{active: newLayer(at)} }

// add puts records in, in LSN order; end is where the last one ends. The
// active layer is frozen when it has grown to layerBytes of log, or to
// layerExtents.
func (o *overlay) add(xs []extent, end journal.LSN, layerBytes int64, layerExtents int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.active.extents.Len()
	for _, x := range xs {
		for _, w := range o.watches {
			w.markLocked(x)
		}
		o.active.insert(x)
		o.active.added += x.len()
	}
	now := o.active.extents.Len()
	o.count.Add(int64(now - before))
	o.active.bytes += int64(end - o.active.end)
	o.active.end = end
	if o.active.bytes >= layerBytes || now >= layerExtents {
		o.freezeLocked()
	}
}

// end is where the newest record that reads see ends.
func (o *overlay) end() journal.LSN {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.active.end
}

// freeze closes the active layer, unless it holds no record.
func (o *overlay) freeze() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.freezeLocked()
}

func (o *overlay) freezeLocked() {
	if o.active.bytes == 0 {
		return
	}
	o.active.frozen = time.Now()
	o.frozen = append(o.frozen, o.active)
	o.active = newLayer(o.active.end)
}

// oldest returns the oldest frozen layer, or nil.
func (o *overlay) oldest() *layer {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if len(o.frozen) == 0 {
		return nil
	}
	return o.frozen[0]
}

// after returns the frozen layer after l, the oldest one, or nil.
func (o *overlay) after(l *layer) *layer {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if len(o.frozen) < 2 || o.frozen[0] != l {
		return nil
	}
	return o.frozen[1]
}

// drop takes the oldest frozen layer out, after it was applied.
func (o *overlay) drop(l *layer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.frozen) == 0 || o.frozen[0] != l {
		panic("mirror: overlay layer dropped out of order")
	}
	o.absorbed += l.added - l.held
	o.frozen = slices.Clone(o.frozen[1:])
	o.count.Add(-int64(l.extents.Len()))
}

// reset empties the overlay; the next record begins at at.
func (o *overlay) reset(at journal.LSN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.active, o.frozen = newLayer(at), nil
	o.count.Store(0)
}

// pending returns the log bytes in frozen layers and in the active one, and
// the number of extents.
func (o *overlay) pending() (frozen, active int64, extents int) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, l := range o.frozen {
		frozen += l.bytes
	}
	return frozen, o.active.bytes, int(o.count.Load())
}

// volume returns the device bytes that the overlay holds, a block in two layers counted twice, and those that never had to be
// written.
func (o *overlay) volume() (held, absorbed int64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, l := range o.frozen {
		held += l.held
	}
	return held + o.active.held, o.absorbed
}

// lookup appends the pieces of [off, end) to pieces, in order; a base piece
// is to be read from the backing device. end is at most off + maxLookup.
func (o *overlay) lookup(pieces []extent, off, end int64) []extent {
	pieces, _ = o.lookupAt(pieces, off, end)
	return pieces
}

// lookupAt is lookup, and where in the order of writes it was.
func (o *overlay) lookupAt(pieces []extent, off, end int64) ([]extent, journal.LSN) {
	first := len(pieces)
	o.mu.RLock()
	frozen, at := o.frozen, o.active.end
	o.active.lookup(off, end,
		func(x extent) { pieces = append(pieces, x) },
		func(a, b int64) { pieces = append(pieces, extent{off: a, end: b, base: true}) })
	o.mu.RUnlock()
	if len(frozen) == 0 {
		return pieces, at
	}
	if len(pieces) == first+1 {
		if pieces[first].base {
			pieces = search(pieces[:first], frozen, off, end)
		}
		return pieces, at
	}
	found := len(pieces)
	for i := first; i < found; i++ {
		if x := pieces[i]; x.base {
			pieces = search(pieces, frozen, x.off, x.end)
			last := len(pieces) - 1
			pieces[i] = pieces[last] // there is one at least
			pieces = pieces[:last]
		}
	}
	slices.SortFunc(pieces[first:], func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	return pieces, at
}

// search appends what the layers hold of [off, end), the newest of them last
// in line, and what is below them. Frozen layers need no lock.
func search(pieces []extent, layers []*layer, off, end int64) []extent {
	if len(layers) == 0 {
		return append(pieces, extent{off: off, end: end, base: true})
	}
	below := len(layers) - 1
	layers[below].lookup(off, end,
		func(x extent) { pieces = append(pieces, x) },
		func(a, b int64) { pieces = search(pieces, layers[:below], a, b) })
	return pieces
}
