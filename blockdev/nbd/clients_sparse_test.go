package nbd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-agent/blockdev"
)

// patches writes 1 MiB of data at each offset.
func patches(t *testing.T, f *blockdev.File, offsets ...int64) {
	t.Helper()
	for _, off := range offsets {
		if _, err := f.WriteAt(pattern(mib, byte(off>>20)), off); err != nil {
			t.Fatal(err)
		}
	}
}

// held returns how many bytes of a file take space on disk.
func held(t *testing.T, f *blockdev.File) (n int64) {
	t.Helper()
	size, _ := f.Size()
	for off := int64(0); off < size; {
		start, end, err := f.NextData(off)
		if err != nil {
			break
		}
		n, off = n+end-start, end
	}
	return n
}

func TestNbdinfoMapAndCan(t *testing.T) {
	run := tool(t, "nbdinfo", "libnbd-bin")
	f, _, uri := serveFile(t, 8*mib)
	patches(t, f, mib, 5*mib)
	var got []struct {
		Offset, Length int64
		Type           int
	}
	if out := run("--map", "--json", uri); json.Unmarshal([]byte(out), &got) != nil {
		t.Fatal(out)
	}
	want := []int64{0, mib, 3, mib, mib, 0, 2 * mib, 3 * mib, 3, 5 * mib, mib, 0, 6 * mib, 2 * mib, 3}
	var flat []int64
	for _, x := range got {
		flat = append(flat, x.Offset, x.Length, int64(x.Type))
	}
	if !equal(flat, want) {
		t.Errorf("%v, want %v", flat, want)
	}
	for _, can := range []string{"connect", "structured-reply", "cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero", "write"} {
		run("--can", can, uri)
	}
}

func equal(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Sparse one way and back: holes stay holes, and are not read.
func TestNbdcopySparse(t *testing.T) {
	run := tool(t, "nbdcopy", "libnbd-bin")
	f, s, uri := serveFile(t, 64*mib)
	patches(t, f, 3*mib, 40*mib)
	local := filepath.Join(t.TempDir(), "local")
	run(uri, local)
	if st := s.Stats(); st.ReadBytes > 8*mib {
		t.Errorf("%d bytes were read of 2 MiB of data", st.ReadBytes)
	}
	to, _, toURI := serveFile(t, 64*mib)
	run("--flush", local, toURI)
	a, b := make([]byte, 64*mib), make([]byte, 64*mib)
	f.ReadAt(a, 0)
	to.ReadAt(b, 0)
	if !bytes.Equal(a, b) {
		t.Error("the copy of the copy differs")
	}
	if n := held(t, to); n > 4*mib {
		t.Errorf("the copy takes %d bytes", n)
	}
}

func TestQemuImgSparse(t *testing.T) {
	run := tool(t, "qemu-img", "qemu-utils")
	f, _, uri := serveFile(t, 64*mib)
	patches(t, f, 3*mib, 40*mib)
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if out := run("map", "--output=json", "-f", "raw", uri); json.Unmarshal([]byte(out), &extents) != nil || len(extents) != 5 {
		t.Fatal(out)
	}
	for i, x := range extents {
		if data := i%2 == 1; x.Data != data || x.Zero == data {
			t.Errorf("%+v", x)
		}
	}
	to, _, toURI := serveFile(t, 64*mib)
	run("convert", "-n", "-f", "raw", "-O", "raw", uri, toURI)
	if out := run("compare", "-f", "raw", "-F", "raw", uri, toURI); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	if n := held(t, to); n > 4*mib {
		t.Errorf("the copy takes %d bytes", n)
	}
	// Over old data, which the holes of the source have to replace, by fast zeroes.
	local := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(local, bytes.Repeat([]byte{7}, 64*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	run("convert", "-n", "-f", "raw", "-O", "raw", local, toURI)
	run("convert", "-n", "-f", "raw", "-O", "raw", uri, toURI)
	if out := run("compare", "-f", "raw", "-F", "raw", uri, toURI); !strings.Contains(out, "identical") {
		t.Error(out)
	}
}

// Every command and flag that libnbd can say.
func TestNbdshStructured(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	_, _, uri := serveFile(t, 4*mib)
	run("--base-allocation", "-u", uri, "-c", `
import errno
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
M = 1 << 20
def status(n, off, flags=0):
    said = []
    h.block_status(n, off, lambda c, o, e, err: said.extend(e) if c == "base:allocation" else 0, flags)
    return said
assert status(4*M, 0) == [4*M, 3], status(4*M, 0)
h.pwrite(b"x" * M, M)
assert status(4*M, 0) == [M, 3, M, 0, 2*M, 3], status(4*M, 0)
assert status(4*M, 0, nbd.CMD_FLAG_REQ_ONE) == [M, 3]
chunks = []
def chunk(buf, off, kind, err):
    chunks.append((len(buf), off, kind))
assert h.pread_structured(4*M, 0, chunk) == bytes(M) + b"x"*M + bytes(2*M)
assert sorted(chunks) == [(M, 0, nbd.READ_HOLE), (M, M, nbd.READ_DATA), (2*M, 2*M, nbd.READ_HOLE)], chunks
chunks = []
assert h.pread_structured(4*M, 0, chunk, nbd.CMD_FLAG_DF) == bytes(M) + b"x"*M + bytes(2*M)
assert chunks == [(4*M, 0, nbd.READ_DATA)], chunks
h.zero(M // 2, M, nbd.CMD_FLAG_FAST_ZERO)
h.zero(1000, M + M // 2, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 3*M, nbd.CMD_FLAG_FUA)
h.cache(M, M)
h.flush()
assert h.pread(M, M) == bytes(M // 2 + 1000) + b"x" * (M // 2 - 1000)
h.set_strict_mode(0)
def fails(want, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == want, (want, e)
        return
    assert False, "no error"
none = lambda *a: 0
fails(errno.EINVAL, h.block_status, 512, 4*M, none)
fails(errno.EINVAL, h.block_status, 0, 0, none)
fails(errno.EINVAL, h.block_status, 512, 0, none, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.pread_structured, 512, 4*M, chunk)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.cache, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_DF)
fails(errno.ENOSPC, h.pwrite, b"y", 4*M)
fails(errno.ENOSPC, h.zero, 1, 4*M, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(3, M + M // 2 + 1000) == b"xxx"
h.shutdown()
`)
}

func TestFioSeveralConnections(t *testing.T) {
	run := tool(t, "fio", "fio")
	_, s, uri := serveFile(t, 32*mib)
	out := run("--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=512-64k", "--iodepth=16", "--numjobs=4",
		"--size=8m", "--offset_increment=8m", "--verify=crc32c", "--fsync=32", "--do_verify=1", "--randseed=3")
	if strings.Count(out, "err= 0") < 4 {
		t.Fatal(out)
	}
	if st := s.Stats(); st.Writes == 0 || st.Flushes == 0 || st.Errors != 0 {
		t.Fatalf("%+v", st)
	}
}
