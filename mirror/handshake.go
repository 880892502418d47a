package mirror

import (
	"cmp"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// outcome of a handshake: what a source does with a follower.
//
//	histories                                             outcome
//	another mirror's uuid, another size                    unrelated
//	follower has seen a higher generation                  fenced (the source closes)
//	same rank of generation, another id                    diverged
//	follower blank                                         resync
//	follower's newest generation unknown to the source     diverged
//	fork (or follower's head) below what it has committed  diverged
//	fork below the source's tail, or behind rot
//	  and the follower's dirty set is known, of the same
//	  volume, and reaches back to a base ≤ fork            partial resync from the fork, of what changed since the base
//	  else                                                 resync, the reason says what was missing
//	else                                                   stream from the fork; what the follower has beyond is cut
type outcome struct {
	kind   outcomeKind
	at     journal.LSN        // stream, partial: where
	chain  uint64             // stream: the source's chain value there
	reason string             // for the operator
	seen   journal.Generation // fenced: what the follower has seen
}

type outcomeKind int

const (
	outcomeStream outcomeKind = iota + 1
	outcomeResync
	outcomePartial
	outcomeFenced
	outcomeDiverged
	outcomeUnrelated
	outcomeRefused
)

// sourceView is what the decision knows of the source.
type sourceView struct {
	mirror      string
	size        int64
	generations []journal.Generation
	head, tail  journal.LSN
	chainAt     func(journal.LSN) (uint64, error)
	track       trackView // what the follower lacks
}

func (s *sourceView) generation() journal.Generation {
	if len(s.generations) == 0 {
		return journal.Generation{}
	}
	return s.generations[len(s.generations)-1]
}

// decide compares two histories. Pure but for chainAt, which reads the
// source's log.
func decide(s sourceView, f followerState) outcome {
	if !f.Blank && f.Mirror != s.mirror {
		// Before its generations, which say nothing about this mirror's.
		reason := cmp.Or(f.Refused, fmt.Sprintf("%s holds mirror %q (uuid %s)", f.Node, f.Name, f.Mirror))
		return outcome{kind: outcomeUnrelated, reason: reason}
	}
	mine := s.generation()
	if rank := compareRank(f.Seen, mine); rank > 0 {
		return outcome{kind: outcomeFenced, seen: f.Seen, reason: fmt.Sprintf("%s has seen generation %s, this is %s", f.Node, rankString(f.Seen), rankString(mine))}
	} else if rank == 0 && f.Seen.ID != mine.ID && f.Seen.ID != [16]byte{} {
		return outcome{kind: outcomeDiverged, reason: fmt.Sprintf("%s knows another generation %s: two primaries were promoted independently; "+
			"end the agent whose writes do not count, on its host mirror-agent demote --force, and start it as a target", f.Node, rankString(mine))}
	}
	if f.Refused != "" {
		return outcome{kind: outcomeRefused, reason: f.Refused}
	}
	if f.Size < s.size {
		return outcome{kind: outcomeUnrelated, reason: fmt.Sprintf("%s has a device of %d bytes, %d are needed", f.Node, f.Size, s.size)}
	}
	if f.Blank {
		return outcome{kind: outcomeResync, reason: "the follower is empty"}
	}
	return fork(s, f)
}

// fork finds where the histories part.
func fork(s sourceView, f followerState) outcome {
	if len(f.Generations) == 0 {
		return outcome{kind: outcomeDiverged, reason: f.Node + " has no history"}
	}
	last := f.Generations[len(f.Generations)-1]
	limit, known := s.head, false
	for i, g := range s.generations {
		if g.ID != last.ID {
			continue
		}
		known = true
		if i+1 < len(s.generations) {
			limit = s.generations[i+1].First
		}
	}
	if !known {
		return outcome{kind: outcomeDiverged, reason: fmt.Sprintf("%s has a generation %s that this side never had", f.Node, rankString(last))}
	}
	at := min(f.Head, limit)
	if at < f.Committed {
		return outcome{kind: outcomeDiverged, reason: fmt.Sprintf("%s has committed up to LSN %d, this side's history parts from it at %d", f.Node, f.Committed, at)}
	}
	if at < s.tail {
		// Below the fork the logs are one: what a generation's primary ever
		// declared durable no other record of that generation replaces, and a
		// primary that lost anything has begun a new one there. The follower
		// makes sure at the base, by the chain.
		reason := fmt.Sprintf("%s has the log up to LSN %d, it is kept from %d on", f.Node, at, s.tail)
		if why := s.track.why(&f, at); why != "" {
			return outcome{kind: outcomeResync, reason: fmt.Sprintf("%s, and %s: all blocks are compared", reason, why)}
		}
		return outcome{kind: outcomePartial, at: at, reason: reason + ": what changed since is copied"}
	}
	chain, err := s.chainAt(at)
	if errors.Is(err, journal.ErrCorrupt) {
		return outcome{kind: outcomeResync, reason: fmt.Sprintf("the way to LSN %d of %s has rotted: %v", at, f.Node, err)}
	}
	if err != nil {
		return outcome{kind: outcomeDiverged, reason: fmt.Sprintf("LSN %d of %s: %v", at, f.Node, err)}
	}
	if at == f.Head && chain != f.Chain {
		return outcome{kind: outcomeDiverged, reason: fmt.Sprintf("the log of %s differs at LSN %d", f.Node, at)}
	}
	return outcome{kind: outcomeStream, at: at, chain: chain}
}

// compareRank orders generations by major and minor number.
func compareRank(a, b journal.Generation) int {
	switch {
	case a.Major != b.Major && a.Major < b.Major, a.Major == b.Major && a.Minor < b.Minor:
		return -1
	case a.Major != b.Major || a.Minor != b.Minor:
		return 1
	}
	return 0
}

func rankString(g journal.Generation) string { return fmt.Sprintf("%d.%d", g.Major, g.Minor) }
