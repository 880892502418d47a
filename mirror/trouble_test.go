package mirror

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// openFaulty opens the host's volume with rules on either disk to be set later.
func (h *host) openFaulty(t *testing.T) (v *Volume, j, dev *blockdev.Faulty) {
	t.Helper()
	j, dev = blockdev.NewFaulty(keepOpen{h.journal}), blockdev.NewFaulty(keepOpen{h.device})
	v, rec, err := openVolume(j, dev, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if v.Role() == RolePrimary && !rec.Clean {
		if _, err := v.beginGeneration(v.Generation().Major == 0); err != nil {
			t.Fatal(err)
		}
	}
	return v, j, dev
}

// awaitVolume waits until ok, which is asked again after every change and every so often.
func awaitVolume(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func mustContent(t *testing.T, what string, v *Volume, want []byte) {
	t.Helper()
	got, err := content(v)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("%s: differs at %d", what, i)
	}
}

// TestDeviceFull: no space for the backing device stops the applier and nothing else. The log takes what is written until it
// is full; then writers wait, and go on by themselves when there is space again. A kill in between loses nothing.
func TestDeviceFull(t *testing.T) {
	for _, c := range []struct {
		name string
		ops  []blockdev.Op
		kill bool
	}{
		{"write", []blockdev.Op{blockdev.OpWrite}, false},
		{"trim", []blockdev.Op{blockdev.OpTrim}, false},
		// Not a sync: that stops the volume, and after the kill the applier may have come that far before the rules are set.
		{"killed", []blockdev.Op{blockdev.OpWrite, blockdev.OpZero, blockdev.OpTrim}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, RolePrimary)
			v, _, dev := h.openFaulty(t)
			defer func() { v.Close() }()
			var full []blockdev.Rule
			for _, op := range c.ops {
				full = append(full, blockdev.Rule{Op: op, Err: unix.ENOSPC})
			}
			dev.Set(full...)
			want := bytes.Repeat([]byte{1}, testDevice)
			if _, err := v.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if err := v.Trim(4096, 8192); err != nil {
				t.Fatal(err)
			}
			clear(want[4096:12288])
			awaitVolume(t, "trouble", func() bool { return v.troubleNow() != nil })
			if x := v.troubleNow(); !x.full || x.kind() != troubleFull {
				t.Errorf("trouble %+v", x)
			}
			if err := v.Sync(); err != nil {
				t.Fatalf("flush while the device is full: %v", err)
			}
			mustContent(t, "while the device is full", v, want)
			if c.kill {
				if err := v.Abort(); err != nil {
					t.Fatal(err)
				}
				v, _, dev = h.openFaulty(t)
				dev.Set(full...)
				mustContent(t, "after a kill", v, want)
			}
			// The ring holds 1 MiB: these writers fill it, and wait.
			done := make(chan error)
			go func() {
				p := bytes.Repeat([]byte{2}, 64<<10)
				for range 64 {
					if _, err := v.WriteAt(p, 0); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			awaitVolume(t, "a writer that waits", func() bool {
				v.stateMu.Lock()
				defer v.stateMu.Unlock()
				return v.waiting > 0
			})
			select {
			case err := <-done:
				t.Fatalf("the writer is through: %v", err)
			default:
			}
			dev.Set()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			copy(want, bytes.Repeat([]byte{2}, 64<<10))
			mustContent(t, "after there was space", v, want)
			awaitVolume(t, "the end of the trouble", func() bool { return v.troubleNow() == nil })
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, testDevice)
			if _, err := h.device.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the device is not the volume after a clean end (%v)", err)
			}
		})
	}
}

// TestEndWithDeviceFull: an end while the device is full is not a clean one, says so, and loses nothing.
func TestEndWithDeviceFull(t *testing.T) {
	h := newHost(t, RolePrimary)
	v, _, dev := h.openFaulty(t)
	dev.Set(blockdev.Rule{Op: blockdev.OpWrite, Err: unix.ENOSPC})
	want := bytes.Repeat([]byte{3}, testDevice)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "stays in the log") {
		t.Errorf("close: %v", err)
	}
	w := h.mustOpen(t)
	defer w.Close()
	mustContent(t, "at the next start", w, want)
}

