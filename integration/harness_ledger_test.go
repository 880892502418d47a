package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const ledgerBlock = 4096

// ledger is the oracle of the fault tests. Every write fills one block with a
// pattern made of its sequence number, so that what is read back says which
// write it was; a block that is no write's pattern is torn or foreign. A block
// has at most one write in flight.
//
// Ticks order what a client saw: a write issued after another was answered must
// not be there without it.
type ledger struct {
	seed   uint64
	blocks int
	tick   atomic.Uint64

	mu     sync.Mutex // guards below
	writes []ledgerWrite
	state  []ledgerState // per block
}

type ledgerWrite struct {
	block         int
	request       uint64 // the first write of the same request, which fills several blocks; 0: its own
	before        uint64 // the write that this one replaces, 0: none
	next          uint64 // the write that replaced it, 0: none
	issued, acked uint64 // ticks; acked 0: never answered
}

type ledgerState struct {
	last    uint64 // newest issued
	acked   uint64 // newest answered
	flushed uint64 // newest that a FLUSH has covered
	settled uint64 // what was there when the ledger was settled
}

func newLedger(seed uint64, size int64) *ledger {
	n := int(size / ledgerBlock)
	l := &ledger{seed: seed, blocks: n, writes: make([]ledgerWrite, 1, 1<<16), state: make([]ledgerState, n)}
	return l
}

// pattern fills p with what write seq puts into a block; 0 is the blank device.
func (l *ledger) pattern(p []byte, block int, seq uint64) {
	if seq == 0 {
		clear(p)
		return
	}
	binary.LittleEndian.PutUint64(p, seq)
	binary.LittleEndian.PutUint64(p[8:], uint64(block))
	x := l.seed ^ seq*0x9E3779B97F4A7C15
	for i := 16; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// issue enters a write that is about to be sent.
func (l *ledger) issue(block int, p []byte) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq := uint64(len(l.writes))
	s := &l.state[block]
	l.writes = append(l.writes, ledgerWrite{block: block, before: s.last, issued: l.tick.Add(1)})
	if s.last != 0 {
		l.writes[s.last].next = seq
	}
	s.last = seq
	l.pattern(p, block, seq)
	return seq
}

func (l *ledger) ack(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.writes[seq]
	w.acked = l.tick.Add(1)
	l.state[w.block].acked = seq
}

// answered copies what is answered now: what a FLUSH sent after this covers.
func (l *ledger) answered() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := make([]uint64, len(l.state))
	for i := range l.state {
		a[i] = l.state[i].acked
	}
	return a
}

// flushed enters the answer of a FLUSH.
func (l *ledger) flushed(covered []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, seq := range covered {
		l.state[i].flushed = max(l.state[i].flushed, seq)
	}
}

func (l *ledger) counts() (issued, acked int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writes[1:] {
		issued++
		if w.acked != 0 {
			acked++
		}
	}
	return issued, acked
}

// floor says what has to be there.
type floor int

const (
	allAcked   floor = iota // every answered write (G1)
	allFlushed              // every write that an answered FLUSH covers (G2)
	allSettled              // what was there at the last settling, and any state the device had since
)

// verify reads the whole device through read and judges it. What was in flight
// has become either; the ledger then goes on from what was read.
func (l *ledger) verify(read func(off int64, p []byte) error, f floor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	const chunk = 1 << 20
	buf, want := make([]byte, chunk), make([]byte, ledgerBlock)
	var errs []error
	// The newest issue among the writes that are there, the oldest answer among
	// those that are not.
	var presentIssued, present uint64
	absentAcked, absent := ^uint64(0), uint64(0)
	for first := 0; first < l.blocks; first += chunk / ledgerBlock {
		n := min(l.blocks-first, chunk/ledgerBlock)
		part := buf[:n*ledgerBlock]
		if err := read(int64(first)*ledgerBlock, part); err != nil {
			return fmt.Errorf("read at %d: %w", int64(first)*ledgerBlock, err)
		}
		for i := range n {
			b := first + i
			seq, err := l.judge(b, part[i*ledgerBlock:(i+1)*ledgerBlock], want, f)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if seq != 0 && l.writes[seq].issued > presentIssued {
				presentIssued, present = l.writes[seq].issued, seq
			}
			var next uint64
			if seq != 0 {
				next = l.writes[seq].next
			} else {
				next = l.first(b)
			}
			if next != 0 && l.writes[next].acked != 0 && l.writes[next].acked < absentAcked {
				absentAcked, absent = l.writes[next].acked, next
			}
		}
	}
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more blocks", len(errs)-5))
	}
	if presentIssued > absentAcked {
		errs = append(errs, fmt.Errorf("not a state the device ever had: write %d (block %d) is there, write %d (block %d), answered before that was sent, is not",
			present, l.writes[present].block, absent, l.writes[absent].block))
	}
	return errors.Join(errs...)
}

