package mirror

import (
	"fmt"
	"slices"
	"time"

	"mirror-agent/journal"
)

// newTracker takes up what the anchor and the file that it names say. What
// cannot be read is lost, which costs a full resync and nothing else.
func newTracker(l *journal.Log, store dirtyStore, size int64) *tracker {
	a := l.Anchor()
	t := &tracker{log: l, store: store, boundary: l.Tail()}
	t.size.Store(size)
	if newDirtySet(size).blocks() > 1<<32 {
		t.store = nil
	}
	var file *dirtyFile
	var fileErr error
	for _, f := range a.Followers {
		e := &tracked{name: f.Name, id: f.ID, base: f.Acked}
		t.entries = append(t.entries, e)
		switch {
		case f.Flags&followerLostTrack != 0:
			e.lost = "what it lacks could not be kept track of"
		case f.Flags&followerTracked != 0:
			t.version, t.sum = f.Bitmap[0], f.Bitmap[1]
			if file == nil && fileErr == nil {
				file, fileErr = readDirtyFile(store, size, a, f.Bitmap)
			}
			e.take(file, fileErr, a)
		case f.Acked < l.Tail():
			e.lost = "the log was cut short"
		}
		if e.lost != "" {
			e.lostAt = time.Now()
		}
	}
	return t
}

func readDirtyFile(store dirtyStore, size int64, a journal.Anchor, named [2]uint64) (*dirtyFile, error) {
	if store == nil {
		return nil, errNoStore
	}
	b, err := store.read(named[0], maxDirtyFile(size))
	if err != nil {
		return nil, err
	}
	f, sum, err := decodeDirtyFile(b, size)
	switch {
	case err != nil:
		return nil, err
	case f.version != named[0] || sum != named[1] || f.mirror != a.Mirror:
		return nil, fmt.Errorf("%w: version %d, the journal names %d", errDirtyFile, f.version, named[0])
	}
	return f, nil
}

// take finds the entry's set in the file.
func (e *tracked) take(f *dirtyFile, err error, a journal.Anchor) {
	if err != nil {
		e.lost = fmt.Sprintf("the bitmap of what it lacks cannot be used: %v", err)
		return
	}
	for _, s := range f.sets {
		if s.id != e.id || s.base != e.base || s.upTo < a.Tail {
			continue
		}
		known := slices.ContainsFunc(a.Generations, func(g journal.Generation) bool { return g.ID == s.generation && g.First <= s.base })
		if known {
			e.upTo, e.chain, e.generation, e.set = s.upTo, s.chain, s.generation, s.set
			return
		}
	}
	e.lost = "the bitmap of what it lacks is not in its file"
}
