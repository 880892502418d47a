package mirror

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

func TestMain(m *testing.M) {
	// How often each model is checked: MIRROR_AGENT_RAPID=10000 for long runs.
	if n := os.Getenv("MIRROR_AGENT_RAPID"); n != "" {
		if err := flag.Set("rapid.checks", n); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

const (
	testDevice  = 256 << 10
	testJournal = 8192 + 1<<20
)

// host is the disks of one volume, which survive the volume.
type host struct {
	power   *blockdev.Power
	journal *blockdev.Memory
	device  *blockdev.Memory
	stage   *blockdev.Memory // of a resync
	removed bool             // stage was
	dirty   dirtyStore       // nil: nothing is tracked
	quiet   bool             // its volume makes nothing durable by itself
}

func newHost(t rapid.TB, role Role) *host {
	t.Helper()
	p := blockdev.NewPower()
	h := &host{power: p, journal: blockdev.NewMemory(testJournal, p), device: blockdev.NewMemory(testDevice, p)}
	c := Config{Name: "vol", Role: role}
	if err := journal.Format(h.journal, c.firstAnchor(testDevice)); err != nil {
		t.Fatal(err)
	}
	return h
}

// keepOpen lets a volume close its files while the disks go on.
type keepOpen struct{ *blockdev.Memory }

func (keepOpen) Close() error { return nil }

func testOptions() VolumeOptions {
	return VolumeOptions{SyncInterval: 2 * time.Millisecond, SyncBytes: 256 << 10, ApplyInterval: 5 * time.Millisecond}
}

func (h *host) options() VolumeOptions {
	o := testOptions()
	if h.quiet {
		o = quietOptions()
		o.Now = nil
	}
	o.Dirty = h.dirty
	return o
}

// dirtySlots keeps bitmap files on the host's disks.
type dirtySlots [2]*blockdev.Memory

func (h *host) track() {
	h.dirty = &dirtySlots{blockdev.NewMemory(1<<20, h.power), blockdev.NewMemory(1<<20, h.power)}
}

func (s *dirtySlots) write(version uint64, b []byte) error {
	m := s[version%2]
	if _, err := m.WriteAt(b, 0); err != nil {
		return err
	}
	return m.Sync()
}

func (s *dirtySlots) read(version uint64, limit int64) ([]byte, error) {
	b := make([]byte, min(limit, 1<<20))
	_, err := s[version%2].ReadAt(b, 0)
	return b, err
}

// open opens the host's volume; a primary begins a generation, as an agent does.
func (h *host) open() (*Volume, error) {
	v, rec, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, h.options())
	if err != nil {
		return nil, err
	}
	if v.Role() == RolePrimary && !rec.Clean {
		if _, err := v.beginGeneration(v.Generation().Major == 0); err != nil {
			return nil, errors.Join(err, v.Abort())
		}
	}
	return v, nil
}

func (h *host) mustOpen(t rapid.TB) *Volume {
	t.Helper()
	v, err := h.open()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func content(v *Volume) ([]byte, error) {
	b := make([]byte, v.size.Load())
	_, err := v.ReadAt(b, 0)
	return b, err
}

// TestVolumeModel: writes, zeroes, trims, flushes, kills and clean ends in any
// order read back like a byte slice, while the log wraps around many times.
func TestVolumeModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHost(rt, RolePrimary)
		v := h.mustOpen(rt)
		defer func() { _ = v.Abort() }()
		model := make([]byte, testDevice)
		extent := func(rt *rapid.T) (int64, int64) {
			off := rapid.Int64Range(0, testDevice-1).Draw(rt, "off")
			return off, min(testDevice-off, rapid.Int64Range(1, 40<<10).Draw(rt, "length"))
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				off, n := extent(rt)
				p := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, int(n))
				if _, err := v.WriteAt(p, off); err != nil {
					rt.Fatal(err)
				}
				copy(model[off:], p)
			},
			"batch": func(rt *rapid.T) {
				var ws []blockdev.Write
				for range rapid.IntRange(1, 8).Draw(rt, "writes") {
					off, n := extent(rt)
					p := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, int(n))
					ws = append(ws, blockdev.Write{Offset: off, Data: p, Sync: rapid.Bool().Draw(rt, "fua")})
					copy(model[off:], p)
				}
				v.WriteBatch(ws)
				for _, w := range ws {
					if w.Err != nil {
						rt.Fatal(w.Err)
					}
				}
			},
			"zero": func(rt *rapid.T) {
				off, n := extent(rt)
				f := v.Zero
				if rapid.Bool().Draw(rt, "trim") {
					f = v.Trim
				}
				if err := f(off, n); err != nil {
					rt.Fatal(err)
				}
				clear(model[off : off+n])
			},
			"flush": func(rt *rapid.T) {
				if err := v.Sync(); err != nil {
					rt.Fatal(err)
				}
			},
			"kill": func(rt *rapid.T) {
				if err := v.Abort(); err != nil {
					rt.Fatal(err)
				}
				v = h.mustOpen(rt)
			},
			"end": func(rt *rapid.T) {
				if err := v.Close(); err != nil {
					rt.Fatal(err)
				}
				// A clean end: the device alone is the volume.
				got := make([]byte, testDevice)
				if _, err := h.device.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
					rt.Fatalf("after a clean end the device differs (%v)", err)
				}
				v = h.mustOpen(rt)
			},
			"": func(rt *rapid.T) {
				got, err := content(v)
				if err != nil {
					rt.Fatal(err)
				}
				if !bytes.Equal(got, model) {
					rt.Fatalf("content differs at %d", firstDifference(got, model))
				}
			},
		})
	})
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// TestVolumeOutOfRange: what lies outside is refused, the rest of a batch is
// written, nothing grows.
func TestVolumeOutOfRange(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer v.Close()
	ws := []blockdev.Write{
		{Offset: testDevice - 1, Data: []byte{1, 2}},
		{Offset: -1, Data: []byte{1}},
		{Offset: 8, Data: []byte{9}},
		{Offset: 1 << 62, Length: 1 << 62, Trim: true},
	}
	v.WriteBatch(ws)
	for i, want := range []error{blockdev.ErrOutOfRange, blockdev.ErrOutOfRange, nil, blockdev.ErrOutOfRange} {
		if !errors.Is(ws[i].Err, want) {
			t.Errorf("write %d: %v, want %v", i, ws[i].Err, want)
		}
	}
	b := make([]byte, 2)
	if _, err := v.ReadAt(b, 8); err != nil || b[0] != 9 {
		t.Errorf("read %v %v", b, err)
	}
	if _, err := v.ReadAt(b, testDevice-1); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("read past the end: %v", err)
	}
}

