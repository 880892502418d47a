package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

var _ blockdev.FastZeroer = served{}

// recorder is a backing device that notes what the applier asked it for.
type recorder struct {
	*blockdev.Memory
	mu    sync.Mutex // guards calls
	calls []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.note("write %d+%d", off, len(p))
	return r.Memory.WriteAt(p, off)
}

func (r *recorder) Zero(off, length int64) error {
	r.note("zero %d+%d", off, length)
	return r.Memory.Zero(off, length)
}

func (r *recorder) Trim(off, length int64) error {
	r.note("trim %d+%d", off, length)
	return r.Memory.Trim(off, length)
}

func (*recorder) Close() error { return nil }

// openRecorded opens a primary on h that applies nothing before its end.
func openRecorded(t *testing.T, h *host) (*Volume, *recorder) {
	t.Helper()
	r := &recorder{Memory: h.device}
	v, _, err := openVolume(keepOpen{h.journal}, r, VolumeOptions{SyncInterval: time.Hour, SyncBytes: 1 << 30, ApplyInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Abort() })
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	return v, r
}

// TestZeroFast: what is promised to be fast is one record without payload, at
// any length and also over data; it reads as zeroes at once, and the backing
// device is told what the client said of the space.
func TestZeroFast(t *testing.T) {
	for i := range 4 {
		hole, grouped := i&1 == 0, i&2 == 0
		name := fmt.Sprintf("hole %t, in a group %t", hole, grouped)
		h := newHost(t, RolePrimary)
		v, r := openRecorded(t, h)
		if _, err := v.WriteAt(bytes.Repeat([]byte{7}, 100<<10), 1000); err != nil {
			t.Fatal(err)
		}
		before := v.log.Head()
		var err error
		if grouped {
			ws := []blockdev.Write{{Offset: 0, Length: testDevice, Zero: !hole, Trim: hole, Fast: true}}
			v.WriteBatch(ws)
			err = ws[0].Err
		} else {
			err = served{v}.ZeroFast(0, testDevice, hole)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if grew := int64(v.log.Head() - before); grew != journal.RecordSize(0) {
			t.Errorf("%s: %d bytes of log for a record of %d", name, grew, journal.RecordSize(0))
		}
		if got, err := content(v); err != nil || firstDifference(got, make([]byte, testDevice)) >= 0 {
			t.Errorf("%s: %v, or not all is zero", name, err)
		}
		if err := v.ZeroFast(testDevice-1, 2, hole); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("%s, past the end: %v", name, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("zero 0+%d", testDevice)
		if hole {
			want = fmt.Sprintf("trim 0+%d", testDevice)
		}
		if !slices.Equal(r.calls, []string{want}) {
			t.Errorf("%s: the device was asked for %q, want %q", name, r.calls, want)
		}
	}
}

// TestApplyJoins: adjoining extents of one kind reach the device as one call,
// and nothing else does: small zeroes side by side must not cost more than the
// writes in their place would.
func TestApplyJoins(t *testing.T) {
	h := newHost(t, RolePrimary)
	v, r := openRecorded(t, h)
	const unit = 4096
	do := func(kind byte, i int64) {
		t.Helper()
		var err error
		switch kind {
		case 'w':
			_, err = v.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, unit), i*unit)
		case 'z':
			err = v.Zero(i*unit, unit)
		case 't':
			err = v.Trim(i*unit, unit)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.device.WriteAt(bytes.Repeat([]byte{99}, 64*unit), 0); err != nil {
		t.Fatal(err)
	}
	const layout = "zzzttwwzwtt.ttz.z"
	want := make([]byte, testDevice)
	copy(want, bytes.Repeat([]byte{99}, 64*unit))
	for i, kind := range []byte(layout) {
		do(kind, int64(i))
		switch kind {
		case 'w':
			copy(want[i*unit:], bytes.Repeat([]byte{byte(i + 1)}, unit))
		case 'z', 't':
			clear(want[i*unit : (i+1)*unit])
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	calls := []string{
		"zero 0+12288", "trim 12288+8192", "write 20480+8192", "zero 28672+4096", "write 32768+4096",
		"trim 36864+8192", "trim 49152+8192", "zero 57344+4096", "zero 65536+4096",
	}
	if !slices.Equal(r.calls, calls) {
		t.Errorf("the device was asked for\n%q, want\n%q", r.calls, calls)
	}
	got := make([]byte, testDevice)
	if _, err := h.device.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or byte %d differs", err, firstDifference(got, want))
	}
}
