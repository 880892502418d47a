package mirror

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// dirtyStore keeps the two newest versions of the bitmap file.
type dirtyStore interface {
	// write returns when b is durable. The version before stays as it is.
	write(version uint64, b []byte) error
	// read returns what write was given, possibly with bytes after it, or
	// whatever else lies there: at most limit bytes.
	read(version uint64, limit int64) ([]byte, error)
}

// dirtyFiles is the store beside the journal: versions are written in turn to
// two files, so the one that the newest anchor names is never overwritten.
type dirtyFiles struct{ base string }

func (s dirtyFiles) path(version uint64) string { return fmt.Sprintf("%s.%d", s.base, version%2) }

func (s dirtyFiles) write(version uint64, b []byte) error {
	path := s.path(version)
	_, statErr := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil && statErr != nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func (s dirtyFiles) read(version uint64, limit int64) ([]byte, error) {
	f, err := os.Open(s.path(version))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// dirtyStore returns where the bitmaps of c's volume go, nil when there is no
// place: a follower that the log does not reach is then resynced in full.
func (c *Config) dirtyStore() dirtyStore {
	if path := c.beside(".dirty"); path != "" {
		return dirtyFiles{path}
	}
	return nil
}
