package mirror

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"mirror-agent/blockdev/crashtest"
	"mirror-agent/journal"
)

// The exhaustive crash test: a scenario (crash_scenarios_test.go) runs once on recorded disks, then the volume is opened
// in every state that the disks may be in after a power cut at any of its operations (package crashtest), and judged here.

// crashDevice is one block of a resync and a part of another, bytes.
const crashDevice = resyncBlockBytes + 16<<10

// crashGrown is how large the backing device is, for mirrors that grow.
const crashGrown = crashDevice + 24<<10

// moment is one point of the volume's history: the state after a record. Its chain value names it.
type moment struct {
	lsn     journal.LSN
	content []byte
	changed extent // by the record
	dead    int    // with so many operations done it must never come back
}

// step function over the length of the trace.
type promised struct {
	pos int
	lsn journal.LSN
}

// fact holds in every state with at least pos operations, until it is withdrawn.
type fact struct {
	pos, until int
	name       string
	check      func(v *Volume) error
}

// crashWorld drives one volume and knows what every crash of it may leave.
type crashWorld struct {
	t       testing.TB
	trace   *crashtest.Trace
	journal *crashtest.Disk
	device  *crashtest.Disk
	stage   *crashtest.Disk
	disks   []crashDisk // all of the trace
	v       *Volume

	moments map[uint64]*moment
	chains  []uint64 // of the current history, oldest first
	want    []byte   // what was written, whatever the log says
	serial  int

	flushed  []promised // answered FLUSH and FUA; on a follower what it told its source
	answered []promised // answered writes
	facts    []*fact

	synced   atomic.Uint64 // head when the journal was last synced; the volume's own goroutine syncs, too, after it got another log
	declared journal.LSN   // follower: the source's word; a primary's is its own
	source   *journal.Log
	during   func() // runs before the next operation on the device
}

// quiet volumes do nothing by themselves: the scenario decides.
func quietOptions() VolumeOptions {
	return VolumeOptions{SyncInterval: time.Hour, SyncBytes: 1 << 40, ApplyInterval: time.Hour, Now: func() time.Time { return time.Unix(1, 0) }}
}

func newCrashWorld(t testing.TB, role Role) *crashWorld {
	w := &crashWorld{t: t, trace: crashtest.New(), moments: map[uint64]*moment{}, want: make([]byte, crashDevice)}
	w.journal, w.device, w.stage = w.trace.Disk(testJournal), w.trace.Disk(crashGrown), w.trace.Disk(crashDevice)
	slots := []*crashtest.Disk{w.trace.Disk(crashSlotBytes), w.trace.Disk(crashSlotBytes)}
	w.disks = crashDisks([]*crashtest.Disk{w.journal, w.device, w.stage, slots[0], slots[1], w.trace.Disk(crashDirectoryBytes)})
	c := Config{Name: "vol", Role: role}
	a := c.firstAnchor(crashDevice)
	a.AppliedChain = 77 // every run is the same
	a.State = 0
	if err := journal.Format(w.journal, a); err != nil {
		t.Fatal(err)
	}
	w.trace.Begin()
	w.moments[a.AppliedChain] = &moment{lsn: a.Applied, content: bytes.Clone(w.want), dead: math.MaxInt}
	w.chains = []uint64{a.AppliedChain}
	w.promise(&w.flushed, a.Applied)
	w.promise(&w.answered, a.Applied)
	w.journal.Before = w.syncs
	w.device.Before = w.guard
	if role == RolePrimary {
		w.declared = math.MaxInt64
	} else {
		w.newSource(a)
	}
	w.open()
	return w
}

func (w *crashWorld) promise(of *[]promised, lsn journal.LSN) {
	*of = append(*of, promised{w.trace.Len(), lsn})
}

func promisedAt(of []promised, n int) (lsn journal.LSN) {
	for _, p := range of {
		if p.pos > n {
			break
		}
		lsn = p.lsn
	}
	return lsn
}

