package mirror

import (
	"bytes"
	"testing"
	"time"

	"mirror-agent/journal"
)

// TestRetain: what is retained stays out of the backing device, reads see it all the same, it survives a crash, a full
// ring and a clean end apply it.
func TestRetain(t *testing.T) {
	for _, c := range []struct {
		name     string
		o        func(*VolumeOptions)
		retained bool // after the writes
	}{
		{"nothing", func(*VolumeOptions) {}, false},
		{"by time", func(o *VolumeOptions) { o.RetainTime = time.Hour }, true},
		{"by size", func(o *VolumeOptions) { o.RetainBytes = 256 << 10 }, true},
		{"by a short time", func(o *VolumeOptions) { o.RetainTime = 20 * time.Millisecond }, false},
		{"by time and a small size", func(o *VolumeOptions) { o.RetainTime, o.RetainBytes = time.Hour, 1 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, RolePrimary)
			o := testOptions()
			c.o(&o)
			open := func() *Volume {
				t.Helper()
				v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			v := open()
			if _, err := v.beginGeneration(true); err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte{1}, 4096)
			write := func(p []byte, off int64) {
				t.Helper()
				if _, err := v.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				if err := v.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			inDevice := func() bool {
				p := make([]byte, len(want))
				if _, err := h.device.ReadAt(p, 8192); err != nil {
					t.Fatal(err)
				}
				return bytes.Equal(p, want)
			}
			write(want, 8192)
			write([]byte("later"), 0)
			if c.retained {
				for range 20 { // much longer than it takes to apply
					time.Sleep(o.ApplyInterval)
					v.poke()
				}
				if inDevice() {
					t.Fatal("applied, and was to be retained")
				}
			} else {
				for end := time.Now().Add(10 * time.Second); !inDevice(); time.Sleep(o.ApplyInterval) {
					if time.Now().After(end) {
						t.Fatal("not applied")
					}
					write([]byte("more"), 0) // a size counts what lies behind
				}
			}
			if err := v.Abort(); err != nil {
				t.Fatal(err)
			}
			v = open()
			got := make([]byte, len(want))
			if _, err := v.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("after a crash it reads otherwise (%v)", err)
			}
			for range 2 * testJournal / (16 << 10) { // the ring goes around: room comes first
				write(make([]byte, 16<<10), 32<<10)
			}
			if !inDevice() {
				t.Fatal("the log has gone on, and the device lacks what was in it")
			}
			want = bytes.Repeat([]byte{2}, 4096)
			write(want, 8192)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			if !inDevice() {
				t.Fatal("a clean end did not apply all")
			}
		})
	}
}

// TestRetainSlowsNobody: what is retained is given up before writers would be slowed for it. It was given up at three
// quarters of the ring only, writers are slowed from half of it on, and in between nothing drained: every write
// had the longest delay there is.
func TestRetainSlowsNobody(t *testing.T) {
	h := newHost(t, RolePrimary)
	o := testOptions()
	o.RetainTime = time.Hour
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Abort() }()
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8<<10)
	for range 2 * testJournal / len(p) {
		awaitVolume(t, "a writer that is not slowed", func() bool { return !v.paced() })
		if _, err := v.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := int64(v.log.Head() - v.log.Applied()); got < v.log.Capacity()/4 {
		t.Errorf("only %d of %d bytes are retained", got, v.log.Capacity())
	}
}

// TestRetainLayers: what is retained by size alone lies in few layers. A rule for the time was met all the time when no
// time was wanted, and there was a layer for each ApplyInterval: reads look into all of them.
func TestRetainLayers(t *testing.T) {
	v := lazyVolume(t, VolumeOptions{RetainBytes: 512 << 10})
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	for range 512 << 10 / int(journal.RecordSize(512)) {
		if _, err := v.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		if v.freezeDue(v.opts.ApplyInterval) {
			v.overlay.freeze()
		}
	}
	if err := v.Abort(); err != nil { // what runs by itself reads what is changed below
		t.Fatal(err)
	}
	if n := len(v.overlay.frozen); n < retainedLayers/2 || n > 2*retainedLayers {
		t.Errorf("%d layers, want about %d", n, retainedLayers)
	}
	for _, c := range []struct {
		name  string
		time  time.Duration
		bytes int64
		since time.Duration
		want  bool
	}{
		{"nothing is retained", 0, 0, time.Hour, true},
		{"too soon", 0, 0, time.Hour - 1, false},
		{"a share of the time", 64 * time.Hour, 0, 2 * time.Hour, true},
		{"not yet", 64 * time.Hour, 0, 2*time.Hour - 1, false},
		{"a share of the size", 64 * time.Hour, 1, time.Hour, true},
		{"neither", 64 * time.Hour, 1 << 30, time.Hour, false},
	} {
		v.opts.RetainTime, v.opts.RetainBytes = c.time, c.bytes
		if got := v.freezeDue(c.since); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
