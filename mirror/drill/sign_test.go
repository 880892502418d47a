package drill

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// aKey is a key that is the same in every run: its signature is in the golden file.
func aKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func aReport() *Report {
	rto := 12.5
	began := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	return &Report{
		Version: reportVersion, Mirror: "vol0", UUID: "9c1e8c5e-0000-4000-8000-000000000001", Node: "fra2", Role: "secondary", Label: "nightly", Result: Failed,
		Reason: "database: exit status 1", Asked: "checkpoint:nightly", Point: mirror.Point{LSN: 4096, Time: began.Add(-time.Second)},
		Newest: mirror.Point{LSN: 8192, Time: began}, SizeBytes: 64 << 30, RPOSeconds: 1, RPOBytes: 4096, RTOSeconds: &rto, Started: began, Seconds: 20,
		Device: Fuse, ScratchBytes: 1 << 20,
		Steps: []Step{
			{Name: "open a writable view", Seconds: 0.2},
			{Name: "fsck <ext4> & \"more\"", Check: true, At: 1, Seconds: 11.5, Output: "clean\n<script>alert(1)</script>"},
			{Name: "database", Check: true, At: 12.5, Seconds: 3, Error: "exit status 1"},
		},
		Samples: []Sample{{At: 0.5, LagBytes: 4096}, {At: 10, UnappliedBytes: 1 << 20, ScratchBytes: 4096}},
	}
}

// TestSigned: a report is verified by the key that signed it and by no other, and any byte that is changed, left out or put in
// is seen.
func TestSigned(t *testing.T) {
	file, err := Encode(aReport(), aKey(1))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "report.json")
	if os.Getenv("MIRROR_AGENT_UPDATE") != "" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, file, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, file) {
		t.Fatalf("%s is not what is written now:\n%s", golden, file)
	}
	keys := []ed25519.PublicKey{public(aKey(2)), public(aKey(1))}
	r, err := Verify(file, keys)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(r)
	want, _ := json.Marshal(aReport())
	if !bytes.Equal(got, want) {
		t.Fatalf("%s\n%s", got, want)
	}
	if _, err := Verify(file, keys[:1]); !errors.Is(err, ErrNotSigned) || !strings.Contains(err.Error(), KeyName(keys[1])) {
		t.Fatalf("by another key: %v", err)
	}
	for i := range file {
		changed := bytes.Clone(file)
		changed[i] ^= 1 << (i % 6)
		if _, err := Verify(changed, keys); err == nil {
			t.Fatalf("byte %d changed from %q to %q, and the report counts as genuine", i, file[i], changed[i])
		}
		if i%5 != 0 {
			continue
		}
		if _, err := Verify(append(bytes.Clone(file[:i]), file[i+1:]...), keys); err == nil {
			t.Fatalf("byte %d, %q, is missing, and the report counts as genuine", i, file[i])
		}
		if _, err := Verify(append(append(bytes.Clone(file[:i]), ' '), file[i:]...), keys); err == nil {
			t.Fatalf("a space before byte %d, and the report counts as genuine", i)
		}
	}
}

// TestSigned_otherReport: every field is covered, and a signature is of one report alone.
func TestSigned_otherReport(t *testing.T) {
	key := aKey(1)
	file, err := Encode(aReport(), key)
	if err != nil {
		t.Fatal(err)
	}
	e, _, _, err := decode(file)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(e.Report, &fields); err != nil {
		t.Fatal(err)
	}
	for name := range fields {
		others := map[string]json.RawMessage{}
		for n, v := range fields {
			if n != name {
				others[n] = v
			}
		}
		raw, err := json.Marshal(others)
		if err != nil {
			t.Fatal(err)
		}
		forged := envelope{Report: raw, Signature: e.Signature}
		text, err := forged.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(text, []ed25519.PublicKey{public(key)}); err == nil {
			t.Errorf("without %q the report counts as genuine", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	file, err := os.ReadFile(filepath.Join("testdata", "report.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(`{"report":{"version":1},"signature":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Verify(b, []ed25519.PublicKey{public(aKey(1))}); err == nil && !bytes.Equal(b, file) {
			t.Fatalf("a forgery: %s", b)
		}
	})
}
