package mirror

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"mirror-agent/journal"
)

// tracker knows for each follower what it lacks. A follower's base is an LSN
// up to which it is durable, and this volume too. From there on
//
//	covered   the log has everything: base ≥ tail
//	tracked   the log does not reach back to base any more; a set of blocks
//	          has what the records in [base, upTo) changed, upTo ≥ tail
//	lost      nothing is known: all blocks have to be compared
//
//	           the tail passes base            cannot be read, written or found
//	covered ──────────────────────→ tracked ───────────────────→ lost
//	   ↑            the follower streams and is durable            │
//	   └──────────────── beyond the tail ←─────────────────────────┘
//
// The order on disk: bitmap file durable, then the anchor that names it and
// moves the tail. So after any crash the log has the records, or a durable
// set has their blocks, or both.
//
// A set says what changed since base in this volume's history. It is right
// for any volume whose content is that history's at base or later, and that
// is what the handshake has to find out.
type tracker struct {
	log   *journal.Log
	store dirtyStore
	size  atomic.Int64 // of the device, bytes; it grows

	mu       sync.Mutex  // guards all below; held during no I/O. A leaf.
	boundary journal.LSN // the log is kept from here on, also by an anchor that is about to be written
	news     bool        // the anchor does not tell yet of a follower that is covered now
	version  uint64      // of the newest bitmap file
	sum      uint64      // its checksum
	entries  []*tracked
}

// tracked is what a follower may lack. The set is not changed but replaced.
type tracked struct {
	name       string
	id         [16]byte
	base, upTo journal.LSN // of a covered one the base is what it acknowledged, see baseOf
	chain      uint64      // at base; of a tracked one
	generation [16]byte
	set        *dirtySet // nil: covered, or lost
	fresh      bool      // the set came from elsewhere and is in no file yet
	lost       string    // why
	lostAt     time.Time // when that was noticed
}

// Flags of a follower's entry in the anchor.
const (
	followerTracked uint32 = 1 << iota // Bitmap: version and checksum of the file
	followerLostTrack
)

// trackView is what a handshake needs to know.
type trackView struct {
	known bool
	id    [16]byte
	base  journal.LSN
	chain uint64
	lost  string
	set   *dirtySet // nil: not tracked
	upTo  journal.LSN
}

var errNoStore = fmt.Errorf("there is no place for a bitmap (none for a device of more than 256 TiB), or %w", errNoPlace)

// followers is what the anchor keeps.
func (t *tracker) followers() []journal.Follower {
	t.mu.Lock()
	defer t.mu.Unlock()
	var fs []journal.Follower
	for _, e := range t.entries {
		f := journal.Follower{Name: e.name, ID: e.id, Acked: t.baseOf(e)}
		switch {
		case e.lost != "":
			f.Flags = followerLostTrack
		case e.set != nil:
			f.Flags, f.Bitmap = followerTracked, [2]uint64{t.version, t.sum}
		}
		fs = append(fs, f)
	}
	return fs
}

// keepOnly forgets followers that are not configured any more. Other members
// stay (members.go).
func (t *tracker) keepOnly(names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = slices.DeleteFunc(t.entries, func(e *tracked) bool { return !e.member() && !slices.Contains(names, e.name) })
}

// restart: the log begins anew at lsn, fed by a source. Nobody follows.
func (t *tracker) restart(lsn journal.LSN) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries, t.boundary = nil, lsn
}

func (t *tracker) find(name string) *tracked {
	for _, e := range t.entries {
		if e.name == name {
			return e
		}
	}
	return nil
}

// view is what is known of the follower called name.
func (t *tracker) view(name string) trackView {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.find(name)
	if e == nil {
		return trackView{}
	}
	return trackView{known: true, id: e.id, base: t.baseOf(e), chain: e.chain, lost: e.lost, set: e.set, upTo: e.upTo}
}

// acked: the follower called name, which is the volume id, is streaming and
// durable up to lsn, at most the head. As soon as the log reaches back to that,
// it is all that is needed, and a set is forgotten.
//
// Reports whether an anchor should tell of it soon: until one does, a crash
// takes the source back to what it knew before, which is not wrong but costs.
func (t *tracker) acked(name string, id [16]byte, lsn journal.LSN) (news bool) {
	if id == [16]byte{} {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adoptLocked(name, id)
	return t.ackedLocked(name, id, lsn)
}

func (t *tracker) ackedLocked(name string, id [16]byte, lsn journal.LSN) (news bool) {
	if lsn < t.boundary {
		return false
	}
	e := t.find(name)
	switch {
	case e == nil && !t.roomLocked(name):
		return false
	case e == nil:
		e = &tracked{name: name}
		t.entries = append(t.entries, e)
	case e.id == id && e.set == nil && e.lost == "":
		e.base = max(e.base, lsn)
		return false
	}
	*e = tracked{name: name, id: id, base: lsn}
	t.news = true
	return true
}

// baseOf is the base of e. What this volume might lose in a power cut is no
// common ground with a follower whose disk was quicker.
func (t *tracker) baseOf(e *tracked) journal.LSN {
	if e.set == nil && e.lost == "" {
		return min(e.base, t.log.Durable())
	}
	return e.base
}

// takeNews says whether an anchor should be written now.
func (t *tracker) takeNews() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	news := t.news
	t.news = false
	return news
}

