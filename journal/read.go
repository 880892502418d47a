package journal

import (
	"errors"
	"fmt"
	"io"
)

const headerWindow = 64 << 10 // read at once when only headers are wanted

// walker goes over the records from a boundary whose chain value is known, and checks every header against the
// chain: what it yields are this history's records.
type walker struct {
	win   window
	at    LSN
	chain uint64
	end   LSN // no record may end beyond it
}

// errStop: no record of this history at walker.at. It says why.
type errStop struct{ reason string }

func (e errStop) Error() string { return e.reason }

var errPayload = errStop{"payload does not match its hash"}

// next returns the header at w.at and steps over it. An errStop leaves w where it was; other errors are I/O.
func (w *walker) next() (Record, error) {
	if w.at+HeaderSize > w.end {
		return Record{}, errStop{"no room for a header"}
	}
	b, err := w.win.get(w.at, HeaderSize, w.end)
	if err != nil {
		return Record{}, err
	}
	r, err := decodeHeader(b)
	switch {
	case err != nil:
		return r, errStop{err.Error()}
	case r.LSN != w.at:
		return r, errStop{fmt.Sprintf("a record of LSN %d", r.LSN)}
	case r.End() > w.end:
		return r, errStop{fmt.Sprintf("the record would end at %d, beyond %d", r.End(), w.end)}
	case r.Chain != chainOf(w.chain, b):
		return r, errStop{"the chain does not continue"}
	}
	w.at, w.chain = r.End(), r.Chain
	return r, nil
}

// read is ring.read of the ring of now. Whoever calls it took the head before: what lies below that is in this ring, also
// when the log moved to it in between. A ring that is closed in the middle of a read has a successor.
func (l *Log) read(p []byte, at LSN) error {
	for {
		r := l.ring.Load()
		if err := r.read(p, at); err == nil || r == l.ring.Load() {
			return err
		}
	}
}

func (l *Log) window(windowBytes int) window {
	w := newWindow(l.ring.Load(), windowBytes)
	w.read = l.read
	return w
}

// walk starts at p; it never goes past end. Its window must be freed.
func (l *Log) walk(p point, end LSN, windowBytes int) walker {
	return walker{win: l.window(windowBytes), at: p.at, chain: p.chain, end: end}
}

// lost explains why a record ≥ from and below the head could not be read, begun in epoch.
func (l *Log) lost(at LSN, from LSN, epoch uint64, err error) error {
	var stop errStop
	switch {
	case !errors.As(err, &stop):
		return err
	case from < l.Tail():
		return fmt.Errorf("read journal at LSN %d: %w", from, ErrGone)
	case epoch != l.epoch.Load():
		return fmt.Errorf("read journal at LSN %d: %w", from, ErrCut)
	}
	return &CorruptError{LSN: at, Offset: l.ring.Load().offset(at), Reason: err.Error(), Payload: stop == errPayload}
}

// inLog says whether at lies between tail and head.
func (l *Log) inLog(at LSN) error {
	switch {
	case at < l.Tail():
		return fmt.Errorf("LSN %d, tail %d: %w", at, l.Tail(), ErrGone)
	case at > l.Head():
		return fmt.Errorf("LSN %d, head %d: %w", at, l.Head(), ErrBeyondHead)
	}
	return nil
}

// ChainAt returns the chain value at a record boundary, that is of the record before it. ErrGone below the tail, ErrBeyondHead,
// ErrNotBoundary; *CorruptError when the way there has rotted.
func (l *Log) ChainAt(at LSN) (uint64, error) {
	for {
		epoch := l.epoch.Load()
		head, chain := l.HeadChain()
		if at == head {
			return chain, nil
		}
		if err := l.inLog(at); err != nil {
			return 0, err
		}
		p, ok := l.index.before(at)
		if !ok {
			return 0, fmt.Errorf("LSN %d: %w", at, ErrGone)
		}
		chain, err := l.chainFrom(p, at, head, epoch)
		if err != nil && at >= l.Tail() && (p.at < l.Tail() || epoch != l.epoch.Load()) {
			continue // the point was recycled, not what was asked for
		}
		return chain, err
	}
}

func (l *Log) chainFrom(p point, at, head LSN, epoch uint64) (uint64, error) {
	w := l.walk(p, head, headerWindow)
	defer w.win.free()
	last := p.at
	for w.at < at {
		if _, err := w.next(); err != nil {
			return 0, l.lost(w.at, p.at, epoch, err)
		}
		if w.at >= last+indexSpacing && epoch == l.epoch.Load() {
			l.index.add(point{w.at, w.chain})
			last = w.at
		}
	}
	if w.at != at {
		return 0, fmt.Errorf("LSN %d: %w", at, ErrNotBoundary)
	}
	return w.chain, nil
}

// BoundaryBefore returns the greatest indexed record boundary ≤ at and its chain value, without any I/O: a place for the tail.
func (l *Log) BoundaryBefore(at LSN) (LSN, uint64, error) {
	if head, chain := l.HeadChain(); at >= head {
		return head, chain, nil
	}
	p, ok := l.index.before(at)
	if !ok {
		return 0, 0, fmt.Errorf("LSN %d, tail %d: %w", at, l.Tail(), ErrGone)
	}
	return p.at, p.chain, nil
}

