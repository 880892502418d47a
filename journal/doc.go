// Package journal is the log of a volume: an ordered history of changes, in a ring in one preallocated file (or a raw
// partition) that it shares with two anchors. It knows records, positions and promises; what a record means
// and when it may leave the log is the owner's business. Of the project it imports the histograms alone (blockdev/histogram),
// and it names the small File that it needs.
//
// # Main types
//
//   - Log: an open journal. Append (group commit), AppendUnless (the same, on a condition that is asked in its turn), AppendRaw (a follower: the source's bytes at the source's LSN), Sync
//     (one fdatasync for all who wait), WriteAnchor, Cut, Reset, MoveTo (another
//     file, another size); readers: ReadRaw, ReadData, Scan, Verify, ChainAt;
//     Scrub looks for rot on the disk, Mend puts a copy's records over it.
//   - Entry: one change on its way in. Record: a decoded header (format.go has the picture).
//   - Anchor: what lies outside the ring: where the log starts, what is applied, what is promised (anchor.go).
//   - Recovery: what Open found. CorruptError: what it refused.
//
// # Files
//
// format.go record; create.go a new journal; anchor.go, slots.go anchor; ring.go positions and wrap; log.go the type; append.go group commit;
// raw.go; sync.go fdatasync and anchors; read.go; index.go sparse boundaries; horizon.go; cut.go; wipe.go;
// recover.go; repair.go; scrub.go; move.go; stats.go.
//
// # Invariants
//
//   - tail ≤ applied ≤ durable ≤ head ≤ horizon. Records are written at the head only, and only below the tail of the newest
//     durable anchor + ring size; writes leave Reserve bytes free for control records.
//   - A record is published (head, OnAppend, return of Append) after its bytes are in the file, in LSN order.
//   - durable goes up only after an fdatasync that began when the bytes were in the file. An anchor's promise is what was durable
//     before the anchor was written.
//   - The tail is raised before anything is written over what it freed; a reader looks at it after it has read.
//   - Beyond the head the ring holds nothing that could be read as a record of a position between head and tail + ring: who drops
//     records zeroes their headers (wipe.go). So a cut record never comes back, and a "later record" found beyond damage is proof.
//   - The newest complete anchor is never overwritten, and a torn one is told from a rotten one (slots.go).
//   - The first write or fdatasync that fails ends the Log (G9); the file is then reopened.
//
// # Decisions that DESIGN.md leaves open
//
//   - Rot that Open sees: anything before the anchor's promise; for a primary also what a provable later record of the newest
//     generation promises. Not seen: the last records of a primary when the damage takes header and chain value of the first bad
//     record and fewer than two records follow; nor a durable last record that rots, in its payload alone too, before a later
//     record or anchor promises it: nothing tells it from a torn tail, and it is cut like one. Only a follower that has
//     it can give it back. Records between tail and applied are not read by Open; Verify does.
//   - A log with rot can be opened to be repaired (Options.Damaged, repair.go): it ends before the rot and keeps its promise until
//     raw records of its own history fill the place, or the owner cuts there. By default it is refused.
//   - The anchor's slot is sealed sector by sector. A plain checksum cannot tell a torn anchor from a rotten newest one, and
//     falling back to the older one after rot would forget a promise, a fence and where the tail is.
//   - Cut and Reset write two anchors: "pending", and done.
//   - Open reads the log from applied on, whole, and then as far as the anchor's horizon, 128 MiB at most beyond the head, to look
//     for what lies there: at the disk's pace, however large the ring. Reset reads the whole ring once.
//   - Format writes the ring once, with zeroes: the first fdatasync after a write into space that is only reserved has to write the
//     filesystem's metadata too, and takes twice as long.
//
// Reading the disk and not the page cache after a failed fdatasync is the File's part: open it anew in a way
// that drops what is cached.
package journal
