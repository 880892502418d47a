package nbd

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"mirror-agent/blockdev"
)

// shellHead is what the scripts of this file begin with. Strict mode is off: the server decides, not libnbd.
const shellHead = `
import errno, socket
FUA, NO_HOLE, FAST = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
M = 1 << 20
def connect(name, structured=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri("nbd+unix:///%%s?socket=%s" %% name)
    return h
def fails(want, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == want, (errno.errorcode[want], str(e))
        return
    raise AssertionError("no error, %%s is wanted" %% errno.errorcode[want])
ignore = lambda *a: 0
`

// unwell is a device whose other abilities fail as well.
type unwell struct {
	*blockdev.Faulty
	prefetch, find error
}

func (u unwell) Prefetch(off, length int64) error {
	return errors.Join(u.prefetch, u.Faulty.Prefetch(off, length))
}

func (u unwell) NextData(off int64) (start, end int64, err error) {
	if u.find != nil {
		return 0, 0, u.find
	}
	return u.Faulty.NextData(off)
}

// What a bad or full device says reaches a real client as the value that the protocol has for it, for every command; the connection goes on.
// What needs a Sync fails with the Sync, asked one by one and at once.
func TestNbdshDeviceErrors(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	eio, full := fmt.Errorf("disk: %w", syscall.EIO), fmt.Errorf("disk: %w", syscall.ENOSPC)
	device := func(rules ...blockdev.Rule) *blockdev.Faulty {
		return blockdev.NewFaulty(blockdev.NewMemory(8*mib, nil), rules...)
	}
	_, path := start(
		t, Options{},
		Export{Name: "read", Device: device(blockdev.Rule{Op: blockdev.OpRead, Err: eio})},
		Export{Name: "write", Device: device(blockdev.Rule{Op: blockdev.OpWrite, Err: eio})},
		Export{Name: "trim", Device: device(blockdev.Rule{Op: blockdev.OpTrim, Err: eio})},
		Export{Name: "zero", Device: device(blockdev.Rule{Op: blockdev.OpZero, Err: eio})},
		Export{Name: "sync", Device: device(blockdev.Rule{Op: blockdev.OpSync, Err: eio})},
		Export{Name: "cache", Device: unwell{Faulty: device(), prefetch: eio}},
		Export{Name: "status", Device: unwell{Faulty: device(), find: eio}},
		Export{Name: "full", Device: device(
			blockdev.Rule{Op: blockdev.OpWrite, Err: full}, blockdev.Rule{Op: blockdev.OpZero, Err: full},
			blockdev.Rule{Op: blockdev.OpTrim, Err: full}, blockdev.Rule{Op: blockdev.OpSync, Err: full},
		)},
	)
	run("-c", fmt.Sprintf(shellHead, path)+`
def bad(name, want, *asked):
    h = connect(name, structured)
    for f, *a in asked:
        for again in range(2):
            fails(want, getattr(h, f), *a)
    return h
def alive(h):
    assert h.pread(512, 0) == bytes(512)
    h.shutdown()
for structured in [True, False]:
    h = connect("read", structured)
    h.pwrite(b"x" * 4 * M, 0) # what is a hole is not read
    h.shutdown()
    h = bad("read", errno.EIO, ("pread", 1, 0), ("pread", 512, 512, FUA), ("pread", 4 * M, 0))
    if structured:
        fails(errno.EIO, h.pread_structured, 4 * M, 0, ignore, nbd.CMD_FLAG_DF)
    h.pwrite(b"x", 0, FUA)
    h.flush()
    h.shutdown()
    alive(bad("write", errno.EIO, *[("pwrite", b"x" * n, 512, flags) for n in [1, 4096, 4 * M] for flags in [0, FUA]]))
    alive(bad("trim", errno.EIO, *[("trim", 4096, 0, flags) for flags in [0, FUA]]))
    # A zero that may leave a hole is a trim.
    alive(bad("trim", errno.EIO, *[("zero", 4096, 0, flags) for flags in [0, FUA, FAST, FUA | FAST]]))
    alive(bad("zero", errno.EIO, *[("zero", 4096, 0, NO_HOLE | flags) for flags in [0, FUA, FAST, FUA | FAST]]))
    h = bad("sync", errno.EIO, *[("flush",)] * 10, ("pwrite", bytes(512), 0, FUA), ("pwrite", bytes(4 * M), 0, FUA), ("trim", 512, 0, FUA),
        ("zero", 512, 0, FUA), ("zero", 512, 0, FUA | NO_HOLE))
    todo = {h.aio_flush() for i in range(64)}
    while todo:
        h.poll(-1)
        for cookie in list(todo):
            try:
                done = h.aio_command_completed(cookie)
            except nbd.Error as e:
                assert e.errnum == errno.EIO, str(e)
                todo.discard(cookie)
            else:
                assert not done, "a flush went well"
    h.pwrite(bytes(512), 0)
    h.trim(512, 0)
    h.zero(512, 0)
    alive(h)
    alive(bad("cache", errno.EIO, ("cache", 4096, 0), ("cache", 8 * M, 0, FUA)))
    if structured:
        # Where the holes are is a help for a read, and all that a status is.
        h = bad("status", errno.EIO, ("block_status", 4096, 0, ignore), ("block_status", 8 * M, 0, ignore, nbd.CMD_FLAG_REQ_ONE))
        assert h.pread(8 * M, 0) == bytes(8 * M)
        alive(h)
    alive(bad("full", errno.ENOSPC, *[("pwrite", b"x" * n, 0, flags) for n in [1, 4096, 4 * M] for flags in [0, FUA]],
        *[("zero", 4096, 0, more | flags) for more in [0, NO_HOLE] for flags in [0, FUA, FAST]], ("trim", 4096, 0), *[("flush",)] * 10))
`)
}

