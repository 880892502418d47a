# Every command with every flag it may have: what is read afterwards is what a model says.
FUA, NO_HOLE, FAST, DF, ONE = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE

for structured in [True, False]:
    h = connect(structured=structured)
    part, base = 4 * M, 8 * M
    model = bytearray(part)
    h.zero(part, base)

    def write(off, data, flags=0):
        h.pwrite(data, base + off, flags)
        model[off:off + len(data)] = data

    def clear(f, n, off, flags):
        f(n, base + off, flags)
        model[off:off + n] = bytes(n)

    def check():
        equal(h.pread(part, base) == model, True)

    write(0, noise(part, 1))
    check()
    for flags in [0, FUA]:
        write(1, b"x", flags)
        write(511, noise(2, flags), flags)
        write(70 * K + 3, noise(300 * K + 5, flags), flags)
        check()
        clear(h.trim, 4 * K, 8 * K, flags)
        clear(h.trim, 100 * K + 1, 500 * K + 7, flags)
        check()
        for more in [0, NO_HOLE]:
            write(M, noise(M, flags | more))
            clear(h.zero, 4 * K, M + 4 * K, flags | more)
            clear(h.zero, 300 * K + 1, M + 100 * K + 1, flags | more)
            check()
            # A zero that has to be fast is, or nothing has changed.
            try:
                clear(h.zero, 64 * K, M + 600 * K, flags | more | FAST)
            except nbd.Error as e:
                equal(e.errnum, errno.ENOTSUP)
            check()
        h.flush()
    # Whatever is asked may carry FUA, and each byte can be had alone.
    equal(h.pread(1000, base + M, FUA), bytes(model[M:M + 1000]))
    h.cache(1000, base + M, FUA)
    h.flush(FUA)
    if structured:
        status(h, 1000, base + M, FUA)
    for off in [0, 1, 511, 512, 513, M - 1, part - 1]:
        equal(h.pread(1, base + off), bytes(model[off:off + 1]))
    # Nothing, at any place that there is.
    for off in [0, 1, SIZE - 1, SIZE]:
        equal(h.pread(0, off), bytearray())
        h.pwrite(b"", off, FUA)
        h.zero(0, off, NO_HOLE | FUA)
        h.trim(0, off, FUA)
    check()
    # The first and the last byte of the device.
    for off in [0, SIZE - 1]:
        before = h.pread(1, off)
        h.pwrite(b"\xa5", off)
        equal(h.pread(1, off), b"\xa5")
        h.pwrite(before, off, FUA)
    # 32 MiB at once, and more than that where there is no payload.
    large = noise(32 * M, 7)
    h.pwrite(large, SIZE - 32 * M, FUA)
    equal(h.pread(32 * M, SIZE - 32 * M) == large, True)
    h.zero(SIZE - 12 * M, 12 * M)
    h.trim(SIZE - 12 * M, 12 * M, FUA)
    equal(h.pread(32 * M, SIZE - 32 * M) == bytes(32 * M), True)
    check()

    # Many requests in flight at once, on places that do not touch.
    todo = {}
    for i in range(64):
        p = noise(K * (1 + i), i)
        todo[h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(p)), base + i * 64 * K, flags=FUA * (i % 2))] = None
        model[i * 64 * K:i * 64 * K + len(p)] = p
    todo[h.aio_flush()] = None
    while todo:
        h.poll(-1)
        for cookie in [c for c in todo if h.aio_command_completed(c)]:
            del todo[cookie]
    check()
    h.shutdown()
