# What all scripts of this folder begin with. The test says by the environment where the server is and what it serves.
import errno
import os
import random

ADDRESS, NAME, SIZE = os.environ["NBD_ADDRESS"], os.environ["NBD_NAME"], int(os.environ["NBD_SIZE"])
K, M = 1 << 10, 1 << 20
ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION


def new(**o):
    """A handle that is not connected yet. Strict mode is off: the server decides, not libnbd."""
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(o.get("structured", True))
    for context in o.get("contexts", [ALLOCATION]):
        h.add_meta_context(context)
    h.set_export_name(o.get("name", NAME))
    h.set_full_info(True)
    if "flags" in o:
        h.set_handshake_flags(o["flags"])
    h.set_opt_mode(o.get("opt", False))
    return h


def connect(h=None, **o):
    h = h or new(**o)
    if ADDRESS.startswith("unix:"):
        h.connect_unix(ADDRESS[len("unix:"):])
    else:
        host, port = ADDRESS.rsplit(":", 1)
        h.connect_tcp(host, port)
    return h


def fails(want, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == want, (errno.errorcode[want], str(e))
        return
    raise AssertionError("no error, %s is wanted" % errno.errorcode[want])


def equal(got, want):
    assert got == want, (got, want)


def status(h, n, off, flags=0):
    """The extents of one reply as [length, state, length, state, …]."""
    said = []

    def extent(context, at, entries, error):
        equal((context, at, error.value), (ALLOCATION, off, 0))
        said.extend(entries)

    h.block_status(n, off, extent, flags)
    return said


def extents(h, n, off=0):
    """All of a range as (offset, length, state), asked for until there is nothing left."""
    found, end = [], off + n
    while off < end:
        said = status(h, end - off, off)
        assert said and all(length > 0 for length in said[::2]), said
        for length, state in zip(said[::2], said[1::2]):
            found.append((off, min(length, end - off), state))
            off += length
    return found


def chunks(h, n, off, flags=0):
    """A structured read: its data, and its chunks as (length, offset, kind)."""
    found = []

    def chunk(part, at, kind, error):
        equal(error.value, 0)
        found.append((len(part), at, kind))

    return h.pread_structured(n, off, chunk, flags), sorted(found, key=lambda c: c[1])


def noise(n, seed):
    return random.Random(seed).randbytes(n)


def alive(h):
    """The connection goes on and stands at the right byte."""
    equal(len(h.pread(512, 0)), 512)
