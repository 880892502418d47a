package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// A journal is resized by moving the log into a new file, JOURNAL.new, which takes the old one's name when it is complete
// (journal.MoveTo). One that an interrupted resize left behind is removed at the next start.

const newJournalSuffix = ".new"

// journalFile is the file that the journal's path leads to.
func (c *Config) journalFile() (string, error) { return filepath.EvalSymlinks(c.journalPath()) }

// removeStaleJournal removes what an interrupted resize left. The journal itself is locked by the caller.
func (c *Config) removeStaleJournal() error {
	path, err := c.journalFile()
	if err != nil {
		return err
	}
	st, err := os.Lstat(path + newJournalSuffix)
	if err != nil || !st.Mode().IsRegular() {
		return nil // nothing of ours
	}
	c.Log.Info().Str("mirror", c.Name).Str("journal", path+newJournalSuffix).Msg("removed what an interrupted resize of the log left behind")
	return os.Remove(path + newJournalSuffix)
}

// ResizeLog gives the log a file of so many bytes while it is in use. The new file has to fit beside the old one.
func (a *Agent) ResizeLog(ctx context.Context, bytes int64) error {
	if bytes < minJournalSize {
		return fmt.Errorf("log size %d: too small, the least is 16 MiB", bytes)
	}
	if !a.resizing.TryLock() {
		return errors.New("the log is being resized already: wait for the end of that")
	}
	defer a.resizing.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.tasks, cancel)() // the agent ends
	path, err := a.c.journalFile()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("the journal %s is a block device, and a log on one has the device's size: end the agent cleanly and start it with a --journal of another size, which takes a resync", path)
	}
	if st.Size() == bytes {
		return fmt.Errorf("the log has %s already", humanize.IBytes(uint64(bytes)))
	}
	a.mu.Lock()
	fenced := a.fenced != ""
	a.mu.Unlock()
	if fenced || a.v.heldByFork() {
		return errHeldByFork
	}
	if bytes < st.Size() && a.v.Role() == RoleSecondary && a.inboundLink() != nil {
		return errors.New("a source feeds this volume and counts on the size that its log has: `mirror-agent suspend` on the source first, or make it larger")
	}
	f, err := newJournal(path+newJournalSuffix, bytes, st)
	if err != nil {
		return err
	}
	before := a.v.log.Capacity()
	err = a.v.resizeLog(ctx, f, bytes, func() error { return takeName(path+newJournalSuffix, path) })
	if err != nil {
		if ctx.Err() != nil && a.tasks.Err() != nil {
			err = errors.New("the agent ended before the new log was complete; the old one stays")
		}
		err = errors.Join(err, f.Close())
		if !errors.Is(err, journal.ErrFailed) { // else nobody knows which name it has
			err = errors.Join(err, os.Remove(path+newJournalSuffix))
		}
		return err
	}
	a.event("log-resized", "", "the log's ring has %s now, it had %s", humanize.IBytes(uint64(a.v.log.Capacity())), humanize.IBytes(uint64(before)))
	return nil
}

var errHeldByFork = errors.New("the log is all that tells what only this host has: bring it back first (mirror-agent demote; status says how far that is), then resize")

// newJournal makes an empty file with the rights of the old one.
func newJournal(path string, bytes int64, old os.FileInfo) (*blockdev.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("new journal: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &fs); err != nil {
		return nil, fmt.Errorf("new journal: free space of %s: %w", filepath.Dir(path), err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < bytes {
		return nil, fmt.Errorf("the new log needs %s beside the old one, and the filesystem of %s has %s: make room, or choose a smaller size",
			humanize.IBytes(uint64(bytes)), path, humanize.IBytes(uint64(free)))
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{Create: true, Size: bytes, Preallocate: true})
	if err != nil {
		return nil, fmt.Errorf("new journal: %w", err)
	}
	err = os.Chmod(path, old.Mode().Perm())
	if owner, ok := old.Sys().(*syscall.Stat_t); ok && err == nil {
		err = os.Chown(path, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new journal: %w", err), f.Close(), os.Remove(path))
	}
	return f, nil
}

// takeName gives the file the name of another, durably.
func takeName(path, name string) error {
	if err := os.Rename(path, name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// shrinkTries is how often room is made for a smaller log before the writers are found too fast.
const shrinkTries = 10

// resizeLog moves the log to f. For a smaller one it first applies what it can and lets go of the history.
func (v *Volume) resizeLog(ctx context.Context, f journal.File, bytes int64, place func() error) error {
	defer func() { v.layerBytes.Store(layerBytesFor(v.log.Capacity())) }()
	var err error
	for range shrinkTries {
		if bytes < v.log.Capacity() {
			v.layerBytes.Store(layerBytesFor(bytes))
			if err := v.shedHistory(ctx); err != nil {
				return err
			}
		}
		if err = v.log.MoveTo(ctx, f, place); !errors.Is(err, journal.ErrTooSmall) {
			break
		}
	}
	if err != nil {
		if errors.Is(err, journal.ErrTooSmall) {
			err = fmt.Errorf("%w: what is not applied, or not yet with the target, must stay; wait for that, or choose a larger size", err)
		}
		return v.journalError(err)
	}
	v.changed() // who waits for room may have it
	v.poke()
	return nil
}

// shedHistory applies everything committed and moves the tail as far as it may go.
func (v *Volume) shedHistory(ctx context.Context) error {
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		return v.journalError(err)
	}
	v.overlay.freeze()
	v.settling.Store(true) // nor is anything retained
	defer v.settling.Store(false)
	if err := v.applyReady(ctx); err != nil {
		if d := (*deviceError)(nil); ctx.Err() != nil || errors.As(err, &d) && !d.sync { // else it is tried again
			return err
		}
		return v.applyError(err)
	}
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	limit, _ := v.pinned()
	if limit <= v.log.Tail() {
		return nil
	}
	chain, err := v.log.ChainAt(limit)
	if err != nil {
		return err
	}
	v.dirty.leave(limit, v.Committed(), v.History())
	err = v.log.WriteAnchor(func(a *journal.Anchor) {
		moveTail(a, limit, chain)
		v.fillAnchor(a)
	})
	v.changed()
	if err == nil && v.heldByFork() { // it was fenced meanwhile
		return errHeldByFork
	}
	return v.journalError(err)
}
