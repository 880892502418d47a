package journal

import (
	"errors"
	"fmt"
)

// Recovery is what Open found.
type Recovery struct {
	Head     LSN
	Cut      bool  // a torn tail was cut
	CutBytes int64 // from Head to the end of the last record dropped, as far as that can be told
	Clean    bool  // a clean end: everything is applied, the backing device alone is the volume

	Rot     *CorruptError // the log is damaged there (Options.Damaged), nil when it is whole
	Promise LSN           // with Rot: what it has to reach
}

// Open finds the end of the log in f and makes everything below it durable. A torn tail is cut. Rot is not touched:
// *CorruptError. ErrNoAnchor: not a journal (Format makes one). f is the Log's when Open succeeds (Close closes it),
// else the caller's still.
func Open(f File, o Options) (*Log, *Recovery, error) {
	fileSize, err := f.Size()
	if err != nil {
		return nil, nil, fmt.Errorf("size of journal: %w", err)
	}
	if fileSize < ringStart {
		return nil, nil, fmt.Errorf("%w: %w: %d bytes", ErrNoAnchor, ErrTooSmall, fileSize)
	}
	d, err := readSlots(f)
	if err != nil {
		return nil, nil, err
	}
	if fileSize < ringStart+d.ringSize {
		return nil, nil, fmt.Errorf("%w: %d bytes, its ring ends at %d", ErrTooSmall, fileSize, ringStart+d.ringSize)
	}
	l := newLog(f, d, o)
	r, err := l.recover()
	if err != nil {
		return nil, nil, err
	}
	return l, r, nil
}

// recover has the log to itself.
func (l *Log) recover() (*Recovery, error) {
	d := l.anchor.Load()
	limit := d.Tail + LSN(l.ring.size) // no record was ever written beyond
	if d.horizon != 0 {
		limit = min(limit, d.horizon)
	}
	l.horizon.Store(uint64(limit))
	if d.pending == pendingReset {
		l.setHead(d.Applied, d.AppliedChain)
		l.durable.Store(uint64(d.Applied))
		return &Recovery{Head: d.Applied, Clean: d.Clean}, l.finish(d, limit)
	}
	end := limit
	if d.pending == pendingCut {
		end = d.cutAt
	}
	start := point{d.Applied, d.AppliedChain}
	l.index.force(start)
	w := l.walk(start, end, scanBytes)
	defer w.win.free()
	stop, err := l.replay(&w)
	if err != nil {
		return nil, err
	}
	x := w.at
	if d.Durable > x {
		return l.damaged(d, &w, l.rot(x, stop, fmt.Sprintf("the anchor promises everything up to %d", d.Durable)), d.Durable)
	}
	left, err := l.remains(d, &w, limit)
	if err != nil {
		return nil, err
	}
	if d.Role == RolePrimary && d.pending == pendingNone && left.promise > x {
		return l.damaged(d, &w, l.rot(x, stop, fmt.Sprintf("the record at %d promises everything up to %d", left.by, left.promise)), left.promise)
	}
	l.setHead(x, w.chain)
	rec := &Recovery{Head: x, Cut: left.end > x, CutBytes: int64(left.end - x), Clean: d.Clean && x == d.Applied && left.end == x}
	return rec, l.settle(d, x, limit, left)
}

// settle makes what recovery found the durable truth.
func (l *Log) settle(d *diskAnchor, x, limit LSN, left remains) error {
	if err := l.ring.blank(x, limit); err != nil {
		return err
	}
	if left.end > x {
		if err := l.ring.wipe(x, limit); err != nil {
			return err
		}
	}
	if d.pending == pendingCut {
		l.durable.Store(uint64(d.Durable))
		if err := l.finish(d, limit); err != nil {
			return err
		}
	}
	if err := l.ring.f.Sync(); err != nil {
		return fmt.Errorf("sync journal: %w", err)
	}
	l.durable.Store(uint64(x))
	if d.horizon == 0 && d.pending == pendingNone { // an older version's: the first append begins with one
		l.horizon.Store(uint64(x))
	}
	return nil
}

// replay walks to the first bad record, checking payloads, and returns what is bad there. w stays before it.
func (l *Log) replay(w *walker) (stop errStop, err error) {
	for {
		at := point{w.at, w.chain}
		r, err := w.next()
		if err == nil {
			err = w.payload(r)
		}
		if errors.As(err, &stop) {
			w.at, w.chain = at.at, at.chain
			return stop, nil
		}
		if err != nil {
			return stop, err
		}
		if at.at >= l.index.newest()+indexSpacing {
			l.index.add(at)
		}
		if l.opts.OnRecover != nil {
			if err := l.opts.OnRecover(r); err != nil {
				return stop, err
			}
		}
	}
}

func (l *Log) rot(x LSN, stop errStop, promise string) *CorruptError {
	return &CorruptError{LSN: x, Offset: l.ring.offset(x), Reason: stop.reason + ", but " + promise}
}

// remains is what lies beyond the first bad record.
type remains struct {
	end     LSN // of the last record that could be one; x when there is none
	promise LSN // highest durable LSN that a provable one promises
	by      LSN // which
}

// remains looks at everything in [x, limit) that could be a record. A promise counts when the record that makes it is
// proven to have been written after x in this log: its chain continues from the (damaged) header at x, either from the chain value
// stored there or from the one its bytes should have; or it is the successor, by chain, of another that
// could be one. It must belong to the newest generation: what an older primary promised may have been cut since.
func (l *Log) remains(d *diskAnchor, w *walker, limit LSN) (remains, error) {
	x := w.at
	left := remains{end: x}
	var bad [HeaderSize]byte
	if x+HeaderSize > limit {
		return left, nil
	}
	if err := l.ring.read(bad[:], x); err != nil {
		return left, err
	}
	stored, computed := le.Uint64(bad[56:]), chainOf(w.chain, bad[:])
	first := d.firstOfNewest()
	see := func(r Record) {
		if r.LSN >= first && r.Durable > left.promise {
			left.promise, left.by = r.Durable, r.LSN
		}
	}
	var header [HeaderSize]byte
	err := l.ring.candidates(x, limit, false, func(r Record, at LSN) error {
		left.end = max(left.end, r.End())
		if err := l.ring.read(header[:], at); err != nil {
			return err
		}
		if at > x && !allZero(bad[:]) && (r.Chain == chainOf(stored, header[:]) || r.Chain == chainOf(computed, header[:])) {
			see(r)
		}
		if r.End()+HeaderSize > limit {
			return nil
		}
		if err := l.ring.read(header[:], r.End()); err != nil {
			return err
		}
		n, err := decodeHeader(header[:])
		if err == nil && n.LSN == r.End() && n.End() <= limit && n.Chain == chainOf(r.Chain, header[:]) {
			see(n)
		}
		return nil
	})
	return left, err
}
