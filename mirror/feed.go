package mirror

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// appendRaw enters records of the source, exactly as its log holds them, at
// the LSN they have there. While the log has no room it waits for the
// applier. Returns the new head.
func (v *Volume) appendRaw(ctx context.Context, at journal.LSN, raw []byte) (journal.LSN, error) {
	if v.Role() != RoleSecondary {
		return 0, ErrFenced
	}
	found, err := v.checkRaw(raw)
	if err != nil {
		return 0, err
	}
	for {
		moved, err := v.watch()
		if err != nil {
			return 0, err
		}
		end, err := v.log.AppendRaw(at, raw)
		if err == nil {
			if len(found) > 0 {
				if err := v.learn(found); err != nil {
					return 0, err
				}
			}
			v.pace()
			return end, nil
		}
		if !errors.Is(err, journal.ErrFull) {
			return 0, v.journalError(err)
		}
		if err := v.awaitRoom(ctx, moved); err != nil {
			return 0, err
		}
	}
}

// checkRaw checks records that come from outside before they enter the log, and makes room for what they need. It
// returns those that begin a generation.
func (v *Volume) checkRaw(raw []byte) (found []journal.Record, err error) {
	size := v.size.Load()
	err = journal.ParseRaw(raw, func(r journal.Record, payload []byte) error {
		switch r.Op {
		case journal.OpGeneration:
			if err := v.agreed(r, payload); err != nil {
				return err
			}
			found = append(found, r)
		case journal.OpResize:
			if err := checkResize(r, size); err != nil {
				return err
			}
			size = int64(r.Offset)
			if err := v.makeRoom(size); err != nil {
				return err
			}
		default:
		}
		_, _, err := extentOf(size, r.Op, r.Offset, r.Length, r.LSN, 0)
		return err
	})
	return found, err
}

// agreed checks a generation record of the source before it is taken: what
// is in the log has to be readable at the next start, and belongs to a
// generation that was stored as seen (G5).
func (v *Volume) agreed(r journal.Record, payload []byte) error {
	g, err := generationOf(r, payload)
	if err == nil && compareRank(g, v.Seen()) > 0 {
		err = fmt.Errorf("generation record at LSN %d: %s is above %s, which was agreed upon", r.LSN, rankString(g), rankString(v.Seen()))
	}
	return err
}

// declare takes the source's word that its log is durable up to lsn (G3). The
// word is about what this volume has of it: after a cut other records come to
// lie there, so lsn is never beyond the head.
func (v *Volume) declare(lsn journal.LSN) {
	for {
		old := v.declared.Load()
		if uint64(lsn) <= old {
			return
		}
		if v.declared.CompareAndSwap(old, uint64(lsn)) {
			if v.pressure() {
				v.poke()
			}
			return
		}
	}
}

// cut drops everything from lsn on: what the source has lost, or replaced, in
// a crash. Committed records are never cut.
func (v *Volume) cut(lsn journal.LSN) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if lsn < v.Committed() {
		return fmt.Errorf("cut at LSN %d below committed %d: %w", lsn, v.Committed(), journal.ErrCommitted)
	}
	return v.cutLocked(lsn)
}

// cutLocked is cut, also of what is committed and not applied yet. applyMu is held.
func (v *Volume) cutLocked(lsn journal.LSN) error {
	v.endViews(lsn, errViewCut)
	if parseSidecar(v.log.Anchor().Extra).applying > lsn { // a layer that was announced, and whose records go
		err := v.log.WriteAnchor(func(a *journal.Anchor) {
			withSidecar(a, func(s *sidecar) { s.applying = min(journal.LSN(v.mixed.Load()), lsn) })
			v.fillAnchor(a)
		})
		if err != nil {
			return v.journalError(err)
		}
	}
	if v.dirty.clamp(lsn) { // first: what comes to lie beyond is another history
		if err := v.setFlags(0, 0); err != nil {
			return err
		}
	}
	if err := v.log.Cut(lsn); err != nil {
		return v.journalError(err)
	}
	v.damage.Store(nil) // what was promised beyond is given up with it
	v.declared.Store(min(v.declared.Load(), uint64(lsn)))
	v.stateMu.Lock()
	v.generations = keepBelow(v.generations, lsn)
	v.stateMu.Unlock()
	v.overlay.reset(v.log.Applied())
	v.sizeReset(v.log.Anchor().DeviceSize)
	defer v.changed()
	return v.log.Scan(v.log.Applied(), lsn, v.recovered)
}

