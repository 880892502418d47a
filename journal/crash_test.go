package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rec is one record as it must be in the log.
type rec struct {
	at, end LSN
	chain   uint64
	raw     []byte
}

// state is what the log must be. recs never change once they are in it.
type state struct {
	anchor  Anchor
	durable LSN
	start   LSN // of recs, or the head when there are none
	recs    []rec
}

func (s *state) head() LSN {
	if n := len(s.recs); n > 0 {
		return s.recs[n-1].end
	}
	return s.start
}

func (s state) cut(to LSN) state {
	n := 0
	for n < len(s.recs) && s.recs[n].at < to {
		n++
	}
	s.recs = s.recs[:n:n]
	s.durable = min(s.durable, to)
	return s
}

// world drives a log and keeps the state it must have.
type world struct {
	t       rapid.TB
	rng     *rand.Rand
	f       *memFile
	l       *Log
	now     int64
	serial  uint64
	written int64
	state
	counts map[string]int
	small  bool // short payloads only

	images    [][]byte // possible disks at each operation of the step under way
	survivors []float64
	crashes   int
}

const (
	worldRing = minRing
	allSteps  = 108 // sum of the weights in step
)

func newWorld(t rapid.TB, rng *rand.Rand) *world {
	w := &world{t: t, rng: rng, f: newMemFile(ringStart + worldRing), counts: map[string]int{}}
	a := Anchor{Name: "world", Role: RolePrimary, DeviceSize: 1 << 30, Applied: 4096, AppliedChain: 77, Generations: []Generation{{Major: 1, First: 4096}}}
	mustFormat(t, w.f, a)
	w.start, w.durable = 4096, 4096
	w.open(w.f)
	w.anchor = w.l.Anchor()
	return w
}

func (w *world) options() Options {
	return Options{Now: func() time.Time { w.now++; return time.Unix(0, w.now) }}
}

func (w *world) open(f *memFile) {
	w.t.Helper()
	l, _, err := Open(f, w.options())
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	w.f, w.l = f, l
}

// arm keeps an image per survivor set at every write and sync from now on.
func (w *world) arm() {
	w.images = nil
	w.f.onOp = func(f *memFile) {
		for _, keep := range w.survivors {
			w.images = append(w.images, f.crash(w.rng, keep))
		}
	}
}

// readBack returns the log's records in [from, head).
func readBack(l *Log, from LSN) ([]rec, error) {
	var recs []rec
	buf := make([]byte, 64<<10)
	for {
		n, err := l.ReadRaw(from, buf)
		if err == io.EOF {
			return recs, nil
		}
		if err != nil {
			return nil, err
		}
		err = ParseRaw(buf[:n], func(r Record, p []byte) error {
			if r.LSN != from || checksum(p) != r.PayloadHash {
				return fmt.Errorf("record %d at %d", r.LSN, from)
			}
			raw := bytes.Clone(buf[:r.End()-r.LSN])
			recs = append(recs, rec{r.LSN, r.End(), r.Chain, raw})
			buf, from = buf[r.End()-r.LSN:], r.End()
			return nil
		})
		if err != nil {
			return nil, err
		}
		buf = make([]byte, 64<<10)
	}
}

// adopt reads into the state what was appended since.
func (w *world) adopt() {
	recs, err := readBack(w.l, w.head())
	if err != nil {
		w.t.Fatal(err)
	}
	w.recs = append(w.recs[:len(w.recs):len(w.recs)], recs...)
	for _, r := range recs {
		w.written += int64(len(r.raw))
	}
	w.durable, w.anchor = w.l.Durable(), w.l.Anchor()
}

func (w *world) entry() *Entry {
	w.serial++
	e := &Entry{Op: OpWrite, Volume: uint16(w.serial), Offset: w.serial << 12}
	switch w.rng.IntN(8) {
	case 0:
		e.Op, e.Length = OpZero, 4096
	case 1:
		e.Op, e.Length = OpTrim, 1<<30
	case 2:
		e.Op, e.Payload = OpCheckpoint, fmt.Appendf(nil, "checkpoint %d", w.serial)
	default:
		n := 48 << 10
		if w.small && w.rng.IntN(40) > 0 {
			n = 1200
		}
		e.Payload = make([]byte, 1+w.rng.IntN(n))
		for i := range e.Payload {
			e.Payload[i] = byte(w.rng.Uint32())
		}
	}
	return e
}

func (w *world) append() {
	es := make([]*Entry, 1+w.rng.IntN(4))
	for i := range es {
		es[i] = w.entry()
	}
	if err := w.l.Append(es); err != nil && !errors.Is(err, ErrFull) {
		w.t.Fatalf("append: %v", err)
	}
	w.adopt()
}