// TestVolumeFailures: an error of the journal or the device stops the volume
// at once, for writers that wait too, and says which part (G9).
func TestVolumeFailures(t *testing.T) {
	for _, part := range []string{"journal", "device"} {
		t.Run(part, func(t *testing.T) {
			h := newHost(t, RolePrimary)
			eio := errors.New("input/output error")
			rule := blockdev.Rule{Op: blockdev.OpSync, Nth: 6, Err: eio}
			jf, dev := blockdev.Device(keepOpen{h.journal}), blockdev.Device(keepOpen{h.device})
			if part == "journal" {
				jf = blockdev.NewFaulty(jf, rule)
			} else {
				dev = blockdev.NewFaulty(dev, rule)
			}
			v, _, err := openVolume(jf, dev, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = v.Abort() }()
			if _, err := v.beginGeneration(true); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			for i := 0; ; i++ {
				_, err := v.WriteAt(p, int64(i%64)*4096)
				if err == nil && i%16 == 0 {
					err = v.Sync()
				}
				if err != nil {
					break
				}
				if i > 2_000_000 {
					t.Fatal("the fault was never seen")
				}
			}
			var failed *FailedError
			if err := v.Err(); !errors.As(err, &failed) || failed.Part != part || !errors.Is(err, eio) {
				t.Fatalf("volume failed with %v", v.Err())
			}
			if err := v.Sync(); err == nil {
				t.Fatal("a flush was answered after the failure")
			}
		})
	}
}