// TestDiskFails: what each part's failure does, and that nothing that was flushed is lost by it. After the volume stopped what
// is sound is still read.
func TestDiskFails(t *testing.T) {
	anchors := blockdev.Rule{Op: blockdev.OpWrite, Offset: 0, Length: anchorBytes, Err: unix.EIO}
	records := blockdev.Rule{Op: blockdev.OpWrite, Offset: anchorBytes, Length: testJournal, Err: unix.EIO}
	for _, c := range []struct {
		name     string
		journal  *blockdev.Rule
		device   *blockdev.Rule
		part     string
		cause    error
		attempts int    // of the operation that failed, 0: not counted
		unsynced string // what was not flushed: "read", "refused", or "either" when it may have become durable before
		next     string
	}{
		{"device write", nil, &blockdev.Rule{Op: blockdev.OpWrite, Err: unix.EIO}, "device", unix.EIO, maxErrorTries + 1, "read", "disk of the device"},
		{"device fdatasync", nil, &blockdev.Rule{Op: blockdev.OpSync, Err: unix.EIO}, "device", unix.EIO, 1, "read", "disk of the device"},
		{"device fdatasync without space", nil, &blockdev.Rule{Op: blockdev.OpSync, Err: unix.ENOSPC}, "device", unix.ENOSPC, 1, "read", "free space"},
		{"journal write", &records, nil, "journal", unix.EIO, 1, "refused", "disk of the journal"},
		{"journal without space", &blockdev.Rule{Op: blockdev.OpWrite, Offset: anchorBytes, Length: testJournal, Err: unix.ENOSPC}, nil, "journal", unix.ENOSPC, 1, "refused", "free space"},
		{"journal fdatasync", &blockdev.Rule{Op: blockdev.OpSync, Err: unix.EIO}, nil, "journal", unix.EIO, 1, "refused", "disk of the journal"},
		{"anchor", &anchors, nil, "journal", unix.EIO, 1, "either", "disk of the journal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, RolePrimary)
			v, j, dev := h.openFaulty(t)
			flushed := bytes.Repeat([]byte{1}, testDevice/2)
			if _, err := v.WriteAt(flushed, 0); err != nil {
				t.Fatal(err)
			}
			if err := v.Sync(); err != nil {
				t.Fatal(err)
			}
			tried := 0
			count := func(r *blockdev.Rule) blockdev.Rule {
				counted := *r
				counted.Hook = func(blockdev.Op, int64, int64) error { tried++; return nil } // one applier, one sync at a time
				return counted
			}
			if c.journal != nil {
				j.Set(count(c.journal))
			} else {
				dev.Set(count(c.device))
			}
			later := bytes.Repeat([]byte{2}, 4096)
			_, writeErr := v.WriteAt(later, testDevice/2)
			awaitVolume(t, "the volume stops", func() bool { return v.Err() != nil })
			var failed *FailedError
			if err := v.Err(); !errors.As(err, &failed) || failed.Part != c.part || !errors.Is(err, c.cause) || !strings.Contains(failed.next(), c.next) {
				t.Fatalf("stopped by %v", err)
			}
			if _, err := v.WriteAt(later, 0); !errors.Is(err, c.cause) {
				t.Errorf("a write after it: %v", err)
			}
			if err := v.Sync(); err == nil {
				t.Error("a flush after it is answered")
			}
			got := make([]byte, len(flushed))
			if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, flushed) {
				t.Errorf("what was flushed is not read after it: %v", err)
			}
			switch _, err := v.ReadAt(got[:4096], testDevice/2); {
			case writeErr != nil: // it never came into being
			case c.unsynced == "read" && (err != nil || !bytes.Equal(got[:4096], later)):
				t.Errorf("what is in a sound log is not read: %v", err)
			case c.unsynced == "refused" && err == nil:
				t.Error("what the failed journal never made durable is shown")
			}
			if err := v.Abort(); err != nil {
				t.Fatal(err)
			}
			if tried != c.attempts {
				t.Errorf("tried %d times, want %d", tried, c.attempts)
			}
			w := h.mustOpen(t)
			defer w.Close()
			if _, err := w.ReadAt(got, 0); err != nil || !bytes.Equal(got, flushed) {
				t.Errorf("what was flushed is lost at the next start: %v", err)
			}
		})
	}
}

// TestDeviceErrorPasses: an error of a write that goes away is survived.
func TestDeviceErrorPasses(t *testing.T) {
	h := newHost(t, RolePrimary)
	v, _, dev := h.openFaulty(t)
	defer v.Close()
	dev.Set(blockdev.Rule{Op: blockdev.OpWrite, Err: unix.EIO, Times: maxErrorTries})
	want := bytes.Repeat([]byte{4}, testDevice)
	if _, err := v.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	awaitVolume(t, "trouble", func() bool { return v.troubleNow().kind() == troubleError })
	awaitVolume(t, "the end of the trouble", func() bool { return v.troubleNow() == nil })
	if err := v.Err(); err != nil {
		t.Fatal(err)
	}
	mustContent(t, "after it", v, want)
}

// cached is a disk behind a page cache: a sync that fails leaves in the cache, as clean, what is not on the disk.
type cached struct {
	keepOpen
	cache []byte // nil: what the disk has
	fail  bool
	drops int
}

func (c *cached) view() []byte {
	if c.cache == nil {
		size, _ := c.Size()
		c.cache = make([]byte, size)
		_, _ = c.keepOpen.ReadAt(c.cache, 0)
	}
	return c.cache
}