// first returns the first write that block ever had in what is still known.
func (l *ledger) first(block int) uint64 {
	s := l.state[block].last
	for s != 0 && l.writes[s].before != 0 {
		s = l.writes[s].before
	}
	return s
}

// judge says which write a block holds.
func (l *ledger) judge(block int, got, want []byte, f floor) (uint64, error) {
	s := &l.state[block]
	least := s.acked
	switch f {
	case allFlushed:
		least = s.flushed
	case allSettled:
		least = s.settled
	case nothing:
		least = 0
	}
	seq := binary.LittleEndian.Uint64(got)
	if seq >= uint64(len(l.writes)) || seq != 0 && l.writes[seq].block != block {
		return 0, fmt.Errorf("block %d holds %x…, which nobody wrote there", block, got[:16])
	}
	l.pattern(want, block, seq)
	if !bytes.Equal(got, want) {
		return 0, fmt.Errorf("block %d: write %d is torn or damaged", block, seq)
	}
	if seq < least {
		return 0, fmt.Errorf("block %d: holds write %d, write %d is lost (answered %d, flushed %d, newest sent %d)", block, seq, least, s.acked, s.flushed, s.last)
	}
	return seq, nil
}

// settle makes what is on the device now the truth: what was in flight at a
// kill is decided. The history before is forgotten.
func (l *ledger) settle(read func(off int64, p []byte) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := make([]byte, l.blocks*ledgerBlock)
	for off := 0; off < len(p); off += 1 << 20 {
		if err := read(int64(off), p[off:min(off+1<<20, len(p))]); err != nil {
			return err
		}
	}
	for b := range l.state {
		s := &l.state[b]
		seq := binary.LittleEndian.Uint64(p[b*ledgerBlock:])
		s.last, s.acked, s.settled = seq, seq, seq
		s.flushed = min(s.flushed, seq)
		if seq != 0 {
			w := &l.writes[seq]
			w.before, w.next = 0, 0
			if w.acked == 0 {
				w.acked = l.tick.Load()
			}
		}
	}
	return nil
}

// load writes to the device until it is stopped or its connection ends.
type load struct {
	writers    int // each has blocks of its own, one write in flight
	flushEvery int // one writer in that many writes sends FLUSH; 0: never
	l          *ledger
	slowest    atomic.Int64 // ns of the slowest answered FLUSH
	answers    atomic.Int64 // answered writes
	stopped    atomic.Bool
	wg         sync.WaitGroup
	errMu      sync.Mutex
	err        error
}

// startLoad begins writing through c. Stop ends it cleanly; a connection that
// goes away ends it too, and is no error here.
func (l *ledger) startLoad(c *nbdClient, rng *rand.Rand, writers, flushEvery int) *load {
	ld := &load{writers: writers, flushEvery: flushEvery, l: l}
	for w := range writers {
		r := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
		ld.wg.Go(func() { ld.run(c, w, r) })
	}
	return ld
}