func (w *world) sync() {
	if _, err := w.l.Sync(w.l.Head()); err != nil {
		w.t.Fatalf("sync: %v", err)
	}
	w.adopt()
	if w.durable != w.head() {
		w.t.Fatalf("durable %d after sync, head %d", w.durable, w.head())
	}
}

// boundary picks a record boundary in [lo, hi].
func (w *world) boundary(lo, hi LSN) LSN {
	b := []LSN{lo}
	for _, r := range w.recs {
		if r.end > lo && r.end <= hi {
			b = append(b, r.end)
		}
	}
	return b[w.rng.IntN(len(b))]
}

func (w *world) writeAnchor(update func(a *Anchor)) {
	if err := w.l.WriteAnchor(update); err != nil {
		w.t.Fatalf("anchor: %v", err)
	}
	w.adopt()
	w.trim()
}

// trim forgets records that no test can ask for.
func (w *world) trim() {
	for len(w.recs) > 0 && w.recs[0].at < w.anchor.Tail {
		w.start, w.recs = w.recs[0].end, w.recs[1:]
	}
}

func (w *world) moveTail() {
	applied := w.boundary(w.anchor.Applied, w.durable)
	tail := w.boundary(w.anchor.Tail, applied)
	w.writeAnchor(func(a *Anchor) { a.Applied, a.Tail = applied, tail })
}

func (w *world) changeRole() {
	first, chain := w.l.HeadChain()
	w.writeAnchor(func(a *Anchor) {
		if a.Role = RolePrimary + RoleSecondary - a.Role; a.Role == RolePrimary {
			a.Generations = append(a.Generations, Generation{Major: uint32(a.Sequence), First: first, Chain: chain})
		}
	})
}

func (w *world) cutLog() {
	to := w.boundary(w.anchor.Applied, w.head())
	if err := w.l.Cut(to); err != nil {
		w.t.Fatalf("cut: %v", err)
	}
	w.state = w.state.cut(to)
	w.adopt()
	if w.l.Head() != to || w.durable > to {
		w.t.Fatalf("cut at %d left head %d, durable %d", to, w.l.Head(), w.durable)
	}
}

func (w *world) resetLog() {
	at, chain := w.head(), uint64(w.rng.Uint32())
	switch w.rng.IntN(4) {
	case 0: // back, into its own history: what it had there must not come back
		at = w.boundary(w.anchor.Tail, w.head())
		chain, _ = w.l.ChainAt(at)
	case 1:
		at = LSN(w.rng.Uint64N(uint64(at))) &^ 7
	case 2:
		at += LSN(w.rng.Uint64N(1<<22)) &^ 7
	}
	if err := w.l.Reset(at, chain, func(a *Anchor) { a.State++ }); err != nil {
		w.t.Fatalf("reset: %v", err)
	}
	w.state = state{start: at, durable: at}
	w.adopt()
}

// reopen is a kill: the OS keeps everything.
func (w *world) reopen() {
	if err := w.l.Close(); err != nil {
		w.t.Fatal(err)
	}
	before := w.state
	w.f.closed = false
	w.open(w.f)
	w.adopt()
	if w.l.Head() != before.head() || w.durable != before.head() {
		w.t.Fatalf("reopened: head %d, durable %d, had %d", w.l.Head(), w.durable, before.head())
	}
	w.mustEqual()
}

// powerCycle goes on with what survived.
func (w *world) powerCycle() {
	image := w.f.crash(w.rng, []float64{0, 0.3, 0.7, 0.9}[w.rng.IntN(4)])
	before := w.state
	next := memFileOf(image)
	next.onOp = w.f.onOp // the power may go again during recovery
	w.open(next)
	if w.l.Head() < before.durable {
		w.t.Fatalf("power cycle lost durable records: head %d of %d", w.l.Head(), before.durable)
	}
	w.state = before.cut(w.l.Head())
	w.adopt()
	w.mustEqual()
}

// mustEqual compares every byte of the log with the state.
func (w *world) mustEqual() {
	w.t.Helper()
	if err := w.state.equals(w.l, w.l.Head()); err != nil {
		w.t.Fatal(err)
	}
}

