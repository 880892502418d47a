package blockdev

import (
	"errors"
	"io"
	"sync"
)

// Op is a kind of operation that a Rule matches.
type Op uint8

// The kinds. A WritevAt is one OpWrite.
const (
	OpAny Op = iota
	OpRead
	OpWrite
	OpZero
	OpTrim
	OpSync
)

var opNames = [...]string{"any", "read", "write", "zero", "trim", "sync"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "unknown"
}

// Rule makes operations of a Faulty device fail. It counts those of its Op that touch its range, from 1.
type Rule struct {
	// Op is what it is about; OpAny is everything.
	Op Op
	// Offset and Length, in bytes, narrow it to operations that touch this range; with Length 0 it is about all, and about
	// every Sync in any case.
	Offset, Length int64
	// Nth is the first operation it hits; 0 and 1 are the first.
	Nth int
	// Times is how many it hits; 0 is all from Nth on.
	Times int
	// Hook, when set, is called first, without any lock: it may wait. An error of it is the error of the operation.
	Hook func(op Op, off, length int64) error
	// Err, when set, is what the operation returns; the device below is not reached, but see Short.
	Err error
	// Short lets this many bytes of a write or read through before it fails, with io.ErrShortWrite or
	// io.ErrUnexpectedEOF when Err is not set.
	Short int
}

// Faulty is a device with rules. All rules count every operation; the first that hits decides. It implements
// VectorWriter and DataFinder, also when the device below does not.
type Faulty struct {
	d Device

	mu    sync.Mutex // guards rules
	rules []*counted
}

type counted struct {
	Rule
	seen int
}

// NewFaulty wraps d.
func NewFaulty(d Device, rules ...Rule) *Faulty {
	f := &Faulty{d: d}
	f.Set(rules...)
	return f
}

// Set replaces the rules; counting starts anew. None: the device works.
func (f *Faulty) Set(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
	for _, r := range rules {
		f.rules = append(f.rules, &counted{Rule: r})
	}
}

// hit returns the rule that decides about an operation, nil when it goes through, after running its hook.
func (f *Faulty) hit(op Op, off, length int64) (*Rule, error) {
	f.mu.Lock()
	var first *Rule
	for _, r := range f.rules {
		if !r.matches(op, off, length) {
			continue
		}
		r.seen++
		from := max(r.Nth, 1)
		if r.seen >= from && (r.Times == 0 || r.seen < from+r.Times) && first == nil {
			first = &r.Rule
		}
	}
	f.mu.Unlock()
	if first == nil {
		return nil, nil
	}
	if first.Hook != nil {
		if err := first.Hook(op, off, length); err != nil {
			return first, err
		}
	}
	return first, first.Err
}

func (r *Rule) matches(op Op, off, length int64) bool {
	if r.Op != OpAny && r.Op != op {
		return false
	}
	return r.Length == 0 || op == OpSync || off < r.Offset+r.Length && r.Offset < off+length
}

// Grow makes the device larger, where it can.
func (f *Faulty) Grow(size int64) (int64, error) {
	if g, ok := f.d.(Grower); ok {
		return g.Grow(size)
	}
	now, err := f.d.Size()
	if err == nil && now < size {
		err = errors.ErrUnsupported
	}
	return now, err
}

