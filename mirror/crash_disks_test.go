package mirror

import (
	"fmt"

	"mirror-agent/blockdev/crashtest"
	"mirror-agent/journal"
)

// The disks of the exhaustive crash test, in the order in which a trace has them. The last are journals that a resize of
// the log made; the first byte of the directory says how many of those were placed, and so which journal counts.
const (
	crashJournal = iota
	crashBacking
	crashStage     // where a resync is built
	crashSlots     // of the dirty bitmaps, two
	crashDirectory = iota + 1
	crashResized
)

const (
	crashSlotBytes      = 16 << 10
	crashDirectoryBytes = crashtest.SectorBytes
)

// crashDisk is one of them: recorded, or what a crash left of it.
type crashDisk interface {
	journal.File
	stageFile
}

func crashDisks[D crashDisk](of []D) (disks []crashDisk) {
	for _, d := range of {
		disks = append(disks, d)
	}
	return disks
}

// openCrashed opens a volume as an agent does: in the journal that bears the name, and a takeover that was interrupted is
// completed first.
func openCrashed(disks []crashDisk) (*Volume, error) {
	var placed [1]byte
	if _, err := disks[crashDirectory].ReadAt(placed[:], 0); err != nil {
		return nil, err
	}
	log := disks[crashJournal]
	if n := int(placed[0]); n > 0 {
		log = disks[crashResized+n-1]
	}
	o := quietOptions()
	o.Dirty = crashDirty{disks[crashSlots], disks[crashSlots+1]}
	v, _, err := openVolume(log, disks[crashBacking], o)
	if err != nil || v.flags()&stateMerging == 0 {
		return v, err
	}
	st, err := newStaging(v, disks[crashStage], func() error { return nil })
	if err == nil {
		err = st.merge()
	}
	if err != nil {
		return nil, fmt.Errorf("%w, %w", err, v.Abort())
	}
	return v, nil
}

// crashDirty keeps the bitmaps as dirtyFiles does: versions in turn, each durable before it counts.
type crashDirty [2]crashDisk

func (s crashDirty) write(version uint64, b []byte) error {
	d := s[version%2]
	if _, err := d.WriteAt(b, 0); err != nil {
		return err
	}
	return d.Sync()
}

func (s crashDirty) read(version uint64, limit int64) ([]byte, error) {
	b := make([]byte, min(limit, crashSlotBytes))
	_, err := s[version%2].ReadAt(b, 0)
	return b, err
}
