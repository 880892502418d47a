package mirror

import (
	"github.com/RoaringBitmap/roaring/v2"

	"mirror-agent/journal"
)

// dirtySet is a set of blocks of a device: those that a follower may lack.
//
// A bit stands for 4 KiB as long as that makes at most 64 Mi blocks (256 GiB
// of device), for 8, 16, 32 or 64 KiB beyond that. So a set takes 8 MiB of
// memory at most up to 4 TiB of device, and 2 MiB more for each TiB beyond;
// one with few or adjoining blocks a few bytes for each run of them.
//
// Not for concurrent use.
type dirtySet struct {
	size  int64 // of the device, bytes
	block int64 // bytes that a bit stands for
	bits  *roaring.Bitmap
}

const (
	minDirtyBlock = 4 << 10
	maxDirtyBlock = 64 << 10
	dirtyBlocks   = 64 << 20 // wanted at most
)

// dirtyBlockBytes is what a bit stands for on a device of size bytes.
func dirtyBlockBytes(size int64) int64 {
	b := int64(minDirtyBlock)
	for b < maxDirtyBlock && (size+b-1)/b > dirtyBlocks {
		b *= 2
	}
	return b
}

func newDirtySet(size int64) *dirtySet {
	return &dirtySet{size: size, block: dirtyBlockBytes(size), bits: roaring.New()}
}

// blocks is how many the device has.
func (d *dirtySet) blocks() int64 { return (d.size + d.block - 1) / d.block }

// mark adds every block that [off, off+length) touches; what lies outside of
// the device is left out.
func (d *dirtySet) mark(off, length int64) {
	end := min(off+length, d.size)
	if off < 0 || off >= end {
		return
	}
	d.bits.AddRange(uint64(off/d.block), uint64((end+d.block-1)/d.block))
}

// after adds what a record of the log changes and returns the set, another
// one when the device has grown by it.
func (d *dirtySet) after(r journal.Record) *dirtySet {
	switch {
	case changes(r.Op):
		d.mark(int64(r.Offset), int64(r.Length))
	case r.Op == journal.OpResize && int64(r.Offset) > d.size:
		return d.cloneFor(int64(r.Offset))
	}
	return d
}

// each calls fn for every run of adjoining dirty bytes, in order.
func (d *dirtySet) each(fn func(off, end int64) error) error {
	// Not NextAbsentValue, which in v2.30.0 is wrong beyond the first 64 Ki.
	for first, next := range d.bits.Ranges() {
		if err := fn(int64(first)*d.block, min(int64(next)*d.block, d.size)); err != nil {
			return err
		}
	}
	return nil
}

// bytes of the device that the set covers.
func (d *dirtySet) bytes() int64 {
	n := int64(d.bits.GetCardinality()) * d.block
	if last := d.blocks() - 1; last >= 0 && d.bits.Contains(uint32(last)) {
		n -= d.blocks()*d.block - d.size
	}
	return n
}

// cloneFor copies the set for a device that has size bytes by now, never
// less than before.
func (d *dirtySet) cloneFor(size int64) *dirtySet {
	c := newDirtySet(max(size, d.size))
	if c.block == d.block {
		c.bits = d.bits.Clone()
		return c
	}
	for first, next := range d.bits.Ranges() {
		c.mark(int64(first)*d.block, (int64(next)-int64(first))*d.block)
	}
	return c
}
