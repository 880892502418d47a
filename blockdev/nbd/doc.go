// Package nbd serves any blockdev.Device by the NBD protocol (https://github.com/NetworkBlockDevice/nbd, doc/proto.md):
// fixed newstyle negotiation, simple and structured replies, READ, WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS.
//
//	Server      listeners, connections, limits, Shutdown and Close
//	Export      a device under a name
//	handshake   the negotiation; pure over an io.ReadWriter; metacontext: base:allocation; starttls
//	reply       the format of replies; ask: requests that change nothing; extent: what is data and what a hole
//	conn        one connection in transmission; work: the buffers and requests of one of its goroutines; drain: its end
//	times       how long requests take, by command
//	poll        the rest of a request; how a client is waited for is dataport/socket's
//	memory      the buffers of all connections, bounded; large: how those for large requests are shared
//	Attach      the other side: an export as /dev/nbdN of the kernel, see attach.go; Kernel: its driver by netlink
//
// # One connection
//
// Exactly one goroutine of a connection is its leader. It reads as many requests as one read(2) gives, parses them in
// place and gives the writes among them to the device as one group, whose data is still in the read buffer. Then it runs
// the reads, into the buffer that goes out with one write(2). So in the usual case nothing is copied or allocated per
// request and no goroutine is waited for.
//
//	            ┌──────────── one or two ticks in the device ───────────┐
//	            │                                                       ▼
//	fill → parse → run: group, reads → send → fill …        a new leader: send, run what was not begun, fill …
//	                        │                               the old one: answer what it has, end
//	                        └ FLUSH and FUA → flusher: one Sync for all that wait
//
// When a request is there in part only, the rest of it is polled for a few microseconds (poll) before the goroutine is parked: clients send
// header and payload one after the other. Right after a large write only a header is read, so that the payload of the next goes where it belongs
// without a copy.
//
// A client that is busy is waited for in poll(2) and not in the runtime's poller, which would be woken too by all that arrives (dataport/socket): where
// a request comes at a time that takes a third less CPU. Who usually asks again within some microseconds is waited for that long without
// sleeping: a write and its flush take 7 % less time.
//
// A request that stays long in the device must not hold up the others: the monitor, one goroutine for the server that looks every two
// milliseconds and ends when all is quiet, then makes a new leader. FLUSH is the flusher's; a FUA write goes to the device with its
// group like any write and is answered after the next Sync. Only for a client that sends nothing while it waits for a Sync, as was seen
// eight times in a row, the leader does it itself (flush): no goroutine has to be woken, half of the CPU time. A device that knows what comes
// next (blockdev.Foreseer) may then begin it in the leader as well, once a write has its answer.
//
// # What holds
//
//   - A FLUSH is answered after a Sync of the device that began after the FLUSH was received: it covers every write that was
//     answered before, on any connection. FUA likewise. What a failed Sync means is the device's to say; the error goes
//     to every request that waited.
//   - Writes of one read(2) reach the device in their order. Requests in flight at the same time have no order otherwise
//     (NBD promises none), and replies come as they are ready.
//   - A write reaches the device when all of its payload is here, as one write.
//   - Requests that were not given to the device when their connection ended never are. A connection nobody
//     looked at for 100 ms is asked whether the peer has closed it before what it still has is run, and again with every read of what was on
//     its way. Over TCP a full window can hide the end from all but the last of these questions.
//   - Every length is checked before anything is allocated or read. What the server may use is Options.MaxMemoryBytes. No connection has more
//     than a quarter of what there is for large requests, and clients that take nothing of a large reply while others wait for memory are ended.
//     A refused write's payload is read and thrown away, then the error is sent. A wrong magic number ends the connection.
//   - Errors: EPERM changes of a read-only export; EINVAL unknown commands and flags, misaligned or too large requests, reads and
//     trims outside; ENOSPC writes and zeroes outside, no space; EOVERFLOW structured reads beyond the maximum; ENOTSUP a
//     FAST_ZERO that would not be fast; ESHUTDOWN while the server drains, see below; EIO the rest. Structured replies say it in words, and
//     where a read failed.
//   - An extent is called a hole, which reads as zeroes, when the device says so (blockdev.DataFinder); everything else is data. A reply has
//     a bounded number of extents; the client asks again for the rest.
//   - With Options.TLSRequired nothing but STARTTLS and ABORT is answered in the clear, and what was negotiated before TLS is
//     forgotten. The handshake reads no byte ahead, so nothing said in the clear is ever taken for said by TLS.
//   - While it drains the server finishes and answers what the device has, FLUSH and FUA after their Sync, and closes, once the client has had
//     the time to take its last replies. Everything else is
//     answered ESHUTDOWN where structured replies were negotiated. Where not, it is neither answered nor ever given to the device: the
//     client may be Linux, which takes every error for an I/O error and sends again elsewhere what had no answer. So for a device
//     of the kernel that gets new connections (Attach) the end of a server is a pause. Nor does Close tell it anything.
//
// Over TCP a large read is sent by a system call of its own, its header by one before it with MSG_MORE: Linux copies from one piece of memory faster
// than from several (a read of 1 MiB takes 410 instead of 550 µs of CPU).
//
// # What was tried and is not here
//
// Measured on two cores with scripts/bench; each made it slower or changed nothing. Reads of 1 MiB by splice(2), device to
// pipe to socket without a copy: the server needs a quarter less CPU, but as many reads less come through (0.6 × by TCP,
// 0.6 × by unix socket), because what is saved here the client pays for page by page. Sending large reads from a mapping of the file (MADV_POPULATE_READ, one
// mapping per read or one that stays): the page tables cost what the copy does. Handing the lead on before every large
// request, so that receiving and copying overlap: the buffers no longer stay in the cache. SO_RCVLOWAT for large payloads.
// Sending one large reply by a goroutine of its own while the next is read (0.75 × by TCP, with a third more CPU), the leader locked
// to its thread, huge pages for large buffers. Answering the first half of a batch before the second has run. Waiting in poll(2) for more requests to gather.
//
// Lock order: Server.mu, conn.flushMu, conn.mu. conn.writeMu is held alone.
package nbd
