package mirror

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"pgregory.net/rapid"

	"mirror-agent/journal"
)

func TestDirtyBlockBytes(t *testing.T) {
	for _, tt := range []struct {
		size  int64
		block int64
	}{
		{512, 4 << 10}, {256 << 30, 4 << 10}, {256<<30 + 512, 8 << 10}, {1 << 40, 16 << 10}, {2<<40 + 1, 64 << 10}, {4 << 40, 64 << 10}, {64 << 40, 64 << 10},
	} {
		if got := dirtyBlockBytes(tt.size); got != tt.block {
			t.Errorf("a bit stands for %d bytes of a device of %d, want %d", got, tt.size, tt.block)
		}
	}
}

// TestDirtySetModel: sets against a map of blocks, through marking, copying
// and the file and back. MIRROR_AGENT_RAPID=10000 for long.
func TestDirtySetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<30).Draw(t, "sectors") * 512 % (900 << 20)
		size = max(size, 512)
		set, model := newDirtySet(size), map[int64]bool{}
		check := func(set *dirtySet) {
			t.Helper()
			found, last := map[int64]bool{}, int64(-1)
			var sum int64
			err := set.each(func(off, end int64) error {
				if off <= last || end <= off || end > size || off%set.block != 0 {
					t.Fatalf("run %d-%d after %d on a device of %d", off, end, last, size)
				}
				for at := off; at < end; at += set.block {
					found[at/set.block] = true
				}
				sum, last = sum+end-off, end
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != len(model) || sum != set.bytes() {
				t.Fatalf("%d blocks, the model has %d; runs of %d bytes, %d are said", len(found), len(model), sum, set.bytes())
			}
			for b := range model {
				if !found[b] {
					t.Fatalf("block %d is missing", b)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(t *rapid.T) {
				off := rapid.Int64Range(-4096, size+4096).Draw(t, "off")
				length := rapid.OneOf(rapid.Int64Range(0, 20000), rapid.Int64Range(0, 40<<20)).Draw(t, "length")
				set.mark(off, length)
				for at := off; off >= 0 && at < min(off+length, size); at = (at/set.block + 1) * set.block {
					model[at/set.block] = true
				}
			},
			"copy": func(t *rapid.T) {
				c := set.cloneFor(set.size)
				set.mark(0, size)
				set = c
			},
			"file": func(t *rapid.T) {
				b, sum, err := (&dirtyFile{version: 3, size: size, sets: []dirtyFileSet{{set: set}}}).encode()
				if err != nil || int64(len(b)) > maxDirtyFile(size) {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
				f, got, err := decodeDirtyFile(append(b, 1, 2, 3), size)
				if err != nil || got != sum {
					t.Fatal(err)
				}
				set = f.sets[0].set
			},
			"": func(*rapid.T) { check(set) },
		})
	})
}

// goldenDirty is the file in testdata.
func goldenDirty() *dirtyFile {
	f := &dirtyFile{version: 7, mirror: [16]byte{0: 0x6f, 15: 1}, size: 1<<30 + 512}
	for i := range 2 {
		s := newDirtySet(f.size)
		s.mark(int64(i)*8192+100, 5000)
		s.mark(1<<30, 512)
		s.mark(1<<28, 40<<20)
		f.sets = append(f.sets, dirtyFileSet{
			id: [16]byte{byte(i + 1)}, generation: [16]byte{9}, base: journal.LSN(4096 + i*8), upTo: 1 << 20, chain: 0xabcdef, set: s,
		})
		s.bits.RunOptimize()
	}
	return f
}

func TestDirtyFileGolden(t *testing.T) {
	b, _, err := goldenDirty().encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "dirty.hex")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("the format has changed (%v):\n%s", err, hex.EncodeToString(b))
	}
	f, _, err := decodeDirtyFile(b, 1<<30+512)
	if err != nil || f.version != 7 || len(f.sets) != 2 || f.sets[1].base != 4104 || f.sets[1].set.bytes() != 40<<20+2*4096+512 {
		t.Fatalf("%+v, %v", f, err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, _, err := decodeDirtyFile(c, f.size); !errors.Is(err, errDirtyFile) {
			t.Fatalf("byte %d has changed, and that is not seen: %v", i, err)
		}
		if _, _, err := decodeDirtyFile(b[:i], f.size); !errors.Is(err, errDirtyFile) {
			t.Fatalf("cut at byte %d, and that is not seen: %v", i, err)
		}
	}
	if _, _, err := decodeDirtyFile(b, f.size-512); !errors.Is(err, errDirtyFile) {
		t.Fatalf("taken for another device: %v", err)
	}
}

