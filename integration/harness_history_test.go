package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// moment is what a client had been told at one time: for each block the newest
// answered write and the newest that an answered FLUSH covers.
type moment struct{ acked, flushed []uint64 }

func (l *ledger) moment() (m moment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.state {
		m.acked, m.flushed = append(m.acked, s.acked), append(m.flushed, s.flushed)
	}
	return m
}

// shortfall is what of a moment a device does not have, in writes.
type shortfall struct{ acked, flushed int }

// measure reads a whole device and says how far it is behind a moment. It is an
// error when the device is not in a state that it had at ONE point of the order
// of writes: a cut of the partial order that the client saw (a write that was
// sent after another was answered is never there without it; a request of several
// blocks is there as a whole or not at all), or when a block holds what nobody wrote.
func (l *ledger) measure(read func(off int64, p []byte) error, m moment) (shortfall, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var short shortfall
	var errs []error
	have := make([]uint64, l.blocks)
	got, want := make([]byte, 1<<20), make([]byte, ledgerBlock)
	for b := range l.blocks {
		at := b * ledgerBlock % len(got)
		if at == 0 {
			if err := read(int64(b)*ledgerBlock, got[:min(len(got), (l.blocks-b)*ledgerBlock)]); err != nil {
				return short, fmt.Errorf("read at %d: %w", b*ledgerBlock, err)
			}
		}
		seq, err := l.judge(b, got[at:at+ledgerBlock], want, nothing)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		have[b] = seq
		short.acked += l.writesSince(seq, m.acked[b])
		short.flushed += l.writesSince(seq, m.flushed[b])
	}
	errs = append(errs, l.oneCut(have))
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	return short, errors.Join(errs...)
}

// nothing is the floor of who judges by himself how much is lost.
const nothing floor = -1

// writesSince counts the writes of a block after one up to another.
func (l *ledger) writesSince(seq, upTo uint64) (n int) {
	for ; upTo > seq; upTo = l.writes[upTo].before {
		n++
	}
	return n
}

// oneCut checks that what the blocks hold is what they held together at one
// time. The writes that are there are, for each block, those up to one; they are a
// cut of the order of all writes when none of them was sent after one that is
// missing was answered.
func (l *ledger) oneCut(have []uint64) error {
	var lastSent, present uint64
	firstAnswer, missing := ^uint64(0), uint64(0)
	for seq := uint64(1); seq < uint64(len(l.writes)); seq++ {
		w := l.writes[seq]
		if w.block < 0 {
			continue // a state without it was adopted
		}
		there := seq <= have[w.block]
		if there && w.issued > lastSent {
			lastSent, present = w.issued, seq
		}
		if !there && w.acked != 0 && w.acked < firstAnswer {
			firstAnswer, missing = w.acked, seq
		}
		if w.request != 0 {
			if first := l.writes[w.request]; there != (w.request <= have[first.block]) {
				return fmt.Errorf("a request is there in part: of writes %d (block %d) and %d (block %d) only one", w.request, first.block, seq, w.block)
			}
		}
	}
	if lastSent > firstAnswer {
		return fmt.Errorf("not a state the device ever had: write %d (block %d) is there, write %d (block %d), answered before that was sent, is not",
			present, l.writes[present].block, missing, l.writes[missing].block)
	}
	return nil
}

// adopt makes what a device holds the truth, as settle does: what it lacks must
// never be seen again.
func (l *ledger) adopt(read func(off int64, p []byte) error) error {
	if err := l.settle(read); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for seq := 1; seq < len(l.writes); seq++ {
		if w := &l.writes[seq]; w.block >= 0 && uint64(seq) > l.state[w.block].last {
			w.block, w.acked, w.request = -1, 0, 0
		}
	}
	return nil
}

// issueRun enters one request that fills adjoining blocks.
func (l *ledger) issueRun(block, n int, p []byte) (first uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = uint64(len(l.writes))
	tick := l.tick.Add(1)
	for i := range n {
		b, seq := block+i, first+uint64(i)
		w := ledgerWrite{block: b, before: l.state[b].last, issued: tick}
		if n > 1 {
			w.request = first
		}
		l.writes = append(l.writes, w)
		if w.before != 0 {
			l.writes[w.before].next = seq
		}
		l.state[b].last = seq
		l.pattern(p[i*ledgerBlock:(i+1)*ledgerBlock], b, seq)
	}
	return first
}

func (l *ledger) ackRun(first uint64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tick := l.tick.Add(1)
	for seq := first; seq < first+uint64(n); seq++ {
		l.writes[seq].acked = tick
		l.state[l.writes[seq].block].acked = seq
	}
}

// diligent is a client that writes requests of one to four blocks at a modest
// pace and flushes now and then, in a region of the device.
type diligent struct {
	l       *ledger
	base    int64
	pause   time.Duration
	conn    *nbdClient
	answers atomic.Int64
	slowest atomic.Int64 // ns of the slowest answered request
	stopped atomic.Bool
	wg      sync.WaitGroup
	errMu   sync.Mutex
	err     error
}

