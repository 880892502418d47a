package mirror

import (
	"bytes"
	"testing"
	"time"
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
