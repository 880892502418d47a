# Holes, as BLOCK_STATUS and structured reads tell of them. It wants a device that nothing was written to.
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
h = connect()
equal(status(h, SIZE, 0), [SIZE, HOLE])
equal(status(h, 512, SIZE - 512), [512, HOLE])

patches = [3 * M, 20 * M, 41 * M]
for at in patches:
    h.pwrite(noise(M, at), at)
want = [3 * M, HOLE, M, 0, 16 * M, HOLE, M, 0, 20 * M, HOLE, M, 0, SIZE - 42 * M, HOLE]


def check():
    equal(status(h, SIZE, 0), want)
    equal(status(h, SIZE, 0, nbd.CMD_FLAG_REQ_ONE), [3 * M, HOLE])
    equal(status(h, SIZE, 0, nbd.CMD_FLAG_FUA), want)
    equal(status(h, 2 * M, 19 * M + 512), [M - 512, HOLE, M, 0, 512, HOLE])
    equal(status(h, 2 * M, 20 * M + 512, nbd.CMD_FLAG_REQ_ONE), [M - 512, 0])
    equal(status(h, 1, 20 * M + 5), [1, 0])
    # Read with the holes left out, in one piece with DF, and by a client that knows nothing of holes.
    whole, found = chunks(h, 32 * M, 0)
    equal(found, [(3 * M, 0, nbd.READ_HOLE), (M, 3 * M, nbd.READ_DATA), (16 * M, 4 * M, nbd.READ_HOLE), (M, 20 * M, nbd.READ_DATA), (11 * M, 21 * M, nbd.READ_HOLE)])
    unbroken, found = chunks(h, 32 * M, 0, nbd.CMD_FLAG_DF)
    equal(found, [(32 * M, 0, nbd.READ_DATA)])
    simple = connect(structured=False)
    equal(simple.pread(32 * M, 0) == whole == unbroken, True)
    equal(whole == bytes(3 * M) + noise(M, 3 * M) + bytes(16 * M) + noise(M, 20 * M) + bytes(11 * M), True)
    simple.shutdown()


check()  # from the log
h.flush()
check()

# After zeroes and trims, written over or not, what is called a hole reads as zeroes, and what was written since is none.
h.zero(512 * K, 3 * M)
h.zero(512 * K, 20 * M, nbd.CMD_FLAG_NO_HOLE)
h.trim(2 * M, 40 * M + 512 * K)
h.pwrite(b"in the middle", 41 * M)
for at, length, state in extents(h, SIZE):
    assert state in (0, HOLE), state
    for off in range(at, at + length, 32 * M) if state == HOLE else []:
        n = min(32 * M, at + length - off)
        equal(h.pread(n, off) == bytes(n), True)
equal([state for _, _, state in extents(h, 13, 41 * M)], [0])
equal([state for _, _, state in extents(h, 512 * K, 20 * M + 512 * K)], [0])
h.flush()
h.shutdown()
