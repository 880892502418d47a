package mirror

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// A view is the device as it was at one LSN, open for reading and writing, while the volume goes on:
//
//	scratch    blocks that the view's clients wrote, and what was here before the applier overwrote it
//	layers     the log between what is applied and the view's LSN: the overlay's frozen layers, which never
//	           change, and one of the view's own for the rest
//	device     everything below
//
// Nothing is held back for it. Before the applier puts a layer that reaches beyond the view's LSN on the device, it copies
// the view's state of the blocks that the layer touches into the scratch (preserve). So the log's tail moves on as ever, and a
// view may stay open for as long as the scratch has room. When the scratch is full, fails, or is so slow that writers
// have waited a second for room in the ring because of it, the view ends and says why; the applier goes on without it.
//
// The scratch is for this process only: its file has no name any more once it is open, so nothing of it survives the
// process, and it is never fdatasynced.
//
// Lock order: the volume's applyMu, then view.mu.
type view struct {
	v     *Volume
	at    journal.LSN
	size  int64 // of the device at that LSN
	block int64 // the scratch holds whole blocks of so many bytes
	limit int64 // bytes of data in the scratch
	file  blockdev.Device
	used  atomic.Int64 // bytes of data in it

	// inTheWay is for how long copying for the view has held up writers without a pause; beyond patience it ends. Of the applier.
	inTheWay, patience time.Duration

	mu      sync.RWMutex    // guards all below; held shared by reads over their I/O, alone by what changes the scratch
	layers  []*layer        // oldest first
	applied journal.LSN     // the device has every record below, as far as the view is concerned
	have    *roaring.Bitmap // blocks that are in the scratch
	data    *roaring.Bitmap // those of them that take space there; the others are zeroes
	ended   error
	buf     []byte
	done    chan struct{} // closed when the view ends
}

// drillPatience is for how long copying for a view may hold up writers at a stretch.
const drillPatience = time.Second

// preserveChunk is how much the applier copies for a view at a time.
const preserveChunk = 256 << 10

var (
	errScratchFull   = fmt.Errorf("the drill's scratch is full: %w", unix.ENOSPC)
	errDrillInTheWay = errors.New("the log is full, and copying for the drill held up its applier: the drill gave way to the mirror")
	errViewCut       = errors.New("the log was cut below the drill's point: the source no longer has what the drill showed")
	errViewResynced  = errors.New("a resync was taken over, and changes the device below the drill")
	errViewClosed    = errors.New("the drill was stopped")
)

// openView opens a view at a record boundary between applied and head; 0 is the newest. scratch makes the place for a device of
// so many bytes, all zero; the view owns it.
func (v *Volume) openView(at journal.LSN, limit int64, scratch func(bytes int64) (blockdev.Device, error)) (*view, error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if _, err := v.watch(); err != nil {
		return nil, err
	}
	if v.flags()&(stateBlank|stateMerging) != 0 {
		return nil, errors.New("this volume has never been in sync, or takes over a resync just now: try again when it is in sync")
	}
	if at == 0 {
		at = v.overlay.end()
	}
	if first, head := v.firstPoint(), v.log.Head(); at < first || at > head {
		return nil, v.outside(fmt.Sprintf("LSN %d", at))
	}
	layers, from := v.overlay.upTo(at)
	v.stateMu.Lock()
	size := v.sizeAtLocked(at)
	v.stateMu.Unlock()
	own, err := v.layerOf(from, at, size)
	if err != nil {
		return nil, err
	}
	w := &view{
		v: v, at: at, size: size, block: dirtyBlockBytes(size), limit: limit, layers: append(layers, own), applied: v.log.Applied(),
		have: roaring.New(), data: roaring.New(), buf: make([]byte, preserveChunk), done: make(chan struct{}), patience: drillPatience,
	}
	if w.blocks() > 1<<32 {
		return nil, fmt.Errorf("a device of %d bytes is too large for a drill", size)
	}
	if w.file, err = scratch(w.blocks() * w.block); err != nil {
		return nil, err
	}
	v.viewsMu.Lock()
	v.views = append(v.views, w)
	v.viewsMu.Unlock()
	return w, nil
}

