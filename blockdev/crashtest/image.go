package crashtest

import (
	"io"
	"sync"

	"github.com/cespare/xxhash/v2"
)

const (
	pageBytes = 4096
	// SectorBytes is what a disk writes wholly or not at all.
	SectorBytes = 512
)

// page is shared by images and never changes while it is. A nil page is zeroes.
type page struct {
	data []byte
	hash uint64
}

func hashPage(data []byte, disk, index int) uint64 {
	zero := true
	for _, c := range data {
		if c != 0 {
			zero = false
			break
		}
	}
	if zero {
		return 0 // as a page that was never written
	}
	return xxhash.Sum64(data)*0x9e3779b97f4a7c15 ^ uint64(index+1)*0xbf58476d1ce4e5b9 ^ uint64(disk)<<56
}

var buffers = sync.Pool{New: func() any { b := make([]byte, pageBytes); return &b }}

// Image is the content of a disk that nobody records: pages shared with others until they are written. It is a device
// and a journal's file. Sync and Close do nothing. Its methods may be called concurrently.
type Image struct {
	size int64

	mu    sync.RWMutex // guards what follows
	pages []*page
	own   map[int]*[]byte // pages of this image alone
}

func newImage(size int64) *Image {
	return &Image{size: size, pages: make([]*page, (size+pageBytes-1)/pageBytes), own: map[int]*[]byte{}}
}

// share makes im the image of these pages and gives back what it owned.
func (im *Image) share(pages []*page) {
	for i, b := range im.own {
		buffers.Put(b)
		delete(im.own, i)
	}
	copy(im.pages, pages)
}

// Rollback takes back everything that was written since the image was made.
func (im *Image) Rollback() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.share(im.pages)
}

// freeze returns the pages as they are, for others to share.
func (im *Image) freeze(disk int) []*page {
	im.mu.Lock()
	defer im.mu.Unlock()
	for i, b := range im.own {
		im.pages[i] = &page{data: *b, hash: hashPage(*b, disk, i)}
		delete(im.own, i)
	}
	return append([]*page(nil), im.pages...)
}

// sum identifies the content; base is the sum of the pages that were shared.
func (im *Image) sum(disk int, base uint64) uint64 {
	for i, b := range im.own {
		if p := im.pages[i]; p != nil {
			base ^= p.hash
		}
		base ^= hashPage(*b, disk, i)
	}
	return base
}

// at returns page i to read, or nil.
func (im *Image) at(i int) []byte {
	if b, ok := im.own[i]; ok {
		return *b
	}
	if p := im.pages[i]; p != nil {
		return p.data
	}
	return nil
}

// writable returns page i to write.
func (im *Image) writable(i int) []byte {
	if b, ok := im.own[i]; ok {
		return *b
	}
	b := buffers.Get().(*[]byte)
	if p := im.pages[i]; p != nil {
		copy(*b, p.data)
	} else {
		clear(*b)
	}
	im.own[i] = b
	return *b
}

// put writes data, or with nil data zeroes, to [off, off+length).
func (im *Image) put(data []byte, off, length int64) {
	for length > 0 {
		i, in := int(off/pageBytes), off%pageBytes
		n := min(length, pageBytes-in)
		switch {
		case data != nil:
			copy(im.writable(i)[in:], data[:n])
			data = data[n:]
		case im.at(i) != nil:
			clear(im.writable(i)[in : in+n])
		}
		off, length = off+n, length-n
	}
}

// ReadAt reads len(p) bytes at off, or up to the end and io.EOF.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > im.size {
		return 0, io.EOF
	}
	short := off+int64(len(p)) > im.size
	p = p[:min(int64(len(p)), im.size-off)]
	n := len(p)
	im.mu.RLock()
	defer im.mu.RUnlock()
	for len(p) > 0 {
		i, in := int(off/pageBytes), off%pageBytes
		m := int(min(int64(len(p)), pageBytes-in))
		if b := im.at(i); b != nil {
			copy(p[:m], b[in:])
		} else {
			clear(p[:m])
		}
		p, off = p[m:], off+int64(m)
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

func (im *Image) change(data []byte, off, length int64) error {
	if off < 0 || length < 0 || off+length > im.size {
		return io.ErrShortWrite
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.put(data, off, length)
	return nil
}

// WriteAt writes p at off.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	if err := im.change(p, off, int64(len(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WritevAt writes the buffers one after the other.
func (im *Image) WritevAt(bufs [][]byte, off int64) (int, error) {
	return im.WriteAt(join(bufs), off)
}

// Zero makes the range read as zeroes.
func (im *Image) Zero(off, length int64) error { return im.change(nil, off, length) }

// Trim makes the range read as zeroes.
func (im *Image) Trim(off, length int64) error { return im.change(nil, off, length) }

// NextData returns the next pages at or after off that were ever written; io.EOF when there are none.
func (im *Image) NextData(off int64) (start, end int64, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	i := int(off / pageBytes)
	for i < len(im.pages) && im.at(i) == nil {
		i++
	}
	if i >= len(im.pages) {
		return 0, 0, io.EOF
	}
	j := i
	for j < len(im.pages) && im.at(j) != nil {
		j++
	}
	return max(off, int64(i)*pageBytes), min(int64(j)*pageBytes, im.size), nil
}

// Sync does nothing.
func (im *Image) Sync() error { return nil }

// Size returns the size in bytes.
func (im *Image) Size() (int64, error) { return im.size, nil }

// Close does nothing: the image can be opened again.
func (im *Image) Close() error { return nil }

func join(bufs [][]byte) []byte {
	var p []byte
	for _, b := range bufs {
		p = append(p, b...)
	}
	return p
}
