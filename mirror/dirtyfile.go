package mirror

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/cespare/xxhash/v2"

	"mirror-agent/journal"
)

// A bitmap file holds the dirty sets of all followers that the log does not
// reach back to any more. Integers are little endian.
//
//	 0 "MADB"   4 format u32 (1)   8 version u64   16 mirror 16
//	32 device size u64   40 block bytes u32   44 sets u32   48 length of all u64
//	56 the sets, then xxh64 of all before it
//	a set:  id 16 │ generation 16 │ base u64 │ chain u64 │ up to u64 │ length u64 │ roaring bitmap, portable format
//
// A set has every block that the records in [base, up to) changed. chain is
// the log's chain value at base, generation the one whose records lie before
// it. The anchor names version and checksum of the file that counts.
type dirtyFile struct {
	version uint64
	mirror  [16]byte
	size    int64
	sets    []dirtyFileSet
}

type dirtyFileSet struct {
	id, generation [16]byte
	base, upTo     journal.LSN
	chain          uint64
	set            *dirtySet
}

const (
	dirtyMagic       = "MADB"
	dirtyFormat      = 1
	dirtyHeaderBytes = 56
	dirtySetBytes    = 64
	maxFollowers     = 8 // that the anchor has room for
)

var errDirtyFile = errors.New("mirror: not a valid bitmap file")

// maxDirtyFile bounds the file for a device of size bytes.
func maxDirtyFile(size int64) int64 {
	// Roaring is never larger than two bytes for each block, and never much
	// larger than a plain bitmap.
	blocks := (size + dirtyBlockBytes(size) - 1) / dirtyBlockBytes(size)
	return dirtyHeaderBytes + 8 + maxFollowers*(dirtySetBytes+blocks/4+64<<10)
}

func (d *dirtyFile) encode() (_ []byte, sum uint64, err error) {
	b := append(make([]byte, 0, 4096), dirtyMagic...)
	le := binary.LittleEndian
	b = le.AppendUint32(b, dirtyFormat)
	b = le.AppendUint64(b, d.version)
	b = append(b, d.mirror[:]...)
	b = le.AppendUint64(b, uint64(d.size))
	b = le.AppendUint32(b, uint32(dirtyBlockBytes(d.size)))
	b = le.AppendUint32(b, uint32(len(d.sets)))
	b = le.AppendUint64(b, 0)
	for _, s := range d.sets {
		raw, err := s.set.bits.ToBytes()
		if err != nil {
			return nil, 0, err
		}
		b = append(append(b, s.id[:]...), s.generation[:]...)
		for _, v := range [...]uint64{uint64(s.base), s.chain, uint64(s.upTo), uint64(len(raw))} {
			b = le.AppendUint64(b, v)
		}
		b = append(b, raw...)
	}
	le.PutUint64(b[48:], uint64(len(b)+8))
	sum = xxhash.Sum64(b)
	return le.AppendUint64(b, sum), sum, nil
}

// decodeDirtyFile checks everything; what follows the file's own length is
// not looked at. size is that of the device.
func decodeDirtyFile(b []byte, size int64) (_ *dirtyFile, sum uint64, err error) {
	bad := func(what string) (*dirtyFile, uint64, error) {
		return nil, 0, fmt.Errorf("%w: %s", errDirtyFile, what)
	}
	le := binary.LittleEndian
	if len(b) < dirtyHeaderBytes+8 || string(b[:4]) != dirtyMagic {
		return bad("no header")
	}
	if f := le.Uint32(b[4:]); f != dirtyFormat {
		return bad(fmt.Sprintf("format %d", f))
	}
	total := le.Uint64(b[48:])
	if total < dirtyHeaderBytes+8 || total > uint64(len(b)) {
		return bad("cut short")
	}
	b = b[:total]
	body := b[:total-8]
	if sum = xxhash.Sum64(body); sum != le.Uint64(b[total-8:]) {
		return bad("checksum")
	}
	d := &dirtyFile{version: le.Uint64(b[8:]), size: int64(le.Uint64(b[32:]))}
	copy(d.mirror[:], b[16:])
	if d.size <= 0 || d.size > size || int64(le.Uint32(b[40:])) != dirtyBlockBytes(d.size) { // it may have grown since
		return bad("of another device")
	}
	n := le.Uint32(b[44:])
	if n > maxFollowers {
		return bad("too many sets")
	}
	rest := body[dirtyHeaderBytes:]
	for range n {
		if len(rest) < dirtySetBytes {
			return bad("cut short")
		}
		s := dirtyFileSet{base: journal.LSN(le.Uint64(rest[32:])), chain: le.Uint64(rest[40:]), upTo: journal.LSN(le.Uint64(rest[48:]))}
		copy(s.id[:], rest)
		copy(s.generation[:], rest[16:])
		length := le.Uint64(rest[56:])
		rest = rest[dirtySetBytes:]
		if length > uint64(len(rest)) || s.base > s.upTo {
			return bad("fields")
		}
		if s.set, err = decodeDirtySet(rest[:length], d.size); err != nil {
			return nil, 0, err
		}
		rest = rest[length:]
		d.sets = append(d.sets, s)
	}
	if len(rest) > 0 {
		return bad("fields")
	}
	return d, sum, nil
}

func decodeDirtySet(raw []byte, size int64) (*dirtySet, error) {
	set := newDirtySet(size)
	bits, err := decodeBits(raw, set.blocks())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDirtyFile, err)
	}
	set.bits = bits
	return set, nil
}

// decodeBits reads a bitmap of numbers below limit that came from outside.
func decodeBits(raw []byte, limit int64) (*roaring.Bitmap, error) {
	bits := roaring.New()
	n, err := bits.ReadFrom(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if n != int64(len(raw)) {
		return nil, errors.New("bytes after the bitmap")
	}
	if bits.IsEmpty() {
		return bits, nil // which Validate takes for a defect
	}
	if err := bits.Validate(); err != nil {
		return nil, err
	}
	if int64(bits.Maximum()) >= limit {
		return nil, errors.New("a block beyond the device")
	}
	return bits, nil
}
