package main

import (
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// history is a ledger and the device that it is about.
type history struct {
	*ledger
	dev *blockdev.Memory
}

func newHistory() *history { return &history{newLedger(7), blockdev.NewMemory(1<<20, nil)} }

// write issues a write of one block; it reaches the device when there is set,
// and is acknowledged when answered is.
func (h *history) write(t *testing.T, block int64, there, answered bool) {
	t.Helper()
	p := make([]byte, ledgerBlock)
	h.issue(block, p)
	if there {
		if _, err := h.dev.WriteAt(p, block*ledgerBlock); err != nil {
			t.Fatal(err)
		}
	}
	if answered {
		h.answer(block, 1, time.Unix(int64(block), 0))
	}
}

func TestLedgerJudges(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story func(t *testing.T, h *history)
		want  verdict
		holds bool // when flushed data has to be there
	}{
		{"all there", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			h.write(t, 1, true, true)
			h.flush(h.now())
		}, verdict{Blocks: 1}, true},
		{"never answered may be missing", func(t *testing.T, h *history) {
			h.write(t, 1, false, false)
		}, verdict{Blocks: 1}, true},
		{"never answered may be there", func(t *testing.T, h *history) {
			h.write(t, 1, true, false)
		}, verdict{Blocks: 1}, true},
		{"answered and lost, not flushed", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			h.flush(h.now())
			h.write(t, 2, false, true)
		}, verdict{Blocks: 2, LostAnswered: 1, OldestLost: time.Unix(2, 0)}, true},
		{"flushed and lost", func(t *testing.T, h *history) {
			h.write(t, 1, false, true)
			h.flush(h.now())
		}, verdict{Blocks: 1, LostAnswered: 1, LostFlushed: 1, OldestLost: time.Unix(1, 0)}, false},
		{"an older version than was flushed", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			h.write(t, 1, false, true)
			h.flush(h.now())
		}, verdict{Blocks: 1, LostAnswered: 1, LostFlushed: 1, OldestLost: time.Unix(1, 0)}, false},
		{"a later write without an earlier one", func(t *testing.T, h *history) {
			h.write(t, 1, false, true)
			h.write(t, 2, true, true)
		}, verdict{Blocks: 2, LostAnswered: 1, OutOfOrder: 1, OldestLost: time.Unix(1, 0)}, false},
		{"writes that were in flight together have no order", func(t *testing.T, h *history) {
			p := make([]byte, ledgerBlock)
			h.issue(1, p) // lost, answered after the other was issued
			h.write(t, 2, true, true)
			h.answer(1, 1, time.Unix(1, 0))
		}, verdict{Blocks: 2, LostAnswered: 1, OldestLost: time.Unix(1, 0)}, true},
		{"garbage", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			h.dev.WriteAt([]byte{1, 2, 3}, ledgerBlock+512)
		}, verdict{Blocks: 1, Corrupt: 1}, false},
		{"another block's content", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			p := make([]byte, ledgerBlock)
			h.fill(p, 2, 1)
			h.dev.WriteAt(p, ledgerBlock)
		}, verdict{Blocks: 1, Corrupt: 1}, false},
		{"a version from the future", func(t *testing.T, h *history) {
			h.write(t, 1, true, true)
			p := make([]byte, ledgerBlock)
			h.fill(p, 1, 2)
			h.dev.WriteAt(p, ledgerBlock)
		}, verdict{Blocks: 1, Corrupt: 1}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHistory()
			tt.story(t, h)
			got, err := h.judge(h.dev)
			if err != nil || got != tt.want || (got.err(true) == nil) != tt.holds {
				t.Errorf("got  %+v (%v, %v)\nwant %+v", got, got.err(true), err, tt.want)
			}
		})
	}
}

// In async a FLUSH promises nothing about the other host; order it does.
func TestLedgerJudgesAsync(t *testing.T) {
	lost := verdict{Blocks: 2, LostFlushed: 1, LostAnswered: 1}
	if err := lost.err(false); err != nil {
		t.Errorf("flushed and lost: %v", err)
	}
	lost.OutOfOrder = 1
	if lost.err(false) == nil {
		t.Error("a state the source never had was accepted")
	}
}

// The writer's own ledger must agree with the device it wrote to.
func TestWriterKeepsTheLedger(t *testing.T) {
	dev := blockdev.NewMemory(clientTestSize, nil)
	_, address := served(t, dev)
	l := newLedger(1)
	w := startWriter(dial(t, address), l, 1<<20, clientTestSize)
	for deadline := time.Now().Add(10 * time.Second); ; wait(t.Context(), time.Millisecond) {
		if _, n := l.counts(); n > 50 && w.flushedSince(time.Time{}) || time.Now().After(deadline) {
			break
		}
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	issued, answered := l.counts()
	v, err := l.judge(dev)
	if err != nil || v.err(true) != nil || v.LostAnswered != 0 || issued != answered || issued < 50 || v.Blocks == 0 {
		t.Errorf("%+v, %v, %d issued, %d answered", v, err, issued, answered)
	}
	blank := make([]byte, 1<<20)
	if _, err := dev.ReadAt(blank, 0); err != nil {
		t.Fatal(err)
	}
	for _, b := range blank {
		if b != 0 {
			t.Fatal("written outside its region")
		}
	}
	// And it must notice a copy that lacks a flushed block.
	for block := range l.blocks {
		dev.Zero(block*ledgerBlock, ledgerBlock)
		break
	}
	if v, err := l.judge(dev); err != nil || v.LostFlushed == 0 || v.err(true) == nil {
		t.Errorf("a lost block was not noticed: %+v, %v", v, err)
	}
}
