package journal

import (
	"bytes"
	"encoding/hex"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares b with testdata/name, which holds it in hex.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(b)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.Dump(b); got != string(want) {
		t.Errorf("%s: the bytes on disk changed:\n%s\nwant\n%s", name, got, want)
	}
}

func sampleRecord() (Record, []byte) {
	payload := []byte("mirror-agent")
	return Record{
		Op: OpWrite, Flags: 0x21, Volume: 0x0302, LSN: 0x1122334455667788, Offset: 0x0102030405060708, Length: 12, PayloadLen: 12,
		Time: 1700000000000000001, Durable: 0x1122334455660000, PayloadHash: checksum(payload),
	}, payload
}

func sampleAnchor() *diskAnchor {
	d := &diskAnchor{ringSize: 16 << 20}
	d.Anchor = Anchor{
		Mirror: [16]byte{1, 2, 3, 15: 16}, Name: "db", DeviceSize: 1 << 40, Role: RolePrimary, State: 0xdeadbeef,
		Tail: 800, TailChain: 1, Applied: 1600, AppliedChain: 2, Durable: 2400, Clean: true, Sequence: 7,
		Seen:        Generation{Major: 3, Minor: 1, ID: [16]byte{9}, First: 64, Chain: 5},
		Generations: []Generation{{Major: 1}, {Major: 2, Minor: 4, ID: [16]byte{8}, First: 1600, Chain: 6}},
		Followers:   []Follower{{Name: "b", ID: [16]byte{7}, Acked: 1600, Flags: 3, Bitmap: [2]uint64{10, 11}}, {}},
		Extra:       []byte("extra"),
	}
	return d
}

func TestGoldenRecord(t *testing.T) {
	r, payload := sampleRecord()
	b := make([]byte, HeaderSize)
	r.encode(b, 0x0123456789abcdef)
	golden(t, "record.hex", append(append(b, payload...), 0, 0, 0, 0))
	got, err := decodeHeader(b)
	if err != nil || got != r {
		t.Errorf("decoded %+v, %v; want %+v", got, err, r)
	}
	if r.Data() != r.LSN+64 || r.End() != r.LSN+80 {
		t.Errorf("data %d, end %d", r.Data(), r.End())
	}
}

func TestGoldenAnchor(t *testing.T) {
	d := sampleAnchor()
	b := d.encode()
	golden(t, "anchor.hex", b)
	if s := parseSlot(b, 0); !reflect.DeepEqual(s.anchor, d) {
		t.Errorf("decoded %+v (%v), want %+v", s.anchor, s.err, d)
	}
	if s := parseSlot(b, 1); s.anchor != nil {
		t.Error("an odd sequence was taken from slot 1")
	}
}

// The largest anchor that is allowed fits into its slot.
func TestLargestAnchor(t *testing.T) {
	d := sampleAnchor()
	d.Name, d.Extra = string(bytes.Repeat([]byte("n"), maxName)), bytes.Repeat([]byte{1}, maxExtra)
	d.Generations, d.Followers = nil, nil
	for i := range maxGenerations + 3 {
		d.Generations = append(d.Generations, Generation{Major: uint32(i), ID: [16]byte{255}, First: LSN(i) * 8, Chain: math.MaxUint64})
	}
	for range maxFollowers {
		d.Followers = append(d.Followers, Follower{Name: d.Name, ID: [16]byte{255}, Acked: math.MaxUint64, Flags: math.MaxUint32, Bitmap: [2]uint64{math.MaxUint64, math.MaxUint64}})
	}
	if err := d.check(); err != nil {
		t.Fatal(err)
	}
	if n := len(d.Generations); n != maxGenerations || d.Generations[0].Major != 3 {
		t.Errorf("%d generations kept, oldest %d", n, d.Generations[0].Major)
	}
	if s := parseSlot(d.encode(), 0); !reflect.DeepEqual(s.anchor, d) {
		t.Errorf("decoded %+v (%v)", s.anchor, s.err)
	}
}

func TestRecordRules(t *testing.T) {
	good, _ := sampleRecord()
	for name, change := range map[string]func(r *Record){
		"unknown op":                  func(r *Record) { r.Op = 7 },
		"op 0":                        func(r *Record) { r.Op = 0 },
		"odd LSN":                     func(r *Record) { r.LSN++ },
		"huge LSN":                    func(r *Record) { r.LSN = math.MaxUint64 - 7 },
		"promise of the future":       func(r *Record) { r.Durable = r.LSN + 8 },
		"payload too long":            func(r *Record) { r.PayloadLen, r.Length = MaxPayload+1, MaxPayload+1 },
		"payload is not the length":   func(r *Record) { r.Length++ },
		"empty write":                 func(r *Record) { r.Length, r.PayloadLen = 0, 0 },
		"zero with payload":           func(r *Record) { r.Op = OpZero },
		"trim of nothing":             func(r *Record) { r.Op, r.Length, r.PayloadLen = OpTrim, 0, 0 },
		"offset + length overflows":   func(r *Record) { r.Offset = math.MaxUint64 - 3 },
		"offset + length past MaxInt": func(r *Record) { r.Offset = math.MaxInt64 - 3 },
	} {
		r, b := good, make([]byte, HeaderSize)
		change(&r)
		r.encode(b, 1)
		if _, err := decodeHeader(b); !isInvalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeHeader(make([]byte, HeaderSize-1)); !isInvalid(err) {
		t.Error("short header")
	}
}

func FuzzRecord(f *testing.F) {
	r, payload := sampleRecord()
	b := make([]byte, HeaderSize)
	r.encode(b, 1)
	f.Add(append(append(b, payload...), 0, 0, 0, 0))
	f.Add(b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		total := 0
		_ = ParseRaw(raw, func(r Record, p []byte) error {
			if err := r.check(); err != nil || len(p) != int(r.PayloadLen) {
				t.Fatalf("%+v: %v", r, err)
			}
			again := make([]byte, HeaderSize)
			chain := r.Chain
			r.encode(again, 0)
			if !bytes.Equal(again[:chained], raw[total:total+chained]) {
				t.Fatalf("encodes to %x, was %x", again[:chained], raw[total:total+chained])
			}
			r.Chain = chain
			total += int(r.End() - r.LSN)
			return nil
		})
		if total > len(raw) {
			t.Fatal("walked past the end")
		}
	})
}

// FuzzAnchor takes the content as if its checksums were right, and the slot as it is.
func FuzzAnchor(f *testing.F) {
	b := sampleAnchor().encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		padded := make([]byte, slotSize)
		copy(padded, b)
		content := make([]byte, 0, contentSize)
		for i := range slotSectors {
			content = append(content, padded[i*sectorSize+16:i*sectorSize+504]...)
		}
		le.PutUint64(content, checksum(content[8:]))
		if d, err := decodeAnchor(content, 7); err == nil {
			if s := parseSlot(d.encode(), 0); !reflect.DeepEqual(s.anchor, d) {
				t.Fatalf("%+v became %+v (%v)", d, s.anchor, s.err)
			}
		}
		raw := parseSlot(padded, 0)
		if d, err := pickAnchor([2]slot{raw, parseSlot(make([]byte, slotSize), 1)}); err == nil && d.check() != nil {
			t.Fatal("an anchor that breaks the rules")
		}
	})
}
