package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// verifyReader reads a volume to be compared: what the log has newer from there, the rest from the backing device, below the
// system's cache where that was asked for and can be. For one goroutine.
type verifyReader struct {
	v     *Volume
	below bool // the cache
	buf   []byte

	// What nextData said last: nothing in [from, start), data in [start, end).
	from, start, end int64
}

func newVerifyReader(v *Volume, direct bool) *verifyReader {
	_, can := v.dev.(blockdev.DirectReader)
	return &verifyReader{v: v, below: direct && can, from: -1}
}

// ReadAt reads the backing device.
func (r *verifyReader) ReadAt(p []byte, off int64) (int, error) {
	if r.below {
		err := r.v.dev.(blockdev.DirectReader).ReadDirect(p, off)
		if !errors.Is(err, errors.ErrUnsupported) {
			r.v.wasRead(off, len(p), err)
			return len(p), err
		}
		r.below = false
	}
	return deviceReader{r.v}.ReadAt(p, off)
}

// sums reads [off, end) and returns what each unit of it holds. What is written meanwhile may show, or not. An error is one of the volume or of ctx; a unit that cannot be read says so.
func (r *verifyReader) sums(ctx context.Context, key *[32]byte, off, end, unit int64) ([]blockSum, error) {
	sums := make([]blockSum, 0, units(off, end, unit))
	if int64(len(r.buf)) < unit {
		r.buf = make([]byte, unit)
	}
	r.from = -1
	for off < end {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next := min((off/unit+1)*unit, end)
		switch {
		case r.hole(off, next):
			sums = append(sums, blockSum{state: sumZero})
		default:
			p := r.buf[:next-off]
			if err := r.v.readOver(r, p, off); err != nil {
				if err := r.fatal(err); err != nil {
					return nil, err
				}
				sums = append(sums, blockSum{state: sumUnreadable})
				break
			}
			sums = append(sums, sumOf(key, p))
		}
		off = next
	}
	return sums, nil
}

// fatal: the volume does not go on, so that err is not about the disk's bytes.
func (r *verifyReader) fatal(err error) error {
	if failed := r.v.Err(); failed != nil {
		return failed
	}
	if _, stuck := r.v.watch(); stuck != nil {
		return stuck
	}
	if errors.Is(err, blockdev.ErrOutOfRange) || errors.Is(err, blockdev.ErrClosed) {
		return err
	}
	return nil
}

// hole says whether there is nothing in [off, end), neither in the log nor on the device.
func (r *verifyReader) hole(off, end int64) bool {
	if r.from < 0 || off < r.from || off >= r.end {
		start, dataEnd, err := r.v.nextData(off)
		switch {
		case errors.Is(err, io.EOF):
			start, dataEnd = r.v.size.Load(), r.v.size.Load()
		case err != nil:
			return false // reading will tell
		}
		r.from, r.start, r.end = off, start, max(dataEnd, start)
	}
	return end <= r.start
}

// capture reads [off, end) as it was at exactly the LSN it returns, and says which units of it cannot be read.
func (r *verifyReader) capture(ctx context.Context, off, end, unit int64) (p []byte, bad []bool, at journal.LSN, err error) {
	p, bad = make([]byte, end-off), make([]bool, units(off, end, unit))
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, nil, 0, err
		}
		at, err = r.captureOnce(p, bad, off, end, unit, try >= captureTries)
		if !errors.Is(err, errMoved) {
			return p, bad, at, err
		}
	}
}

// captureTries is how often the applier may come in between before it is stopped for a moment.
const captureTries = 4

var errMoved = errors.New("mirror: changed while it was read")

// captureOnce: what was found in the log stays what it is; what lies below, on the device, may be changed by a record that is
// appended and applied while it is read. alone keeps the applier away.
func (r *verifyReader) captureOnce(p []byte, bad []bool, off, end, unit int64, alone bool) (journal.LSN, error) {
	if alone {
		r.v.applyMu.Lock()
		defer r.v.applyMu.Unlock()
	}
	w, _ := r.v.overlay.watch(off, end, 0)
	defer w.stop()
	pieces, at := r.v.overlay.lookupAt(nil, off, end)
	clear(bad)
	err := r.v.readPiecesOver(r, p, off, pieces)
	if err != nil && !errors.Is(err, journal.ErrGone) {
		if err := r.fatal(err); err != nil {
			return 0, err
		}
		err = r.piecewise(p, bad, off, end, unit, pieces)
	}
	switch {
	case errors.Is(err, journal.ErrGone), err == nil && !alone && below(pieces) && w.any():
		return 0, errMoved
	case err != nil:
		return 0, err
	}
	return at, r.v.sound(pieces)
}

// below says whether any of the pieces lies on the device.
func below(pieces []extent) bool {
	return slices.ContainsFunc(pieces, func(x extent) bool { return x.base })
}

// piecewise reads unit by unit, to tell those that cannot be read.
func (r *verifyReader) piecewise(p []byte, bad []bool, off, end, unit int64, pieces []extent) error {
	for i, at := 0, off; at < end; i++ {
		next := min((at/unit+1)*unit, end)
		var some []extent
		for _, x := range pieces {
			if x.off < next && at < x.end {
				some = append(some, x.slice(at, next))
			}
		}
		if err := r.v.readPiecesOver(r, p[at-off:next-off], at, some); errors.Is(err, journal.ErrGone) {
			return err
		} else if err != nil {
			bad[i] = true
		}
		at = next
	}
	return nil
}

// replay puts what the records in [from, to) changed over p, which holds [off, off+len(p)) as it was at from.
func (v *Volume) replay(p []byte, off int64, from, to journal.LSN) error {
	end := off + int64(len(p))
	err := v.log.Scan(from, to, func(r journal.Record) error {
		x, ok, err := extentOf(maxDeviceBytes, r.Op, r.Offset, r.Length, r.LSN, r.Data())
		if err != nil || !ok || x.end <= off || x.off >= end {
			return err
		}
		x = x.slice(off, end)
		if x.zero {
			clear(p[x.off-off : x.end-off])
			return nil
		}
		return v.log.ReadData(p[x.off-off:x.end-off], x.data)
	})
	if err != nil {
		return fmt.Errorf("read the log from LSN %d to %d: %w", from, to, err)
	}
	return nil
}
