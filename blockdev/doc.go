// Package blockdev holds the block devices that the agent mirrors, serves and keeps its state on.
//
// A [Device] is a fixed number of bytes that can be read, written, zeroed, trimmed and made durable. It is a superset of
// go-nbd's backend.Backend, so any device here can be served by that library, and [FromBackend] makes a Device of any of
// its backends.
//
//	File      a regular file or a raw block device, locked against a second user
//	Memory    a sparse device in memory; fed by a Power it loses what was not synced when the power is cut
//	Power     the supply that several Memory devices share, so that a crash hits all of them at one instant
//	Faulty    a wrapper that makes chosen operations fail, fall short or wait
//
// Optional abilities are interfaces of their own: [VectorWriter] (one system call for many buffers), [BatchWriter] (many
// writes as one group), [DataFinder] (where holes are), [CacheDropper] (read the disk), [FastZeroer], [Prefetcher],
// [Writebacker], [Allocator], [Grower], [Foreseer] (it may begin what it expects). [ApplyBatch] runs a group on any Device.
//
// What holds for every device of this package:
//
//   - All methods may be called from several goroutines at once. Operations that overlap in place and time have no order.
//   - ReadAt, WriteAt and WritevAt do the full length or return an error; there is no short success.
//   - An access that does not lie wholly inside the device fails with [ErrOutOfRange] and changes nothing. No device grows.
//   - Sync returns nil only when every write, zero and trim that was answered before Sync was called is durable.
//   - After Zero and after Trim the range reads back as zeroes, always. They are writes: durable after the next Sync.
//   - File: a Sync that failed is never tried again. The kernel marks the pages clean, so a second try would lie; every
//     later Sync and every later write returns the first error. What survived is found out by opening the device anew, and
//     after DropCache: the pages of a writeback that failed are still cached, marked clean, and would be read instead of the
//     disk. A process that starts cannot know whether one before it met such an error (the kernel reports it to descriptors
//     that were open, and once to the next that opens when nobody has seen it), so who recovers always drops first.
//     Dropping is advice to the kernel: a page that somebody has mapped stays, and tmpfs has no disk to read.
package blockdev
