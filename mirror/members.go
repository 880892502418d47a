package mirror

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"mirror-agent/journal"
)

// The members of a mirror know each other, so that after any failover any two
// of them meet by delta. A source tells each follower what it knows of the
// others and of itself: a volume and an LSN up to which that is durable. A
// follower keeps account of them as a source does of its followers (tracker):
// what leaves its log is marked for who may lack it. Its promotion keeps all
// that, with bases no higher than the new generation's first record: beyond
// that their histories may part.
//
// Members have no address that all hosts would know them by: their entries are
// called after the volume's id. The first handshake with a configured follower
// gives its entry the follower's name.

// members is what a source says of the others. It is said again about once a
// second while it changes.
type members struct {
	// Active: the follower that is told is the active one.
	Active  bool     `json:"active"`
	Members []member `json:"members"`
	// List is who counts for a majority, see electorate.go.
	List *electorate `json:"list,omitempty"`
}

// member is a volume of the mirror.
type member struct {
	ID      [16]byte    `json:"id"`
	Name    string      `json:"name"` // for the operator
	Durable journal.LSN `json:"durable"`

	// What a promoted follower needs to find it, see follow.go.
	Node      string   `json:"node,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Fed       bool     `json:"fed,omitempty"`
	Home      bool     `json:"home,omitempty"`
}

// tellEvery is how often members are told.
const tellEvery = time.Second

// memberTelling is a sender's memory of what it has told.
type memberTelling struct {
	last []byte
	list *electorate
	at   time.Time
}

// tellMembers sends what is known of the others, if that is news.
func (s *sender) tellMembers(ctx context.Context) error {
	list := s.list()
	if time.Since(s.members.at) < tellEvery && (list == nil || s.members.list != nil && !list.newer(s.members.list)) {
		return nil // who counts is told at once
	}
	s.members.at, s.members.list = time.Now(), list
	m := members{Active: s.promise.isActive(s.member), Members: s.v.dirty.others(s.id)}
	m.Members = append(m.Members, member{ID: s.v.id, Name: s.node, Durable: s.v.log.Durable()})
	m.List = list
	s.roster(m.Members)
	b := encodeJSON(kindMembers, m)
	if bytes.Equal(b, s.members.last) {
		return nil
	}
	s.members.last = b
	_, err := s.l.Send(ctx, b)
	return err
}

// membersTold takes the source's word on the others.
func (r *receiver) membersTold(b []byte) error {
	var m members
	if err := json.Unmarshal(b, &m); err != nil || len(m.Members) > maxFollowers+1 {
		return errMessage
	}
	r.mu.Lock()
	started := r.started && r.staging == nil
	if started {
		r.told = m
	}
	r.mu.Unlock()
	if !started || r.v.Role() != RoleSecondary {
		return nil
	}
	if m.List != nil {
		if err := m.List.validate(); err != nil {
			return fmt.Errorf("%w: %w", errMessage, err)
		}
		r.listTold(*m.List)
	}
	r.members(m.Members)
	news := false
	for _, x := range m.Members {
		if x.ID != r.v.id {
			news = r.v.dirty.told(x.ID, x.Durable) || news
		}
	}
	if news {
		r.v.poke()
	}
	return nil
}

const memberPrefix = "#"

func memberName(id [16]byte) string { return memberPrefix + hex.EncodeToString(id[:]) }

// member: the entry is of a member that no configured follower has turned out to be.
func (e *tracked) member() bool { return strings.HasPrefix(e.name, memberPrefix) }

func (t *tracker) findID(id [16]byte) *tracked {
	for _, e := range t.entries {
		if e.id == id {
			return e
		}
	}
	return nil
}

// roomLocked: there is room for one more, called name. A configured follower
// takes that of a member that is none.
func (t *tracker) roomLocked(name string) bool {
	if len(t.entries) < maxFollowers {
		return true
	}
	i := slices.IndexFunc(t.entries, (*tracked).member)
	if i < 0 || strings.HasPrefix(name, memberPrefix) {
		return false
	}
	t.entries = slices.Delete(t.entries, i, i+1)
	return true
}

// others are all volumes that are known beside id, and up to where each is durable.
func (t *tracker) others(id [16]byte) (ms []member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if e.id == id || e.lost != "" {
			continue
		}
		m := member{ID: e.id, Durable: t.baseOf(e)}
		if !e.member() {
			m.Name = e.name
		}
		ms = append(ms, m)
	}
	return ms
}

// told: the source says that the volume id is durable up to lsn, which the
// source is too; this volume may not have come so far yet.
func (t *tracker) told(id [16]byte, lsn journal.LSN) (news bool) {
	if id == [16]byte{} {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	name := memberName(id)
	if e := t.findID(id); e != nil {
		name = e.name
	}
	return t.ackedLocked(name, id, lsn)
}

// adopt: the volume id has turned out to be the follower called name.
func (t *tracker) adopt(name string, id [16]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adoptLocked(name, id)
}

func (t *tracker) adoptLocked(name string, id [16]byte) {
	if e := t.find(name); e != nil && e.id == id || name == "" || id == [16]byte{} {
		return
	}
	found := t.findID(id)
	if found == nil || !found.member() {
		return
	}
	t.entries = slices.DeleteFunc(t.entries, func(e *tracked) bool { return e.name == name }) // another volume was there once
	found.name, t.news = name, true
}

// clamp: from lsn on the history becomes another one, and nobody has any of
// that. Reports whether anything was said beyond.
func (t *tracker) clamp(lsn journal.LSN) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if e.base > lsn || e.set != nil && e.upTo > lsn {
			e.base, e.upTo, changed = min(e.base, lsn), min(e.upTo, lsn), true
		}
	}
	return changed
}

// promoted: this volume begins a generation at first. All that is known of the
// others stays, whatever they were called.
func (t *tracker) promoted(first journal.LSN) {
	t.clamp(first)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		e.name = memberName(e.id)
	}
}