// Scan calls fn for the header of every record in [from, to), to at most the head. from is a record boundary.
// ErrGone when the tail passes the scan. fn's error ends it.
func (l *Log) Scan(from, to LSN, fn func(Record) error) error {
	return l.scan(from, to, headerWindow, func(r Record, _ *walker) error { return fn(r) })
}

// Verify reads everything in [from, to) and checks it against chain and payload hashes: a scrub. *CorruptError says what rotted.
func (l *Log) Verify(from, to LSN) error {
	return l.scan(from, to, scanBytes, func(r Record, w *walker) error { return w.payload(r) })
}

func (l *Log) scan(from, to LSN, windowBytes int, fn func(Record, *walker) error) error {
	epoch := l.epoch.Load()
	chain, err := l.ChainAt(from)
	if err != nil {
		return err
	}
	head := l.Head()
	w := l.walk(point{from, chain}, head, windowBytes)
	defer w.win.free()
	for to = min(to, head); w.at < to; {
		at := w.at
		r, err := w.next()
		if err == nil {
			err = fn(r, &w)
		}
		if err != nil {
			return l.lost(at, at, epoch, err)
		}
	}
	return nil
}

// payload checks the payload of r against its hash.
func (w *walker) payload(r Record) error {
	h := hasher.Get().(*digest)
	defer hasher.Put(h)
	h.Reset()
	for at, left := r.Data(), int(r.PayloadLen); left > 0; {
		n := min(left, cap(w.win.buf))
		b, err := w.win.get(at, n, max(w.end, at+LSN(n)))
		if err != nil {
			return err
		}
		_, _ = h.Write(b)
		at, left = at+LSN(n), left-n
	}
	if h.Sum64() != r.PayloadHash {
		return errPayload
	}
	return nil
}

// ReadRaw copies whole records, as many as fit from the boundary from up to the head, into buf and returns their
// bytes: what AppendRaw takes. io.EOF at the head, ErrGone below the tail (also when the tail passed during the read),
// ErrShortBuffer when the first does not fit. Payloads are not checked here but by AppendRaw.
func (l *Log) ReadRaw(from LSN, buf []byte) (int, error) {
	var head LSN
	n := 0
	for {
		head = l.Head()
		if from == head {
			return 0, io.EOF
		}
		n = int(min(uint64(len(buf)), uint64(l.ring.Load().size)))
		if from < head {
			n = int(min(uint64(n), uint64(head-from)))
		}
		var err error
		if n < HeaderSize {
			err = l.need(from)
		} else {
			head, err = l.snapshot(buf[:n], from)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, ErrBeyondHead) || from > l.Head() {
			return 0, err
		} // else cut meanwhile
	}
	buf, n = buf[:n], 0
	for previous := uint64(0); len(buf)-n >= HeaderSize; {
		r, err := decodeHeader(buf[n:])
		if err == nil && (r.LSN != from+LSN(n) || r.End() > head || (n > 0 && r.Chain != chainOf(previous, buf[n:]))) {
			err = ErrInvalid
		}
		if err != nil {
			if n > 0 {
				return n, nil // the next read starts there and tells
			}
			return 0, l.explain(from)
		}
		size := int(r.End() - r.LSN)
		if size > len(buf)-n {
			if n == 0 {
				return 0, ErrShortBuffer{Need: size}
			}
			break
		}
		clear(buf[n+HeaderSize+int(r.PayloadLen) : n+size]) // no hash covers the padding: rot there ends here
		n, previous = n+size, r.Chain
	}
	return n, nil
}

// need says how long a buffer must be for the record at from.
func (l *Log) need(from LSN) error {
	var b [HeaderSize]byte
	if head := l.Head(); from < head && head-from < HeaderSize {
		return l.explain(from)
	}
	if _, err := l.snapshot(b[:], from); err != nil {
		return err
	}
	r, err := decodeHeader(b[:])
	if err != nil || r.LSN != from {
		return l.explain(from)
	}
	return ErrShortBuffer{Need: int(r.End() - from)}
}

// snapshot fills p with the log's bytes at at and returns the head that it read below. The bytes are of one moment: nothing
// of them was recycled (ErrGone) or cut (it reads again) meanwhile.
func (l *Log) snapshot(p []byte, at LSN) (LSN, error) {
	for {
		epoch, head := l.epoch.Load(), l.Head()
		switch end := at + LSN(len(p)); {
		case end > head || end < at:
			return 0, fmt.Errorf("LSN %d, %d bytes, head %d: %w", at, len(p), head, ErrBeyondHead)
		case at < l.Tail():
			return 0, fmt.Errorf("LSN %d, tail %d: %w", at, l.Tail(), ErrGone)
		}
		if err := l.read(p, at); err != nil {
			return 0, err
		}
		if at < l.Tail() {
			return 0, fmt.Errorf("read journal at LSN %d: %w", at, ErrGone)
		}
		if epoch == l.epoch.Load() {
			return head, nil
		}
	}
}

// explain finds out why there is no record at from, between tail and head.
func (l *Log) explain(from LSN) error {
	if _, err := l.ChainAt(from); err != nil {
		return err
	}
	return &CorruptError{LSN: from, Offset: l.ring.Load().offset(from), Reason: "no record where one begins"}
}

// ReadData fills p with the log's bytes at at, anywhere in a payload. ErrGone when they were recycled, also during the read;
// ErrBeyondHead when they are not there or were cut.
func (l *Log) ReadData(p []byte, at LSN) error {
	_, err := l.snapshot(p, at)
	return err
}
