package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What lies beside the log (bitmaps, the members, a copy that is being built, exports) needs a directory that is there at the next
// start as well. That of the journal is one, or that of the device, where these are files. /dev is none: it is memory.

// defaultStateDir is used when journal and device are raw partitions and it is there, as the package's unit sees to. A variable
// for tests.
var defaultStateDir = "/var/lib/mirror-agent"

// stateDir is the directory that is not the journal's nor the device's: the one that was given or, when there is no other, the
// default; "" when what lies beside the log does so by name, or has no place.
func (c *Config) stateDir() string {
	if c.StateDir != "" || c.regular() != "" {
		return c.StateDir
	}
	if st, err := os.Stat(defaultStateDir); err == nil && st.IsDir() {
		return defaultStateDir
	}
	return ""
}

// regular is the journal, or the device when only that is a file; "" when neither is.
func (c *Config) regular() string {
	for _, path := range []string{c.journalPath(), c.Device} {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// beside is the path of what lies beside the log: called after the mirror in the state directory, after the journal or the device
// elsewhere. "": there is no place.
func (c *Config) beside(suffix string) string {
	if dir := c.stateDir(); dir != "" {
		return filepath.Join(dir, c.Name+suffix)
	}
	if path := c.regular(); path != "" {
		return path + suffix
	}
	return ""
}

func (c *Config) stagingPath() string { return c.beside(".staging") }

// errNoPlace is the way out where there is no place.
var errNoPlace = errors.New("journal and device are raw partitions: say --state-dir DIR, a directory on a disk (for a resync with as much space as the device), or make " + defaultStateDir)

// lockStateDir keeps other agents from using the same names in the state directory; nil when there is none.
func (c *Config) lockStateDir() (*os.File, error) {
	dir := c.stateDir()
	if dir == "" {
		return nil, nil //nolint:nilnil // nothing to lock
	}
	path := filepath.Join(dir, c.Name+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; say --state-dir with a directory that this user may write to", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another agent for a mirror called %q uses the state directory %s: give each its own --state-dir", c.Name, dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