// layerOf makes a layer of the log between two boundaries.
func (v *Volume) layerOf(from, to journal.LSN, size int64) (*layer, error) {
	l := newLayer(from)
	if from < to {
		err := v.log.Scan(from, to, func(r journal.Record) error {
			if r.End() > to {
				return fmt.Errorf("LSN %d is inside of the record at %d", to, r.LSN)
			}
			x, ok, err := extentOf(size, r.Op, r.Offset, r.Length, r.LSN, r.Data())
			if ok {
				l.insert(x)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the log up to LSN %d: %w", to, v.journalError(err))
		}
	}
	l.end = to
	return l, nil
}

// upTo returns the frozen layers that hold nothing at or above lsn, and where the last of them ends.
func (o *overlay) upTo(lsn journal.LSN) (layers []*layer, end journal.LSN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.active.end <= lsn {
		o.freezeLocked()
	}
	end = o.active.end - journal.LSN(o.active.bytes)
	if len(o.frozen) > 0 {
		end = o.frozen[0].end - journal.LSN(o.frozen[0].bytes)
	}
	for _, l := range o.frozen {
		if l.end > lsn {
			break
		}
		layers, end = append(layers, l), l.end
	}
	return layers, end
}

func (w *view) blocks() int64 { return (w.size + w.block - 1) / w.block }

// viewsNow are the open views.
func (v *Volume) viewsNow() []*view {
	v.viewsMu.Lock()
	defer v.viewsMu.Unlock()
	return append([]*view(nil), v.views...)
}

// preserve sees to it that no view needs what l is about to overwrite on the device. applyMu is held.
func (v *Volume) preserve(l *layer) {
	for _, w := range v.viewsNow() {
		if l.end <= w.at {
			continue
		}
		if err := w.preserve(l); err != nil {
			w.end(err)
		}
	}
}

// viewsApplied tells the views that l is on the device, before the tail may leave it. applyMu is held.
func (v *Volume) viewsApplied(l *layer) {
	for _, w := range v.viewsNow() {
		w.mu.Lock()
		w.applied = max(w.applied, min(l.end, w.at))
		for len(w.layers) > 0 && w.layers[0].end <= w.applied {
			w.layers = w.layers[1:]
		}
		w.mu.Unlock()
	}
}

// endViews ends every view whose point is above lsn; 0 is every view.
func (v *Volume) endViews(lsn journal.LSN, why error) {
	for _, w := range v.viewsNow() {
		if w.at > lsn {
			w.end(why)
		}
	}
}

// hurried: the ring is so full that writers wait, or will soon.
func (v *Volume) hurried() bool {
	v.stateMu.Lock()
	waits := v.waiting > 0
	v.stateMu.Unlock()
	return waits || int64(v.log.Head()-v.log.Applied()) > v.log.Capacity()/4*3
}

func (w *view) preserve(l *layer) (err error) {
	step := max(preserveChunk, w.block)
	l.extents.Scan(func(x extent) bool {
		end := min(x.end, w.size)
		for off := x.off / w.block * w.block; off < end; off += step {
			began := time.Now()
			if err = w.bring(off, min(end, off+step)); err != nil {
				return false
			}
			if !w.v.hurried() {
				w.inTheWay = 0
			} else if w.inTheWay += time.Since(began); w.inTheWay > w.patience {
				err = errDrillInTheWay
				return false
			}
		}
		return true
	})
	return err
}

// bring copies the view's state of the blocks that [off, end) touches into the scratch, where it is not there yet.
func (w *view) bring(off, end int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended != nil {
		return w.ended
	}
	return w.bringLocked(off, end)
}

func (w *view) bringLocked(off, end int64) error {
	first, last := off/w.block, (end-1)/w.block
	for first <= last {
		if w.have.Contains(uint32(first)) {
			first++
			continue
		}
		n := int64(1)
		for first+n <= last && (n+1)*w.block <= int64(len(w.buf)) && !w.have.Contains(uint32(first+n)) {
			n++
		}
		if err := w.bringRun(first, n); err != nil {
			return err
		}
		first += n
	}
	return nil
}

// bringRun copies n blocks, none of which is in the scratch. Zeroes take no space.
func (w *view) bringRun(first, n int64) error {
	off := first * w.block
	p := w.buf[:min(n*w.block, w.size-off)]
	if err := w.readBelow(p, off); err != nil {
		return err
	}
	for i := range n {
		b := p[i*w.block : min((i+1)*w.block, int64(len(p)))]
		if !allZero(b) || w.data.Contains(uint32(first+i)) { // there: a write that failed may have left anything
			if err := w.take(first+i, first+i+1); err != nil {
				return err
			}
			if _, err := w.file.WriteAt(b, off+i*w.block); err != nil {
				return fmt.Errorf("the drill's scratch: %w", err)
			}
		}
		w.have.Add(uint32(first + i))
	}
	return nil
}

// take counts blocks that are about to take space in the scratch.
func (w *view) take(first, end int64) error {
	more := end - first - int64(w.data.CardinalityInRange(uint64(first), uint64(end)))
	if more == 0 {
		return nil
	}
	if w.used.Load()+more*w.block > w.limit {
		return errScratchFull
	}
	w.data.AddRange(uint64(first), uint64(end))
	w.used.Add(more * w.block)
	return nil
}

// readBelow reads what the view has below its scratch. mu is held, shared at least.
//
// What it needs of the log cannot leave it meanwhile: the applier takes mu before it lets the tail move.
func (w *view) readBelow(p []byte, off int64) error {
	buf := piecePool.Get().(*[]extent)
	defer func() { *buf = (*buf)[:0]; piecePool.Put(buf) }()
	*buf = w.lookup((*buf)[:0], len(w.layers)-1, off, off+int64(len(p)))
	if err := w.v.readPiecesOver(deviceReader{w.v}, p, off, *buf); err != nil {
		return err
	}
	return w.v.sound(*buf)
}

// lookup is overlay.search over the view's layers. A record that is applied is read from the device: the log may not have it any
// more.
func (w *view) lookup(pieces []extent, depth int, off, end int64) []extent {
	if depth < 0 {
		return append(pieces, extent{off: off, end: end, base: true})
	}
	w.layers[depth].lookup(off, end,
		func(x extent) {
			if x.lsn < w.applied {
				x = extent{off: x.off, end: x.end, base: true}
			}
			pieces = append(pieces, x)
		},
		func(a, b int64) { pieces = w.lookup(pieces, depth-1, a, b) })
	return pieces
}

func (w *view) check(off, n int64) error {
	if off < 0 || n < 0 || off > w.size || n > w.size-off {
		return blockdev.ErrOutOfRange
	}
	return w.ended
}

// ReadAt reads the device as it was at the view's LSN, and what was written to the view since.
func (w *view) ReadAt(p []byte, off int64) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for at := off; at < off+int64(len(p)); {
		in := w.have.Contains(uint32(at / w.block))
		end := (at/w.block + 1) * w.block
		for end < off+int64(len(p)) && w.have.Contains(uint32(end/w.block)) == in {
			end += w.block
		}
		end = min(end, off+int64(len(p)))
		var err error
		if part := p[at-off : end-off]; in {
			_, err = w.file.ReadAt(part, at)
		} else {
			err = w.readBelow(part, at)
		}
		if err != nil {
			return 0, err
		}
		at = end
	}
	return len(p), nil
}

// WriteAt writes to the view alone. An error that is unix.ENOSPC leaves the view as it is.
func (w *view) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.writeLocked(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteBatch writes to the view alone. A group is in it as one: a connection that a client has given up cannot write between what the client
// sends again on another one.
func (w *view) WriteBatch(ws []blockdev.Write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range ws {
		switch x := &ws[i]; {
		case x.Fast: // the view does not know what is
			x.Err = errors.ErrUnsupported
		case x.Zero || x.Trim:
			x.Err = w.trimLocked(x.Offset, x.Length)
		default:
			x.Err = w.writeLocked(x.Data, x.Offset)
		}
	}
}

func (w *view) writeLocked(p []byte, off int64) error {
	return w.change(off, int64(len(p)), func(first, end int64) error {
		if err := w.take(first, end); err != nil {
			return err
		}
		_, err := w.file.WriteAt(p, off)
		return err
	})
}

// Zero makes the range read as zeroes in the view.
func (w *view) Zero(off, length int64) error { return w.Trim(off, length) }

// Trim makes the range read as zeroes in the view, and gives scratch space back.
func (w *view) Trim(off, length int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trimLocked(off, length)
}

func (w *view) trimLocked(off, length int64) error {
	return w.change(off, length, func(int64, int64) error {
		if err := w.file.Trim(off, length); err != nil {
			return err
		}
		if first, end := (off+w.block-1)/w.block, (off+length)/w.block; first < end {
			w.data.RemoveRange(uint64(first), uint64(end))
			w.used.Store(int64(w.data.GetCardinality()) * w.block)
		}
		return nil
	})
}

// change lets do change [off, off+n) in the scratch, which has the rest of the blocks at both ends by then. mu is held.
func (w *view) change(off, n int64, do func(firstBlock, endBlock int64) error) error {
	if err := w.check(off, n); err != nil || n == 0 {
		return err
	}
	for _, edge := range []int64{off, off + n} {
		if edge%w.block == 0 || edge == w.size {
			continue
		}
		if err := w.bringLocked(edge, edge+1); err != nil {
			return err
		}
	}
	first, end := off/w.block, (off+n+w.block-1)/w.block
	if err := do(first, end); err != nil {
		return err
	}
	w.have.AddRange(uint64(first), uint64(end))
	return nil
}

// Size is that of the device at the view's LSN.
func (w *view) Size() (int64, error) { return w.size, nil }

// Sync has nothing to do: a view does not outlive its process.
func (w *view) Sync() error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.ended
}

// Close leaves the view to its owner, who ends it.
func (w *view) Close() error { return nil }

// why the view has ended; nil while it has not.
func (w *view) why() error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.ended
}

// end throws the view away; everything that is asked of it from now on gets why. May be called again.
func (w *view) end(why error) {
	w.mu.Lock()
	if w.ended != nil {
		w.mu.Unlock()
		return
	}
	w.ended = why
	w.layers, w.buf = nil, nil
	_ = w.file.Close() // nothing in it is of use
	close(w.done)
	w.mu.Unlock()
	v := w.v
	v.viewsMu.Lock()
	for i, o := range v.views {
		if o == w {
			v.views = append(v.views[:i:i], v.views[i+1:]...)
			break
		}
	}
	v.viewsMu.Unlock()
}
