package mirror

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// soleAgent is a primary without targets, on files, that is not running: the volume alone.
func soleAgent(t *testing.T) (*Agent, *Config) {
	t.Helper()
	c := DefaultConfig()
	c.Name, c.Role, c.Insecure, c.NBD = "vol", RolePrimary, true, "unix:/nowhere"
	c.Device, c.Size, c.JournalSize = filepath.Join(t.TempDir(), "d"), 32<<20, 64<<20
	return reopenSole(t, &c), &c
}

func reopenSole(t *testing.T, c *Config) *Agent {
	t.Helper()
	a, err := Open(t.Context(), *c, nullFront{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

type nullFront struct{ Front }

func (nullFront) Abort()            {}
func (nullFront) Stats() FrontStats { return FrontStats{} }

// The log is made larger and smaller, over and over, while it is written to; nothing is lost, then or after a kill.
func TestResizeLogUnderWrites(t *testing.T) {
	a, c := soleAgent(t)
	const blocks, writers = 512, 2
	var wg sync.WaitGroup
	var done atomic.Bool
	var last [writers * blocks]byte
	for w := range writers {
		wg.Go(func() {
			p := make([]byte, 4096)
			for n := 0; !done.Load(); n++ {
				block := w*blocks + n%blocks
				for i := range p {
					p[i] = byte(n/blocks + 1)
				}
				ws := []blockdev.Write{{Offset: int64(block) * 4096, Data: p, Sync: n%50 == 0}}
				a.v.WriteBatch(ws)
				if ws[0].Err != nil {
					t.Errorf("write: %v", ws[0].Err)
					return
				}
				last[block] = p[0]
			}
		})
	}
	for _, mib := range []int64{96, 16, 32} {
		if err := a.ResizeLog(t.Context(), mib<<20); err != nil {
			t.Errorf("to %d MiB: %v", mib, err)
			break
		}
		if st, err := os.Stat(c.journalPath()); err != nil || st.Size() != mib<<20 || a.v.log.Capacity() != mib<<20-8192 {
			t.Errorf("%d MiB: %v, capacity %d", mib, err, a.v.log.Capacity())
		}
	}
	done.Store(true)
	wg.Wait()
	check := func(v *Volume) {
		t.Helper()
		p := make([]byte, 4096)
		for block, want := range last {
			if _, err := v.ReadAt(p, int64(block)*4096); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{want}, 4096)) {
				t.Fatalf("block %d: %d … %d, want %d, %v", block, p[0], p[4095], want, err)
			}
		}
	}
	check(a.v)
	if err := a.v.Abort(); err != nil { // as a kill would
		t.Fatal(err)
	}
	_ = a.Close()
	check(reopenSole(t, c).v)
}

func TestResizeLogRefusals(t *testing.T) {
	a, c := soleAgent(t)
	for _, r := range []struct {
		bytes int64
		want  string
	}{
		{1 << 20, "the least is 16 MiB"},
		{64 << 20, "has 64 MiB already"},
		{1 << 50, "make room, or choose a smaller size"},
	} {
		if err := a.ResizeLog(t.Context(), r.bytes); err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%d: %v", r.bytes, err)
		}
	}
	a.mu.Lock()
	a.fenced = "for the test"
	a.mu.Unlock()
	if err := a.ResizeLog(t.Context(), 128<<20); err == nil || !strings.Contains(err.Error(), "only this host has") {
		t.Errorf("fenced: %v", err)
	}
	a.mu.Lock()
	a.fenced = ""
	a.mu.Unlock()
	// A connected follower needs what is in the log.
	h := a.v.newHold("somebody", a.v.log.Tail(), func() {})
	p := make([]byte, 1<<20)
	for i := range 30 {
		if _, err := a.v.WriteAt(p, int64(i)<<20); err != nil {
			t.Fatal(err)
		}
	}
	err := a.ResizeLog(t.Context(), 16<<20)
	if !errors.Is(err, journal.ErrTooSmall) || !strings.Contains(err.Error(), "must stay") {
		t.Errorf("follower in need: %v", err)
	}
	if got := a.v.log.Capacity(); got != 64<<20-8192 || a.v.Err() != nil {
		t.Errorf("capacity %d, %v", got, a.v.Err())
	}
	if _, err := os.Stat(c.journalPath() + newJournalSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new file is left behind: %v", err)
	}
	h.release()
	if err := a.ResizeLog(t.Context(), 16<<20); err != nil {
		t.Errorf("released: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.journalPath()+newJournalSuffix, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	a = reopenSole(t, c)
	if _, err := os.Stat(c.journalPath() + newJournalSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an interrupted resize's file is left: %v", err)
	}
	if got := a.v.log.Capacity(); got != 16<<20-8192 {
		t.Errorf("reopened with a ring of %d", got)
	}
}

// TestFencedWhileResizing: a volume is fenced while its log is being made smaller. Its history stays: what only this host has is
// in it, and nobody has exported it yet. The fence was looked at once, before the resize began.
func TestFencedWhileResizing(t *testing.T) {
	h := newHost(t, RolePrimary)
	dev := blockdev.NewFaulty(keepOpen{h.device})
	v, _, err := openVolume(keepOpen{h.journal}, dev, quietOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Abort() }()
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := v.WriteAt(make([]byte, 16<<10), 0); err != nil {
			t.Fatal(err)
		}
	}
	tail := v.log.Tail()
	dev.Set(blockdev.Rule{Op: blockdev.OpSync, Times: 1, Hook: func(blockdev.Op, int64, int64) error { return v.setFlags(stateFenced, 0) }})
	smaller := blockdev.NewMemory(testJournal/2, h.power)
	err = v.resizeLog(t.Context(), smaller, testJournal/2, func() error { t.Error("moved"); return nil })
	if !errors.Is(err, errHeldByFork) || !v.heldByFork() {
		t.Errorf("resized: %v", err)
	}
	if got := v.log.Tail(); got != tail {
		t.Errorf("the tail went from %d to %d", tail, got)
	}
}
