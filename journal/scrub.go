package journal

import (
	"errors"
	"fmt"
)

// Scrub and Mend: rot is looked for while the log is in use, and what another copy of this log still has is put over it.

// forgetter is what a File may have besides: pages of the range that are clean leave the system's cache, so that the next
// read comes from the disk. What is not written yet stays.
type forgetter interface {
	Forget(off, length int64) error
}

// Scrub checks the records from the boundary from on against chain and payload hashes, about bytes of log, to at most upTo, and
// returns the boundary where it ended. It reads the disk where the file can forget what is cached. *CorruptError says what
// rotted and where; ErrGone and ErrCut as for any reader.
func (l *Log) Scrub(from, upTo LSN, bytes int64) (LSN, error) {
	upTo = min(upTo, l.Head())
	to := min(upTo, from+LSN(bytes))
	l.forget(from, to)
	next := from
	err := l.scan(from, to, scanBytes, func(r Record, w *walker) error {
		if err := w.payload(r); err != nil {
			return err
		}
		next = r.End()
		return nil
	})
	return next, err
}

// forget is best effort: a file without it is read as it is cached.
func (l *Log) forget(from, to LSN) {
	r := l.ring.Load()
	f, ok := r.f.(forgetter)
	if !ok || from >= to || int64(to-from) > r.size {
		return
	}
	for from < to {
		pos := r.position(from)
		n := min(int64(to-from), r.size-pos)
		_ = f.Forget(ringStart+pos, n)
		from += LSN(n)
	}
}

// ErrNotMended: the copy does not reach to where this log is sound again; more of it may.
var ErrNotMended = errors.New("the copy does not meet this log again")

// Mend puts records of a copy of this log over rotten ones, durably, and returns where the log is sound again. raw begins at the
// boundary at, whose way from the last known point must be sound. Everything is checked before anything is written: the records'
// hashes, that they continue the chain at at, and that what follows them here continues theirs; so they are what was
// written here once. ErrChain, ErrCorrupt or ErrNotMended otherwise, and nothing was changed. A crash in between leaves rot
// where rot was.
func (l *Log) Mend(at LSN, raw []byte) (LSN, error) {
	l.mmu.Lock() // the ring is not replaced
	defer l.mmu.Unlock()
	if err := l.alone(); err != nil { // nor is anything cut
		return 0, err
	}
	defer l.leave()
	if err := l.inLog(at); err != nil {
		return 0, err
	}
	chain, err := l.ChainAt(at)
	if err != nil {
		return 0, err
	}
	end, err := l.meets(at, chain, raw)
	if err != nil {
		return 0, err
	}
	l.amu.Lock() // the tail stays: nothing of this is recycled by an anchor now
	defer l.amu.Unlock()
	if at < l.Tail() {
		return 0, fmt.Errorf("mend at LSN %d, tail %d: %w", at, l.Tail(), ErrGone)
	}
	if err := l.takeTurn(); err != nil {
		return 0, err
	}
	defer l.endTurn(0)
	if err := l.ring.Load().write(raw[:end-at], at); err != nil {
		return 0, l.fail(err)
	}
	if err := l.syncFile(); err != nil {
		return 0, l.fail(fmt.Errorf("sync journal: %w", err))
	}
	return end, nil
}

// meets checks the records of raw, which follow chain at at, and returns the end of the first one behind which this log goes on.
func (l *Log) meets(at LSN, chain uint64, raw []byte) (LSN, error) {
	head, headChain := l.HeadChain()
	for off, here := 0, at; off < len(raw); {
		r, err := decodeHeader(raw[off:])
		switch {
		case err != nil:
			return 0, err
		case r.LSN != here || r.End() > head || int64(len(raw)-off) < RecordSize(int(r.PayloadLen)) || chainOf(chain, raw[off:]) != r.Chain:
			return 0, fmt.Errorf("records of a copy at LSN %d: %w", here, ErrChain)
		case checksum(raw[off+HeaderSize:off+HeaderSize+int(r.PayloadLen)]) != r.PayloadHash:
			return 0, &CorruptError{LSN: here, Reason: "the copy's payload does not match its hash"}
		}
		off, here, chain = off+int(r.End()-r.LSN), r.End(), r.Chain
		if here == head && chain == headChain {
			return here, nil
		}
		if here+HeaderSize > head {
			continue
		}
		var b [HeaderSize]byte
		if err := l.read(b[:], here); err != nil {
			return 0, err
		}
		if next, err := decodeHeader(b[:]); err == nil && next.LSN == here && next.Chain == chainOf(chain, b[:]) {
			return here, nil
		}
	}
	return 0, fmt.Errorf("records of a copy from LSN %d: %w", at, ErrNotMended)
}