// note adds a fact that holds from now on.
func (w *crashWorld) note(name string, check func(v *Volume) error) *fact {
	f := &fact{w.trace.Len(), math.MaxInt, name, check}
	w.facts = append(w.facts, f)
	return f
}

// guard is G3: what reaches the device is its content after a record that is durable here and, on a follower, declared.
func (w *crashWorld) guard(sync bool, data []byte, off, length int64) {
	if sync {
		return
	}
	if f := w.during; f != nil {
		w.during = nil
		f()
	}
	limit := min(journal.LSN(w.synced.Load()), w.declared)
	if data == nil {
		data = make([]byte, length)
	}
	for _, chain := range slices.Backward(w.chains) {
		if m := w.moments[chain]; m.lsn <= limit && off+length <= int64(len(m.content)) && bytes.Equal(m.content[off:off+length], data) {
			return
		}
	}
	w.t.Errorf("operation %d: %d+%d of the device gets bytes that no record committed up to LSN %d has", w.trace.Len(), off, length, limit)
}

// syncs notes what a sync of the journal makes durable.
func (w *crashWorld) syncs(sync bool, _ []byte, _, _ int64) {
	if sync && w.v != nil {
		w.synced.Store(uint64(w.v.log.Head()))
	}
}

func (w *crashWorld) open() {
	w.t.Helper()
	v, err := openCrashed(w.disks)
	if err != nil {
		w.t.Fatal(err)
	}
	w.v = v
	w.synced.Store(uint64(v.log.Head()))
	w.answer()
	w.promise(&w.flushed, v.log.Head()) // recovery made it durable
}

