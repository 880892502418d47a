package nbd

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// tool returns a command of a real client, or skips with the Debian package that has it.
func tool(t *testing.T, name, debian string) func(args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: apt-get install %s", name, debian)
	}
	return func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Dir = t.TempDir() // fio leaves files
		// nbdsh takes the first python3, which has to be the one that the package of its module is for.
		cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil && strings.Contains(string(out), "No module named nbd") {
			t.Skip("nbdsh has no Python module: apt-get install python3-libnbd")
		}
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
}

// serveFile serves a new file and returns it and the URI.
func serveFile(t *testing.T, size int64) (*blockdev.File, *Server, string) {
	t.Helper()
	f, err := blockdev.OpenFile(filepath.Join(t.TempDir(), "device"), blockdev.FileOptions{Create: true, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s, path := start(t, Options{}, Export{Name: "disk", Description: "a disk", Device: f, MultiConn: true})
	return f, s, "nbd+unix:///disk?socket=" + path
}

func TestNbdinfo(t *testing.T) {
	run := tool(t, "nbdinfo", "libnbd-bin")
	_, _, uri := serveFile(t, 1<<20)
	out := run("--json", uri)
	for _, want := range []string{
		`"export-name": "disk"`, `"description": "a disk"`, `"export-size": 1048576`, `"is_read_only": false`,
		`"can_flush": true`, `"can_fua": true`, `"can_trim": true`, `"can_zero": true`, `"can_multi_conn": true`,
		`"can_fast_zero": true`, `"can_df": true`, `"can_cache": true`,
		`"base:allocation"`, `"structured"`, `"block_size_preferred": 4096`, `"block_size_maximum": 33554432`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo does not say %s:\n%s", want, out)
		}
	}
	if out := run("--list", strings.Replace(uri, "/disk?", "/?", 1)); !strings.Contains(out, `export="disk"`) {
		t.Error(out)
	}
}

func TestNbdcopy(t *testing.T) {
	run := tool(t, "nbdcopy", "libnbd-bin")
	const size = 24 << 20
	f, s, uri := serveFile(t, size)
	source, back := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "back")
	data := append(pattern(10<<20, 3), make([]byte, 4<<20)...)
	data = append(data, pattern(10<<20, 9)...)
	if err := os.WriteFile(source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run("--flush", "--connections=4", source, uri)
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal("what was copied differs", err)
	}
	if st := s.Stats(); st.Flushes == 0 || st.Writes == 0 {
		t.Fatalf("%+v", st)
	}
	run(uri, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Fatal("what was copied back differs", err)
	}
}

func TestQemuIO(t *testing.T) {
	run := tool(t, "qemu-io", "qemu-utils")
	_, s, uri := serveFile(t, 8<<20)
	uri = strings.Replace(uri, "nbd+unix:///disk?socket=", "nbd:unix:", 1) + ":exportname=disk"
	out := run("-f", "raw", "-t", "none", "-c", "write -P 0xa5 1000 70000", "-c", "write -f -P 0x11 1M 1M", "-c", "flush",
		"-c", "write -z 1M 4k", "-c", "write -z -u 1536k 64k", "-c", "discard 2M 1M", "-c", "read -P 0xa5 1000 70000",
		"-c", "read -P 0 1M 4k", "-c", "read -P 0x11 1028k 508k", "-c", "read -P 0 1536k 64k", "-c", "read -P 0 2M 1M", uri)
	if strings.Contains(out, "failed") || strings.Count(out, "read ") != 5 {
		t.Fatal(out)
	}
	if st := s.Stats(); st.Writes == 0 || st.Zeroes == 0 || st.Trims == 0 || st.Flushes == 0 || st.Errors != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestQemuImg(t *testing.T) {
	run := tool(t, "qemu-img", "qemu-utils")
	_, _, uri := serveFile(t, 16<<20)
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, append(pattern(9<<20, 7), make([]byte, 7<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	run("convert", "-n", "-f", "raw", "-O", "raw", source, uri)
	if out := run("compare", "-f", "raw", "-F", "raw", source, uri); !strings.Contains(out, "identical") {
		t.Fatal(out)
	}
}

func TestNbdsh(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	_, _, uri := serveFile(t, 4<<20)
	run("-u", uri, "-c", `
h.pwrite(b"x" * 5000, 123, nbd.CMD_FLAG_FUA)
h.zero(100, 200, nbd.CMD_FLAG_NO_HOLE)
h.trim(1000, 1000)
h.flush()
assert h.pread(5000, 123) == b"x"*77 + bytes(100) + b"x"*700 + bytes(1000) + b"x"*3123
h.set_strict_mode(0)
import errno
def fails(want, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == want, (want, e)
        return
    assert False, "no error"
fails(errno.ENOSPC, h.pwrite, b"y" * 512, 4 << 20)
fails(errno.EINVAL, h.pread, 512, 4 << 20)
fails(errno.EINVAL, h.trim, 512, 4 << 20)
fails(errno.ENOSPC, h.zero, 512, 4 << 20)
h.cache(512, 0)
fails(errno.EINVAL, h.cache, 512, 4 << 20)
assert h.pread(5, 123) == b"xxxxx"
h.shutdown()
`)
}

// The agent has no read-only export; the server has.
func TestNbdshReadOnly(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	d := blockdev.NewMemory(mib, nil)
	if _, err := d.WriteAt([]byte("precious"), 0); err != nil {
		t.Fatal(err)
	}
	_, path := start(t, Options{}, Export{Name: "disk", Device: d, ReadOnly: true, MultiConn: true})
	run("-c", `
import errno
def fails(want, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == want, (want, e)
        return
    assert False, "no error"
for structured in [True, False]:
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_strict_mode(0)
    h.connect_uri("nbd+unix:///disk?socket=`+path+`")
    assert h.is_read_only()
    for flags in [0, nbd.CMD_FLAG_FUA]:
        fails(errno.EPERM, h.pwrite, b"changed", 0, flags)
        fails(errno.EPERM, h.pwrite, b"x" * (1 << 20), 0, flags)
        fails(errno.EPERM, h.trim, 512, 0, flags)
        for more in [0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO]:
            fails(errno.EPERM, h.zero, 512, 0, flags | more)
    fails(errno.EINVAL, h.pread, 512, 1 << 20)
    h.cache(4096, 0)
    h.flush()
    assert h.pread(8, 0) == b"precious"
    h.shutdown()
`)
}

func TestFio(t *testing.T) {
	run := tool(t, "fio", "fio")
	_, s, uri := serveFile(t, 16<<20)
	out := run("--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m",
		"--verify=crc32c", "--fsync=64", "--do_verify=1", "--randseed=1")
	if !strings.Contains(out, "err= 0") {
		t.Fatal(out)
	}
	if st := s.Stats(); st.Writes < 4096 || st.Reads < 4096 || st.Flushes == 0 || st.Errors != 0 {
		t.Fatalf("%+v", st)
	}
}