// ENOTSUP is for a zero that had to be fast, and for nothing else, whether the device never is or only not now; then nothing has changed.
func TestNbdshNotFast(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	never := plain{blockdev.NewMemory(mib, nil)}
	_, path := start(
		t, Options{},
		Export{Name: "never", Device: never},
		Export{Name: "not now", Device: blockdev.NewFaulty(plain{blockdev.NewMemory(mib, nil)})},
		Export{Name: "not at all", Device: blockdev.NewFaulty(
			blockdev.NewMemory(mib, nil),
			blockdev.Rule{Op: blockdev.OpZero, Err: errors.ErrUnsupported}, blockdev.Rule{Op: blockdev.OpTrim, Err: syscall.EOPNOTSUPP},
		)},
	)
	run("-c", fmt.Sprintf(shellHead, path)+`
for structured in [True, False]:
    for name in ["never", "not%20now", "not%20at%20all"]:
        h = connect(name, structured)
        assert h.can_fast_zero()
        for flags in [0, FUA]:
            h.pwrite(b"x" * 4096, 4096)
            for more in [0, NO_HOLE]:
                fails(errno.ENOTSUP, h.zero, 4096, 4096, FAST | more | flags)
                assert h.pread(4096, 4096) == b"x" * 4096
                if "all" in name:
                    fails(errno.EIO, h.zero, 4096, 4096, more | flags)
                    fails(errno.EIO, h.trim, 4096, 4096, flags)
                    continue
                h.zero(2048, 4096, more | flags)
                h.trim(2048, 6144, flags)
                assert h.pread(4096, 4096) == bytes(4096)
                h.pwrite(b"x" * 4096, 4096, flags)
        h.shutdown()
`)
}

// FUA says something about a write only, but "the server MUST accept all commands with this bit set" (proto.md, "Command flags").
func TestNbdshFUAOnEveryCommand(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	_, path := start(t, Options{}, Export{Name: "disk", Device: blockdev.NewMemory(mib, nil)})
	run("-c", fmt.Sprintf(shellHead, path)+`
for structured in [True, False]:
    h = connect("disk", structured)
    h.pwrite(b"x" * 4096, 0, FUA)
    for again in range(20):
        h.flush(FUA)
    h.cache(4096, 0, FUA)
    assert h.pread(4096, 0, FUA) == b"x" * 4096
    if structured:
        h.block_status(4096, 0, ignore, FUA)
    h.zero(512, 0, FUA)
    h.trim(512, 512, FUA)
    assert h.pread(4096, 0) == bytes(1024) + b"x" * 3072
    h.shutdown()
`)
}

// A server that drains tells a client that takes structured replies so, for every command, and answers what it had taken before.
func TestNbdshShutdown(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	d, entered, leave := gate(blockdev.NewMemory(8*mib, nil), blockdev.OpWrite, blockdev.Rule{Times: 1})
	defer close(leave)
	s, path := start(t, Options{}, Export{Name: "disk", Device: d})
	asked := filepath.Join(t.TempDir(), "asked")
	l, err := net.Listen("unix", asked) // the script connects when it has asked for everything
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		<-entered
		drained := drain(s)
		if nc, err := l.Accept(); err == nil {
			nc.Close()
			leave <- nil
		}
		done <- <-drained
	}()
	run("-c", fmt.Sprintf(shellHead, path)+`
h = connect("disk")
taken = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"early")), 0)
try:
    while True:
        h.pread(512, 4096)
except nbd.Error as e:
    assert e.errnum == errno.ESHUTDOWN, str(e)
for flags in [0, FUA]:
    fails(errno.ESHUTDOWN, h.pread, 512, 4096, flags)
    for n in [1, 4096, 4 * M]:
        fails(errno.ESHUTDOWN, h.pwrite, b"x" * n, 4096, flags)
    fails(errno.ESHUTDOWN, h.trim, 512, 4096, flags)
    for more in [0, NO_HOLE, FAST]:
        fails(errno.ESHUTDOWN, h.zero, 512, 4096, more | flags)
    fails(errno.ESHUTDOWN, h.flush, flags)
    fails(errno.ESHUTDOWN, h.cache, 512, 4096, flags)
    fails(errno.ESHUTDOWN, h.block_status, 512, 4096, ignore, flags)
assert not h.aio_command_completed(taken)
socket.socket(socket.AF_UNIX).connect("`+asked+`")
while not h.aio_command_completed(taken):
    h.poll(-1)
h.shutdown()
`)
	if err := <-done; err != nil {
		t.Error(err)
	}
	got := make([]byte, 8*mib)
	if _, err := d.ReadAt(got, 0); err != nil || string(got[:5]) != "early" {
		t.Errorf("the device holds %q, %v", got[:5], err)
	}
	for i, b := range got[5:] {
		if b != 0 {
			t.Fatalf("byte %d was written by a request that was told ESHUTDOWN", 5+i)
		}
	}
}
