package mirror

import (
	"fmt"

	"mirror-agent/journal"
)

// A promotion that is not forced needs the word of the members (electorate.go).
// This file says who gives it to whom, as a state machine of one member: what it
// is bound to is the generation that it has stored as seen, which has the id of
// the one it was given to.
//
//	       asked for g: there is no reason against it        a source, or a candidate, with more than g
//	free ─────────────────────────────────────────────→ bound ────────────────────────────────────────→ bound
//	  ↑ polled: what it would say, nothing is stored    to g ↺ asked for g by the same one, again          to that
//	  │                                                   │
//	  └──── the candidate has become primary and feeds it ┘   (g is then its source's generation)
//
// Bound to g, a member refuses every generation below g, from the moment on that
// this is stored, over restarts: the source that was there before is fenced as
// soon as it meets one of the members. And it gives nobody else its word for g, so
// at most one candidate wins a number. One that lost asks again, for a higher one.
//
// The candidate is a member like the others and gives itself its word first. It
// begins its generation only while it is still bound to it.

// position is how far a log is, all of it durable.
type position struct {
	Generation journal.Generation `json:"generation"` // the newest in the log
	LSN        journal.LSN        `json:"lsn"`
}

func (p position) String() string {
	return fmt.Sprintf("LSN %d of generation %s", p.LSN, rankString(p.Generation))
}

// ballot is what a candidate asks a member.
type ballot struct {
	Version   int      `json:"version"`
	Mirror    string   `json:"mirror"`
	Candidate memberID `json:"candidate"`
	Node      string   `json:"node"`
	Position  position `json:"position"`
	// List is the candidate's list of members, without its members.
	List electorate `json:"list"`
	// Proposed is the generation that it asks for; the zero one: what it would be told. The ID is the candidate's choice.
	Proposed journal.Generation `json:"proposed"`
}

// poll: nothing is asked for yet.
func (b *ballot) poll() bool { return b.Proposed.Major == 0 }

// voter is what a member knows when it is asked.
type voter struct {
	mirror   string
	id       memberID
	node     string
	list     electorate
	listed   error // why there is no list
	seen     journal.Generation
	position position
	unfit    string // why its log cannot be judged: never in sync, damaged, stopped
	serves   bool   // it is primary, and nobody has fenced it
	source   string // a live one that feeds it
	rises    bool   // it has the word of the members itself, and is about to be primary
}

// refusal is why a member does not give its word.
type refusal uint8

// The reasons, the first that holds counts.
const (
	granted      refusal = iota
	refusedOther         // of another mirror, or another version
	refusedServes
	refusedRises
	refusedUnfit
	refusedStranger // the candidate is no member
	refusedList     // its list of members is old
	refusedFed      // a live primary is seen
	refusedAhead
	refusedApart // the histories part: neither is ahead
	refusedBound // a word was given already, or a higher generation was seen
)

// answer says whether the voter gives its word. To a poll it may be granted although the number asked for later is not.
func (v *voter) answer(b *ballot) refusal {
	switch {
	case b.Version != protocolVersion || b.Mirror != v.mirror || v.mirror == "":
		return refusedOther
	case v.serves:
		return refusedServes
	case v.rises:
		return refusedRises
	case v.unfit != "":
		return refusedUnfit
	case v.listed != nil || !v.list.has(v.id):
		return refusedStranger
	case v.list.newer(&b.List):
		return refusedList
	case !v.list.has(b.Candidate) && !b.List.newer(&v.list):
		return refusedStranger
	case v.source != "":
		return refusedFed
	}
	switch further(v.position, b.Position) {
	case isFurther:
		return refusedAhead
	case isApart:
		return refusedApart
	case isNotFurther:
	}
	if !b.poll() && !mayBind(v.seen, b.Proposed) {
		return refusedBound
	}
	return granted
}

// mayBind: a member that has stored seen may give its word for g.
func mayBind(seen, g journal.Generation) bool {
	rank := compareRank(g, seen)
	return rank > 0 || rank == 0 && g.ID == seen.ID
}

type comparison uint8

const (
	isNotFurther comparison = iota
	isFurther
	isApart
)

// further compares where two logs end: the last generation first, then the length.
func further(a, b position) comparison {
	switch rank := compareRank(a.Generation, b.Generation); {
	case rank > 0:
		return isFurther
	case rank < 0:
		return isNotFurther
	case a.Generation.ID != b.Generation.ID:
		return isApart
	case a.LSN > b.LSN:
		return isFurther
	}
	return isNotFurther
}

// says puts a refusal into words.
func (v *voter) says(r refusal, b *ballot) string {
	switch r {
	case granted:
		return ""
	case refusedOther:
		return fmt.Sprintf("%s holds mirror %s and speaks version %d of the protocol, not %s and %d", v.node, v.mirror, protocolVersion, b.Mirror, b.Version)
	case refusedServes:
		return fmt.Sprintf("%s is primary of generation %s itself", v.node, rankString(v.position.Generation))
	case refusedRises:
		return v.node + " is being promoted itself"
	case refusedUnfit:
		return v.node + " has no vote: " + v.unfit
	case refusedStranger:
		if v.listed != nil {
			return fmt.Sprintf("%s: %v", v.node, v.listed)
		}
		if !v.list.has(v.id) {
			return v.node + " is not among the members any more"
		}
		return fmt.Sprintf("%s does not know %s as a member: it was removed, or never in sync", v.node, b.Node)
	case refusedList:
		return v.node + " knows a newer list of the members"
	case refusedFed:
		return fmt.Sprintf("%s is fed by %s, which is alive", v.node, v.source)
	case refusedAhead:
		return fmt.Sprintf("%s is ahead, at %s: promote it instead (this host is at %s)", v.node, v.position, b.Position)
	case refusedApart:
		return fmt.Sprintf("%s has another generation %s: two primaries were promoted independently", v.node, rankString(v.position.Generation))
	case refusedBound:
		return fmt.Sprintf("%s has given its word for generation %s", v.node, rankString(v.seen))
	}
	panic(fmt.Sprintf("mirror: unknown refusal %d", r))
}

// election counts the words that a candidate gets. The candidate's own is the first.
type election struct {
	needed, asked, answered, yes int
	highest                      journal.Generation // seen by anybody
}

func newElection(members int, seen journal.Generation) election {
	return election{needed: needed(members), asked: members - 1, yes: 1, highest: seen}
}

// count takes an answer; seen is the highest generation of who answered.
func (e *election) count(r refusal, seen journal.Generation) {
	e.answered++
	if r == granted {
		e.yes++
	}
	if compareRank(seen, e.highest) > 0 {
		e.highest = seen
	}
}

// won: it is enough.
func (e *election) won() bool { return e.needed > 0 && e.yes >= e.needed }

// lost: it cannot be enough any more.
func (e *election) lost() bool { return e.needed == 0 || e.yes+e.asked-e.answered < e.needed }

// proposal is the generation that is above everything that was heard of.
func (e *election) proposal(id [16]byte) journal.Generation {
	return journal.Generation{Major: e.highest.Major + 1, ID: id}
}

// mayBegin: a candidate that is bound to seen may begin g.
func mayBegin(seen, g journal.Generation) bool {
	return compareRank(seen, g) == 0 && seen.ID == g.ID
}