// ReadAt reads unless a rule hits.
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	r, err := f.hit(OpRead, off, int64(len(p)))
	if r == nil || err == nil && r.Short == 0 {
		return f.d.ReadAt(p, off)
	}
	n := 0
	if r.Short > 0 {
		n, _ = f.d.ReadAt(p[:min(r.Short, len(p))], off)
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// WriteAt writes unless a rule hits.
func (f *Faulty) WriteAt(p []byte, off int64) (int, error) {
	return f.WritevAt([][]byte{p}, off)
}

// WritevAt writes unless a rule hits.
func (f *Faulty) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := sizeOf(bufs)
	r, err := f.hit(OpWrite, off, total)
	if r == nil || err == nil && r.Short == 0 {
		return writev(f.d, bufs, off)
	}
	n := 0
	if r.Short > 0 {
		n, _ = writev(f.d, first(bufs, int64(r.Short)), off)
	}
	if err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

// first returns the first n bytes of bufs.
func first(bufs [][]byte, n int64) [][]byte {
	var some [][]byte
	for _, b := range bufs {
		take := min(n, int64(len(b)))
		some = append(some, b[:take])
		n -= take
	}
	return some
}

func writev(d Device, bufs [][]byte, off int64) (int, error) {
	if v, ok := d.(VectorWriter); ok && len(bufs) > 1 {
		return v.WritevAt(bufs, off)
	}
	done := 0
	for _, b := range bufs {
		n, err := d.WriteAt(b, off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Zero zeroes unless a rule hits.
func (f *Faulty) Zero(off, length int64) error {
	if _, err := f.hit(OpZero, off, length); err != nil {
		return err
	}
	return f.d.Zero(off, length)
}

// Trim trims unless a rule hits.
func (f *Faulty) Trim(off, length int64) error {
	if _, err := f.hit(OpTrim, off, length); err != nil {
		return err
	}
	return f.d.Trim(off, length)
}

// ZeroFast is a trim or zero of the device below unless a rule for that hits, and not supported when that has none.
func (f *Faulty) ZeroFast(off, length int64, hole bool) error {
	op := OpZero
	if hole {
		op = OpTrim
	}
	if _, err := f.hit(op, off, length); err != nil {
		return err
	}
	if fast, ok := f.d.(FastZeroer); ok {
		return fast.ZeroFast(off, length, hole)
	}
	return errors.ErrUnsupported
}

// Prefetch is that of the device below, if it has one.
func (f *Faulty) Prefetch(off, length int64) error {
	if p, ok := f.d.(Prefetcher); ok {
		return p.Prefetch(off, length)
	}
	return nil
}

// StartWriteback is that of the device below, if it has one.
func (f *Faulty) StartWriteback(off, length int64) error {
	if w, ok := f.d.(Writebacker); ok {
		return w.StartWriteback(off, length)
	}
	return nil
}

// Allocate is a write as far as rules go.
func (f *Faulty) Allocate(off, length int64) error {
	if _, err := f.hit(OpWrite, off, length); err != nil {
		return err
	}
	if a, ok := f.d.(Allocator); ok {
		return a.Allocate(off, length)
	}
	return nil
}

// DropCache is that of the device below, if it has a cache.
func (f *Faulty) DropCache(off, length int64) error {
	if c, ok := f.d.(CacheDropper); ok {
		return c.DropCache(off, length)
	}
	return nil
}

// ReadDirect reads unless a rule for reads hits, and is not supported when the device below has none.
func (f *Faulty) ReadDirect(p []byte, off int64) error {
	if _, err := f.hit(OpRead, off, int64(len(p))); err != nil {
		return err
	}
	if d, ok := f.d.(DirectReader); ok {
		return d.ReadDirect(p, off)
	}
	return errors.ErrUnsupported
}

// Sync syncs unless a rule hits.
func (f *Faulty) Sync() error {
	if _, err := f.hit(OpSync, 0, 0); err != nil {
		return err
	}
	return f.d.Sync()
}

// Size is that of the device below.
func (f *Faulty) Size() (int64, error) { return f.d.Size() }

// Close closes the device below.
func (f *Faulty) Close() error { return f.d.Close() }

// NextData is that of the device below; data all over when it has none.
func (f *Faulty) NextData(off int64) (start, end int64, err error) {
	if finder, ok := f.d.(DataFinder); ok {
		return finder.NextData(off)
	}
	size, err := f.d.Size()
	if err != nil {
		return 0, 0, err
	}
	if err := CheckRange(off, 0, size); err != nil {
		return 0, 0, err
	}
	if off == size {
		return 0, 0, io.EOF
	}
	return off, size, nil
}
