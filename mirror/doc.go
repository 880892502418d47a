// Package mirror is a block device that is mirrored to another host as it is
// written: a log and a backing device on each side, and what lies between.
//
// # What is in here
//
//   - Volume (volume.go, write.go, read.go, applier.go, feed.go): a log and a
//     backing device on one host. A primary is fed by its front, a secondary
//     by the data port; promotion changes the feed and nothing else.
//   - overlay (overlay.go): the map of everything that is in the log and not
//     yet in the backing device. It is made of layers: one takes new records,
//     the frozen ones wait to be applied, each as a whole. A layer may be
//     applied once the log is committed up to its end, so what is applied is
//     always the state after one LSN, and a block that an uncommitted record
//     overwrites is still applied as it was before that record.
//   - promise (promise.go): what a primary's writes and flushes wait for.
//   - sender, receiver (sender.go, receiver.go, protocol.go): the two ends of
//     one session. The bytes of the source's log travel as they are and lie at
//     the same LSN in the follower's.
//   - decide (handshake.go), FollowerState (progress.go): pure tables.
//   - resync.go, staging.go: the fuzzy copy and where it is built.
//   - grow.go, checkpoint.go: the device grows while it is in use; named
//     points in the order of writes.
//   - Agent (agent.go, feedfollower.go, fedby.go, report.go): one mirror on
//     this host, and what the operator sees of it.
//   - wire.go: the one file that knows package dataport.
//
// # Invariants
//
//		tail ≤ applied ≤ committed ≤ durable ≤ head
//
//	  - G1: a write is answered after its record is in the journal file.
//	  - G2: a FLUSH is answered after the log is durable up to the head that it
//	    found, here and, in mode flush, at the active target. It covers at least
//	    the record of the primary's own generation.
//	  - G3: nothing reaches the backing device that is not committed: durable
//	    here and, on a secondary, declared durable by the source. So a follower
//	    only ever has to cut its log after a crash, never its device.
//	  - G4: a follower that was consistent once stays promotable. A resync is
//	    built in a staging file beside the volume, sparse, blocks of 64 KiB at
//	    their own offsets; one durable anchor takes it over, and it is merged
//	    into the device after that (again, when a crash interrupted it). What
//	    the follower has in its log only is staged before that: its log ends
//	    with the takeover. A volume that was never consistent is built in place.
//	  - G5: the highest generation seen is stored before it is acted upon. A
//	    primary that started after an unclean end begins a new minor generation,
//	    a promotion a new major one; the generation's record is durable before
//	    the front opens. A session that presents a generation ends the feed of
//	    every other session.
//	  - G6: a full ring makes writes wait for the applier and for a connected
//	    follower; one that is not connected does not hold the tail, and is
//	    resynced when the log no longer reaches back to what it has.
//	  - G9: an error of the journal or the device stops the volume. Reads and
//	    writes fail from then on; a follower also leaves the port, so that its
//	    source turns to a backup.
//
// # Choices
//
// The tail moves only when three quarters of the ring are in use, and then to
// half: what remains is history that a returning follower catches up from.
//
// A target that was in sync and lost its session is still expected for as
// long as a target may be silent (UnreachableAfter): flushes wait. After that
// they are answered alone (on-loss continue) or wait on (freeze). It counts
// again once it is durable up to everything that a FLUSH was answered for.
//
// A source that just started for the first time opens its front at once; one
// that starts again asks its followers for a higher generation first.
//
// Not here yet: the modes receive and durable, dirty bitmaps (a follower that
// the log no longer reaches is resynced by comparing hashes of all blocks),
// more than one follower at a time, rejoin after a divergence.
package mirror
