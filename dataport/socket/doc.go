// Package socket is how a busy connection is waited for, by the data port's paths and by the NBD server's clients.
//
// The runtime's poller is woken by everything that arrives, beside the goroutine that it arrives for. So a connection is detached after its
// handshake: taken out of that poller. Its reader, when it is busy, then waits in poll(2), by a thread that has nothing else to do (warm), or
// not asleep at all where the peer usually goes on at once (hot). Where one request comes at a time that takes a third less of the processors;
// where a stream of large pieces comes, a quarter of the receiver's.
//
//	        Read: nothing there                       Read came within warmFor, and there are seats
//	warm ─────────────────────────────────────► cold ─────────────────────────────────────────────► warm
//	        silent for warmFor, no seat, or           (parked in the runtime's poller,
//	        not worth it (Expect)                      by a second descriptor)
//
// A thread that waits in the kernel keeps one of the runtime's processors until the runtime takes it back. Who writes and only hears
// acknowledgements is better parked: a source of bulk data that waited for them warm was a fifth slower. That is what Expect is for, and the
// seats of a Crowd.
//
// A writer that has to wait is parked, where the reader is parked too, or by a descriptor for this once: the one it waits by must not be in the
// runtime's poller while the reader is warm.
//
// What holds: a connection has one descriptor, two while it is parked, three at most, and none after Close or Abort and the end of the calls that
// were under way, which both end. Deadlines end Read and Write as those of net.Conn do; a warm Read within warmFor.
//
// Outside Linux there is nothing here.
package socket
