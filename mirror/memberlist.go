package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"mirror-agent/journal"
)

// The agent keeps the list of members: a primary makes it, a secondary is told.

// leadMembers makes the list this primary's own, with itself in it.
func (a *Agent) leadMembers() {
	a.changeMembers(func(e electorate, g journal.Generation) (electorate, error) {
		return e.with(elector{ID: a.v.id, Node: a.node, Addresses: a.transport.announced()}, g)
	})
}

// changeMembers makes a new list, on a primary, durably.
func (a *Agent) changeMembers(change func(e electorate, g journal.Generation) (electorate, error)) {
	a.electors.changing.Lock()
	defer a.electors.changing.Unlock()
	e, _ := a.electors.list() // none: it begins here
	next, err := change(e, a.v.Generation())
	if err == nil {
		_, err = a.electors.set(next)
	}
	if err != nil {
		a.event("members", "", "%v", err)
	}
}

// noteMember: follower i, which s feeds, has come into sync: it is a member from here on.
func (a *Agent) noteMember(i int, s *sender, e followerEvent) {
	if e != followerCaughtUp {
		return
	}
	a.mu.Lock()
	place, addresses := a.followers[i].name, slices.Clone(a.followers[i].addresses)
	a.mu.Unlock()
	if a.c.Announced {
		for _, at := range s.met.Addresses {
			if !slices.Contains(addresses, at) {
				addresses = append(addresses, at)
			}
		}
	}
	m := elector{ID: s.id, Node: s.met.Node, Place: place, Addresses: addresses[:min(len(addresses), maxElectorAddresses)]}
	a.spawn(func() {
		a.changeMembers(func(e electorate, g journal.Generation) (electorate, error) { return e.with(m, g) })
	})
}

// listToTell is what followers are told.
func (a *Agent) listToTell() *electorate {
	e, err := a.electors.list()
	if err != nil {
		return nil
	}
	return &e
}

// listTold takes the source's list.
func (a *Agent) listTold(e electorate) {
	news, err := a.electors.set(e)
	if err != nil {
		a.event("members", "", "%v", err)
	} else if news {
		a.log.Info().Int("members", len(e.Members)).Uint64("version", e.Version).Msg("list of members")
	}
}

// RemoveMember takes a volume that is gone for good off the list of the
// members, by its node's name, address or id: it does not count for a majority
// any more, has no vote, and is not asked. A secondary takes the order only when
// it sees no live source. One that is in sync with the source comes in again.
func (a *Agent) RemoveMember(_ context.Context, who string) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	g := a.v.Generation()
	if a.v.Role() == RoleSecondary {
		if peer, alive := a.sourceAlive(); alive {
			return fmt.Errorf("refused: %s, the source, keeps the list: give the order there", peer)
		}
		g = a.v.Seen()
	}
	a.electors.changing.Lock()
	defer a.electors.changing.Unlock()
	e, err := a.electors.list()
	if err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	if compareRank(g, journal.Generation{Major: e.Major, Minor: e.Minor}) < 0 {
		g = journal.Generation{Major: e.Major, Minor: e.Minor} // of a newer source than the generations here
	}
	next, gone, err := e.without(who, g)
	if err != nil {
		return err
	}
	if gone.ID == memberID(a.v.id) {
		return errors.New("refused: this is the host itself: give the order on another one")
	}
	if f := a.streamingAs(gone.ID); f != "" {
		return fmt.Errorf("refused: %s is in sync right now: take it out of --target or --backup, restart the source, then remove it", f)
	}
	if _, err := a.electors.set(next); err != nil {
		return err
	}
	a.event("members", "", "%s was removed: %s", gone.Node, next.majority())
	return nil
}

// streamingAs is the target that the volume id follows as right now, or "".
func (a *Agent) streamingAs(id memberID) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.followers {
		if f.sender != nil && f.state == FollowerStreaming && memberID(f.sender.id) == id {
			return f.target
		}
	}
	return ""
}

// majority says what the list means for a promotion.
func (e *electorate) majority() string {
	if n := needed(len(e.Members)); n > 0 {
		return fmt.Sprintf("%d members, a promotion needs the word of %d", len(e.Members), n)
	}
	return fmt.Sprintf("%d members: no majority is possible without the primary, a promotion is the operator's word", len(e.Members))
}

// ElectorStatus is one of the volumes whose word counts for a promotion.
type ElectorStatus struct {
	ID        string   `json:"id"`
	Node      string   `json:"node"`
	Addresses []string `json:"addresses"`
	Self      bool     `json:"self"`
}

// ElectorateStatus is who counts for a promotion.
type ElectorateStatus struct {
	Members []ElectorStatus `json:"members"`
	// Needed is how many have to give their word, the promoted one among them; 0: no number decides.
	Needed  int    `json:"needed"`
	Meaning string `json:"meaning"`
}

func (a *Agent) electorateStatus() *ElectorateStatus {
	e, err := a.electors.list()
	if err != nil {
		return nil
	}
	s := &ElectorateStatus{Needed: needed(len(e.Members)), Meaning: e.majority(), Members: []ElectorStatus{}}
	for _, m := range e.Members {
		id, _ := m.ID.MarshalText()
		s.Members = append(s.Members, ElectorStatus{
			ID: string(id), Node: m.Node, Addresses: append([]string{}, m.Addresses...), Self: m.ID == memberID(a.v.id),
		})
	}
	return s
}

// unreachableFor is how long no source has fed this secondary; 0 while one does.
func (a *Agent) unreachableFor(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inbound != nil || a.source.at.IsZero() {
		return 0
	}
	return now.Sub(a.source.at)
}