func (ld *load) run(c *nbdClient, w int, r *rand.Rand) {
	p := make([]byte, ledgerBlock)
	per := ld.l.blocks / ld.writers
	for n := 1; !ld.stopped.Load(); n++ {
		block := r.IntN(per)*ld.writers + w
		seq := ld.l.issue(block, p)
		if err := c.write(int64(block)*ledgerBlock, p, false); err != nil {
			ld.fail(fmt.Errorf("write of block %d: %w", block, err))
			return
		}
		ld.l.ack(seq)
		ld.answers.Add(1)
		if ld.flushEvery > 0 && n%ld.flushEvery == 0 {
			covered, start := ld.l.answered(), time.Now()
			if err := c.flush(); err != nil {
				ld.fail(fmt.Errorf("flush: %w", err))
				return
			}
			ld.l.flushed(covered)
			if d := int64(time.Since(start)); d > ld.slowest.Load() {
				ld.slowest.Store(d)
			}
		}
	}
}

func (ld *load) fail(err error) {
	if errors.Is(err, errNBDGone) {
		return
	}
	ld.errMu.Lock()
	defer ld.errMu.Unlock()
	if ld.err == nil {
		ld.err = err
	}
}

// stop ends the load and returns what went wrong beside a lost connection.
func (ld *load) stop() error {
	ld.stopped.Store(true)
	return ld.join()
}

// join waits for a load whose connection has gone.
func (ld *load) join() error {
	ld.wg.Wait()
	ld.errMu.Lock()
	defer ld.errMu.Unlock()
	return ld.err
}

// untilAnswered waits until n more writes were answered.
func (ld *load) untilAnswered(t testing.TB, n int64) {
	t.Helper()
	from := ld.answers.Load()
	eventually(t, 30*time.Second, fmt.Sprintf("%d more writes answered", n), func() (bool, string) {
		got := ld.answers.Load() - from
		return got >= n, fmt.Sprint(got)
	})
}

// TestLedger shows that the oracle sees what it has to see.
func TestLedger(t *testing.T) {
	const blocks = 8
	for _, c := range []struct {
		name  string
		fault func(l *ledger, dev []byte)
		floor floor
		ok    bool
	}{
		{"all there", func(*ledger, []byte) {}, allAcked, true},
		{"an answered write lost", func(l *ledger, dev []byte) { l.pattern(dev[:ledgerBlock], 0, 1) }, allAcked, false},
		{"a write that was not flushed lost", func(l *ledger, dev []byte) { l.pattern(dev[3*ledgerBlock:4*ledgerBlock], 3, 0) }, allFlushed, true},
		{"a flushed write lost", func(l *ledger, dev []byte) { l.pattern(dev[:ledgerBlock], 0, 0) }, allFlushed, false},
		{"a hole in the order", func(l *ledger, dev []byte) { l.pattern(dev[2*ledgerBlock:3*ledgerBlock], 2, 0) }, allFlushed, false},
		{"a torn block", func(_ *ledger, dev []byte) { clear(dev[1000:4096]) }, allFlushed, false},
		{"a foreign block", func(_ *ledger, dev []byte) { copy(dev[4096:], dev[:4096]) }, allFlushed, false},
		{"in flight and there", func(l *ledger, dev []byte) {
			seq := l.issue(5, make([]byte, ledgerBlock))
			l.pattern(dev[5*ledgerBlock:6*ledgerBlock], 5, seq)
		}, allAcked, true},
		{"in flight and not there", func(l *ledger, _ []byte) { l.issue(5, make([]byte, ledgerBlock)) }, allAcked, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, dev := newLedger(7, blocks*ledgerBlock), make([]byte, blocks*ledgerBlock)
			write := func(block int) {
				seq := l.issue(block, dev[block*ledgerBlock:(block+1)*ledgerBlock])
				l.ack(seq)
			}
			write(0) // 1
			write(0) // 2, flushed
			l.flushed(l.answered())
			write(2) // 3
			write(3) // 4
			c.fault(l, dev)
			read := func(off int64, p []byte) error { copy(p, dev[off:]); return nil }
			if err := l.verify(read, c.floor); (err == nil) != c.ok {
				t.Errorf("verdict %v, content: %v expected", err, c.ok)
			}
			if c.ok {
				if err := l.settle(read); err != nil {
					t.Fatal(err)
				}
				if err := l.verify(read, allAcked); err != nil {
					t.Errorf("after settling: %v", err)
				}
			}
		})
	}
}
