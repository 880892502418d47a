package journal

import (
	"fmt"
)

// slot is what one anchor slot was found to hold.
type slot struct {
	anchor     *diskAnchor // complete; else nil
	blank, bad int         // sectors that are all zero; sectors that are neither zero nor sealed
	lowest     uint64      // lowest and highest sequence of the sealed sectors
	highest    uint64
	mixed      bool  // every sector sealed with one sequence, but by two attempts at it
	err        error // sealed, but by rules that this version does not know
}

// parseSlot judges the 4096 bytes of slot number index.
func parseSlot(b []byte, index int) slot {
	var s slot
	content := make([]byte, 0, contentSize)
	for i := range slotSectors {
		sector := b[i*sectorSize:][:sectorSize]
		sequence := le.Uint64(sector[8:])
		switch {
		case allZero(sector):
			s.blank++
			continue
		case !sealed(sector, i) || slotOffset(sequence) != int64(index)*slotSize || sequence == 0:
			s.bad++
			continue
		case le.Uint32(sector[4:]) != anchorVersion:
			s.err = fmt.Errorf("anchor of version %d, this program knows %d", le.Uint32(sector[4:]), anchorVersion)
		}
		if s.highest == 0 || sequence < s.lowest {
			s.lowest = sequence
		}
		s.highest = max(s.highest, sequence)
		content = append(content, sector[16:504]...)
	}
	if s.blank+s.bad > 0 || s.lowest != s.highest || s.err != nil {
		return s
	}
	if le.Uint64(content) != checksum(content[8:]) {
		s.mixed = true
		return s
	}
	s.anchor, s.err = decodeAnchor(content, s.lowest)
	if s.err != nil {
		s.anchor = nil
	}
	return s
}

func sealed(sector []byte, i int) bool {
	return le.Uint32(sector) == anchorMagic|uint32(i) && le.Uint64(sector[504:]) == checksum(sector[:504])
}

// pickAnchor finds the newest complete anchor, or says why that cannot be known.
//
//	other slot \ this slot     complete, sequence v                                      not complete
//	complete                   the higher sequence                                       —
//	all zero                   v = 1 (Format ended here), else rot                       no anchor, when only Format's first was torn
//	torn                       v: a sector below v, or v = 1 with zero sectors,          rot
//	                           or two torn attempts at v+1
//	otherwise                  rot: it may have been the newest                          rot
func pickAnchor(slots [2]slot) (*diskAnchor, error) {
	a, b := slots[0], slots[1]
	if a.blank == slotSectors && b.blank == slotSectors {
		return nil, ErrNoAnchor
	}
	for i, s := range slots {
		if s.err != nil {
			return nil, &CorruptError{Offset: int64(i) * slotSize, Reason: s.err.Error()}
		}
	}
	switch {
	case a.anchor != nil && b.anchor != nil:
		if a.anchor.Sequence > b.anchor.Sequence {
			return a.anchor, nil
		}
		return b.anchor, nil
	case a.anchor != nil:
		return besideTorn(a.anchor, b, 1)
	case b.anchor != nil:
		return besideTorn(b.anchor, a, 0)
	case b.blank == slotSectors && a.bad == 0 && a.blank > 0 && a.highest == 1:
		return nil, ErrNoAnchor
	}
	return nil, &CorruptError{Reason: "both anchors are damaged"}
}

// besideTorn returns good when the other slot provably does not hold a newer anchor that was once complete.
func besideTorn(good *diskAnchor, other slot, index int) (*diskAnchor, error) {
	v := good.Sequence
	switch {
	case other.highest > v+1:
	case other.highest > 0 && other.lowest < v:
		return good, nil // its successor never got as far as here
	case v == 1 && other.bad == 0:
		return good, nil // the first anchor after Format's
	case other.mixed && other.lowest == v+1:
		return good, nil
	}
	return nil, &CorruptError{Offset: int64(index) * slotSize, Reason: fmt.Sprintf("anchor is damaged and may be newer than the one left (sequence %d)", v)}
}

func readSlots(f File) (*diskAnchor, error) {
	var slots [2]slot
	buf := make([]byte, slotSize)
	for i := range slots {
		if n, err := f.ReadAt(buf, int64(i)*slotSize); n < slotSize {
			return nil, fmt.Errorf("read anchor %d: %w", i, err)
		}
		slots[i] = parseSlot(buf, i)
	}
	return pickAnchor(slots)
}

// ReadAnchor returns the newest anchor in f without changing anything. ErrNoAnchor when the file never was a
// journal; *CorruptError when the newest anchor cannot be read, or cannot be known to be the newest.
func ReadAnchor(f File) (Anchor, error) {
	size, err := f.Size()
	if err != nil {
		return Anchor{}, fmt.Errorf("size of journal: %w", err)
	}
	if size < ringStart {
		return Anchor{}, fmt.Errorf("%w: %w: %d bytes", ErrNoAnchor, ErrTooSmall, size)
	}
	d, err := readSlots(f)
	if err != nil {
		return Anchor{}, err
	}
	return d.Anchor, nil
}

// writeSlot makes d durable in its slot. d has passed check.
func writeSlot(f File, d *diskAnchor) error {
	if _, err := f.WriteAt(d.encode(), slotOffset(d.Sequence)); err != nil {
		return fmt.Errorf("write anchor: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync anchor: %w", err)
	}
	return nil
}
