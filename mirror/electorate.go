package mirror

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mirror-agent/journal"
)

// electorate is who counts when a promotion asks for the word of the members:
// the primary, and every volume that has been in sync with one. Who has never
// been in sync is not in it, and who dies stays, until an operator says that it
// is gone (Agent.RemoveMember) or another volume answers in its place. A primary
// makes it and tells it to its followers; each keeps it in a file.
type electorate struct {
	Mirror string `json:"mirror"` // uuid
	// Major, Minor and Version order the lists: the generation of the primary
	// that made it, and a count within that.
	Major   uint32    `json:"major"`
	Minor   uint32    `json:"minor"`
	Version uint64    `json:"version"`
	Members []elector `json:"members"`
}

// elector is one volume of the mirror.
type elector struct {
	ID   memberID `json:"id"`
	Node string   `json:"node"` // for the operator
	// Place is the first address by which a source was told to find it, "" for one that was primary when it came in.
	// There is one volume at a place.
	Place     string   `json:"place,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // where its data port listens
}

// memberID tells a volume from any other of its mirror.
type memberID [16]byte

// MarshalText writes it in hex.
func (id memberID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads it.
func (id *memberID) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(id) {
		return fmt.Errorf("member id %.40q", b)
	}
	_, err := hex.Decode(id[:], b)
	return err
}

func (id memberID) short() string { return hex.EncodeToString(id[:4]) }

const (
	maxElectors         = maxFollowers + 1
	maxElectorAddresses = 32
	maxElectorText      = 256
)

// validate checks a list that came from outside.
func (e *electorate) validate() error {
	if len(e.Members) > maxElectors {
		return fmt.Errorf("%d members, at most %d are possible", len(e.Members), maxElectors)
	}
	for i, m := range e.Members {
		if m.ID == (memberID{}) || slices.ContainsFunc(e.Members[:i], func(o elector) bool { return o.ID == m.ID }) {
			return errors.New("a member without an id of its own")
		}
		if len(m.Node) > maxElectorText || len(m.Place) > maxElectorText || len(m.Addresses) > maxElectorAddresses ||
			slices.ContainsFunc(m.Addresses, func(a string) bool { return len(a) > maxElectorText }) {
			return fmt.Errorf("member %s: too long", m.ID.short())
		}
	}
	return nil
}

// newer: e was made after o.
func (e *electorate) newer(o *electorate) bool {
	return cmp.Or(cmp.Compare(e.Major, o.Major), cmp.Compare(e.Minor, o.Minor), cmp.Compare(e.Version, o.Version)) > 0
}

func (e *electorate) find(id memberID) *elector {
	for i := range e.Members {
		if e.Members[i].ID == id {
			return &e.Members[i]
		}
	}
	return nil
}

func (e *electorate) has(id memberID) bool { return e.find(id) != nil }

// by is the list as the primary of generation g goes on with it; changed counts as a change by itself.
func (e electorate) by(g journal.Generation, changed bool) electorate {
	e.Members = slices.Clone(e.Members)
	switch {
	case e.Major != g.Major || e.Minor != g.Minor:
		e.Major, e.Minor, e.Version = g.Major, g.Minor, 1
	case changed:
		e.Version++
	}
	return e
}

// with is the list with m in it, in place of another volume at m's place.
func (e electorate) with(m elector, g journal.Generation) (electorate, error) {
	next := e.by(g, true)
	if m.Place != "" {
		next.Members = slices.DeleteFunc(next.Members, func(o elector) bool { return o.ID != m.ID && o.Place == m.Place })
	}
	if old := next.find(m.ID); old != nil {
		if m.Place == "" {
			m.Place = old.Place
		}
		same := old.Node == m.Node && old.Place == m.Place && slices.Equal(old.Addresses, m.Addresses)
		if same && len(next.Members) == len(e.Members) && next.Major == e.Major && next.Minor == e.Minor {
			return e, nil
		}
		*old = m
		return next, nil
	}
	if len(next.Members) >= maxElectors {
		return e, fmt.Errorf("there are %d members already: remove one that is gone (mirror-agent member remove)", len(next.Members))
	}
	next.Members = append(next.Members, m)
	return next, nil
}

// without is the list without the one that the operator means: a node's name, an address, or an id.
func (e electorate) without(word string, g journal.Generation) (next electorate, gone elector, err error) {
	var found []int
	for i, m := range e.Members {
		id, _ := m.ID.MarshalText()
		if word == "" {
			break
		}
		if m.Node == word || m.Place == word || slices.Contains(m.Addresses, word) || len(word) >= 8 && strings.HasPrefix(string(id), word) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return e, gone, fmt.Errorf("there is no member %q: mirror-agent member list shows them", word)
	case 1:
	default:
		return e, gone, fmt.Errorf("%q is %d members: give the id of one, mirror-agent member list shows them", word, len(found))
	}
	next = e.by(g, true)
	gone = e.Members[found[0]]
	next.Members = slices.Delete(next.Members, found[0], found[0]+1)
	return next, gone, nil
}

// needed is how many of n members have to give their word, the one that asks
// among them; 0: a number that can decide nothing. It is all but one: of three
// and four a majority, above that more than one, since a FLUSH is answered when
// it is durable at two members (the source and its active target), and without
// one of these two nobody may be promoted unasked.
func needed(n int) int {
	if n < 3 {
		return 0
	}
	return n - 1
}
