package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/google/uuid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// Opening a volume by its files. The journal's anchor says which mirror a
// volume belongs to; a device file bears the mirror's name beside that, so that
// a device is known also when its journal is not at hand (stamp.go).

// opened is a volume and what was found when it was opened.
type opened struct {
	v        *Volume
	fresh    bool // created now
	recovery *journal.Recovery
	undo     func() error // takes back what was created, once the volume is closed
}

func (c *Config) journalPath() string {
	if c.Journal != "" {
		return c.Journal
	}
	return c.Device + ".journal"
}

// openVolumeFiles opens the volume that c describes or, when there is none,
// creates it. A device or journal of another mirror is never touched.
func openVolumeFiles(ctx context.Context, c *Config) (*opened, error) {
	jpath := c.journalPath()
	if jpath == c.Device || sameFile(jpath, c.Device) {
		return nil, fmt.Errorf("%s: journal and device must be two files; choose another --journal", jpath)
	}
	st, err := os.Stat(jpath)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return createVolume(ctx, c)
	case err != nil:
		return nil, fmt.Errorf("journal: %w", err)
	case st.IsDir():
		return nil, fmt.Errorf("journal %s is a directory; choose another --journal", jpath)
	}
	jf, err := blockdev.OpenFile(jpath, blockdev.FileOptions{})
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := c.removeStaleJournal(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), jf.Close())
	}
	a, err := readAnchor(jf)
	if errors.Is(err, journal.ErrNoAnchor) && blankFile(jf) {
		if err := jf.Close(); err != nil {
			return nil, err
		}
		return createVolume(ctx, c)
	}
	if err != nil {
		return nil, errors.Join(noJournal(jpath, c.Device, err), jf.Close())
	}
	if err := c.fits(a); err != nil {
		return nil, errors.Join(err, jf.Close())
	}
	dev, err := blockdev.OpenFile(c.Device, blockdev.FileOptions{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device of the journal %s: %w", jpath, err), jf.Close())
	}
	if err := errors.Join(c.bears(a.Name), c.belongTogether(a)); err != nil {
		return nil, errors.Join(err, jf.Close(), dev.Close())
	}
	o := c.volumeOptions()
	o.Damaged = a.Role == journal.RoleSecondary || len(c.Target) > 0
	v, rec, err := openVolume(jf, dev, o)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", c.Device, explainOpen(err, jpath))
	}
	if err := resumeMerge(v, c.stagingPath()); err != nil {
		return nil, errors.Join(err, v.Abort())
	}
	if rec.Rot != nil { // nothing is changed before it is repaired
		return &opened{v: v, recovery: rec, undo: func() error { return nil }}, nil
	}
	if err := c.stamp(v, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("volume %s: %w", c.Device, err), v.Abort())
	}
	return &opened{v: v, recovery: rec, undo: func() error { return nil }}, nil
}

// explainOpen adds the way out to what the journal says.
func explainOpen(err error, jpath string) error {
	if errors.Is(err, journal.ErrCorrupt) {
		return fmt.Errorf("%w; nothing was changed: restore %s from a good copy, or promote the other side and resync this one", err, jpath)
	}
	if errors.Is(err, journal.ErrTooSmall) {
		return fmt.Errorf("%w; nothing was changed: %s was cut short, restore it from a good copy, or promote the other side and resync this one", err, jpath)
	}
	return err
}

func (c *Config) volumeOptions() VolumeOptions {
	return VolumeOptions{
		SyncInterval: c.SyncInterval, SyncBytes: c.SyncBytes, ApplyInterval: 2 * c.SyncInterval, Foresight: true,
		RetainTime: c.RetainTime, RetainBytes: c.RetainBytes,
		Dirty: c.dirtyStore(), OnFull: c.OnFull, PushBack: c.PushBack,
	}
}

// fits checks that a's volume is the one that c means.
func (c *Config) fits(a journal.Anchor) error {
	id := uuid.UUID(a.Mirror).String()
	if a.Name != c.Name {
		return fmt.Errorf("%s belongs to mirror %q (uuid %s), not %q: refuse to touch it; choose another --device and --journal, or run this mirror as --name %s",
			c.Device, a.Name, id, c.Name, a.Name)
	}
	if c.Size > a.DeviceSize { // a smaller one is what it was before it grew
		return fmt.Errorf("size %d does not fit: %s was made for a device of %d bytes; leave --size out, and make the mirror larger by `mirror-agent resize` when it runs", c.Size, c.journalPath(), a.DeviceSize)
	}
	return nil
}

// noJournal says what to do about a journal whose anchor was not read: a disk that does not give it may give it again, and then it is as good as ever.
func noJournal(path, device string, err error) error {
	if errors.Is(err, syscall.EIO) {
		return fmt.Errorf("journal %s cannot be read: %w; look at its disk, and start again when it is well: nothing was changed, and what the journal has is not lost", path, err)
	}
	return fmt.Errorf("journal %s cannot be used: %w; if it is not this mirror's journal choose another --journal, "+
		"else restore it or move it and %s away and let the mirror be resynced", path, err, device)
}

