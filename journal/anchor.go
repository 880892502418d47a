package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// An anchor lies in one of two slots of 4096 bytes at the start of the file: an odd sequence in slot 0, an even one in
// slot 1, so that the newest complete one is never overwritten. A slot is eight sectors of 512 bytes, each sealed by
// itself:
//
//	  0               4          8                16                        504        512
//	+---------------+----------+----------------+-------------------------+----------+
//	| magic+sector  | version  |    sequence    |  488 bytes of content   |  xxh64   |
//	+---------------+----------+----------------+-------------------------+----------+
//
// Contents joined (3904 bytes; integers little endian; a string is its length, u8, and its bytes):
//
//	xxh64 of the rest u64 │ mirror 16 │ device size u64 │ ring size u64 │ role u8 │ clean u8 │ pending u8 │ 0 u8
//	state u32 │ tail, its chain │ applied, its chain │ durable │ pending cut LSN (u64 each)
//	seen: generation │ name string │ extra: length u16, bytes
//	n u8, generations: major u32, minor u32, id 16, first u64, chain u64
//	n u8, followers: name string, id 16, acked u64, flags u32, bitmap 2×u64
//	horizon u64 (0: not known, an anchor of an older version)
//	zeroes
//
// Why sectors are sealed one by one: a slot that does not verify is either an anchor that was being written when the
// power went, and then the other slot is the newest; or it is the newest and has rotted, and then the other slot is
// history: its tail may be recycled and its promise is too low. A torn slot still has a sealed sector of the sequence before, a rotten one
// has not, so the two are told apart (pickAnchor).
const (
	anchorMagic   = 0x41414d00 // low byte: number of the sector
	anchorVersion = 1
	sectorSize    = 512
	sectorContent = sectorSize - 24
	slotSectors   = slotSize / sectorSize
	contentSize   = slotSectors * sectorContent

	maxGenerations = 48
	maxFollowers   = 8
	maxName        = 64
	maxExtra       = 512
)

// Roles that the journal knows: in the log of a primary the promises in its own records count, in that of a secondary
// only the anchor's. Any other value is treated like a secondary's.
const (
	RolePrimary   uint8 = 1
	RoleSecondary uint8 = 2
)

// What Open has to finish before the log can be used.
const (
	pendingNone  uint8 = 0
	pendingCut   uint8 = 1 // drop what lies at or above cutAt
	pendingReset uint8 = 2 // forget everything in the ring
)

// Generation is one stretch of the mirror's history.
type Generation struct {
	Major, Minor uint32
	ID           [16]byte
	First        LSN    // where it starts
	Chain        uint64 // chain value at First
}

// Compare orders generations: major, minor, ID, first LSN.
func Compare(a, b Generation) int {
	return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor), bytes.Compare(a.ID[:], b.ID[:]), cmp.Compare(a.First, b.First))
}

// Follower is what the owner keeps about one of its followers.
type Follower struct {
	Name   string // ≤ 64 bytes
	ID     [16]byte
	Acked  LSN
	Flags  uint32
	Bitmap [2]uint64
}

// Anchor is the state that lies outside the log: where it starts, what is applied and promised, and the owner's own.
type Anchor struct {
	Mirror     [16]byte
	Name       string // ≤ 64 bytes
	DeviceSize int64  // bytes
	Role       uint8
	State      uint32 // the owner's

	Tail         LSN // oldest record kept; space below it is free once the anchor is durable
	TailChain    uint64
	Applied      LSN // in the backing device and fdatasynced there
	AppliedChain uint64
	Durable      LSN // the promise: filled in by the journal

	Seen        Generation   // highest generation seen, for fencing
	Generations []Generation // newest last; the newest 48 are kept
	Followers   []Follower   // at most 8
	Extra       []byte       // the owner's, ≤ 512 bytes
	Clean       bool         // a clean end: everything is applied
	Sequence    uint64       // set by the journal
}

func (a Anchor) clone() Anchor {
	a.Generations = slices.Clone(a.Generations)
	a.Followers = slices.Clone(a.Followers)
	a.Extra = slices.Clone(a.Extra)
	return a
}

