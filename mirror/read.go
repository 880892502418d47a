package mirror

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

var piecePool = sync.Pool{New: func() any { s := make([]extent, 0, 16); return &s }}

// ReadAt reads what the device holds now: the newest of log and backing
// device. It takes no lock that a writer's I/O is under.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if size := v.size.Load(); off < 0 || off > size || int64(len(p)) > size-off {
		return 0, blockdev.ErrOutOfRange
	}
	if err := v.readable(); err != nil {
		return 0, err
	}
	if err := v.readOver(deviceReader{v}, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readOver reads the newest of the log and, below that, of base.
func (v *Volume) readOver(base io.ReaderAt, p []byte, off int64) error {
	buf := piecePool.Get().(*[]extent)
	defer func() { *buf = (*buf)[:0]; piecePool.Put(buf) }()
	for len(p) > maxLookup {
		if err := v.readPart(buf, base, p[:maxLookup], off); err != nil {
			return err
		}
		p, off = p[maxLookup:], off+maxLookup
	}
	return v.readPart(buf, base, p, off)
}

func (v *Volume) readPart(buf *[]extent, base io.ReaderAt, p []byte, off int64) error {
	for {
		*buf = v.overlay.lookup((*buf)[:0], off, off+int64(len(p)))
		err := v.readPiecesOver(base, p, off, *buf)
		if errors.Is(err, journal.ErrGone) {
			// Applied and recycled while we read: the device has it now.
			continue
		}
		if err == nil {
			err = v.sound(*buf)
		}
		return err
	}
}

// Prefetch has the backing device make ready what the log does not hold (blockdev.Prefetcher); one that cannot has nothing to do.
func (v *Volume) Prefetch(off, length int64) error {
	if err := blockdev.CheckRange(off, length, v.size.Load()); err != nil {
		return err
	}
	if err := v.readable(); err != nil {
		return err
	}
	dev, ok := v.dev.(blockdev.Prefetcher)
	if !ok {
		return nil
	}
	buf := piecePool.Get().(*[]extent)
	defer func() { *buf = (*buf)[:0]; piecePool.Put(buf) }()
	for end := off + length; off < end; off += maxLookup {
		*buf = v.overlay.lookup((*buf)[:0], off, min(end, off+maxLookup))
		for _, x := range *buf {
			if !x.base {
				continue
			}
			if err := dev.Prefetch(x.off, x.end-x.off); err != nil {
				return fmt.Errorf("prefetch %d bytes of the device at %d: %w", x.end-x.off, x.off, err)
			}
		}
	}
	return nil
}

// readPiecesOver takes from base what is not in the log.
func (v *Volume) readPiecesOver(base io.ReaderAt, p []byte, off int64, pieces []extent) error {
	for _, x := range pieces {
		b := p[x.off-off : x.end-off]
		switch {
		case x.base:
			if _, err := base.ReadAt(b, x.off); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read %d bytes of the device at %d: %w", len(b), x.off, err)
			}
		case x.zero:
			clear(b)
		default:
			if err := v.log.ReadData(b, x.data); err != nil {
				if errors.Is(err, journal.ErrGone) {
					return err
				}
				return fmt.Errorf("read %d bytes of the log at LSN %d: %w", len(b), x.data, err)
			}
		}
	}
	return nil
}

// nextData returns the next extent at or after off, ending at or before
// limit, that may hold data: holes of the device that the overlay does not
// cover are skipped. io.EOF when there is none.
func (v *Volume) nextData(off int64) (int64, int64, error) {
	finder, ok := v.dev.(blockdev.DataFinder)
	if !ok {
		size := v.size.Load()
		if off >= size {
			return 0, 0, io.EOF
		}
		return off, size, nil
	}
	// The overlay first: what leaves it meanwhile is in the device after.
	ostart, oend, ook := v.overlay.next(off)
	start, end, err := finder.NextData(off)
	switch {
	case errors.Is(err, io.EOF) && !ook:
		return 0, 0, io.EOF
	case errors.Is(err, io.EOF):
		return ostart, oend, nil
	case err != nil:
		return 0, 0, fmt.Errorf("find data of the device at %d: %w", off, err)
	case ook && ostart < start:
		return ostart, oend, nil
	}
	return start, min(end, v.size.Load()), nil
}

// next returns the first extent of the overlay that ends after off.
func (o *overlay) next(off int64) (start, end int64, ok bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	layers := append(append([]*layer(nil), o.frozen...), o.active)
	for _, l := range layers {
		look := func(e extent) bool {
			if e.end > off {
				if s := max(e.off, off); !ok || s < start {
					start, end, ok = s, e.end, true
				}
				return false
			}
			return true
		}
		l.extents.Descend(extent{off: off}, func(e extent) bool { look(e); return false })
		l.extents.Ascend(extent{off: off}, look)
	}
	return start, end, ok
}