// createVolume makes what is missing: device, then journal. The journal's
// anchor is the last thing written; a crash before it leaves an empty device
// that the next start takes. What was created is removed again on an error.
func createVolume(ctx context.Context, c *Config) (_ *opened, err error) {
	var made []string
	var marked bool
	undo := func() (err error) {
		if marked {
			c.unmark()
		}
		for _, p := range made {
			err = errors.Join(err, os.Remove(p))
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = undo()
		}
	}()
	_, statErr := os.Stat(c.Device)
	create := errors.Is(statErr, os.ErrNotExist)
	if create {
		if c.Size == 0 {
			return nil, fmt.Errorf("device %s does not exist: give --size to create it", c.Device)
		}
		made = append(made, c.Device)
	} else if err := c.adoptable(); err != nil {
		return nil, err
	}
	dev, err := blockdev.OpenFile(c.Device, blockdev.FileOptions{Create: create, Size: c.Size})
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	size, err := c.checkDevice(dev, create)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	jpath := c.journalPath()
	if _, statErr := os.Stat(jpath); errors.Is(statErr, os.ErrNotExist) {
		made = append(made, jpath)
	}
	jf, err := c.newJournalFile(size)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), dev.Close())
	}
	if err := journal.FormatContext(ctx, jf, c.firstAnchor(size), c.tellPreparing(jpath)); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", jpath, err), jf.Close(), dev.Close())
	}
	marked = true // before it is: a stamp may fail when the mark is there
	v, rec, err := openVolume(jf, dev, c.volumeOptions())
	if err != nil {
		return nil, err
	}
	if err := c.stamp(v, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", c.Device, err), v.Abort())
	}
	if c.Role == RolePrimary {
		if _, err := v.beginGeneration(true); err != nil {
			return nil, errors.Join(err, v.Abort())
		}
	}
	return &opened{v: v, fresh: true, recovery: rec, undo: undo}, nil
}

// adoptable: may a device that exists, and has no journal, become this
// mirror's?
func (c *Config) adoptable() error {
	if err := c.bears(c.Name); err != nil {
		return err
	}
	if c.marked() {
		return fmt.Errorf("%s was in use by mirror %q, but its journal %s is missing: give back the journal (--journal), "+
			"or move the device away and let the mirror be resynced", c.Device, c.Name, c.journalPath())
	}
	return nil
}

// checkDevice returns the mirrored size of a device just opened or created.
func (c *Config) checkDevice(dev *blockdev.File, created bool) (int64, error) {
	size, err := dev.Size()
	if err != nil {
		return 0, fmt.Errorf("device: %w", err)
	}
	if c.Size != 0 && c.Size != size {
		return 0, fmt.Errorf("size %d does not fit: %s has %d bytes; leave --size out or choose another --device", c.Size, c.Device, size)
	}
	if size <= 0 || size%sectorBytes != 0 {
		return 0, fmt.Errorf("device %s has %d bytes: must be a positive multiple of %d", c.Device, size, sectorBytes)
	}
	if c.Role == RoleSecondary && !created && !c.Adopt && !blankFile(dev) {
		return 0, fmt.Errorf("device %s holds data that belongs to no mirror, and a target is overwritten: choose another --device, or say --adopt", c.Device)
	}
	return size, nil
}

func (c *Config) journalSizeFor(device int64) int64 {
	if c.JournalSize != 0 {
		return c.JournalSize
	}
	n := min(max(device/10, 64<<20), 4<<30)
	return n &^ (1<<20 - 1)
}

// newJournalFile opens the file that becomes the journal of a device of so many bytes. A block device is taken as large as it is.
func (c *Config) newJournalFile(device int64) (*blockdev.File, error) {
	path := c.journalPath()
	st, err := os.Stat(path)
	if err != nil || st.Mode()&os.ModeDevice == 0 {
		return blockdev.OpenFile(path, blockdev.FileOptions{Create: true, Size: c.journalSizeFor(device), Preallocate: true})
	}
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{})
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	switch {
	case err != nil:
	case c.JournalSize != 0 && c.JournalSize != size:
		err = fmt.Errorf("%s is a block device of %d bytes, and --journal-size is %d: leave --journal-size out or set it to that", path, size, c.JournalSize)
	case size < minJournalSize:
		err = fmt.Errorf("%s is a block device of %d bytes, too small for a log: the least is 16 MiB", path, size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// firstLSN is where a new log begins: 0 stays free to mean "none".
const firstLSN = journal.LSN(4096)

func (c *Config) firstAnchor(size int64) journal.Anchor {
	a := journal.Anchor{Name: c.Name, DeviceSize: size, Role: uint8(c.Role), Tail: firstLSN, Applied: firstLSN}
	if c.Role == RolePrimary {
		id := uuid.New()
		a.Mirror = id
		// Logs of different mirrors never chain.
		for i := range 8 {
			a.AppliedChain = a.AppliedChain<<8 | uint64(id[i])
		}
		a.TailChain = a.AppliedChain
	} else {
		a.State = stateBlank
	}
	identify(&a)
	return a
}

// sameFile: two paths lead to one file, by links.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
