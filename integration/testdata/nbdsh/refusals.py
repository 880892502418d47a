# Everything that is refused, with its error value; the connection goes on after each.
FUA, NO_HOLE, FAST, DF, ONE = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE
UNKNOWN = 1 << 9
ignore = lambda *a: 0

for structured in [True, False]:
    h = connect(structured=structured)
    h.pwrite(b"x" * 4096, SIZE - 4096)

    def refused(want, f, *a):
        fails(want, f, *a)
        alive(h)
        equal(h.pread(4096, SIZE - 4096), b"x" * 4096)

    # Outside: EINVAL for what reads and trims, ENOSPC for what writes.
    for n, off in [(1, SIZE), (512, SIZE - 511), (4096, SIZE + 4096), (1, (1 << 63) - 2), (2 * M, SIZE - M)]:
        refused(errno.EINVAL, h.pread, n, off)
        refused(errno.EINVAL, h.trim, n, off)
        refused(errno.ENOSPC, h.pwrite, b"y" * n, off)
        refused(errno.ENOSPC, h.pwrite, b"y" * n, off, FUA)
        refused(errno.ENOSPC, h.zero, n, off)
        refused(errno.ENOSPC, h.zero, n, off, NO_HOLE | FUA)
        refused(errno.ENOSPC, h.zero, n, off, FAST)
    refused(errno.EINVAL, h.trim, SIZE + 1, 0)
    refused(errno.ENOSPC, h.zero, SIZE + 1, 0)
    refused(errno.EINVAL, h.trim, (1 << 32) - 1, 0)
    refused(errno.ENOSPC, h.zero, (1 << 32) - 1, 0)
    refused(errno.EINVAL, h.pread, 0, SIZE + 1)

    # Flags that a command does not have, and such as nobody knows.
    for f, wrong in [
        (lambda flags: h.pread(512, 0, flags), [NO_HOLE, ONE, FAST] + [DF] * (not structured)),
        (lambda flags: h.pwrite(b"y" * 512, SIZE - 512, flags), [NO_HOLE, DF, ONE, FAST, FUA | DF]),
        (lambda flags: h.trim(512, SIZE - 512, flags), [NO_HOLE, DF, ONE, FAST]),
        (lambda flags: h.zero(512, SIZE - 512, flags), [DF, ONE, NO_HOLE | DF]),
        (h.flush, [NO_HOLE, DF, ONE, FAST]),
    ]:
        for flags in wrong + [UNKNOWN]:
            refused(errno.EINVAL, f, flags)

    # One byte more than 32 MiB. The payload of the write is thrown away, whatever its size.
    refused(errno.EOVERFLOW if structured else errno.EINVAL, h.pread, 32 * M + 1, 0)
    refused(errno.EINVAL, h.pwrite, b"y" * (32 * M + 1), 0)
    refused(errno.EINVAL, h.pwrite, b"y" * (40 * M), SIZE - 40 * M, FUA)

    # CACHE outside, and with flags of others.
    refused(errno.EINVAL, h.cache, 512, SIZE)
    refused(errno.EINVAL, h.cache, 1024, SIZE - 512)
    for flags in [NO_HOLE, DF, ONE, FAST, UNKNOWN]:
        refused(errno.EINVAL, h.cache, 512, 0, flags)
    h.cache(4096, 0)
    h.cache(SIZE, 0)

    if structured:
        refused(errno.EINVAL, h.block_status, 512, SIZE, ignore)
        refused(errno.EINVAL, h.block_status, 1024, SIZE - 512, ignore, ONE)
        refused(errno.EINVAL, h.block_status, 0, 0, ignore)
        for flags in [NO_HOLE, DF, FAST, UNKNOWN]:
            refused(errno.EINVAL, h.block_status, 512, 0, ignore, flags)
        refused(errno.EOVERFLOW, h.pread_structured, 32 * M + 1, 0, ignore, DF)
        refused(errno.EINVAL, h.pread_structured, 512, SIZE - 1, ignore, DF)
    h.flush()
    h.shutdown()

# A status without its context.
h = connect(contexts=[])
fails(errno.EINVAL, h.block_status, 512, 0, ignore)
alive(h)
h.shutdown()
