package integration

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNBDClients lets the clients that users have work on the source while a
// target is attached; what they wrote is then on both devices.
func TestNBDClients(t *testing.T) {
	needTools(t, "nbdinfo", "nbdcopy", "qemu-io", "qemu-img", "fio")
	m := newMirror(t, layout{size: 64 << 20, paths: 2})
	m.start()
	uri := nbdURI(m.source.nbd)
	named := strings.Replace(uri, "unix:///", "unix:///"+mirrorName, 1)

	t.Run("nbdinfo", func(t *testing.T) {
		var info struct {
			Exports []struct {
				Name     string `json:"export-name"`
				Size     int64  `json:"export-size"`
				ReadOnly bool   `json:"is_read_only"`
				Flush    bool   `json:"can_flush"`
				FUA      bool   `json:"can_fua"`
				Trim     bool   `json:"can_trim"`
				Zero     bool   `json:"can_zero"`
				Multi    bool   `json:"can_multi_conn"`
			} `json:"exports"`
		}
		for _, u := range []string{uri, named} {
			out := tool(t, "nbdinfo", "--json", u)
			if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
				t.Fatalf("nbdinfo --json %s: %v\n%s", u, err, out)
			}
			e := info.Exports[0]
			checkEqual(t, "size", e.Size, m.size)
			checkEqual(t, "read-only", e.ReadOnly, false)
			checkEqual(t, "flush, fua, trim, zero, multi-conn", [5]bool{e.Flush, e.FUA, e.Trim, e.Zero, e.Multi}, [5]bool{true, true, true, true, true})
		}
		if out := tool(t, "nbdinfo", "--list", uri); !strings.Contains(out, mirrorName) {
			t.Errorf("nbdinfo --list does not name %s:\n%s", mirrorName, out)
		}
		if out, err := tryTool(toolTimeout, "nbdinfo", strings.Replace(uri, "unix:///", "unix:///nosuch", 1)); err == nil {
			t.Errorf("an export that does not exist was opened:\n%s", out)
		}
	})

	image := filepath.Join(m.dir, "image")
	content := make([]byte, m.size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range content[:40<<20] { // the rest stays zero: copied as a hole
		content[i] = byte(r.Uint32())
	}
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("nbdcopy there and back", func(t *testing.T) {
		tool(t, "nbdcopy", "--connections=4", image, uri)
		back := filepath.Join(m.dir, "back")
		tool(t, "nbdcopy", "--connections=4", uri, back)
		sameFile(t, image, back)
	})
	t.Run("qemu-img compare", func(t *testing.T) {
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
	})
	t.Run("qemu-io", func(t *testing.T) {
		out := tool(t, "qemu-io", "-f", "raw", uri,
			"-c", "write -P 0x5a 1M 64k", "-c", "write -f -P 0x5b 2M 4k", "-c", "write -z 3M 128k", "-c", "discard 4M 1M", "-c", "flush",
			"-c", "read -P 0x5a 1M 64k", "-c", "read -P 0x5b 2M 4k", "-c", "read -P 0 3M 128k", "-c", "read -P 0 4M 1M",
			"-c", "write -P 0x5c 63M 1M", "-c", "read -P 0x5c 63M 1M")
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io:\n%s", out)
		}
	})
	t.Run("past the end", func(t *testing.T) { // is an error, and the connection lives on
		c, err := dialNBD(m.source.nbd, "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		const enospc, einval = nbdError(28), nbdError(22)
		p := make([]byte, 4096)
		checkEqual(t, "write at the end", c.write(m.size, p, false), error(enospc))
		checkEqual(t, "write over the end", c.write(m.size-512, p, true), error(enospc))
		checkEqual(t, "read over the end", c.read(m.size-512, p), error(einval))
		checkEqual(t, "read far away", c.read(1<<62, p), error(einval))
		checkEqual(t, "trim over the end", c.do(nbdTrim, 0, m.size-512, 4096, nil, nil), error(einval))
		checkEqual(t, "zero over the end", c.do(nbdWriteZeroes, 0, m.size-512, 4096, nil, nil), error(enospc))
		checkEqual(t, "unknown command", c.do(77, 0, 0, 0, nil, nil), error(einval))
		checkEqual(t, "read after all that", c.read(m.size-4096, p), nil)
	})
	t.Run("fio verify", func(t *testing.T) {
		_, w := fio(t, m.source.nbd, "--rw=randwrite", "--bsrange=4k-64k", "--bs_unaligned=0", "--iodepth=16", "--size=32m", "--offset=8m",
			"--fsync=64", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
		if w.TotalIOs == 0 {
			t.Error("fio wrote nothing")
		}
	})
	s := m.source.mustStatus()
	if s.NBD.Writes == 0 || s.NBD.Reads == 0 || s.NBD.Flushes == 0 || s.NBD.WrittenBytes < 40<<20 {
		t.Errorf("status counts %+v", s.NBD)
	}
	m.stopLevel("target")
}

// TestCleanRestart: what a clean end leaves is the device alone, and both sides
// go on from it without copying anything.
func TestCleanRestart(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	l := newLedger(baseSeed, m.size)
	for round := range 3 {
		c := m.source.dial(startLimit)
		if err := l.verify(c.read, allAcked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ld := l.startLoad(c, newRand(t), 4, 20)
		ld.untilAnswered(t, 300)
		if err := ld.stop(); err != nil {
			t.Fatal(err)
		}
		c.close()
		m.stopLevel("target")
		// The device alone is the volume.
		dev, err := os.Open(m.source.device)
		if err != nil {
			t.Fatal(err)
		}
		err = l.verify(func(off int64, p []byte) error { _, err := dev.ReadAt(p, off); return err }, allAcked)
		dev.Close()
		if err != nil {
			t.Fatalf("device after a clean end: %v", err)
		}
		m.target.start()
		m.source.start()
		s := m.source.untilStreaming("target")
		var sent uint64
		for _, p := range s.follower("target").Paths {
			sent += p.BytesSent
		}
		if sent > 2<<20 {
			t.Errorf("%d bytes were sent to a target that had everything", sent)
		}
	}
}
