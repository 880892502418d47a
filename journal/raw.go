package journal

import (
	"fmt"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

type digest = xxhash.Digest

var hasher = sync.Pool{New: func() any { return xxhash.New() }}

// rawScratch is what AppendRaw reuses.
type rawScratch struct {
	entries []Entry
	es      []*Entry
	points  []point
}

// AppendRaw appends whole records exactly as ReadRaw gave them; at must be the head. Everything is checked before anything is
// written: ErrChain (another position or another history), ErrCorrupt (as a *CorruptError: hash, format, padding), ErrFull,
// ErrTooLarge. raw may be reused when it returns. Durable after Sync.
func (l *Log) AppendRaw(at LSN, raw []byte) (LSN, error) {
	began := time.Now()
	if err := l.alone(); err != nil {
		return l.Head(), err
	}
	defer l.leave()
	head, chain := l.HeadChain()
	if at != head {
		return head, fmt.Errorf("raw records at %d, head %d: %w", at, head, ErrChain)
	}
	if len(raw) == 0 {
		return head, nil
	}
	s := &l.raw
	end, chain, err := s.check(l, raw, head, chain)
	if err != nil {
		return head, err
	}
	if err := l.reach(end); err != nil {
		return head, err
	}
	if err := l.ring.write(raw, head); err != nil {
		return head, l.fail(err)
	}
	l.publish(end, chain, s.points, s.es)
	l.counters.appended(began)
	return end, nil
}

// check fills s with the records of raw; they begin at head after chain.
func (s *rawScratch) check(l *Log, raw []byte, head LSN, chain uint64) (LSN, uint64, error) {
	s.entries, s.es, s.points = s.entries[:0], s.es[:0], s.points[:0]
	if int64(len(raw)) > l.ring.size-Reserve {
		return 0, 0, fmt.Errorf("%w: %d bytes of records, room for %d", ErrTooLarge, len(raw), l.ring.size-Reserve)
	}
	at, indexed, full := head, l.index.newest(), false
	limit := l.Tail() + LSN(l.ring.size)
	err := ParseRaw(raw, func(r Record, payload []byte) error {
		header := raw[at-head:]
		if r.LSN != at {
			return fmt.Errorf("raw record of LSN %d at %d: %w", r.LSN, at, ErrChain)
		}
		if checksum(payload) != r.PayloadHash {
			return &CorruptError{LSN: at, Reason: "raw record: payload does not match its hash"}
		}
		if !allZero(header[HeaderSize+len(payload) : r.End()-r.LSN]) {
			return &CorruptError{LSN: at, Reason: "raw record: padding is not zero"}
		}
		if r.Chain != chainOf(chain, header) {
			return fmt.Errorf("raw record at %d: %w", at, ErrChain)
		}
		if at >= indexed+indexSpacing {
			s.points = append(s.points, point{at, chain})
			indexed = at
		}
		at, chain = r.End(), r.Chain
		full = full || at > limit || (!r.Op.control() && at > limit-Reserve)
		s.entries = append(s.entries, Entry{
			Op: r.Op, Flags: r.Flags, Volume: r.Volume, Offset: r.Offset, Length: r.Length,
			LSN: r.LSN, Data: r.Data(), End: r.End(), hash: r.PayloadHash,
		})
		return nil
	})
	switch {
	case err != nil && isInvalid(err):
		return 0, 0, &CorruptError{LSN: at, Reason: "raw record: " + err.Error()}
	case err != nil:
		return 0, 0, err
	case full:
		return 0, 0, ErrFull
	}
	for i := range s.entries {
		s.es = append(s.es, &s.entries[i])
	}
	return at, chain, nil
}
