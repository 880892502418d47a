package journal

import (
	"fmt"
	"io"
	"sync"
)

const (
	slotSize  = 4096
	ringStart = 2 * slotSize
	minRing   = 1 << 20
	ringUnit  = 4096

	// MinSize is the smallest journal file: two anchors and a ring of 1 MiB.
	MinSize = ringStart + minRing
	// Reserve is the part of the ring that only control records (checkpoint, generation, resize) may use, bytes.
	Reserve = 64 << 10

	maxVectors  = 1024 // IOV_MAX
	gatherBytes = 1 << 20
)

// File is what the log lives in. Its methods may be called concurrently. Sync is fdatasync: everything written
// before the call is durable when it returns nil.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() (int64, error)
	Close() error
}

// vectorWriter is what a File may have besides: pwritev.
type vectorWriter interface {
	WritevAt(bufs [][]byte, off int64) (int, error)
}

// ring maps LSNs to the file: position = LSN mod size, after the two anchors.
type ring struct {
	f      File
	v      vectorWriter // nil when f has none
	size   int64
	gather []byte // leader only; for files without vectors
}

func newRing(f File, size int64) ring {
	v, _ := f.(vectorWriter)
	return ring{f: f, v: v, size: size}
}

// ringFor is the ring that a file of this size holds.
func ringFor(fileSize int64) (int64, error) {
	if fileSize < MinSize {
		return 0, fmt.Errorf("%w: %d bytes, at least %d are needed", ErrTooSmall, fileSize, MinSize)
	}
	return (fileSize - ringStart) / ringUnit * ringUnit, nil
}

func (r *ring) position(at LSN) int64 { return int64(uint64(at) % uint64(r.size)) }
func (r *ring) offset(at LSN) int64   { return ringStart + r.position(at) }

// read fills p, at most one ring long, with the bytes at at.
func (r *ring) read(p []byte, at LSN) error {
	for len(p) > 0 {
		pos := r.position(at)
		n := int(min(int64(len(p)), r.size-pos))
		if m, err := r.f.ReadAt(p[:n], ringStart+pos); m < n {
			return fmt.Errorf("read journal at LSN %d: %w", at, err)
		}
		p, at = p[n:], at+LSN(n)
	}
	return nil
}

// write puts p, at most one ring long, at at.
func (r *ring) write(p []byte, at LSN) error {
	for len(p) > 0 {
		pos := r.position(at)
		n := int(min(int64(len(p)), r.size-pos))
		if _, err := r.f.WriteAt(p[:n], ringStart+pos); err != nil {
			return fmt.Errorf("write journal at LSN %d: %w", at, err)
		}
		p, at = p[n:], at+LSN(n)
	}
	return nil
}

// writev writes vectors that lie one after the other at the file offset and do not wrap.
func (r *ring) writev(bufs [][]byte, off int64) error {
	if r.v == nil {
		return r.writeGathered(bufs, off)
	}
	for len(bufs) > 0 {
		part := bufs[:min(len(bufs), maxVectors)]
		bufs = bufs[len(part):]
		want := 0
		for _, b := range part {
			want += len(b)
		}
		n, err := r.v.WritevAt(part, off)
		if err == nil && n < want {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		off += int64(want)
	}
	return nil
}

func (r *ring) writeGathered(bufs [][]byte, off int64) error {
	flush := func() error {
		if len(r.gather) == 0 {
			return nil
		}
		_, err := r.f.WriteAt(r.gather, off)
		off += int64(len(r.gather))
		r.gather = r.gather[:0]
		return err
	}
	r.gather = r.gather[:0]
	for _, b := range bufs {
		if len(r.gather)+len(b) > gatherBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		r.gather = append(r.gather, b...)
	}
	return flush()
}

// window reads the ring forwards through one buffer. Its bytes are a snapshot: whoever uses it checks afterwards
// that they were not recycled.
type window struct {
	read   func(p []byte, at LSN) error
	memory *[scanBytes]byte
	buf    []byte // capacity: how much is read at once
	at     LSN    // of buf[0]
}

// windows keeps buffers of scanBytes.
var windows = sync.Pool{New: func() any { return new([scanBytes]byte) }}

// newWindow reads windowBytes, at most scanBytes, at once. free gives its memory back.
func newWindow(r *ring, windowBytes int) window {
	m := windows.Get().(*[scanBytes]byte)
	n := min(int64(windowBytes), r.size, scanBytes)
	return window{read: r.read, memory: m, buf: m[:0:n]}
}

func (w *window) free() { windows.Put(w.memory) }

// get returns n bytes at at, valid until the next call. It reads ahead, up to end (which is ≥ at+n).
func (w *window) get(at LSN, n int, end LSN) ([]byte, error) {
	if at >= w.at && at+LSN(n) <= w.at+LSN(len(w.buf)) {
		i := int(at - w.at)
		return w.buf[i : i+n], nil
	}
	w.at = at
	w.buf = w.buf[:min(max(int(min(end-at, LSN(cap(w.buf)))), n), cap(w.buf))]
	if err := w.read(w.buf, at); err != nil {
		w.buf = w.buf[:0]
		return nil, err
	}
	return w.buf[:n], nil
}
