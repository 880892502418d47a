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
//   - promise (promise.go): what a primary's writes and flushes wait for, by
//     word (word.go), a pure state machine of all followers.
//   - sender, receiver (sender.go, receiver.go, protocol.go): the two ends of
//     one session. The bytes of the source's log travel as they are and lie at
//     the same LSN in the follower's.
//   - decide (handshake.go), FollowerState (progress.go): pure tables.
//   - switchover.go: another follower becomes the active one. members.go,
//     membersets.go: what the members know of each other.
//   - vote.go, electorate.go: who gives whom the word for a promotion, and who
//     the members are; ballots.go, memberlist.go, electorstore.go: the agent's
//     part. autopromote.go: a target that promotes itself.
//   - Arbiter (arbiter.go, etcd.go): leases who is primary; tenure.go, leased.go:
//     what may be answered under a lease; leasekeeper.go keeps it.
//   - resync.go, partial.go, copier.go, staging.go: the fuzzy copy, of all blocks
//     or of those that are dirty, and where it is built. yieldpace.go: a resync
//     and a verify yield to the applications.
//   - tracker (tracker.go, dirtyset.go, dirtyfile.go, dirtystore.go): what each
//     follower lacks once the log does not reach back to it.
//   - foresight.go: a sync begins before the FLUSH that comes in a steady beat.
//   - hold.go, pacing.go: what keeps the tail, and how writers are slowed.
//     memory.go: what the overlay may take.
//   - grow.go, checkpoint.go, retain.go: the device grows while it is in use;
//     named points in the order of writes; history that is kept.
//   - points.go: points in time, and the way back to one. view (view.go): the
//     device as it was at one LSN, writable; drill.go: how the operator gets it.
//   - resizelog.go: a log of another size, in a new file that takes the old
//     one's name, while everything goes on.
//   - trouble.go, badreads.go, stagehold.go: disks that fail. repair.go, repairsource.go: a
//     log that has rotted. stamp.go: files that do not belong together;
//     witness.go: what the anchor knows of the device's content.
//   - network.go: bandwidth and keys, changed while the links are in use.
//   - comparer (verify.go, verifyrepair.go, verifyread.go), verifyServer
//     (verifyserve.go), their messages (verifywire.go), watch (watch.go): both
//     sides of a verify; verifyjob.go, verifypace.go, verifyreport.go, checks.go:
//     what the agent makes of it. scrub.go: rot in the log, found early.
//   - inspect.go, export.go, shadow.go: a log looked at from outside. rejoin.go,
//     rejoinagent.go, demote.go: an old primary that becomes a follower by what
//     differs, and keeps what only it had. fetchback.go: what a log has lost.
//   - handover.go: a planned promotion as a state machine; handoversource.go,
//     handovertarget.go, handoverstate.go: the agents' sides of it. stepdown.go:
//     a primary becomes a secondary. failback.go: the way home. follow.go,
//     memberfile.go: who feeds whom after that, and where they are found.
//   - Agent (agent.go, feedfollower.go, fedby.go, report.go): one mirror on
//     this host, and what the operator sees of it; pulse.go: that it lives.
//   - watchdog.go: what ought to move and does not becomes an alarm; alarms that
//     come and go become events. words.go: what every state means, and what
//     happens in it by itself; eventkinds.go: every kind of event. measures.go,
//     otherhost.go: what a monitoring system and a doctor get beyond the status.
//   - wire.go: the one file that knows package dataport.
//
// mirror/hook runs the operator's commands on events, mirror/control answers the
// command line and Prometheus.
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
//	    every other session. The data port carries it too, once it is stored: it
//	    refuses a lower one of the same mirror before anything is said. Which of
//	    two equal ones is right, and whose mirror it is, the handshake tells.
//	  - G6: the log covers what a follower lacks, or a bitmap does. A follower's
//	    base is what it has acknowledged as durable, and is durable here. Before
//	    an anchor moves the tail past it, the blocks of the records that leave
//	    the log are in a durable bitmap, and the anchor names that by version
//	    and checksum. The bitmap is forgotten when the follower streams and is
//	    durable beyond the tail. It may be used for a volume that is the one it
//	    was made for (by id) and has this history at the base or later: by its
//	    generations, and by the chain value at the base, which the follower
//	    looks up. In every other case, and when anything about the bitmap is
//	    amiss, all blocks are compared, and the reason is told.
//	  - G7: rot in the log is never cut below a promise. It is repaired from the
//	    other side's log, whose bytes are the same, or the start is refused.
//	  - G9: a failed fdatasync, or any failure of the journal, stops the volume. A
//	    follower also leaves the port, so that its source turns to a backup. The
//	    next start drops what is cached before it reads.
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
// Several followers are fed at once, each by a connection, a session, a sender
// and a hold of its own: the active one and all that are hot. The mode's word
// is about the active one alone. A hot follower that is not active does what it
// is sent as fast as the active one is asked to, but holds up no write and no
// FLUSH: promoted, it has everything that it had received durably, which may
// lack the last answers. (A quorum, to wait for two of three, is not wanted
// yet: it would be another rule in word.go and nothing else.) When the flow
// moves to it, a FLUSH waits until it has what was answered, and it counts from
// then on. Where any backup is hot the target is too: it is fed on when the
// flow has left it. A cold follower has no connection unless it is active; it
// is told when it is left, and refuses to be promoted unforced from then on.
//
// The flow moves by itself (switch auto) when the active target is unreachable:
// to the first one behind it in the list that is connected, if it is hot, or may
// be tried, if it is cold; never back, and not by a restart either: the anchor
// remembers the active one. A source that starts again opens its front when
// all that it feeds have been asked for a higher generation, or one has and
// UnreachableAfter has passed, or none has and StartWait has passed.
//
// Each follower has PushBack of its own; one that was outrun is tried again after
// pauses that double, or it would hold writers up for most of the time. With
// OnFullWait a hot follower, too, may hold writers for as long as it takes.
//
// A source that just started for the first time opens its front at once; one
// that starts again asks its followers for a higher generation first, and after
// an unclean end for what its log has lost.
//
// A connected follower holds the tail at its base. Writers are slowed smoothly
// when more than half of the ring is held by it, or not applied yet, so that
// they settle at the pace of what is slower; a full ring stops them. Small
// records can fill the overlay's part of the memory before the ring, and slow
// writers in the same way; nothing is retained then, and nothing stops. With
// on-full track (the default) a follower may do that to writers for PushBack
// (10 s); then its session ends, it does not count any more (on-loss decides),
// what it lacks is marked, and it is tried again after a pause. With wait it
// may for as long as it takes. That holds for one that is being resynced too:
// under a load that its link cannot carry, only wait ever brings it into sync.
//
// A bit stands for 4 KiB up to 256 GiB of device, then for as much as keeps
// it to 64 Mi blocks, at most 64 KiB: 8 MiB of memory for each tracked
// follower up to 4 TiB, 2 MiB more for each TiB beyond, none above 256 TiB,
// where nothing is tracked. The bitmaps of all followers are one file in two
// versions beside the journal (JOURNAL.dirty.0 and .1), see statedir.go; where there
// is no directory nothing is tracked.
// Marking goes a quarter of the ring beyond the new tail, so the file is
// written at most once for that much of log. Followers are kept by their
// first address, 8 at most; one whose address changed is new. A bitmap that
// cannot be written costs a full resync later and stops nothing.
//
// A secondary keeps account of the other members in the same way, by what its
// source tells of them about once a second, and so has bitmap files too. What
// is told are LSNs that are durable at the source: no record below is ever
// replaced. A base is never beyond a fork: a cut or a promotion lowers it first,
// durably. A promotion keeps all of it, by the volumes' ids; the first handshake
// gives an entry its follower's address. A follower whose log begins anew is told,
// by the source, what those lack who have been away since before.
//
// A partial resync that was interrupted goes on with what the follower has
// staged, which is compared by hash, since it may be of a history that ended.
// Before a resync is taken over, what the follower's log has and its device has
// not is staged too: the log is begun anew.
//
// The source reads ahead by a chunk of 4 MiB, since the kernel alone leaves a disk
// idle half of the time; it asks for the hashes of three chunks ahead, so both
// sides read and hash at once and a round trip costs nothing; the follower has the
// kernel write behind, so that its sync at the end finds little to do. While it
// yields, records are sent all the same.
//
// # Who feeds whom
//
// Roles say it, not who dials: a session carries the log in either direction. A
// source need not listen anywhere, so one that has handed over goes on dialling its
// targets and backups, and asks over each session to be fed; who leads feeds it over
// that one. All others have addresses. A source tells its followers where those are
// that it feeds; they keep it in a file, and who is promoted dials them. Such a host
// becomes a follower, for which a mode waits and an alarm is raised, with its first
// session, not before. After a handover the old source is the active one, expected
// at once. One volume is fed by one session.
//
// A target that handed over keeps its connections, and asks over them, until
// somebody feeds it; then it hangs up and is dialled. A generation of which the port
// says that it fences is stored by a secondary, which dials on with it (G5).
//
// A planned handover never has two that serve: the source leaves its lead, durably,
// before it says so, and the target takes it only by that word, of that order. In
// between nobody leads. Whoever was to lead and is asked again by the other says no
// more to it (a decline, or the word back) before that one goes on. That two hosts
// that cannot reach each other are both promoted by hand nothing here prevents.
// Who leads says beforehand, when asked, whether it is home, who uses its front and
// which alarms it has, and refuses while it is used when the order says so; home or,
// by name, any other follower can be invited to ask. A drill is made of these orders.
//
// # Promotion
//
// With three members or more a promotion that is not forced needs the word of all
// but one, the promoted one among them. That is a majority of three and of four;
// of more members it is more than one, since a FLUSH is answered when it is durable
// at two of them: only so one of the two is always asked. A word is the anchor's
// seen generation, with the id of the candidate's: stored before it is given, once
// for a number. The candidate's own is the first, and it begins its generation only
// while it is still bound to it. A candidate polls first, so that an order that
// must be refused binds nobody. A vote beside the data flow has a registration
// of its own at the data port, without a generation: nobody is refused there.
//
// The members are a list that the primary makes and tells; the newer list counts.
// A volume comes in when it is in sync for the first time, and is replaced by another
// one at its address. The dead stay until an operator removes them. A change is known
// to the others within a tenth of a second when they are connected: who adds a member
// while most of the others are away should wait with relying on it.
//
// With two members the order itself is the operator's word, or the arbiter decides.
// Where there is one it decides alone, and its record stands for the members' word:
// it names who has everything that a FLUSH was answered for, and a FLUSH waits until
// all whom it may name have what it covers. The lease is asked at the point where
// something is answered, by the clock that goes on while a machine sleeps.
//
// protocolmodel_test.go goes through every order of events within bounds, with
// these machines and those of the handshake and the word.
//
// # Points in time
//
// Between applied and head every LSN is a state that the volume can be shown at
// (a view) and be promoted at; the window is as long as retention holds the
// applier back. A crash or a broken disk in the middle of a layer leaves parts of
// it on the device: then the window begins at that layer's end, which an anchor
// has announced before (witness.go); one more anchor for each layer, unless the one
// before it could tell already. A view takes the overlay's frozen layers up to its LSN and makes
// one layer of its own of the rest, so it opens at once. It holds nothing back:
// before a layer that reaches beyond its LSN is applied, the view's state of the
// blocks in it is copied into its scratch. The other way, to hold the applier at
// the drill's LSN, would fill the ring in a long drill and stop the source. So a
// drill costs the applier a read and a write for each block that it overwrites
// for the first time; when writers have waited a second for that at a stretch,
// or the scratch is full, the view ends. A cut below its LSN and the takeover
// of a resync end it too, since the state below it goes.
//
// A promotion at a point exports what came after, durably, and then cuts it,
// committed or not: nothing of it is on the device. For the same reason a follower
// counts such a layer as committed after a crash: another history that parts
// within it gets a resync, not a cut. Members that have more of that
// history are diverged from then on, as an old source is.
//
// # Disks that fail
//
// The backing device without space is no end: everything is in the log still. The
// applier stops and tries again for ever (state "device full"); writers wait once
// the log is full; a target tells its source. Another error of a write is tried
// again a few times ("device error"), since the fdatasync behind it will tell; then
// the volume stops. That fdatasync is never tried again, whatever its error: on a
// filesystem or a thin volume that allocates late, "no space" may come with it.
//
// Any error of the journal stops the volume at once, also when it is for lack of
// space: its space was allocated when it was made, so this is a filesystem that
// copies on write, where the next anchor may fail as well, and an anchor is a
// promise. The writers get the disk's own error: NBD's ENOSPC lets a hypervisor
// pause its guest where EIO would be shown to it.
//
// A volume that stopped is still read where it is sound. What the device has below
// applied was fdatasynced before the anchor said so, and everything above is in
// the log, which covers a page that failed on its way to the device. Of a log that
// failed only what is below durable is shown: what lies above may be, as soon as
// the kernel has let go of a page that it marked clean, what was on the disk
// before. Zeroes and trims are in memory. A source that stopped still sends its
// followers what its log holds; they check every byte.
//
// A resync that finds no space, or whose staging file fails otherwise, leaves the
// volume as it was and is held back for longer and longer ("resync held"). Before
// the staged state is taken over, the device's space for it is allocated.
//
// # Verify and scrub
//
// A verify compares what both sides would read, the newest of log and backing
// device, by a keyed BLAKE3 of 16 bytes; the key is new for every session. No
// write in flight is an alarm: a block counts as different only when both sides
// were seen at one LSN. Most blocks are read beside the stream and found
// untouched since; the others are looked at exactly: the source notes which LSN
// its bytes are of and puts what its log has from there on over them, up to the
// LSN that the follower, in the order of the stream, answers from. Nothing waits
// for a verify but what the follower's delivery does while it reads 256 KiB.
//
// A repair is an ordinary record: the bytes that count, once more, entered only
// if nothing was written there since they were read (journal.AppendUnless). So
// G1 to G4 hold for it as for any write, for every follower. By default the
// source's bytes count, since applications have seen them; what one disk does not
// give comes from the other side. A verify goes on over sessions, resyncs and
// growth, and ends with a promotion, a fence or a switch to another target.
//
// The log's live records are scrubbed once a day, from the disk, at 8 MiB/s or
// within a quarter of the time between two. What has rotted is fetched from the
// other side, whichever that is, and written in place after it was proved, by the
// chain before and behind it, to be what was there.
//
// Not seen: rot in the backing device between two verifies, and in a block
// that is cached, unless with --direct. Only followers that are fed are asked for
// what has rotted at a source. The way on from a target that cannot be repaired is
// promote --force, from before the rot.
//
// # Old primaries
//
// A fenced primary asks those it can reach for their history and finds where its
// own parts from it (F: the last common generation ends there, on either side).
// Nothing written here beyond F: it follows by itself. Else the operator gives it
// up, after what lies beyond F is in a file. A volume that was given up is a
// secondary that keeps its log and device as they are, tail and all; the log is
// the account of what it has to get back, and by force it can be promoted to its
// old state (G4). In the handshake it offers its history up to F, as found from
// the source's hello; what the source changed since F (log or bitmap) and what it
// itself changed are copied by a partial resync into the staging file, and one
// anchor takes that over. F not in its log any more, or another chain there: all
// blocks are compared, and the reason is told. Should F lie below what was
// exported, more is exported before anything is taken.
//
// A primary that starts after an unclean end fetches, before it begins its new
// generation, what its followers have beyond its log's end: only what continues
// its chain, no generation record, and from nobody who has seen a higher one.
package mirror
