package crashtest

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
)

// Config says how many of the states States visits.
type Config struct {
	Seed uint64
	// All: with at most so many unsynced operations every combination of them is a state, with more of them Samples that
	// are drawn, and those that disks mostly leave.
	All, Samples int
	// Tears bounds the torn variants of the last operation, over all combinations of one N; beyond it two of each
	// combination are drawn.
	Tears int
	// Share of the states that is visited, 0…1; of those of a killed process twenty times as many.
	Share float64
	// Stamp counts what was promised up to N; equal disks are visited again when it differs.
	Stamp func(n int) int
	// Workers at a time; 0 is one per CPU.
	Workers int
}

// State is what the disks may hold after the power went.
type State struct {
	N int // operations begun
	// Killed is not -1 when this is (also) what the death of the process leaves: all that was written, or a prefix of the
	// last write besides. What was answered when the trace had at most Killed operations must be there.
	Killed int
	Disks  []*Image
	Sum    uint64 // identifies the content and what was promised

	trace *Trace
	kept  []int // unsynced operations that survived
	lost  []int
	torn  int // one of kept, or -1
	tear  tear
}

func (s *State) String() string {
	b := fmt.Sprintf("after %d operations", s.N)
	if s.N > 0 {
		b += fmt.Sprintf(" (the last: %v)", s.trace.ops[s.N-1])
	}
	b += fmt.Sprintf(", unsynced kept %v, lost %v", s.kept, s.lost)
	if s.torn >= 0 {
		b += fmt.Sprintf(", %v of operation %d (%v)", s.tear, s.torn, s.trace.ops[s.torn])
	}
	return b
}

// Record starts a trace in which the disks of s are what is durable, for a second crash. The images of s stay as they are.
func (s *State) Record() (*Trace, []*Disk) {
	t := New()
	for i, im := range s.Disks {
		pages := im.freeze(i)
		now := newImage(im.size)
		now.share(pages)
		t.add(now, pages)
	}
	return t, t.disks
}

// tear says which sectors of an operation survive.
type tear struct {
	kind byte // 'p' the first n, 's' all but the first n, 'm' all but number n
	n    int64
}

func (t tear) String() string {
	switch t.kind {
	case 'p':
		return fmt.Sprintf("only the first %d sectors", t.n)
	case 's':
		return fmt.Sprintf("not the first %d sectors", t.n)
	}
	return fmt.Sprintf("not sector %d", t.n)
}

func (t tear) keeps(i int64) bool {
	switch t.kind {
	case 'p':
		return i < t.n
	case 's':
		return i >= t.n
	}
	return i != t.n
}

// manyTears is how many ways to tear one operation are tried; of a longer one so many are drawn.
const manyTears = 40

// someTears lists how o can be torn.
func (o op) someTears(rng *rand.Rand) []tear {
	ts := o.tears()
	if len(ts) > manyTears {
		rng.Shuffle(len(ts), func(i, j int) { ts[i], ts[j] = ts[j], ts[i] })
		ts = ts[:manyTears]
	}
	return ts
}

func (o op) tears() (ts []tear) {
	n := (o.off+o.length-1)/SectorBytes - o.off/SectorBytes + 1
	for i := int64(1); i < n; i++ {
		ts = append(ts, tear{'p', i}, tear{'s', i})
	}
	for i := int64(1); i < n-1; i++ { // the first and the last are among those above
		ts = append(ts, tear{'m', i})
	}
	return ts
}

// apply does o, or the sectors of it that t keeps.
func (im *Image) apply(o op, t *tear) {
	if t == nil {
		im.put(o.data, o.off, o.length)
		return
	}
	for at, i := o.off, int64(0); at < o.off+o.length; i++ {
		next := min(at-at%SectorBytes+SectorBytes, o.off+o.length)
		if t.keeps(i) {
			var data []byte
			if o.data != nil {
				data = o.data[at-o.off : next-o.off]
			}
			im.put(data, at, next-at)
		}
		at = next
	}
}

// moment is what is known at one N.
type moment struct {
	n        int
	bases    [][]*page // durable, per disk
	sums     []uint64
	unsynced []int
}

// moments goes over the trace once.
func (t *Trace) moments() []moment {
	at := moment{bases: make([][]*page, len(t.disks)), sums: make([]uint64, len(t.disks))}
	for i, d := range t.disks {
		at.bases[i] = d.base
		for _, p := range d.base {
			if p != nil {
				at.sums[i] ^= p.hash
			}
		}
	}
	all := []moment{at}
	for n, o := range t.ops {
		next := moment{n: n + 1, bases: at.bases, sums: at.sums}
		if !o.sync {
			next.unsynced = append(append(next.unsynced, at.unsynced...), n)
			all, at = append(all, next), next
			continue
		}
		im := newImage(t.disks[o.disk].size)
		im.share(at.bases[o.disk])
		for _, u := range at.unsynced {
			if t.ops[u].disk == o.disk {
				im.apply(t.ops[u], nil)
			} else {
				next.unsynced = append(next.unsynced, u)
			}
		}
		next.bases = append([][]*page(nil), at.bases...)
		next.sums = append([]uint64(nil), at.sums...)
		next.sums[o.disk] = im.sum(o.disk, at.sums[o.disk])
		next.bases[o.disk] = im.freeze(o.disk)
		all, at = append(all, next), next
	}
	return all
}