// adopt reads what was appended since into the history.
func (w *crashWorld) adopt() {
	w.t.Helper()
	last := w.moments[w.chains[len(w.chains)-1]]
	from, content := last.lsn, last.content
	buf := make([]byte, 512<<10)
	for {
		n, err := w.v.log.ReadRaw(from, buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		err = journal.ParseRaw(buf[:n], func(r journal.Record, p []byte) error {
			content = bytes.Clone(content)
			switch r.Op {
			case journal.OpWrite:
				copy(content[r.Offset:], p)
			case journal.OpZero, journal.OpTrim:
				clear(content[r.Offset : r.Offset+uint64(r.Length)])
			case journal.OpResize:
				content = append(content, make([]byte, int(r.Offset)-len(content))...)
			}
			from = r.End()
			m := &moment{lsn: from, content: content, dead: math.MaxInt}
			if changes(r.Op) {
				m.changed = extent{off: int64(r.Offset), end: int64(r.Offset) + int64(r.Length)}
			}
			w.moments[r.Chain] = m
			w.chains = append(w.chains, r.Chain)
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// answer is the end of an operation of a client: what it wrote is in the log and read back.
func (w *crashWorld) answer() {
	w.t.Helper()
	w.adopt()
	w.promise(&w.answered, w.v.log.Head())
	last := w.moments[w.chains[len(w.chains)-1]]
	if last.lsn != w.v.log.Head() || !bytes.Equal(last.content, w.want) {
		w.t.Fatalf("operation %d: the log holds another content than was written", w.trace.Len())
	}
	got, err := content(w.v)
	if err != nil || !bytes.Equal(got, w.want) {
		w.t.Fatalf("operation %d: the volume reads otherwise than was written: %v", w.trace.Len(), err)
	}
}

// forget makes everything above lsn a past that must not come back once this call's operations are done.
func (w *crashWorld) forget(lsn journal.LSN) (dropped []*moment) {
	for i := len(w.chains) - 1; i >= 0 && w.moments[w.chains[i]].lsn > lsn; i-- {
		dropped = append(dropped, w.moments[w.chains[i]])
		w.chains = w.chains[:i]
	}
	last := w.moments[w.chains[len(w.chains)-1]]
	w.want = bytes.Clone(last.content)
	return dropped
}

func (w *crashWorld) bury(dropped []*moment) {
	for _, m := range dropped {
		m.dead = min(m.dead, w.trace.Len())
	}
}

// stamp counts what was promised with n operations done.
func (w *crashWorld) stamp(n int) int {
	count := 0
	for _, of := range [][]promised{w.flushed, w.answered} {
		i, _ := slices.BinarySearchFunc(of, n+1, func(p promised, n int) int { return cmp.Compare(p.pos, n) })
		count += i
	}
	for _, f := range w.facts {
		if f.pos <= n {
			count++
		}
		if f.until <= n {
			count++
		}
	}
	return count
}

// judge opens one state.
func (w *crashWorld) judge(s *crashtest.State) error {
	if err := w.open1(s, true); err != nil {
		return err
	}
	switch s.Sum % 32 {
	case 0, 1:
		return w.goesOn(s)
	case 2:
		return w.crashesAgain(s)
	case 3, 4:
		return w.goesBack(s)
	}
	return nil
}

// goesBack takes the volume back to a point that it can go back to, or that another history can part at: its content is that of
// the point, whatever the crash left half applied.
func (w *crashWorld) goesBack(s *crashtest.State) error {
	v, err := openCrashed(crashDisks(s.Disks))
	if err != nil {
		return fmt.Errorf("open to go back: %w", err)
	}
	defer func() { _ = v.Abort() }()
	if v.flags()&stateMerging != 0 {
		return nil
	}
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	from := v.firstPoint()
	if v.Role() == RoleSecondary {
		from = v.Committed()
	}
	var points []*moment
	for _, m := range w.moments {
		if m.lsn < from || m.lsn >= v.log.Head() {
			continue
		}
		if chain, err := v.log.ChainAt(m.lsn); err == nil && w.moments[chain] == m {
			points = append(points, m)
		}
	}
	if len(points) == 0 {
		return nil
	}
	slices.SortFunc(points, func(a, b *moment) int { return cmp.Compare(a.lsn, b.lsn) })
	m := points[s.Sum/32%uint64(min(len(points), 2))] // the first ones are those that a crash spoils
	if err := v.cutLocked(m.lsn); err != nil {
		return fmt.Errorf("back to LSN %d: %w", m.lsn, err)
	}
	got, err := content(v)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(got, m.content) {
		return fmt.Errorf("back at LSN %d byte %d is not what it was then", m.lsn, firstDifference(got, m.content))
	}
	return nil
}

// open1 opens the volume and compares it with the history. What killed says only counts for the first opening.
func (w *crashWorld) open1(s *crashtest.State, first bool) error {
	v, err := openCrashed(crashDisks(s.Disks))
	if err != nil {
		return fmt.Errorf("open: %w", err) // a power cut is no rot (G7)
	}
	defer func() { _ = v.Abort() }()
	head, chain := v.log.HeadChain()
	m := w.moments[chain]
	least := promisedAt(w.flushed, s.N)
	if first && s.Killed >= 0 {
		least = promisedAt(w.answered, s.Killed)
	}
	switch {
	case m == nil || m.lsn != head:
		return fmt.Errorf("the log ends at LSN %d in a history that never was", head)
	case m.dead <= s.N:
		return fmt.Errorf("the log ends at LSN %d with a record that was dropped after %d operations", head, m.dead)
	case head < least:
		return fmt.Errorf("the log ends at LSN %d, %d was promised", head, least)
	}
	got, err := content(v)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(got, m.content) {
		return fmt.Errorf("byte %d is not what it was at LSN %d", firstDifference(got, m.content), head)
	}
	if d := v.log.Durable(); d != head {
		return fmt.Errorf("durable %d of %d after recovery", d, head)
	}
	for _, f := range w.facts {
		if f.pos <= s.N && s.N < f.until {
			if err := f.check(v); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// goesOn writes on in the state that a crash left, as a new primary, and finds that again.
func (w *crashWorld) goesOn(s *crashtest.State) error {
	v, err := openCrashed(crashDisks(s.Disks))
	if err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	use := func() ([]byte, error) {
		if _, err := v.beginGeneration(true); err != nil {
			return nil, err
		}
		if _, err := v.WriteAt(bytes.Repeat([]byte{0xa5}, 3000), 777); err != nil {
			return nil, err
		}
		if err := v.Trim(20<<10, 9000); err != nil {
			return nil, err
		}
		if err := v.Sync(); err != nil {
			return nil, err
		}
		return content(v)
	}
	before, err := use()
	if err != nil {
		return errors.Join(fmt.Errorf("go on: %w", err), v.Abort())
	}
	end := v.Abort
	if s.Sum&64 == 0 {
		end = v.Close
	}
	if err := end(); err != nil {
		return fmt.Errorf("go on: %w", err)
	}
	if v, err = openCrashed(crashDisks(s.Disks)); err != nil {
		return fmt.Errorf("open after going on: %w", err)
	}
	after, err := content(v)
	if err := errors.Join(err, v.Abort()); err != nil {
		return err
	}
	if !bytes.Equal(before, after) {
		return fmt.Errorf("byte %d of what was written after the crash is lost", firstDifference(before, after))
	}
	return nil
}

var secondCrashes atomic.Int64

// crashesAgain cuts the power at every operation of the recovery, too.
func (w *crashWorld) crashesAgain(s *crashtest.State) error {
	again, disks := s.Record()
	v, err := openCrashed(crashDisks(disks))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := v.Abort(); err != nil {
		return err
	}
	n, err := again.States(crashtest.Config{Seed: s.Sum, All: 6, Samples: 8, Tears: 32, Share: 1, Stamp: func(int) int { return 0 }, Workers: 1},
		func(inner *crashtest.State) error {
			err := w.open1(&crashtest.State{N: s.N, Killed: -1, Disks: inner.Disks}, false)
			if err != nil {
				return fmt.Errorf("then, in the recovery, %v: %w", inner, err)
			}
			return nil
		})
	secondCrashes.Add(int64(n))
	return err
}

// crashSeed is what the random scenarios and samples are drawn from.
func crashSeed(t testing.TB) uint64 {
	s := os.Getenv("MIRROR_AGENT_SEED")
	if s == "" {
		return 20261122
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// crashConfig: MIRROR_AGENT_CRASH=full visits everything.
func crashConfig(t testing.TB, share float64) crashtest.Config {
	c := crashtest.Config{Seed: crashSeed(t), All: 10, Samples: 400, Tears: 3000, Share: share}
	switch {
	case os.Getenv("MIRROR_AGENT_CRASH") == "full":
		c.Share = 1
	case testing.Short() || raceEnabled:
		c.Share = share / 20
	}
	return c
}

// TestCrashStates visits the states of every scenario. MIRROR_AGENT_CRASH=full visits all of them (make crash), otherwise a
// sample; MIRROR_AGENT_SEED draws another one, and other lives. However they are drawn, there are enough of them.
func TestCrashStates(t *testing.T) {
	total, visited, began := 0, 0, time.Now()
	least := 0
	switch crashConfig(t, 0.5).Share {
	case 1:
		least = 500_000
	case 0.5:
		least = 50_000
	}
	for _, sc := range crashScenarios {
		t.Run(sc.name, func(t *testing.T) {
			w := newCrashWorld(t, sc.role)
			sc.run(w)
			if w.source != nil {
				_ = w.source.Close()
			}
			if err := w.v.Abort(); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				return
			}
			c := crashConfig(t, sc.share)
			c.Stamp = w.stamp
			n, err := w.trace.States(c, w.judge)
			total, visited = total+n, visited+1
			if err != nil {
				t.Fatalf("MIRROR_AGENT_SEED=%d: %v", crashSeed(t), err)
			}
			t.Logf("%d operations on the disks, %d states", w.trace.Len(), n)
		})
	}
	if visited == len(crashScenarios) && total < least {
		t.Errorf("MIRROR_AGENT_SEED=%d: only %d states, at least %d are wanted: make the scenarios longer", crashSeed(t), total, least)
	}
	t.Logf("%d states, and %d of a second crash in the recovery, in %v", total, secondCrashes.Load(), time.Since(began).Round(time.Millisecond))
}
