package mirror

import (
	"sync"

	"mirror-agent/blockdev"
)

// shadowFile takes writes in memory: opening a journal recovers it, and looking must not change it.
type shadowFile struct {
	*blockdev.File
	mu     sync.Mutex
	blocks map[int64][]byte // by number, shadowBlock bytes each
}

const shadowBlock = 4096

func (s *shadowFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.File.ReadAt(p, off)
	if err != nil {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.each(off, len(p), func(b, from, at, n int64) error {
		if block := s.blocks[b]; block != nil {
			copy(p[at:at+n], block[from:])
		}
		return nil
	})
	return n, nil
}

// WriteAt keeps p in memory.
func (s *shadowFile) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.each(off, len(p), func(b, from, at, n int64) error {
		block := s.blocks[b]
		if block == nil {
			block = make([]byte, shadowBlock)
			size, err := s.Size()
			if err == nil {
				_, err = s.File.ReadAt(block[:min(shadowBlock, size-b*shadowBlock)], b*shadowBlock)
			}
			if err != nil {
				return err
			}
			s.blocks[b] = block
		}
		copy(block[from:], p[at:at+n])
		return nil
	})
	return len(p), err
}

// WritevAt keeps bufs in memory.
func (s *shadowFile) WritevAt(bufs [][]byte, off int64) (n int, err error) {
	for _, b := range bufs {
		m, err := s.WriteAt(b, off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// each calls fn for the blocks of an extent: block number, where in the block, where in the extent, how many bytes.
func (s *shadowFile) each(off int64, length int, fn func(b, from, at, n int64) error) error {
	for at := int64(0); at < int64(length); {
		b, from := (off+at)/shadowBlock, (off+at)%shadowBlock
		n := min(shadowBlock-from, int64(length)-at)
		if err := fn(b, from, at, n); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// Sync does nothing: nothing was written.
func (s *shadowFile) Sync() error { return nil }

// Close leaves the file to who opened it.
func (s *shadowFile) Close() error { return nil }
