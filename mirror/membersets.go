package mirror

import (
	"context"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// A resync begins the follower's log anew. What it knew of the other members is
// void with the log, and one that has been away since before is not covered by
// the new log either. So the source tells it what each such member lacks: the
// set of blocks from the member's base to where the log begins, in the format
// of a bitmap file, one message for each.

// maxMemberSet bounds such a message: one that is larger is not sent, and
// that member is compared in full if it ever comes to that.
const maxMemberSet = 12 << 20

// tellSets is called when a resync of the follower has ended at s.sent.
func (s *sender) tellSets(ctx context.Context) error {
	for _, d := range s.v.dirty.lacking(s.id, s.sent, s.v.History()) {
		f := dirtyFile{mirror: s.v.log.Anchor().Mirror, size: d.set.size, sets: []dirtyFileSet{d}}
		b, _, err := f.encode()
		if err != nil {
			return fmt.Errorf("what another member lacks: %w", err)
		}
		if len(b) > maxMemberSet {
			continue
		}
		if _, err := s.l.Send(ctx, []byte{kindMemberSet}, b); err != nil {
			return err
		}
	}
	return nil
}

// lacking are the sets of blocks that the members other than id may lack of the
// history up to at. What cannot be told is left out.
func (t *tracker) lacking(id [16]byte, at journal.LSN, generations []journal.Generation) (sets []dirtyFileSet) {
	for _, m := range t.others(id) {
		for range 2 { // again when the log's tail passed it just now
			d, err := t.lackingOf(m.ID, at, generations)
			if err == nil && d.set != nil {
				sets = append(sets, d)
			}
			if !errors.Is(err, journal.ErrGone) {
				break
			}
		}
	}
	return sets
}

func (t *tracker) lackingOf(id [16]byte, at journal.LSN, generations []journal.Generation) (d dirtyFileSet, err error) {
	t.mu.Lock()
	e := t.findID(id)
	if e == nil || e.lost != "" || t.baseOf(e) >= at {
		t.mu.Unlock()
		return d, nil // the follower's log covers it
	}
	d = dirtyFileSet{id: id, generation: e.generation, base: t.baseOf(e), chain: e.chain, upTo: at}
	w := trackView{set: e.set, upTo: e.upTo}
	t.mu.Unlock()
	if w.set == nil {
		w = trackView{set: newDirtySet(t.size.Load()), upTo: d.base}
		d.generation = generationBefore(generations, d.base)
		if d.chain, err = t.log.ChainAt(d.base); err != nil {
			return dirtyFileSet{}, err
		}
	}
	if w.upTo >= at {
		d.set = w.set.cloneFor(w.set.size)
		return d, nil
	}
	d.set, err = t.since(w, at)
	return d, err
}

// memberSetTold takes what the source says that another member lacks.
func (r *receiver) memberSetTold(b []byte) error {
	r.mu.Lock()
	started := r.started && r.staging == nil
	r.mu.Unlock()
	if !started || r.v.Role() != RoleSecondary {
		return nil
	}
	f, _, err := decodeDirtyFile(b, r.v.size.Load())
	if err != nil {
		return fmt.Errorf("%w: what another member lacks: %w", errMessage, err)
	}
	if len(f.sets) != 1 || f.mirror != r.v.log.Anchor().Mirror {
		return fmt.Errorf("%w: what another member lacks", errMessage)
	}
	if r.v.dirty.toldSet(f.sets[0], r.v.Committed()) {
		r.v.poke()
	}
	return nil
}

// toldSet takes a set that reaches to where this log begins. It counts when nothing better is known.
func (t *tracker) toldSet(d dirtyFileSet, committed journal.LSN) (news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.findID(d.id)
	switch {
	case d.id == [16]byte{} || d.upTo < t.boundary || d.upTo > committed || t.store == nil:
		return false
	case e != nil && e.lost == "":
		return false
	case e == nil && !t.roomLocked(memberName(d.id)):
		return false
	case e == nil:
		e = &tracked{name: memberName(d.id)}
		t.entries = append(t.entries, e)
	}
	*e = tracked{name: e.name, id: d.id, base: d.base, upTo: d.upTo, chain: d.chain, generation: d.generation, set: d.set, fresh: true}
	t.news = true
	return true
}