// undoPromotion drops what a promotion left that a crash kept from its
// anchor: the volume is still secondary and nothing was served, but a
// generation record that no source knows would make it diverge from all.
func (v *Volume) undoPromotion() error {
	if v.Role() != RoleSecondary {
		return nil
	}
	seen := v.Seen()
	candidate := parseSidecar(v.log.Anchor().Extra).candidate
	for _, g := range v.History() {
		begun := compareRank(g, seen) > 0 || g.ID == candidate && candidate != [16]byte{}
		if begun && g.First < v.log.Head() {
			return v.cut(g.First)
		}
	}
	return nil
}

func keepBelow(gs []journal.Generation, lsn journal.LSN) []journal.Generation {
	for len(gs) > 0 && gs[len(gs)-1].First >= lsn {
		gs = gs[:len(gs)-1]
	}
	return gs
}

// restart forgets the log and begins it anew at lsn, by one durable anchor:
// the end of a resync. The history becomes gs.
func (v *Volume) restart(lsn journal.LSN, chain uint64, gs []journal.Generation, update func(*journal.Anchor)) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.endViews(0, errViewResynced)
	if err := v.log.Reset(lsn, chain, func(a *journal.Anchor) {
		a.Generations = gs
		a.Role = uint8(v.Role())
		a.Followers = nil // of a time when it was fed by nobody
		forgetFork(a)
		withSidecar(a, func(s *sidecar) { s.applying, s.witnesses = 0, nil }) // of the content before
		update(a)
	}); err != nil {
		return v.journalError(err)
	}
	v.damage.Store(nil)
	v.rotten.Store(0)
	v.stateMu.Lock()
	v.generations = append([]journal.Generation(nil), gs...)
	v.stateMu.Unlock()
	v.overlay.reset(lsn)
	v.mixed.Store(0)
	v.sizeReset(v.log.Anchor().DeviceSize)
	v.dirty.restart(lsn)
	v.declared.Store(uint64(lsn))
	v.changed()
	return nil
}

// see stores a source's generation durably before it is acted upon (G5).
func (v *Volume) see(g journal.Generation) error {
	if journal.Compare(v.log.Anchor().Seen, g) >= 0 {
		return nil
	}
	return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Seen = g
		v.fillAnchor(a)
	}))
}

// vouch stores that this volume has given its word for g, itself when it is the candidate: from then on it refuses all below.
func (v *Volume) vouch(g journal.Generation, itself bool) error {
	return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
		a.Seen = g
		withSidecar(a, func(s *sidecar) {
			s.candidate = [16]byte{}
			if itself {
				s.candidate = g.ID
			}
		})
		v.fillAnchor(a)
	}))
}

// Seen returns the highest generation that this volume ever met.
func (v *Volume) Seen() journal.Generation { return v.log.Anchor().Seen }

// flags reads and changes the anchor's state flags durably.
func (v *Volume) flags() uint32 { return v.log.Anchor().State }

func (v *Volume) setFlags(set, clear uint32) error {
	return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
		a.State = a.State&^clear | set
		v.fillAnchor(a)
	}))
}

// beginGeneration makes this volume the primary of a new generation: minor
// for a primary that starts after an unclean end, major for a promotion. The
// record is durable before anything may be written, and the role changes
// with the anchor that follows it.
func (v *Volume) beginGeneration(major bool) (journal.Generation, error) {
	return v.beginAs(major, journal.Generation{})
}