// equals: the log's records are exactly the state's up to head.
func (s *state) equals(l *Log, head LSN) error {
	if l.Head() != head {
		return fmt.Errorf("head %d, want %d", l.Head(), head)
	}
	got, err := readBack(l, l.Tail())
	if err != nil {
		return fmt.Errorf("read back from %d: %w", l.Tail(), err)
	}
	want := s.recs
	for len(want) > 0 && want[0].at < l.Tail() {
		want = want[1:]
	}
	if len(got) > len(want) {
		return fmt.Errorf("%d records, only %d were appended", len(got), len(want))
	}
	for i, g := range got {
		if g.at != want[i].at || !bytes.Equal(g.raw, want[i].raw) {
			return fmt.Errorf("record at %d is not the one appended at %d", g.at, want[i].at)
		}
	}
	if end := l.Tail(); len(got) > 0 && got[len(got)-1].end != head || len(got) == 0 && end != head {
		return fmt.Errorf("records end before the head %d", head)
	}
	if len(got) > 0 {
		if chain, err := l.ChainAt(got[len(got)/2].end); err != nil || chain != got[len(got)/2].chain {
			return fmt.Errorf("chain at %d: %x, %v", got[len(got)/2].end, chain, err)
		}
	}
	return l.Verify(l.Tail(), head)
}

// allows: l, opened after a crash in a step from s to after, may be.
func allows(before, after *state, l *Log) error {
	var errs []error
	for _, s := range []*state{before, after} {
		a := l.Anchor()
		err := func() error {
			// the clearing of a pending cut is the journal's own affair, so sequences are not compared
			if a.Tail != s.anchor.Tail || a.Applied != s.anchor.Applied || a.Role != s.anchor.Role || a.State != s.anchor.State {
				return fmt.Errorf("anchor tail %d, applied %d, role %d; want %d, %d, %d", a.Tail, a.Applied, a.Role, s.anchor.Tail, s.anchor.Applied, s.anchor.Role)
			}
			if l.Head() < before.durable && l.Head() < s.durable || l.Head() > s.head() {
				return fmt.Errorf("head %d; durable was %d, head %d", l.Head(), before.durable, s.head())
			}
			return s.equals(l, l.Head())
		}()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkImages opens every disk that the step may have left.
func (w *world) checkImages(step string, before, after state) {
	w.t.Helper()
	for i, image := range w.images {
		w.crashes++
		f := scratchFile(image)
		l, _, err := Open(f, w.options())
		if err != nil {
			w.t.Fatalf("%s, disk %d of %d: open: %v", step, i, len(w.images), err)
		}
		if err := allows(&before, &after, l); err != nil {
			w.t.Fatalf("%s, disk %d of %d: %v", step, i, len(w.images), err)
		}
		if i%5 == 0 { // it goes on from there, and the next start finds just that
			head := l.Head()
			if err := l.Append([]*Entry{write(8, []byte("after the crash"))}); err != nil && !errors.Is(err, ErrFull) {
				w.t.Fatal(err)
			}
			end := l.Head()
			l = mustOpen(w.t, f, Options{})
			if l.Head() != end {
				w.t.Fatalf("%s, disk %d: appended at %d up to %d, reopened: %d", step, i, head, end, l.Head())
			}
		}
	}
	w.images = nil
}

// weighted is a step of a world and how often it is taken.
type weighted struct {
	name   string
	weight int
	do     func()
}

func (w *world) step(n int) string {
	return w.take(n, []weighted{
		{"append", 40, w.append},
		{"sync", 12, w.sync},
		{"anchor", 16, w.moveTail},
		{"cut", 7, w.cutLog},
		{"reset", 2, w.resetLog},
		{"role", 6, w.changeRole},
		{"reopen", 3, w.reopen},
		{"power", 6, w.powerCycle},
		{"raw", 8, w.appendRaw},
		{"reads", 8, w.reads},
	})
}

func (w *world) take(n int, ops []weighted) string {
	for _, op := range ops {
		if n -= op.weight; n < 0 {
			w.counts[op.name]++
			op.do()
			return op.name
		}
	}
	panic("weights")
}

// Every write and every sync of a scenario is the last one before the power goes.
func TestCrashEverywhere(t *testing.T) {
	steps := 260
	seed := uint64(20261122)
	w := newWorld(t, rand.New(rand.NewPCG(seed, 1)))
	w.survivors = []float64{0, 0.5, 0.9, 1}
	if raceEnabled {
		w.survivors = []float64{0.7}
	}
	for i := range steps {
		before := w.state
		w.arm()
		name := w.step(w.rng.IntN(allSteps))
		w.f.onOp = nil
		w.checkImages(fmt.Sprintf("seed %d, step %d (%s)", seed, i, name), before, w.state)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d crashes, %d bytes appended, %v", w.crashes, w.written, w.counts)
	if w.written < 3*worldRing {
		t.Errorf("the scenario appended only %d bytes to a ring of %d", w.written, worldRing)
	}
}

// Long random lives with power cuts, without a crash at each operation.
func TestCrashLives(t *testing.T) {
	lives := uint64(6)
	if raceEnabled {
		lives = 2
	}
	for seed := range lives {
		w := newWorld(t, rand.New(rand.NewPCG(seed, 2)))
		for range 300 {
			w.step(w.rng.IntN(allSteps))
		}
		w.mustEqual()
	}
}
