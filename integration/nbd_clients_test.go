package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
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
	t.Run("qemu-img there and back", func(t *testing.T) {
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
		// Other content over the old, with holes where there was data, out of order and by several coroutines.
		other := filepath.Join(m.dir, "other")
		if err := os.WriteFile(other, append(make([]byte, 30<<20), content[:m.size-30<<20]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := tryTool(toolTimeout, "qemu-img", "compare", "-f", "raw", "-F", "raw", other, uri); err == nil {
			t.Errorf("two images that differ are identical:\n%s", out)
		}
		tool(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", other, named)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", other, uri)
		back := filepath.Join(m.dir, "back.qcow2")
		tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", named, back)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", other, back)
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
	t.Run("fio verify", func(t *testing.T) {
		// Four jobs with a connection each, reads and writes of all sizes, every job on its own part.
		r, w := fio(t, m.source.nbd, "--rw=randrw", "--bsrange=512-64k", "--iodepth=16", "--numjobs=4", "--group_reporting", "--size=4m", "--offset=4m",
			"--offset_increment=8m", "--fsync=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
		if r.TotalIOs == 0 || w.TotalIOs == 0 {
			t.Errorf("fio read %d times and wrote %d times", r.TotalIOs, w.TotalIOs)
		}
	})
	t.Run("fio verify, one job", func(t *testing.T) {
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
	m.source.until(startLimit, "has no client left", func(s *status) bool { return s.NBD.Connections == 0 })
	m.stopLevel("target")
}

// TestNBDSparseClients: holes as clients see and make them. They stay holes on the way, and are not read.
func TestNBDSparseClients(t *testing.T) {
	needTools(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
	const mib = 1 << 20
	m := newMirror(t, layout{size: 64 * mib})
	m.start()
	uri := nbdURI(m.source.nbd)
	type extent struct {
		Start, Offset, Length int64 // qemu says Start, libnbd Offset
		Zero, Data            bool
		Type                  int // of base:allocation
	}
	var maps struct{ qemu, libnbd []extent }
	look := func() {
		t.Helper()
		maps.qemu, maps.libnbd = nil, nil
		for _, x := range []struct {
			into *[]extent
			args []string
		}{{&maps.qemu, []string{"qemu-img", "map", "--output=json", "-f", "raw", uri}}, {&maps.libnbd, []string{"nbdinfo", "--map", "--json", uri}}} {
			out := tool(t, x.args[0], x.args[1:]...)
			if err := json.Unmarshal([]byte(out), x.into); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	patches := []int64{3 * mib, 20 * mib, 41 * mib}
	var writes []string
	for _, at := range patches {
		writes = append(writes, "-c", fmt.Sprintf("write -P 0x77 %d 1M", at))
	}
	tool(t, "qemu-io", append([]string{"-f", "raw", uri}, writes...)...)
	look()
	var want []extent
	end := int64(0)
	for _, at := range patches {
		want = append(want, extent{Start: end, Offset: end, Length: at - end, Zero: true, Type: 3}, extent{Start: at, Offset: at, Length: mib, Data: true})
		end = at + mib
	}
	want = append(want, extent{Start: end, Offset: end, Length: m.size - end, Zero: true, Type: 3})
	for i, x := range want {
		if len(maps.qemu) != len(want) || len(maps.libnbd) != len(want) {
			t.Fatalf("%d extents are wanted:\nqemu %+v\nlibnbd %+v", len(want), maps.qemu, maps.libnbd)
		}
		q, l := maps.qemu[i], maps.libnbd[i]
		if q.Start != x.Start || q.Length != x.Length || q.Zero != x.Zero || q.Data != x.Data {
			t.Errorf("qemu: extent %d is %+v, want %+v", i, q, x)
		}
		if l.Offset != x.Offset || l.Length != x.Length || l.Type != x.Type {
			t.Errorf("libnbd: extent %d is %+v, want %+v", i, l, x)
		}
	}

	// Only what is data is read, by both, and the copies are equal.
	for _, x := range [][]string{{"nbdcopy", uri, m.path("nbdcopy", "raw")}, {"qemu-img", "convert", "-f", "raw", "-O", "raw", uri, m.path("qemu", "raw")}} {
		before := m.source.mustStatus().NBD.ReadBytes
		tool(t, x[0], x[1:]...)
		if read := m.source.mustStatus().NBD.ReadBytes - before; read < 3*mib || read > 8*mib {
			t.Errorf("%s read %d bytes of 3 MiB of data", x[0], read)
		}
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", x[len(x)-1], uri)
	}

	// Zeroes over data: what is called a hole afterwards is zero, whoever wrote it.
	tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -z 3M 512k", "-c", "write -z -u 20M 512k", "-c", "discard 41M 512k", "-c", "flush")
	look()
	back := m.path("back", "raw")
	tool(t, "nbdcopy", uri, back)
	content, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	expected := make([]byte, m.size)
	for _, at := range patches {
		copy(expected[at+512<<10:], bytes.Repeat([]byte{0x77}, 512<<10))
	}
	if !bytes.Equal(content, expected) {
		t.Error("what was copied is not what was written")
	}
	end = 0
	for _, x := range maps.libnbd {
		if x.Offset != end {
			t.Errorf("an extent at %d, not at %d", x.Offset, end)
		}
		if end += x.Length; x.Type != 0 && len(bytes.Trim(expected[x.Offset:end], "\x00")) > 0 {
			t.Errorf("a hole where there is data: %+v", x)
		}
	}
	checkEqual(t, "end of the map", end, m.size)
	m.stopLevel("target")
}
