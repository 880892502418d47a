package mirror

import (
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2"

	"mirror-agent/journal"
)

// How an old primary comes back after another volume was promoted: by what differs, never by a copy of all.
//
//	              F, where the histories part
//	───────────────┬──────── 2.0 ────────→   the new primary: log or bitmap say what changed here since F
//	               └── 1.0, 1.1 ──→ head     the old one: its log says what it has to get back
//
// A volume that was given up (stateDiverged) is a secondary that keeps its own history as it is, log and device, until the
// delta is complete: nothing is cut, nothing is appended, the tail stands still. So its log is the durable account of what
// has to be fetched from the new primary, over any number of restarts, and it can be promoted by force to its old state
// at any time (G4). In the handshake it offers its history up to F; the resync that follows copies what either side changed
// since, into the staging file, and one anchor takes it over.

// divergence is where and by how much a volume's history parts from another one.
type divergence struct {
	at      journal.LSN // F
	chain   uint64      // there
	why     string      // F is not known, or not in this log any more
	head    journal.LSN
	records uint64 // from F on
	changes uint64 // of those, the ones that change the device, or name a point of it
}

// nothing: the other history has everything that this one has.
func (d *divergence) nothing() bool { return d.why == "" && d.changes == 0 }

func (d *divergence) String() string {
	switch {
	case d.why != "":
		return d.why
	case d.changes == 0:
		return fmt.Sprintf("nothing was written here after LSN %d, where the histories part", d.at)
	}
	return fmt.Sprintf("%d writes after LSN %d, where the histories part, were made here only", d.changes, d.at)
}

// parted finds the last LSN up to which two histories are one; head is where mine ends. False: they have no generation in common.
func parted(mine, theirs []journal.Generation, head journal.LSN) (journal.LSN, bool) {
	for i := len(mine) - 1; i >= 0; i-- {
		for j, g := range theirs {
			if g.ID != mine[i].ID {
				continue
			}
			at := head
			if i+1 < len(mine) {
				at = min(at, mine[i+1].First)
			}
			if j+1 < len(theirs) {
				at = min(at, theirs[j+1].First)
			}
			return at, true
		}
	}
	return 0, false
}

// partedFrom compares this volume's history with that of a newer primary.
func (v *Volume) partedFrom(theirs []journal.Generation) (d divergence, err error) {
	d.head = v.log.Head()
	at, ok := parted(v.History(), theirs, d.head)
	if !ok {
		d.why = "the histories have no generation in common"
		return d, nil
	}
	d.at = at
	switch d.chain, err = v.log.ChainAt(at); {
	case errors.Is(err, journal.ErrFailed):
		return d, v.journalError(err)
	case errors.Is(err, journal.ErrGone):
		d.why = fmt.Sprintf("the log here begins at LSN %d, behind LSN %d, where the histories part", v.log.Tail(), at)
		return d, nil
	case err != nil:
		d.why = fmt.Sprintf("the log here does not show LSN %d, where the histories part: %v", at, err)
		return d, nil
	}
	for _, g := range theirs {
		if g.First == at && g.Chain != d.chain {
			d.why = fmt.Sprintf("the log here is another one at LSN %d, where generation %s began", at, rankString(g))
			return d, nil
		}
	}
	d.records, d.changes, err = v.countFrom(at)
	if err != nil {
		d.why, err = fmt.Sprintf("the log here cannot be read from LSN %d on, where the histories part: %v", at, err), nil
	}
	return d, err
}

// countFrom counts the records from LSN from on, and those that an operator may miss.
func (v *Volume) countFrom(from journal.LSN) (records, changed uint64, err error) {
	err = v.log.Scan(from, v.log.Head(), func(r journal.Record) error {
		records++
		if changes(r.Op) || r.Op == journal.OpCheckpoint || r.Op == journal.OpResize {
			changed++
		}
		return nil
	})
	return records, changed, err
}

// giveUp makes a primary a secondary whose history is to be replaced; it is exported from LSN exported on. Nobody writes here,
// and no follower is fed.
func (v *Volume) giveUp(exported journal.LSN) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	head := v.log.Head()
	if _, err := v.log.Sync(head); err != nil {
		return v.journalError(err)
	}
	if err := v.log.WriteAnchor(func(a *journal.Anchor) {
		v.fillAnchor(a)
		a.Role = uint8(RoleSecondary)
		if a.State&stateFenced == 0 {
			// The operator has named the loser: of two primaries with generations of one rank the other may feed it
			// now, and still nobody with an older one.
			a.Seen.ID = [16]byte{}
		}
		a.State = a.State&^(stateFenced|stateLeft) | stateDiverged
		withSidecar(a, func(s *sidecar) { s.exported, s.active = exported, "" })
	}); err != nil {
		return v.journalError(err)
	}
	v.declared.Store(uint64(head)) // it was this volume's own
	v.role.Store(uint32(RoleSecondary))
	v.unclean.Store(false)
	// What was refused to writers stays refused: they are of another time.
	v.changed()
	return nil
}

// heldByFork: the tail stays, since what lies between it and the head tells how this history parted from another.
func (v *Volume) heldByFork() bool { return v.flags()&(stateFenced|stateDiverged) != 0 }

