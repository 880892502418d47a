package mirror

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mirror-agent/journal"
)

// TestExport: what a log has from one LSN on, replayed onto a copy of the device as it was there, gives the device as it is.
func TestExport(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Close() }()
	rng := rand.New(rand.NewPCG(1, 2))
	change := func(n int) {
		for range n {
			off := int64(rng.IntN(testDevice/512-16)) * 512
			var err error
			switch rng.IntN(4) {
			case 0:
				err = v.Trim(off, 4096)
			case 1:
				err = v.Zero(off, 1000)
			default:
				_, err = v.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(8000)), off)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	change(20)
	before, err := content(v)
	if err != nil {
		t.Fatal(err)
	}
	fork := v.log.Head()
	change(30)
	if _, err := v.Checkpoint(t.Context(), "last"); err != nil {
		t.Fatal(err)
	}
	after, err := content(v)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log, copied := filepath.Join(dir, "divergence.log"), filepath.Join(dir, "copy.img")
	e, err := v.export(log, "host", "a test", fork)
	if err != nil || e.Records != 31 || e.From != uint64(fork) || e.To != uint64(v.log.Head()) {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := v.export(log, "host", "a test", fork); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("an export over an earlier one: %v", err)
	}
	if err := os.WriteFile(copied, before, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := ApplyExcerpt(context.Background(), log, copied, true)
	if err != nil || r.Applied || r.Records != 31 || len(r.Checkpoints) != 1 || r.Checkpoints[0].Name != "last" || r.Blocks == 0 {
		t.Fatalf("dry: %+v, %v", r, err)
	}
	if got, _ := os.ReadFile(copied); !bytes.Equal(got, before) {
		t.Fatal("a dry run has changed the device")
	}
	for range 2 { // twice is as good as once
		if r, err := ApplyExcerpt(context.Background(), log, copied, false); err != nil || !r.Applied {
			t.Fatalf("%+v, %v", r, err)
		}
		if got, _ := os.ReadFile(copied); !bytes.Equal(got, after) {
			t.Fatalf("differs at %d", firstDifference(got, after))
		}
	}
}

// TestExportRefused: what is not there, not whole, or not for this device is refused before anything is written.
func TestExportRefused(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	defer func() { _ = v.Close() }()
	if _, err := v.WriteAt(bytes.Repeat([]byte{7}, 9000), 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	good := file("good.log")
	if _, err := v.export(good, "host", "a test", v.log.Tail()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	blank := make([]byte, testDevice)
	mustWrite := func(name string, b []byte) string {
		t.Helper()
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	rotten := bytes.Clone(whole)
	rotten[len(rotten)-4000] ^= 1
	owned := mustWrite("owned.img", blank)
	if err := unix.Setxattr(owned, deviceAttribute, []byte("vol0 - stamp"), 0); err != nil {
		t.Fatal(err)
	}
	device := mustWrite("device.img", blank)
	for _, tt := range []struct{ what, log, device, says string }{
		{"cut", mustWrite("cut.log", whole[:len(whole)-40]), device, "incomplete"},
		{"rotten", mustWrite("rotten.log", rotten), device, "damaged"},
		{"something else", mustWrite("else.log", blank), device, "neither a journal nor an excerpt"},
		{"no file", file("none.log"), device, "no such file"},
		{"no device", good, file("none.img"), "no such file"},
		{"too small", good, mustWrite("small.img", blank[:4096]), "the mirror's device had 262144"},
		{"a mirror's own", good, owned, "belongs to mirror"},
	} {
		_, err := ApplyExcerpt(context.Background(), tt.log, tt.device, false)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, should say %q", tt.what, err, tt.says)
		}
		if got, err := os.ReadFile(tt.device); err == nil && !allZero(got) {
			t.Errorf("%s: the device was changed", tt.what)
		}
	}
	// A full disk, or a place that is not there, leaves no part of an export.
	if _, err := v.export(file("nowhere/x.log"), "host", "", v.log.Tail()); err == nil {
		t.Error("an export to nowhere")
	}
	if _, err := v.export(file("gone.log"), "host", "", journal.LSN(1<<40)); err == nil {
		t.Error("an export of what is not there")
	}
	if left, _ := filepath.Glob(file("*.part")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestInspectJournal: a journal is looked at as its volume left it, and not a byte of it changes.
func TestInspectJournal(t *testing.T) {
	for _, clean := range []bool{true, false} {
		h := newHost(t, RolePrimary)
		v := h.mustOpen(t)
		for i := range 10 {
			if _, err := v.WriteAt(bytes.Repeat([]byte{byte(i)}, 5000), int64(i)*8192); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Checkpoint(t.Context(), "here"); err != nil {
			t.Fatal(err)
		}
		head := uint64(v.log.Head())
		end := v.Abort
		if clean {
			end = v.Close
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "journal")
		was := make([]byte, testJournal)
		if _, err := h.journal.ReadAt(was, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, was, 0o600); err != nil {
			t.Fatal(err)
		}
		var seen []LogRecord
		r, err := InspectLog(path, func(x LogRecord) error { seen = append(seen, x); return nil })
		if err != nil || r.Kind != "journal" || r.Damage != "" || r.Clean != clean || r.Head != head || r.Name != "vol" || r.DeviceSize != testDevice {
			t.Fatalf("clean %v: %+v, %v, head %d", clean, r, err, head)
		}
		if r.Writes != 10 || r.WriteBytes != 50000 || len(r.Checkpoints) != 1 || len(seen) != int(r.Records) {
			t.Errorf("clean %v: %+v", clean, r)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, was) {
			t.Errorf("clean %v: the journal was changed", clean)
		}
	}
}