// workLimit is what a test waits for at most until its users have done something.
const workLimit = 2 * time.Minute

const (
	diligentWriters = 6
	diligentFlush   = 12 // one request in so many is followed by a FLUSH
)

// work begins to write through a connection; base is where the ledger's first block lies.
func (l *ledger) work(c *nbdClient, base int64, pause time.Duration, rng *rand.Rand) *diligent {
	d := &diligent{l: l, base: base, pause: pause, conn: c}
	for w := range diligentWriters {
		r := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
		d.wg.Go(func() {
			if err := d.run(w, r); err != nil && !errors.Is(err, errNBDGone) {
				d.errMu.Lock()
				defer d.errMu.Unlock()
				d.err = errors.Join(d.err, err)
			}
		})
	}
	return d
}

func (d *diligent) run(w int, r *rand.Rand) error {
	p := make([]byte, 4*ledgerBlock)
	per := d.l.blocks / diligentWriters
	for n := 1; !d.stopped.Load(); n++ {
		count := 1 + r.IntN(4)
		block := w*per + r.IntN(per-count)
		began := time.Now()
		first := d.l.issueRun(block, count, p)
		if err := d.conn.write(d.base+int64(block)*ledgerBlock, p[:count*ledgerBlock], false); err != nil {
			return fmt.Errorf("write of block %d: %w", block, err)
		}
		d.l.ackRun(first, count)
		d.answers.Add(1)
		if n%diligentFlush == w {
			covered := d.l.answered()
			if err := d.conn.flush(); err != nil {
				return fmt.Errorf("flush: %w", err)
			}
			d.l.flushed(covered)
		}
		for took := int64(time.Since(began)); ; {
			if old := d.slowest.Load(); took <= old || d.slowest.CompareAndSwap(old, took) {
				break
			}
		}
		time.Sleep(d.pause) // a pace, so that an outage is short in bytes
	}
	return nil
}

// end stops it, or waits for its end when its connection has gone; both are no error.
func (d *diligent) end() error {
	d.stopped.Store(true)
	d.wg.Wait()
	d.errMu.Lock()
	defer d.errMu.Unlock()
	return d.err
}

// more waits until n more requests were answered.
func (d *diligent) more(t testing.TB, n int64) {
	t.Helper()
	d.upTo(t, d.answers.Load()+n)
}

// upTo waits until n requests were answered since it began.
func (d *diligent) upTo(t testing.TB, n int64) {
	t.Helper()
	eventually(t, workLimit, fmt.Sprintf("%d requests answered", n), func() (bool, string) {
		d.errMu.Lock()
		defer d.errMu.Unlock()
		got := d.answers.Load()
		return got >= n, fmt.Sprint(got, d.err)
	})
}