// firstOfNewest is where the newest generation starts.
func (a *Anchor) firstOfNewest() LSN {
	if n := len(a.Generations); n > 0 {
		return a.Generations[n-1].First
	}
	return 0
}

// diskAnchor is an anchor with what only the journal knows.
type diskAnchor struct {
	Anchor
	ringSize int64
	pending  uint8
	cutAt    LSN
	horizon  LSN // no record was written that ends beyond it (horizon.go)
}

func (d *diskAnchor) clone() *diskAnchor {
	c := *d
	c.Anchor = d.Anchor.clone()
	return &c
}

// check drops generations that are too many and refuses what cannot be stored or is out of order.
func (d *diskAnchor) check() error {
	if n := len(d.Generations); n > maxGenerations {
		d.Generations = d.Generations[n-maxGenerations:]
	}
	switch {
	case len(d.Name) > maxName:
		return fmt.Errorf("%w anchor: name of %d bytes", ErrInvalid, len(d.Name))
	case len(d.Extra) > maxExtra:
		return fmt.Errorf("%w anchor: %d extra bytes", ErrInvalid, len(d.Extra))
	case len(d.Followers) > maxFollowers:
		return fmt.Errorf("%w anchor: %d followers", ErrInvalid, len(d.Followers))
	case d.DeviceSize < 0:
		return fmt.Errorf("%w anchor: device of %d bytes", ErrInvalid, d.DeviceSize)
	case d.Tail%8 != 0 || d.Applied%8 != 0 || d.Durable%8 != 0 || d.Durable > maxLSN/2:
		return fmt.Errorf("%w anchor: tail %d, applied %d, durable %d: not positions of a log", ErrInvalid, d.Tail, d.Applied, d.Durable)
	case d.Tail > d.Applied || d.Applied > d.Durable || uint64(d.Durable-d.Tail) > uint64(d.ringSize):
		return fmt.Errorf("%w anchor: tail %d, applied %d, durable %d in a ring of %d bytes", ErrInvalid, d.Tail, d.Applied, d.Durable, d.ringSize)
	case d.pending == pendingCut && (d.cutAt%8 != 0 || d.cutAt < d.Applied || uint64(d.cutAt-d.Tail) > uint64(d.ringSize)):
		return fmt.Errorf("%w anchor: cut at %d", ErrInvalid, d.cutAt)
	case d.horizon != 0 && (d.horizon < d.Durable || d.horizon > maxLSN):
		return fmt.Errorf("%w anchor: durable %d, horizon %d", ErrInvalid, d.Durable, d.horizon)
	case d.pending > pendingReset:
		return fmt.Errorf("%w anchor: pending %d", ErrInvalid, d.pending)
	}
	for _, f := range d.Followers {
		if len(f.Name) > maxName {
			return fmt.Errorf("%w anchor: follower's name of %d bytes", ErrInvalid, len(f.Name))
		}
	}
	return nil
}

func slotOffset(sequence uint64) int64 { return int64((sequence+1)%2) * slotSize }

// encode returns the slot's 4096 bytes. The anchor has passed check.
func (d *diskAnchor) encode() []byte {
	c := make([]byte, 8, contentSize)
	c = append(c, d.Mirror[:]...)
	c = le.AppendUint64(c, uint64(d.DeviceSize))
	c = le.AppendUint64(c, uint64(d.ringSize))
	c = append(c, d.Role, boolByte(d.Clean), d.pending, 0)
	c = le.AppendUint32(c, d.State)
	for _, v := range [...]uint64{uint64(d.Tail), d.TailChain, uint64(d.Applied), d.AppliedChain, uint64(d.Durable), uint64(d.cutAt)} {
		c = le.AppendUint64(c, v)
	}
	c = appendGeneration(c, d.Seen)
	c = append(append(c, byte(len(d.Name))), d.Name...)
	c = append(le.AppendUint16(c, uint16(len(d.Extra))), d.Extra...)
	c = append(c, byte(len(d.Generations)))
	for _, g := range d.Generations {
		c = appendGeneration(c, g)
	}
	c = append(c, byte(len(d.Followers)))
	for _, f := range d.Followers {
		c = append(append(c, byte(len(f.Name))), f.Name...)
		c = append(c, f.ID[:]...)
		c = le.AppendUint64(c, uint64(f.Acked))
		c = le.AppendUint32(c, f.Flags)
		c = le.AppendUint64(le.AppendUint64(c, f.Bitmap[0]), f.Bitmap[1])
	}
	c = le.AppendUint64(c, uint64(d.horizon))
	c = c[:contentSize]
	le.PutUint64(c, checksum(c[8:]))
	return seal(c, d.Sequence)
}

