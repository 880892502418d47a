package journal

import "bytes"

// What was cut must never come back: not as a record, and not as the "later record" from which recovery
// concludes that something before it has rotted. So whoever drops records (recovery at a torn tail, Cut, Reset,
// Format) also zeroes every header in the dropped part that could be read as a record there. What is left
// beyond the head are records of earlier laps, whose LSN does not fit, and pieces of records.

const scanBytes = 256 << 10 // read at once

var magicBytes = le.AppendUint32(nil, recordMagic)

// candidates calls fn for every place in [from, end), at most one lap, where a whole record could be read: its header is
// sane, its LSN is the place's, it ends by end. With anyLap its LSN may be that of any lap.
func (r *ring) candidates(from, end LSN, anyLap bool, fn func(rec Record, at LSN) error) error {
	w := newWindow(r, scanBytes)
	defer w.free()
	limit := end
	if anyLap {
		limit = end + HeaderSize // a header may lie across from
	}
	for at := from; at+HeaderSize <= limit; {
		n := int(min(limit-at, LSN(cap(w.buf))))
		chunk, err := w.get(at, n, limit)
		if err != nil {
			return err
		}
		i := nextMagic(chunk, 0)
		for ; i+HeaderSize <= len(chunk); i = nextMagic(chunk, i+8) {
			here := at + LSN(i)
			rec, err := decodeHeader(chunk[i:])
			if err != nil || r.position(rec.LSN) != r.position(here) {
				continue
			}
			if !anyLap && (rec.LSN != here || rec.End() > end) {
				continue
			}
			if err := fn(rec, here); err != nil {
				return err
			}
		}
		at += LSN(i)
	}
	return nil
}

// nextMagic is the first multiple of 8 ≥ i where a header may start and lies in b whole; else the first where none would fit.
func nextMagic(b []byte, i int) int {
	for i+HeaderSize <= len(b) {
		j := bytes.Index(b[i:], magicBytes)
		if j < 0 || i+j+HeaderSize > len(b) {
			break
		}
		if j%8 == 0 {
			return i + j
		}
		i += (j + 7) &^ 7
	}
	return (len(b)-HeaderSize)&^7 + 8
}

// wipe zeroes the header at from and every candidate in [from, end); not durable before a sync.
func (r *ring) wipe(from, end LSN) error {
	if err := r.blank(from, end); err != nil {
		return err
	}
	return r.candidates(from, end, false, func(_ Record, at LSN) error { return r.blank(at, end) })
}

// forget zeroes the header at at and every header in the ring that could be one in any lap; not durable before a sync.
func (r *ring) forget(at LSN) error {
	if err := r.blank(at, at+HeaderSize); err != nil {
		return err
	}
	return r.candidates(at, at+LSN(r.size), true, func(_ Record, here LSN) error { return r.blank(here, here+HeaderSize) })
}

// blank makes the header at at zeroes, as far as it lies before end, where other records may begin. A header
// that is zero already is not written.
func (r *ring) blank(at, end LSN) error {
	var b [HeaderSize]byte
	n := min(end-at, HeaderSize)
	if err := r.read(b[:n], at); err != nil {
		return err
	}
	if allZero(b[:n]) {
		return nil
	}
	clear(b[:])
	return r.write(b[:n], at)
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if le.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