// TestReadersAndWriters: concurrent readers of constant stripes see whole
// records of some writer while the log recycles under them.
func TestReadersAndWriters(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer v.Close()
	const stripe = 8 << 10
	var wg sync.WaitGroup
	stop := make(chan struct{})
	errs := make(chan error, 8)
	for w := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			p := make([]byte, stripe)
			for range 1500 {
				for i := range p {
					p[i] = byte(rng.Uint32() >> 7)
				}
				copy(p, bytes.Repeat([]byte{p[0]}, stripe))
				if _, err := v.WriteAt(p, int64(rng.IntN(testDevice/stripe))*stripe); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var readers sync.WaitGroup
	for r := range 2 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			rng := rand.New(rand.NewPCG(2, uint64(r)))
			p := make([]byte, 512)
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Within one sector a device is atomic enough; the memory
				// device is whole per call.
				if _, err := v.ReadAt(p, int64(rng.IntN(testDevice/512))*512); err != nil {
					errs <- err
					return
				}
				for i := range p {
					if p[i] != p[0] {
						errs <- fmt.Errorf("a read shows two writes: %d and %d", p[0], p[i])
						return
					}
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

// asked is a device that knows what it was to prefetch.
type asked struct {
	*blockdev.Memory
	of [][2]int64
}

func (a *asked) Prefetch(off, length int64) error {
	a.of = append(a.of, [2]int64{off, length})
	return a.Memory.Prefetch(off, length)
}

// TestPrefetch: the device makes ready what the log does not hold, and only that.
func TestPrefetch(t *testing.T) {
	h := newHost(t, RolePrimary)
	d := &asked{Memory: h.device}
	v, _, err := openVolume(keepOpen{h.journal}, d, quietOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Abort() }()
	if _, err := v.beginGeneration(true); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(make([]byte, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	if err := v.Trim(32<<10, 4096); err != nil {
		t.Fatal(err)
	}
	d.of = nil // what the volume's start may have asked for
	if err := (served{v}).Prefetch(4096, 60<<10); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(d.of, func(a, b [2]int64) int { return int(a[0] - b[0]) })
	if want := [][2]int64{{4096, 4096}, {12288, 20480}, {36864, 28672}}; !slices.Equal(d.of, want) {
		t.Errorf("the device was asked for %v, want %v", d.of, want)
	}
	d.of = nil
	for _, x := range [][2]int64{{testDevice, 1}, {-1, 1}, {0, testDevice + 1}, {1, -1}} {
		if err := v.Prefetch(x[0], x[1]); !errors.Is(err, blockdev.ErrOutOfRange) || d.of != nil {
			t.Errorf("prefetch %v: %v, asked for %v", x, err, d.of)
		}
	}
	if err := v.Prefetch(8192, 0); err != nil {
		t.Error("nothing:", err)
	}
}

// TestNextData: walking over the data finds every byte that is not zero, in
// the log or in the device, and skips what was never written.
func TestNextData(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer v.Close()
	model := make([]byte, testDevice)
	rng := rand.New(rand.NewPCG(3, 3))
	for round := range 40 {
		off := int64(rng.IntN(testDevice - 300))
		if rng.IntN(4) == 0 {
			if err := v.Trim(off, 300); err != nil {
				t.Fatal(err)
			}
			clear(model[off : off+300])
		} else {
			if _, err := v.WriteAt(bytes.Repeat([]byte{1}, 300), off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], bytes.Repeat([]byte{1}, 300))
		}
		found := make([]byte, testDevice)
		var covered int64
		for at := int64(0); at < testDevice; {
			start, end, err := served{v}.NextData(at)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || start < at || end <= start || end > testDevice {
				t.Fatalf("at %d: %d-%d, %v", at, start, end, err)
			}
			if _, err := v.ReadAt(found[start:end], start); err != nil {
				t.Fatal(err)
			}
			covered += end - start
			at = end
		}
		if !bytes.Equal(found, model) {
			t.Fatalf("byte %d lies in no data", firstDifference(found, model))
		}
		if round == 0 && covered == testDevice {
			t.Fatal("nothing was skipped")
		}
	}
}
