# Several connections see one device: what was answered on one is read on all, and a flush on any covers it.
hs = [connect(structured=bool(i % 2)) for i in range(8)]
for i, h in enumerate(hs):
    assert h.can_multi_conn()
    p = noise(64 * K, i)
    h.pwrite(p, i * M)
    for other in hs:
        equal(other.pread(64 * K, i * M), p)
    hs[i - 1].flush()
    hs[i - 2].trim(4 * K, i * M, nbd.CMD_FLAG_FUA)
    hs[i - 3].zero(4 * K, i * M + 8 * K, nbd.CMD_FLAG_NO_HOLE)
    equal(h.pread(64 * K, i * M), bytes(4 * K) + p[4 * K:8 * K] + bytes(4 * K) + p[12 * K:])

# One of them goes without a word, another in the middle of a write; the others do not notice.
del hs[0]
broken = connect()
broken.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(16 * M)), 16 * M)
del broken
for h in hs:
    h.pwrite(b"on and on", 5)
    equal(h.pread(9, 5), b"on and on")
    h.flush()
    h.shutdown()
