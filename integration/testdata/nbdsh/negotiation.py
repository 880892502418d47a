# Every option of the handshake, the old way in, and what an export says of itself.

# GO, by name and by default.
for name in [NAME, ""]:
    h = connect(name=name)
    equal((h.get_protocol(), h.get_size(), h.get_structured_replies_negotiated()), ("newstyle-fixed", SIZE, True))
    can = [h.can_flush(), h.can_fua(), h.can_trim(), h.can_zero(), h.can_fast_zero(), h.can_df(), h.can_cache(), h.can_multi_conn(), h.can_meta_context(ALLOCATION)]
    equal(can, [True] * len(can))
    equal((h.is_read_only(), h.is_rotational()), (False, False))
    equal((h.get_canonical_export_name(), h.get_export_description()), (NAME, "mirror " + NAME))
    sizes = [h.get_block_size(s) for s in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
    equal(sizes, [1, 4096, 32 * M])
    alive(h)
    h.shutdown()

# EXPORT_NAME: without fixed newstyle, with the 124 zeroes and without.
for flags in [0, nbd.HANDSHAKE_FLAG_NO_ZEROES]:
    h = connect(flags=flags)
    equal((h.get_protocol(), h.get_size(), h.get_structured_replies_negotiated()), ("newstyle", SIZE, False))
    equal((h.can_flush(), h.can_fua(), h.can_df()), (True, True, False))
    h.pwrite(b"the old way", 5, nbd.CMD_FLAG_FUA)
    equal(h.pread(11, 5), b"the old way")
    h.shutdown()
    try:  # it has no way to say no but to hang up
        connect(flags=flags, name="nosuch")
        raise AssertionError("an export that does not exist")
    except nbd.Error:
        pass

# STRUCTURED_REPLY not asked for: there is no DF and no status.
h = connect(structured=False)
equal((h.get_structured_replies_negotiated(), h.can_df(), h.can_meta_context(ALLOCATION)), (False, False, False))
alive(h)
h.shutdown()

# LIST, INFO, GO, contexts, one after the other on one connection.
h = connect(opt=True)
listed = []
equal(h.opt_list(lambda name, description: listed.append((name, description)) and 0), 1)
equal(listed, [(NAME, "mirror " + NAME)])
h.opt_info()
equal((h.get_size(), h.get_canonical_export_name(), h.can_flush()), (SIZE, NAME, True))
h.set_export_name("nosuch")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
fails(errno.EINVAL, h.get_size)  # what was known of the other export is forgotten
h.set_export_name("n" * 4000)
fails(errno.ENOENT, h.opt_go)
h.set_export_name(NAME)
for asked, want in [([], [ALLOCATION]), (["base:"], [ALLOCATION]), ([ALLOCATION], [ALLOCATION]), (["x-other:thing"], []), (["x-other:", "base:nosuch"], [])]:
    h.clear_meta_contexts()
    for a in asked:
        h.add_meta_context(a)
    listed = []
    equal(h.opt_list_meta_context(lambda name: listed.append(name) and 0), len(want))
    equal(listed, want)
h.clear_meta_contexts()
h.add_meta_context("x-other:thing")
h.add_meta_context(ALLOCATION)
h.opt_go()
equal((h.can_meta_context(ALLOCATION), h.can_meta_context("x-other:thing")), (True, False))
alive(h)
h.shutdown()

# A context that there is not costs nothing.
h = connect(contexts=["x-other:thing"])
equal(h.can_meta_context("x-other:thing"), False)
alive(h)
h.shutdown()

# ABORT ends it, also after an INFO.
for before in [lambda h: None, lambda h: h.opt_info()]:
    h = connect(opt=True)
    before(h)
    h.opt_abort()
    assert h.aio_is_closed()

# And who hangs up in the middle of it leaves the server as it was.
for i in range(20):
    connect(opt=True)
alive(connect())