// seal spreads the content over eight sealed sectors.
func seal(content []byte, sequence uint64) []byte {
	slot := make([]byte, slotSize)
	for i := range slotSectors {
		s := slot[i*sectorSize:][:sectorSize]
		le.PutUint32(s, anchorMagic|uint32(i))
		le.PutUint32(s[4:], anchorVersion)
		le.PutUint64(s[8:], sequence)
		copy(s[16:504], content[i*sectorContent:])
		le.PutUint64(s[504:], checksum(s[:504]))
	}
	return slot
}

func appendGeneration(b []byte, g Generation) []byte {
	b = le.AppendUint32(le.AppendUint32(b, g.Major), g.Minor)
	b = append(b, g.ID[:]...)
	return le.AppendUint64(le.AppendUint64(b, uint64(g.First)), g.Chain)
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// decodeAnchor reads the joined content; it checks everything and never reads past it.
func decodeAnchor(c []byte, sequence uint64) (*diskAnchor, error) {
	if len(c) != contentSize || le.Uint64(c) != checksum(c[8:]) {
		return nil, fmt.Errorf("%w anchor: checksum", ErrInvalid)
	}
	r := fieldReader{b: c[8:]}
	d := &diskAnchor{}
	d.Sequence = sequence
	copy(d.Mirror[:], r.take(16))
	d.DeviceSize, d.ringSize = int64(r.u64()), int64(r.u64())
	flags := r.take(4)
	d.Role, d.Clean, d.pending = flags[0], flags[1] == 1, flags[2]
	d.State = r.u32()
	d.Tail, d.TailChain = LSN(r.u64()), r.u64()
	d.Applied, d.AppliedChain = LSN(r.u64()), r.u64()
	d.Durable, d.cutAt = LSN(r.u64()), LSN(r.u64())
	d.Seen = r.generation()
	d.Name = string(r.take(int(r.u8())))
	if n := int(r.u16()); n > 0 {
		d.Extra = slices.Clone(r.take(n))
	}
	for range min(r.u8(), maxGenerations+1) {
		d.Generations = append(d.Generations, r.generation())
	}
	for range min(r.u8(), maxFollowers+1) {
		f := Follower{Name: string(r.take(int(r.u8())))}
		copy(f.ID[:], r.take(16))
		f.Acked, f.Flags = LSN(r.u64()), r.u32()
		f.Bitmap = [2]uint64{r.u64(), r.u64()}
		d.Followers = append(d.Followers, f)
	}
	d.horizon = LSN(r.u64())
	if r.short || len(d.Generations) > maxGenerations || d.ringSize < minRing || d.ringSize%ringUnit != 0 || d.ringSize > int64(maxLSN) {
		return nil, fmt.Errorf("%w anchor: fields", ErrInvalid)
	}
	return d, d.check()
}

// fieldReader takes fields off b; past the end it yields zeroes and remembers.
type fieldReader struct {
	b     []byte
	short bool
}

func (r *fieldReader) take(n int) []byte {
	if n > len(r.b) {
		r.short = true
		return make([]byte, n)
	}
	t := r.b[:n]
	r.b = r.b[n:]
	return t
}

func (r *fieldReader) u8() uint8   { return r.take(1)[0] }
func (r *fieldReader) u16() uint16 { return le.Uint16(r.take(2)) }
func (r *fieldReader) u32() uint32 { return le.Uint32(r.take(4)) }
func (r *fieldReader) u64() uint64 { return le.Uint64(r.take(8)) }

func (r *fieldReader) generation() Generation {
	g := Generation{Major: r.u32(), Minor: r.u32()}
	copy(g.ID[:], r.take(16))
	g.First, g.Chain = LSN(r.u64()), r.u64()
	return g
}