// beginAs is beginGeneration of the generation that the members gave their word for; the zero one leaves number and id open.
func (v *Volume) beginAs(major bool, mandate journal.Generation) (journal.Generation, error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		return journal.Generation{}, v.journalError(err)
	}
	first, chain := v.log.HeadChain()
	if major {
		v.dirty.promoted(first)
	}
	g := v.Generation()
	g.First, g.Chain = first, chain
	if major {
		g.Major, g.Minor = max(g.Major, v.Seen().Major)+1, 0
	} else {
		g.Minor++
	}
	if _, err := rand.Read(g.ID[:]); err != nil {
		return g, err
	}
	if mandate.ID != [16]byte{} {
		g.Major, g.Minor, g.ID = mandate.Major, mandate.Minor, mandate.ID
	}
	e := &journal.Entry{Op: journal.OpGeneration, Payload: encodeGeneration(g)}
	if err := v.log.Append([]*journal.Entry{e}); err != nil {
		return g, v.journalError(err)
	}
	if _, err := v.log.Sync(v.log.Head()); err != nil {
		return g, v.journalError(err)
	}
	v.stateMu.Lock()
	v.generations = append(v.generations, g)
	v.stateMu.Unlock()
	err := v.log.WriteAnchor(func(a *journal.Anchor) {
		v.fillAnchor(a)
		a.Role = uint8(RolePrimary)
		if compareRank(g, a.Seen) > 0 {
			a.Seen = g
		}
		if major {
			a.State &^= stateFenced | stateLeft
			forgetFork(a)
			withSidecar(a, func(s *sidecar) { s.active, s.handed, s.candidate = "", "", [16]byte{} }) // of a time when it was primary before
		}
	})
	if err != nil {
		return g, v.journalError(err)
	}
	v.role.Store(uint32(RolePrimary))
	v.unclean.Store(false)
	if major {
		v.refused.Store(nil)
	}
	v.changed()
	return g, nil
}

// learn takes generation records that were just appended into the history.
func (v *Volume) learn(found []journal.Record) error {
	for _, r := range found {
		p := make([]byte, min(r.PayloadLen, generationBytes))
		if err := v.log.ReadData(p, r.Data()); err != nil {
			return fmt.Errorf("generation record at LSN %d: %w", r.LSN, err)
		}
		g, err := generationOf(r, p)
		if err != nil {
			return err
		}
		v.stateMu.Lock()
		if n := len(v.generations); n == 0 || v.generations[n-1].First < g.First {
			v.generations = append(v.generations, g)
		}
		v.stateMu.Unlock()
	}
	return nil
}

// generationBytes is the size of a generation record's payload: major u32,
// minor u32, id 16 bytes, first LSN u64, chain there u64; little endian.
const generationBytes = 40

// generationOf reads a generation record; payload is, or begins, its payload.
func generationOf(r journal.Record, payload []byte) (journal.Generation, error) {
	if r.PayloadLen != generationBytes {
		return journal.Generation{}, fmt.Errorf("generation record at LSN %d: %d bytes instead of %d", r.LSN, r.PayloadLen, generationBytes)
	}
	g := decodeGeneration(payload)
	if g.First != r.LSN {
		return g, fmt.Errorf("generation record at LSN %d says that it began at %d", r.LSN, g.First)
	}
	return g, nil
}

func encodeGeneration(g journal.Generation) []byte {
	b := make([]byte, generationBytes)
	binary.LittleEndian.PutUint32(b, g.Major)
	binary.LittleEndian.PutUint32(b[4:], g.Minor)
	copy(b[8:24], g.ID[:])
	binary.LittleEndian.PutUint64(b[24:], uint64(g.First))
	binary.LittleEndian.PutUint64(b[32:], g.Chain)
	return b
}

func decodeGeneration(b []byte) (g journal.Generation) {
	g.Major, g.Minor = binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	copy(g.ID[:], b[8:24])
	g.First = journal.LSN(binary.LittleEndian.Uint64(b[24:]))
	g.Chain = binary.LittleEndian.Uint64(b[32:])
	return g
}