// leave is called before an anchor moves the tail to tail: whoever lacks
// records below it gets their blocks marked, durably. Calls must not overlap.
//
// The log is marked further than it has to be, up to a quarter of the ring,
// so that the file is written at most once for that much of log: a follower
// that is resynced gets those blocks anyway. But not beyond what is committed:
// a secondary may have to cut that, and other records come to lie there.
func (t *tracker) leave(tail, committed journal.LSN, generations []journal.Generation) {
	t.mu.Lock()
	t.boundary = max(t.boundary, tail)
	version := t.version + 1
	var next []tracked // all that goes into the file
	due := false
	from := journal.LSN(0)
	for _, e := range t.entries {
		n := *e
		n.base = t.baseOf(e)
		switch {
		case e.lost != "" || e.set == nil && n.base >= tail:
			continue
		case e.set == nil:
			n.upTo = n.base
		}
		if n.upTo < tail {
			if !due || n.upTo < from {
				from = n.upTo
			}
			due = true
		}
		if n.fresh && !due {
			from, due = tail, true
		}
		n.fresh = false
		next = append(next, n)
	}
	t.mu.Unlock()
	if !due {
		return
	}
	sum, err := t.record(next, from, tail, committed, version, generations)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.version, t.sum = version, sum
	}
	for i := range next {
		n := &next[i]
		e := t.find(n.name)
		switch {
		case e == nil || e.id != n.id || e.set == nil && e.base >= t.boundary:
			// Forgotten, or durable beyond the boundary meanwhile.
		case err == nil:
			*e = *n
		case e.set == nil || e.upTo < tail:
			*e = tracked{name: e.name, id: e.id, base: e.base, lost: fmt.Sprintf("what it lacks could not be marked: %v", err), lostAt: time.Now()}
		}
	}
}

// record marks what the log has from LSN from on in the sets of next, and
// writes the file.
func (t *tracker) record(next []tracked, from, tail, committed journal.LSN, version uint64, generations []journal.Generation) (sum uint64, err error) {
	if t.store == nil {
		return 0, errNoStore
	}
	for i := range next {
		n := &next[i]
		if n.set != nil {
			if n.upTo < tail {
				n.set = n.set.cloneFor(t.size.Load())
			}
			continue
		}
		n.set = newDirtySet(t.size.Load())
		if n.chain, err = t.log.ChainAt(n.base); err != nil {
			return 0, err
		}
		n.generation = generationBefore(generations, n.base)
	}
	ahead := tail + journal.LSN(t.log.Capacity()/4)
	marked := from
	err = t.log.Scan(from, max(tail, min(ahead, committed)), func(r journal.Record) error {
		marked = r.End()
		for i := range next {
			if n := &next[i]; r.LSN >= n.upTo && n.upTo < tail {
				n.set = n.set.after(r)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	f := dirtyFile{version: version, mirror: t.log.Anchor().Mirror, size: t.size.Load()}
	for i := range next {
		f.size = max(f.size, next[i].set.size)
	}
	for i := range next {
		n := &next[i]
		if n.set.size < f.size {
			n.set = n.set.cloneFor(f.size)
		}
		if n.upTo < tail {
			n.upTo = marked
			n.set.bits.RunOptimize() // no one else has it yet
		}
		f.sets = append(f.sets, dirtyFileSet{id: n.id, generation: n.generation, base: n.base, upTo: n.upTo, chain: n.chain, set: n.set})
	}
	b, sum, err := f.encode()
	if err != nil {
		return 0, err
	}
	return sum, t.store.write(version, b)
}

func changes(op journal.Op) bool {
	return op == journal.OpWrite || op == journal.OpZero || op == journal.OpTrim
}

// generationBefore is the one that the record before lsn belongs to.
func generationBefore(gs []journal.Generation, lsn journal.LSN) (id [16]byte) {
	for _, g := range gs {
		if g.First < lsn {
			id = g.ID
		}
	}
	return id
}

// since adds to a copy of the view's set what the log has from there to end.
func (t *tracker) since(w trackView, end journal.LSN) (*dirtySet, error) {
	set := w.set.cloneFor(t.size.Load())
	err := t.log.Scan(w.upTo, end, func(r journal.Record) error {
		set = set.after(r)
		return nil
	})
	return set, err
}

// dirtyBytes is what the set of the follower called name covers.
func (t *tracker) dirtyBytes(name string) int64 {
	if w := t.view(name); w.set != nil {
		return w.set.bytes()
	}
	return 0
}

// lostTrack says why it is not known what the follower called name lacks, and since when; "" when it is.
func (t *tracker) lostTrack(name string) (why string, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.find(name); e != nil {
		return e.lost, e.lostAt
	}
	return "", since
}

// followerName is the name of a follower's entry in the anchor: its first
// address, shortened to fit.
func followerName(target string) string {
	const most = 64
	if len(target) <= most {
		return target
	}
	return fmt.Sprintf("%s#%016x", target[:most-17], xxhash.Sum64String(target))
}

// why says what keeps the follower f, whose history is the source's up to at,
// from being resynced by its set; "" when nothing does.
func (w trackView) why(f *followerState, at journal.LSN) string {
	switch {
	case !w.known:
		return "what it lacks was never tracked"
	case w.id != f.ID:
		return "it is another volume than the one whose changes were tracked"
	case w.lost != "" || w.set == nil:
		return cmp.Or(w.lost, "what it lacks was not tracked")
	case at < w.base:
		return fmt.Sprintf("changes are tracked from LSN %d on, it was further once and has an older state now", w.base)
	case at == f.Head && at == w.base && f.Chain != w.chain:
		return fmt.Sprintf("its log differs at LSN %d", at)
	}
	return ""
}