func (c *cached) ReadAt(p []byte, off int64) (int, error) { return copy(p, c.view()[off:]), nil }

func (c *cached) WriteAt(p []byte, off int64) (int, error) {
	copy(c.view()[off:], p)
	if !c.fail {
		return c.keepOpen.WriteAt(p, off)
	}
	return len(p), nil
}

func (c *cached) WritevAt(bufs [][]byte, off int64) (int, error) {
	return c.WriteAt(bytes.Join(bufs, nil), off)
}

func (c *cached) Sync() error {
	if c.fail {
		return unix.EIO
	}
	return c.keepOpen.Sync()
}

func (c *cached) DropCache(off, length int64) error {
	c.drops++
	p := c.view()[off:]
	if length > 0 {
		p = p[:length]
	}
	_, err := c.keepOpen.ReadAt(p, off)
	return err
}

// TestRecoverFromDisk: after an fdatasync that failed the next start reads the disk, not what is cached (G9). A log that is
// whole in the cache is not on the disk.
func TestRecoverFromDisk(t *testing.T) {
	for _, which := range []string{"journal", "anchor of a clean end"} {
		t.Run(which, func(t *testing.T) {
			h := newHost(t, RolePrimary)
			j, dev := &cached{keepOpen: keepOpen{h.journal}}, &cached{keepOpen: keepOpen{h.device}}
			v, _, err := openVolume(j, dev, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.beginGeneration(true); err != nil {
				t.Fatal(err)
			}
			if err := v.Sync(); err != nil {
				t.Fatal(err)
			}
			end := v.log.Head()
			if err := v.Abort(); err != nil {
				t.Fatal(err)
			}
			// From here on the disk takes nothing.
			j.fail = true
			if _, _, err := journal.Open(j, journal.Options{}); err == nil {
				t.Fatal("a journal that cannot be synced opened")
			}
			forge(t, j, which, end)
			copy(dev.view(), "never on the disk")
			j.fail, j.drops = false, 0
			a, err := journal.ReadAnchor(j)
			if err != nil {
				t.Fatal(err)
			}
			if which != "journal" && !a.Clean {
				t.Fatal("the cache does not show a clean end: this test tests nothing")
			}
			w, rec, err := openVolume(j, dev, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			mustContent(t, "after recovery", w, make([]byte, testDevice))
			if j.drops == 0 {
				t.Error("the cache was believed")
			}
			if w.log.Head() != end || rec.Clean {
				t.Errorf("head %d after recovery, the disk has %d; clean %v", w.log.Head(), end, rec.Clean)
			}
		})
	}
}

// forge puts into the cache alone what a process wrote whose fdatasync failed.
func forge(t *testing.T, j *cached, which string, end journal.LSN) {
	t.Helper()
	image := blockdev.NewMemory(testJournal, nil)
	if _, err := image.WriteAt(j.view(), 0); err != nil {
		t.Fatal(err)
	}
	l, _, err := journal.Open(image, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if which == "journal" {
		if err := l.Append([]*journal.Entry{{Op: journal.OpWrite, Payload: []byte("never on the disk")}}); err != nil {
			t.Fatal(err)
		}
	} else if err := l.WriteAnchor(func(a *journal.Anchor) { a.Clean, a.Applied = true, end }); err != nil {
		t.Fatal(err)
	}
	if _, err := image.ReadAt(j.view(), 0); err != nil {
		t.Fatal(err)
	}
}

// TestNoSpaceToTakeOver: a staged resync that the device has no space for is not taken over: the volume stays as it was, whole and
// running, and the next try succeeds when there is space.
func TestNoSpaceToTakeOver(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	h := d.hosts[dstHost]
	if err := d.v[dstHost].Abort(); err != nil {
		t.Fatal(err)
	}
	v, _, dev := h.openFaulty(t)
	d.v[dstHost] = v
	before, err := content(v)
	if err != nil {
		t.Fatal(err)
	}
	h.newStage()
	take := func() error {
		st, err := h.stagedIn(v)(testDevice)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.write(bytes.Repeat([]byte{0xEE}, 4096), 8192, 4096, false); err != nil {
			t.Fatal(err)
		}
		head, chain := v.log.HeadChain()
		return st.finish(head, chain, v.History())
	}
	dev.Set(blockdev.Rule{Op: blockdev.OpWrite, Err: unix.ENOSPC})
	err = take()
	if s := (*stageError)(nil); !errors.As(err, &s) || !noSpace(err) || v.Err() != nil || v.flags()&stateMerging != 0 {
		t.Fatalf("taken over without space: %v, volume %v", err, v.Err())
	}
	mustContent(t, "without space", v, before)
	dev.Set()
	if err := take(); err != nil {
		t.Fatal(err)
	}
	copy(before[8192:], bytes.Repeat([]byte{0xEE}, 4096))
	mustContent(t, "taken over", v, before)
}