// moveTail is for who changes the anchor. A volume may have been fenced since it was found that the tail may move: then it stays.
func moveTail(a *journal.Anchor, to journal.LSN, chain uint64) {
	if a.State&(stateFenced|stateDiverged) == 0 {
		a.Tail, a.TailChain = to, chain
	}
}

// rewound is the set of blocks, of a device of size bytes, that the records from LSN from on have changed.
func (v *Volume) rewound(from journal.LSN, size int64) (*dirtySet, error) {
	set := newDirtySet(size)
	err := v.log.Scan(from, v.log.Head(), func(r journal.Record) error {
		if changes(r.Op) {
			set.mark(int64(r.Offset), int64(r.Length))
		}
		return nil
	})
	return set, err
}

// maxRewoundBytes bounds the message that names these blocks.
const maxRewoundBytes = 8 << 20

// rewind is the part of a volume that was given up in the handshake: it shows its history up to where it parts from the
// source's, and remembers that place for the resync.
func (r *receiver) rewind(f *followerState, h *hello) error {
	d, err := r.v.partedFrom(h.Generations)
	if err != nil {
		return err
	}
	f.Rejoins, r.fork = true, 0
	if exported := parseSidecar(r.v.log.Anchor().Extra).exported; !d.nothing() && (d.why != "" && exported == 0 || d.why == "" && d.at < exported) {
		// More is about to go than the operator has seen.
		if err := r.diverged(d); err != nil {
			f.Refused = fmt.Sprintf("%s: what only it has cannot be exported: %v", r.node, err)
			return nil
		}
	}
	if d.why != "" {
		f.Compare = d.why
		return nil
	}
	r.fork = d.at
	f.Generations = keepBelow(f.Generations, d.at)
	f.Head, f.Chain, f.Committed = d.at, d.chain, min(f.Committed, d.at)
	f.Rewinds = d.at < d.head
	return nil
}

// rejoin turns what decide found for a follower that was given up: it has no say in what it loses, and never needs an order.
func (s *sender) rejoin(out outcome, f *followerState) outcome {
	all := func(why string) outcome {
		return outcome{kind: outcomeResync, reason: fmt.Sprintf("%s rejoins, %s: all blocks are compared", f.Node, why)}
	}
	switch {
	case out.kind != outcomeStream && out.kind != outcomePartial && out.kind != outcomeResync && out.kind != outcomeDiverged:
		return out
	case f.Compare != "":
		return all(f.Compare)
	case out.kind == outcomeDiverged:
		return all(out.reason)
	case out.kind == outcomePartial:
		out.reason = fmt.Sprintf("%s rejoins from LSN %d: what either side has changed since is copied", f.Node, out.at)
	case out.kind == outcomeStream && f.Rewinds:
		// All that changed here since is in the log.
		s.track = trackView{known: true, id: f.ID, base: out.at, chain: out.chain, set: newDirtySet(s.v.size.Load()), upTo: out.at}
		out = outcome{kind: outcomePartial, at: out.at, reason: fmt.Sprintf("%s rejoins from LSN %d: what either side has changed since is copied", f.Node, out.at)}
	}
	return out
}

// addRewound puts the blocks that a follower has to get back into the set that is copied to it.
func addRewound(set *dirtySet, raw []byte, size int64) error {
	if len(raw) == 0 {
		return nil
	}
	back := newDirtySet(size)
	bits, err := decodeBits(raw, back.blocks())
	if err != nil {
		return fmt.Errorf("resync: %w: rewound blocks: %w", errMessage, err)
	}
	back.bits = bits
	return back.each(func(off, end int64) error {
		set.mark(off, end-off)
		return nil
	})
}

// beginRejoin is beginPartial of a volume that was given up: nothing is cut, its state stays as it is until the takeover.
func (r *receiver) beginRejoin(m *partialBegin, size int64) (raw []byte, compare string, err error) {
	if r.fork == 0 || m.At != r.fork || m.Base > m.At {
		return nil, fmt.Sprintf("%s offered its history up to LSN %d", r.node, r.fork), nil
	}
	chain, err := r.v.log.ChainAt(m.Base)
	if err != nil {
		return nil, fmt.Sprintf("the log of %s does not show what it was at LSN %d (%v)", r.node, m.Base, err), nil
	}
	if chain != m.Chain {
		return nil, fmt.Sprintf("the log of %s differs at LSN %d", r.node, m.Base), nil
	}
	set, err := r.v.rewound(r.fork, size)
	if err != nil {
		return nil, fmt.Sprintf("what %s has to get back cannot be told: %v", r.node, err), nil
	}
	if set.bits.IsEmpty() {
		return nil, "", nil
	}
	set.bits.RunOptimize()
	if raw, err = set.bits.ToBytes(); err == nil && len(raw) > maxRewoundBytes {
		return nil, fmt.Sprintf("what %s has to get back takes %d bytes to name", r.node, len(raw)), nil
	}
	return raw, "", err
}

// rewoundBytes is how much a list of rewound blocks covers, for the status.
func rewoundBytes(raw []byte, size int64) int64 {
	bits := roaring.New()
	if len(raw) == 0 || bits.UnmarshalBinary(raw) != nil {
		return 0
	}
	return (&dirtySet{size: size, block: dirtyBlockBytes(size), bits: bits}).bytes()
}
