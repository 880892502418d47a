package blockdev

import (
	"errors"
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/backend"
)

// FromBackend makes a Device of any go-nbd backend. Zero and Trim write zeroes. The size is asked for at every call, and
// nothing out of range and nothing empty reaches the backend: some of go-nbd's grow or lock up then. Close closes the backend when it is an
// io.Closer. A backend that is a Device already is returned as it is.
func FromBackend(b backend.Backend) Device {
	if d, ok := b.(Device); ok {
		return d
	}
	return &fromBackend{b}
}

type fromBackend struct{ b backend.Backend }

func (d *fromBackend) check(off, length int64) error {
	size, err := d.b.Size()
	if err != nil {
		return fmt.Errorf("size of the backend: %w", err)
	}
	return CheckRange(off, length, size)
}

func (d *fromBackend) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := d.b.ReadAt(p, off)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (d *fromBackend) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := d.b.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (d *fromBackend) Zero(off, length int64) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	for length > 0 {
		n, err := d.WriteAt(zeroes[:min(length, int64(len(zeroes)))], off)
		if err != nil {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

func (d *fromBackend) Trim(off, length int64) error { return d.Zero(off, length) }

func (d *fromBackend) Size() (int64, error) { return d.b.Size() }

func (d *fromBackend) Sync() error { return d.b.Sync() }

func (d *fromBackend) Close() error {
	if c, ok := d.b.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