// States calls check for the states of the trace, each once, from several goroutines at a time, and returns how many
// there were. It ends at the first error, which says what the state is. The trace must not grow meanwhile.
func (t *Trace) States(c Config, check func(s *State) error) (int, error) {
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	w := walk{Trace: t, Config: c, check: check, seen: map[uint64]bool{}}
	var wg sync.WaitGroup
	moments := make(chan moment)
	for range c.Workers {
		wg.Go(func() {
			s := &State{trace: t}
			for _, d := range t.disks {
				s.Disks = append(s.Disks, newImage(d.size))
			}
			for m := range moments {
				if err := w.visit(m, s); err != nil {
					w.stop(err)
				}
			}
		})
	}
	for _, m := range t.moments() {
		moments <- m
	}
	close(moments)
	wg.Wait()
	return len(w.seen), w.err
}

type walk struct {
	*Trace
	Config
	check func(s *State) error

	mu   sync.Mutex // guards what follows
	seen map[uint64]bool
	err  error
}

var errStopped = errors.New("stopped")

func (w *walk) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !errors.Is(err, errStopped) {
		w.err = err
	}
}

// visit goes over all states of one N.
func (w *walk) visit(m moment, s *State) error {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(m.n)))
	k := len(m.unsynced)
	var torn []tear
	if k > 0 && m.unsynced[k-1] == m.n-1 {
		torn = w.ops[m.n-1].someTears(rng)
	}
	each := func(kept []bool) error {
		full := true
		for _, x := range kept {
			full = full && x
		}
		if err := w.one(m, s, kept, -1, nil, full, rng); err != nil || k == 0 {
			return err
		}
		if kept[k-1] && len(torn) > 0 {
			if int64(len(torn))<<min(k, 30) <= int64(w.Tears) || full {
				for i := range torn {
					if err := w.one(m, s, kept, k-1, &torn[i], full && torn[i].kind == 'p', rng); err != nil {
						return err
					}
				}
			} else {
				for range 2 {
					if err := w.one(m, s, kept, k-1, &torn[rng.IntN(len(torn))], false, rng); err != nil {
						return err
					}
				}
			}
		}
		if i := rng.IntN(k); kept[i] { // another one is torn
			if ts := w.ops[m.unsynced[i]].tears(); len(ts) > 0 {
				return w.one(m, s, kept, i, &ts[rng.IntN(len(ts))], false, rng)
			}
		}
		return nil
	}
	return w.combinations(k, rng, each)
}

// combinations calls each for the sets of k operations that survive.
func (w *walk) combinations(k int, rng *rand.Rand, each func(kept []bool) error) error {
	kept := make([]bool, k)
	if k <= w.All {
		for mask := range uint(1) << k {
			for i := range kept {
				kept[i] = mask>>i&1 == 1
			}
			if err := each(kept); err != nil {
				return err
			}
		}
		return nil
	}
	set := func(f func(i int) bool) error {
		for i := range kept {
			kept[i] = f(i)
		}
		return each(kept)
	}
	for j := range k + 1 { // prefixes: none and all are among them; then suffixes; then all but one
		if err := set(func(i int) bool { return i < j }); err != nil {
			return err
		}
		if err := set(func(i int) bool { return i >= j }); err != nil {
			return err
		}
		if err := set(func(i int) bool { return i != j }); err != nil {
			return err
		}
	}
	for range w.Samples {
		dense := rng.Float64()
		if err := set(func(int) bool { return rng.Float64() < dense }); err != nil {
			return err
		}
	}
	return nil
}

// one builds a state and has it checked.
func (w *walk) one(m moment, s *State, kept []bool, tornAt int, t *tear, killed bool, rng *rand.Rand) error {
	share := w.Share
	if killed {
		share *= 20
	}
	if rng.Float64() >= share {
		return nil
	}
	s.N, s.Killed, s.torn = m.n, -1, -1
	s.kept, s.lost = s.kept[:0], s.lost[:0]
	if killed {
		s.Killed = m.n
	}
	for i, im := range s.Disks {
		im.share(m.bases[i])
	}
	for i, u := range m.unsynced {
		switch {
		case !kept[i]:
			s.lost = append(s.lost, u)
			continue
		case i == tornAt:
			s.torn, s.tear = u, *t
			if killed {
				s.Killed = u
			}
			s.Disks[w.ops[u].disk].apply(w.ops[u], t)
		default:
			s.Disks[w.ops[u].disk].apply(w.ops[u], nil)
		}
		s.kept = append(s.kept, u)
	}
	s.Sum = uint64(w.stamp(m.n))
	if killed {
		s.Sum = bits.RotateLeft64(s.Sum, 16) + uint64(w.stamp(s.Killed)) + 1<<40
	}
	s.Sum *= 0x9e3779b97f4a7c15
	for i, im := range s.Disks {
		s.Sum ^= im.sum(i, m.sums[i])
	}
	w.mu.Lock()
	known, err := w.seen[s.Sum], w.err
	w.seen[s.Sum] = true
	w.mu.Unlock()
	switch {
	case err != nil:
		return errStopped
	case known:
		return nil
	}
	if err := w.check(s); err != nil {
		return fmt.Errorf("%v: %w", s, err)
	}
	return nil
}

func (w *walk) stamp(n int) int {
	if w.Stamp == nil {
		return n
	}
	return w.Stamp(n)
}