// TestHistory forges histories and devices: measure accepts what a device can
// have been at one time, counts what of a moment it lacks, and refuses the rest.
func TestHistory(t *testing.T) {
	const blocks = 8
	// The history: 1 (block 0), 2 (block 0) answered, FLUSH; 3+4 (blocks 2, 3) one request, answered; 5 (block 4) sent with
	// 6 (block 5) before either was answered; 7 (block 0) answered after both; 8+9 (blocks 6, 7) never answered.
	type device [blocks]uint64
	whole := device{7, 0, 3, 4, 5, 6, 8, 9}
	for _, c := range []struct {
		name           string
		dev            device
		acked, flushed int
		torn           bool // the block that is torn is 5
		ok             bool
	}{
		{name: "all there", dev: whole, ok: true},
		{name: "what was never answered is not there", dev: device{7, 0, 3, 4, 5, 6}, ok: true},
		{name: "nothing there", dev: device{}, acked: 7, flushed: 2, ok: true},
		{name: "before the FLUSH", dev: device{1}, acked: 6, flushed: 1, ok: true},
		{name: "after the FLUSH", dev: device{2}, acked: 5, ok: true},
		{name: "the newest write lost", dev: device{2, 0, 3, 4, 5, 6}, acked: 1, ok: true},
		{name: "the first of two at the same time", dev: device{2, 0, 3, 4, 5}, acked: 2, ok: true},
		{name: "the second of two at the same time", dev: device{2, 0, 3, 4, 0, 6}, acked: 2, ok: true},
		{name: "a newer one without one of the two", dev: device{7, 0, 3, 4, 5}, acked: 1},
		{name: "a hole in the order", dev: device{2, 0, 0, 0, 5, 6}, acked: 3},
		{name: "an old block under newer ones", dev: device{1, 0, 3, 4, 5, 6}, acked: 2, flushed: 1},
		{name: "the newest without all between", dev: device{7}, acked: 4},
		{name: "half a request", dev: device{2, 0, 3}, acked: 4},
		{name: "the other half of a request", dev: device{2, 0, 0, 4}, acked: 4},
		{name: "half a request that was never answered", dev: device{7, 0, 3, 4, 5, 6, 0, 9}},
		{name: "unanswered without what was answered before it", dev: device{2, 0, 3, 4, 5, 6, 8, 9}, acked: 1},
		{name: "a torn block", dev: whole, torn: true},
		{name: "a write of another block", dev: device{7, 5, 3, 4, 5, 6, 8, 9}},
		{name: "a write that was never sent", dev: device{7, 44, 3, 4, 5, 6, 8, 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, p := newLedger(7, blocks*ledgerBlock), make([]byte, 2*ledgerBlock)
			do := func(block, n int) { l.ackRun(l.issueRun(block, n, p), n) }
			do(0, 1)
			do(0, 1)
			l.flushed(l.answered())
			do(2, 2)
			five, six := l.issueRun(4, 1, p), l.issueRun(5, 1, p)
			l.ackRun(six, 1)
			l.ackRun(five, 1)
			do(0, 1)
			l.issueRun(6, 2, p)
			dev := make([]byte, blocks*ledgerBlock)
			for b, seq := range c.dev {
				l.pattern(dev[b*ledgerBlock:(b+1)*ledgerBlock], b, seq)
			}
			if c.torn {
				clear(dev[5*ledgerBlock+1000 : 6*ledgerBlock])
			}
			if c.dev[1] == 5 { // as it is, where it does not belong
				copy(dev[ledgerBlock:], dev[4*ledgerBlock:5*ledgerBlock])
			}
			short, err := l.measure(func(off int64, p []byte) error { copy(p, dev[off:]); return nil }, l.moment())
			if (err == nil) != c.ok {
				t.Fatalf("verdict %v, content: %v expected", err, c.ok)
			}
			if err != nil {
				return
			}
			if short != (shortfall{c.acked, c.flushed}) {
				t.Errorf("lost %+v, want %d and %d", short, c.acked, c.flushed)
			}
			read := func(off int64, p []byte) error { copy(p, dev[off:]); return nil }
			if err := l.adopt(read); err != nil {
				t.Fatal(err)
			}
			if short, err := l.measure(read, l.moment()); err != nil || short != (shortfall{}) {
				t.Errorf("adopted, then: %+v, %v", short, err)
			}
			l.pattern(dev[:ledgerBlock], 0, 7)
			if _, err := l.measure(read, l.moment()); (err == nil) != (c.dev[0] == 7) {
				t.Errorf("a write that the adopted state lacks comes back: %v", err)
			}
		})
	}
}

// TestHistoryOneCut compares the rule of oneCut with its definition: a device is good when some order of the writes, in which
// each comes after all that were answered before it was sent, has a beginning that fills it so.
func TestHistoryOneCut(t *testing.T) {
	r := newRand(t)
	good, bad := 0, 0
	for range 3000 {
		const blocks = 3
		l, p := newLedger(1, blocks*ledgerBlock), make([]byte, ledgerBlock)
		var open []uint64
		busy := map[int]bool{}
		for range 6 {
			if b := r.IntN(blocks); !busy[b] {
				busy[b], open = true, append(open, l.issueRun(b, 1, p))
			}
			if len(open) > 0 && r.IntN(2) == 0 {
				i := r.IntN(len(open))
				busy[l.writes[open[i]].block] = false
				l.ackRun(open[i], 1)
				open = append(open[:i], open[i+1:]...)
			}
		}
		have := make([]uint64, blocks)
		for b := range have {
			have[b] = l.state[b].last
			for steps := r.IntN(3); steps > 0; steps-- {
				have[b] = l.writes[have[b]].before
			}
		}
		want := l.someOrder(have, make([]bool, len(l.writes)), make([]uint64, blocks))
		if got := l.oneCut(have) == nil; got != want {
			t.Fatalf("device %v: oneCut says %v, the definition %v; writes %+v", have, got, want, l.writes[1:])
		}
		if want {
			good++
		} else {
			bad++
		}
	}
	if good < 300 || bad < 300 {
		t.Errorf("%d good and %d bad devices: one kind is too rare to say anything", good, bad)
	}
}

// someOrder tries every order.
func (l *ledger) someOrder(want []uint64, done []bool, now []uint64) bool {
	if fmt.Sprint(now) == fmt.Sprint(want) {
		return true
	}
	for seq := 1; seq < len(l.writes); seq++ {
		if done[seq] || uint64(seq) > want[l.writes[seq].block] {
			continue
		}
		free := true
		for other := 1; other < len(l.writes) && free; other++ {
			w := l.writes[other]
			free = done[other] || other == seq || w.acked == 0 || w.acked > l.writes[seq].issued
		}
		if !free || l.writes[seq].before != now[l.writes[seq].block] {
			continue
		}
		done[seq], now[l.writes[seq].block] = true, uint64(seq)
		if l.someOrder(want, done, now) {
			return true
		}
		done[seq], now[l.writes[seq].block] = false, l.writes[seq].before
	}
	return false
}