// FuzzDirtyFile: whatever the bytes, what is decoded lies within the device
// and encodes to a file that decodes to the same. The checksum is put right,
// or nothing behind it would be reached.
func FuzzDirtyFile(f *testing.F) {
	b, _, err := goldenDirty().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:dirtyHeaderBytes])
	const size = 1<<30 + 512
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= dirtyHeaderBytes+8 {
			b = bytes.Clone(b)
			at := len(b) - 8
			putLE(b[48:], uint64(len(b)))
			putLE(b[at:], xxhash.Sum64(b[:at]))
		}
		d, _, err := decodeDirtyFile(b, size)
		if err != nil {
			if !errors.Is(err, errDirtyFile) {
				t.Fatal(err)
			}
			return
		}
		for _, s := range d.sets {
			last := int64(-1)
			_ = s.set.each(func(off, end int64) error {
				if off <= last || end <= off || end > size {
					t.Fatalf("run %d-%d after %d", off, end, last)
				}
				last = end
				return nil
			})
		}
		again, _, err := d.encode()
		if err != nil {
			t.Fatal(err)
		}
		e, _, err := decodeDirtyFile(again, size)
		if err != nil || len(e.sets) != len(d.sets) {
			t.Fatalf("not the same again: %v", err)
		}
		for i := range e.sets {
			if !e.sets[i].set.bits.Equals(d.sets[i].set.bits) {
				t.Fatalf("set %d is not the same again", i)
			}
		}
	})
}

func putLE(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

// TestDirtyFiles: the version before stays as it is, a shorter one leaves
// nothing of a longer, and the place is beside the journal, or the device, or
// nowhere.
func TestDirtyFiles(t *testing.T) {
	c := Config{Device: filepath.Join(t.TempDir(), "dev")}
	if s := c.dirtyStore(); s != (dirtyFiles{c.Device + ".journal.dirty"}) { // it will be there
		t.Errorf("before there is a journal: %+v", s)
	}
	for _, path := range []string{c.Device, c.journalPath()} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw := c
	raw.Journal = "/dev/null"
	if s := raw.dirtyStore(); s != (dirtyFiles{c.Device + ".dirty"}) {
		t.Errorf("with a raw journal: %+v", s)
	}
	raw.Device = "/dev/null"
	inDefaultStateDir(t, filepath.Join(c.Device, "none"))
	if s := raw.dirtyStore(); s != nil {
		t.Errorf("with journal and device raw: %+v", s)
	}
	s := c.dirtyStore()
	if s != (dirtyFiles{c.Device + ".journal.dirty"}) {
		t.Fatalf("%+v", s)
	}
	want := map[uint64]string{6: "a long version", 7: "another one", 8: "short"}
	for v := uint64(6); v <= 8; v++ {
		if err := s.write(v, []byte(want[v])); err != nil {
			t.Fatal(err)
		}
		for _, old := range []uint64{v - 1, v} {
			if b, err := s.read(old, 100); want[old] != "" && (err != nil || string(b) != want[old]) {
				t.Errorf("version %d after %d: %q, %v", old, v, b, err)
			}
		}
	}
	if b, err := s.read(7, 4); err != nil || string(b) != "anot" {
		t.Errorf("limited: %q, %v", b, err)
	}
	if err := (dirtyFiles{filepath.Join(c.Device, "no folder")}).write(1, nil); err == nil {
		t.Error("written where nothing can be")
	}
}
