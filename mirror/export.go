package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"mirror-agent/journal"
)

// Export is a file with a part of a volume's log, see InspectLog and ApplyExcerpt.
type Export struct {
	Path    string `json:"path"`
	From    uint64 `json:"from"`
	To      uint64 `json:"to"`
	Records uint64 `json:"records"`
	Bytes   int64  `json:"bytes"` // of the file
}

// export writes the records from LSN from to the head into a new file at path. The file is there whole and durable when this
// returns nil, or not at all.
func (v *Volume) export(path, node, reason string, from journal.LSN) (e Export, err error) {
	a := v.log.Anchor()
	about := journal.Excerpt{
		Mirror: uuidString(a.Mirror), Name: a.Name, Node: node, DeviceSize: v.size.Load(), Generations: v.History(),
		From: from, To: v.log.Head(), Created: time.Now(), Reason: reason,
	}
	part := path + ".part"
	if _, err := os.Stat(path); err == nil {
		return e, fmt.Errorf("%s exists already: move it away", path)
	}
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return e, fmt.Errorf("export: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export to %s: %w", path, err), os.Remove(part))
		}
	}()
	e = Export{Path: path, From: uint64(from), To: uint64(about.To)}
	e.Records, err = v.log.WriteExcerpt(f, about)
	if err = errors.Join(err, f.Sync()); err != nil {
		return e, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err = errors.Join(err, f.Close()); err != nil {
		return e, err
	}
	e.Bytes = info.Size()
	if err = os.Rename(part, path); err != nil {
		return e, err
	}
	return e, syncDir(filepath.Dir(path))
}
