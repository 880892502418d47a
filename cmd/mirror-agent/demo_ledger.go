package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

const ledgerBlock = 4096

// ledger remembers what was written, answered and flushed, block by block, so
// that a copy can be judged later. Two writes to one block are never in flight
// at once. Its clock counts events: what was answered before another was
// issued has the smaller number.
type ledger struct {
	seed uint64

	mu       sync.Mutex // guards all below
	clock    uint64
	blocks   map[int64][]entry // by block number, oldest version first
	flushed  uint64            // writes answered before this are flushed
	issued   int
	answered int
}

// entry is one version of one block; version 0 is the blank device.
type entry struct {
	version    uint64
	issued     uint64
	answered   uint64 // 0: never
	answeredAt time.Time
}

func newLedger(seed uint64) *ledger { return &ledger{seed: seed, blocks: map[int64][]entry{}} }

// issue notes a write of n blocks from first and fills in their content.
func (l *ledger) issue(first int64, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	l.issued++
	for i := range int64(len(p) / ledgerBlock) {
		h := l.blocks[first+i]
		version := uint64(len(h) + 1)
		l.blocks[first+i] = append(h, entry{version: version, issued: l.clock})
		l.fill(p[i*ledgerBlock:(i+1)*ledgerBlock], first+i, version)
	}
}

// answer notes that the newest versions of these blocks were acknowledged.
func (l *ledger) answer(first int64, n int, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	l.answered++
	for i := range int64(n) {
		h := l.blocks[first+i]
		h[len(h)-1].answered, h[len(h)-1].answeredAt = l.clock, at
	}
}

// now is the clock's next number: what was answered until here is below it.
func (l *ledger) now() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	return l.clock
}

// flush notes that a FLUSH sent at the clock's number was answered.
func (l *ledger) flush(sent uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushed = max(l.flushed, sent)
}

func (l *ledger) counts() (issued, answered int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.issued, l.answered
}

// fill makes the content of a block: its number, its version, and noise that
// follows from both.
func (l *ledger) fill(p []byte, block int64, version uint64) {
	noise := rand.New(rand.NewPCG(l.seed^uint64(block), version))
	for i := 16; i < ledgerBlock; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], noise.Uint64())
	}
	binary.LittleEndian.PutUint64(p, uint64(block))
	binary.LittleEndian.PutUint64(p[8:], version)
}

// verdict is what a copy is worth.
type verdict struct {
	Blocks       int       // looked at
	LostFlushed  int       // versions that were flushed and are not there
	LostAnswered int       // versions that were answered, flushed or not, and are not there
	Corrupt      int       // blocks whose content was never written so
	OutOfOrder   int       // blocks older than what a newer write elsewhere proves
	OldestLost   time.Time // when the oldest answered and lost version was answered
}

// err tells whether the copy breaks the word that was given. With flushKept
// what was flushed has to be there; in any case the copy has to be a state
// that the source once had.
func (v *verdict) err(flushKept bool) error {
	switch {
	case v.Corrupt > 0:
		return fmt.Errorf("%d blocks hold what was never written", v.Corrupt)
	case flushKept && v.LostFlushed > 0:
		return fmt.Errorf("%d flushed versions of blocks are lost", v.LostFlushed)
	case v.OutOfOrder > 0:
		return fmt.Errorf("%d blocks are older than writes that came later: a state the source never had", v.OutOfOrder)
	}
	return nil
}

// judge reads every block that was ever written from a copy. The writers have
// ended.
func (l *ledger) judge(copy io.ReaderAt) (verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var v verdict
	found := make(map[int64]uint64, len(l.blocks))
	got, want := make([]byte, ledgerBlock), make([]byte, ledgerBlock)
	var newest uint64 // the latest issued write that is there
	for block, history := range l.blocks {
		if _, err := copy.ReadAt(got, block*ledgerBlock); err != nil {
			return v, err
		}
		v.Blocks++
		version := binary.LittleEndian.Uint64(got[8:])
		switch {
		case version > uint64(len(history)):
			v.Corrupt++
			continue
		case version == 0:
			clear(want)
		default:
			l.fill(want, block, version)
			newest = max(newest, history[version-1].issued)
		}
		if !bytes.Equal(got, want) {
			v.Corrupt++
			continue
		}
		found[block] = version
	}
	for block, version := range found {
		l.compare(&v, l.blocks[block][version:], newest)
	}
	return v, nil
}

// compare counts what the versions missing from one block mean.
func (l *ledger) compare(v *verdict, missing []entry, newest uint64) {
	old := false
	for _, e := range missing {
		if e.answered == 0 {
			continue
		}
		v.LostAnswered++
		if v.OldestLost.IsZero() || e.answeredAt.Before(v.OldestLost) {
			v.OldestLost = e.answeredAt
		}
		if e.answered < l.flushed {
			v.LostFlushed++
		}
		old = old || e.answered < newest
	}
	if old {
		v.OutOfOrder++
	}
}
