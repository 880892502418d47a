package blockdev

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Memory is a sparse device in memory. It implements Device, VectorWriter, BatchWriter and DataFinder.
//
// With a Power it behaves like a disk with a volatile cache: reads see every write at once, but only what was synced is
// sure to be there after the power was cut (Power.Restore). Close has no effect on a Memory: like a disk it stays what it
// is and can be opened again by whoever holds it.
type Memory struct {
	size  atomic.Int64
	power *Power

	mu       sync.RWMutex // taken after power.mu; guards what follows
	now      image        // what reads see
	durable  image        // what survives for sure; unused without a power
	unsynced []change     // since the last Sync, in order; unused without a power
}

// change is a write, or with nil data a zero or trim, that is not yet durable.
type change struct {
	off, length int64
	data        []byte
}

// NewMemory returns a device of size bytes, all zeroes, fed by p; nil is a power that never fails.
func NewMemory(size int64, p *Power) *Memory {
	if size < 0 {
		panic(fmt.Sprintf("blockdev: memory of %d bytes", size))
	}
	m := &Memory{power: p, now: image{}, durable: image{}}
	m.size.Store(size)
	if p != nil {
		p.add(m)
	}
	return m
}

// Size returns the size in bytes.
func (m *Memory) Size() (int64, error) { return m.size.Load(), nil }

// Grow makes the device larger, which no cut of the power undoes; what is new reads as zeroes.
func (m *Memory) Grow(size int64) (int64, error) {
	for {
		old := m.size.Load()
		if old >= size || m.size.CompareAndSwap(old, size) {
			return max(old, size), nil
		}
	}
}

// ReadAt reads len(p) bytes at off or returns an error.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange(off, int64(len(p)), m.size.Load()); err != nil {
		return 0, err
	}
	if m.power != nil && m.power.lost.Load() {
		return 0, ErrPowerLost
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.now.read(p, off)
	return len(p), nil
}

// WriteAt writes len(p) bytes at off or returns an error.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.change(off, int64(len(p)), func() []byte { return p }); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WritevAt writes the buffers one after the other from off on; for a power cut they are one write.
func (m *Memory) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := sizeOf(bufs)
	joined := func() []byte {
		p := make([]byte, 0, total)
		for _, b := range bufs {
			p = append(p, b...)
		}
		return p
	}
	if err := m.change(off, total, joined); err != nil {
		return 0, err
	}
	return int(total), nil
}

// WriteBatch runs a group in order and syncs once when a member asks for it.
func (m *Memory) WriteBatch(ws []Write) { applyEach(m, ws) }

// Zero makes the range read as zeroes.
func (m *Memory) Zero(off, length int64) error {
	return m.change(off, length, func() []byte { return nil })
}

// Trim makes the range read as zeroes; whole pages are given back.
func (m *Memory) Trim(off, length int64) error {
	return m.change(off, length, func() []byte { return nil })
}

// ZeroFast is Trim or Zero: both are fast.
func (m *Memory) ZeroFast(off, length int64, hole bool) error {
	if hole {
		return m.Trim(off, length)
	}
	return m.Zero(off, length)
}

// Prefetch has nothing to do.
func (m *Memory) Prefetch(off, length int64) error { return CheckRange(off, length, m.size.Load()) }

// change applies one write (or zeroes when data returns nil) of length bytes.
func (m *Memory) change(off, length int64, data func() []byte) error {
	if err := CheckRange(off, length, m.size.Load()); err != nil {
		return err
	}
	if m.power == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now.apply(change{off, length, data()})
		return nil
	}
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	alive, err := m.power.op()
	if !alive {
		return err
	}
	c := change{off, length, data()}
	if c.data != nil {
		c.data = append(make([]byte, 0, length), c.data...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsynced = append(m.unsynced, c) // also of the operation that the cut hits: any part of it may survive
	if err == nil {
		m.now.apply(c)
	}
	return err
}

// Sync makes everything written so far survive a cut.
func (m *Memory) Sync() error {
	if m.power == nil {
		return nil
	}
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	if _, err := m.power.op(); err != nil {
		return err // what it would have saved may survive in part
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.unsynced {
		m.durable.apply(c)
	}
	m.unsynced = nil
	return nil
}

// Close does nothing; see the type.
func (m *Memory) Close() error { return nil }

// NextData returns the next run of pages that were written to.
func (m *Memory) NextData(off int64) (start, end int64, err error) {
	if err := CheckRange(off, 0, m.size.Load()); err != nil {
		return 0, 0, err
	}
	if m.power != nil && m.power.lost.Load() {
		return 0, 0, ErrPowerLost
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off == m.size.Load() {
		return 0, 0, io.EOF
	}
	last := (m.size.Load() + pageBytes - 1) / pageBytes
	first := off / pageBytes
	for first < last && m.now[first] == nil {
		first++
	}
	if first >= last {
		return 0, 0, io.EOF
	}
	next := first + 1
	for next < last && m.now[next] != nil {
		next++
	}
	return max(off, first*pageBytes), min(next*pageBytes, m.size.Load()), nil
}

// restore is what is left after the power was cut: the durable bytes and a part of the unsynced changes.
func (m *Memory) restore(rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep := survivors(rng, len(m.unsynced))
	for i, c := range m.unsynced {
		for at := c.off; at < c.off+c.length; {
			next := min(at-at%sectorBytes+sectorBytes, c.off+c.length)
			if keep(i, (at-c.off)/sectorBytes, (c.length+sectorBytes-1)/sectorBytes) {
				m.durable.apply(c.part(at, next))
			}
			at = next
		}
	}
	m.unsynced = nil
	m.now = m.durable.clone()
}

// part returns the piece [from, to) of the device that the change covers.
func (c change) part(from, to int64) change {
	p := change{off: from, length: to - from}
	if c.data != nil {
		p.data = c.data[from-c.off : to-c.off]
	}
	return p
}

// image is the bytes of a device by page; a page that is missing is zeroes.
type image map[int64][]byte

const pageBytes = 64 << 10

func (im image) read(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageBytes
		n := min(int64(len(p)), pageBytes-at)
		if page := im[off/pageBytes]; page != nil {
			copy(p[:n], page[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (im image) apply(c change) {
	off, end, data := c.off, c.off+c.length, c.data
	for off < end {
		at := off % pageBytes
		n := min(end-off, pageBytes-at)
		page := im[off/pageBytes]
		switch {
		case c.data != nil:
			if page == nil {
				page = make([]byte, pageBytes)
				im[off/pageBytes] = page
			}
			copy(page[at:], data[:n])
			data = data[n:]
		case n == pageBytes:
			delete(im, off/pageBytes)
		case page != nil:
			clear(page[at : at+n])
		}
		off += n
	}
}

func (im image) clone() image {
	c := make(image, len(im))
	for i, page := range im {
		c[i] = append([]byte(nil), page...)
	}
	return c
}
