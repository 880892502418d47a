package mirror

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"mirror-agent/journal"
)

// The agent's side of votes: what it answers when another member asks, and how
// it asks the others. Who gives the word to whom is in vote.go, who they are in
// electorate.go.

// ballotReply answers a ballot.
type ballotReply struct {
	Node    string             `json:"node"`
	Granted bool               `json:"granted"`
	Reason  string             `json:"reason,omitempty"`
	Refusal refusal            `json:"refusal,omitempty"`
	Seen    journal.Generation `json:"seen"`
	List    *electorate        `json:"list,omitempty"` // when it is newer than the candidate's
}

// onAsked takes what another member asks.
func (a *Agent) onAsked(_ context.Context, b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != kindVote {
		return nil, errMessage
	}
	var q ballot
	if err := decodeJSON(b[1:], &q); err != nil {
		return nil, err
	}
	return encodeJSON(0, a.vote(&q))[1:], nil
}

// vote answers a ballot. What it grants is durable before it answers.
func (a *Agent) vote(q *ballot) ballotReply {
	a.voteMu.Lock()
	defer a.voteMu.Unlock()
	v := a.asVoter()
	r := v.answer(q)
	if r != granted || q.poll() {
		return a.replyTo(&v, r, q)
	}
	// No record of an older generation after this: what was compared stays what it is.
	a.mu.Lock()
	a.promoting = true
	a.mu.Unlock()
	sources := a.closeInbound()
	v = a.asVoter()
	r = v.answer(q)
	var err error
	if r == granted {
		err = a.v.vouch(q.Proposed, memberID(a.v.id) == q.Candidate)
	}
	a.mu.Lock()
	a.promoting = false
	a.mu.Unlock()
	if err == nil && r == granted {
		v.seen = q.Proposed
		a.tellGeneration()
		if q.Candidate != memberID(a.v.id) {
			a.event("vote", q.Node, "%s has this host's word for generation %s: no older one is taken any more", q.Node, rankString(q.Proposed))
		}
	}
	for _, in := range sources {
		a.dismiss(in, a.node+" gave its word to "+q.Node)
	}
	if err != nil {
		v.unfit, r = err.Error(), refusedUnfit
	}
	return a.replyTo(&v, r, q)
}

func (a *Agent) replyTo(v *voter, r refusal, q *ballot) ballotReply {
	reply := ballotReply{Node: a.node, Granted: r == granted, Refusal: r, Reason: v.says(r, q), Seen: v.seen}
	if r == refusedList {
		reply.List = &v.list
	}
	return reply
}

// asVoter is what this member knows. What its log has is durable after it.
func (a *Agent) asVoter() voter {
	v := voter{mirror: a.mirrorID(), id: a.v.id, node: a.node, seen: a.v.Seen()}
	v.list, v.listed = a.electors.list()
	switch {
	case a.v.flags()&stateBlank != 0:
		v.unfit = "it has never been in sync"
	case a.v.damageNow() != nil:
		v.unfit = "its log has rotted"
	case a.v.Err() != nil:
		v.unfit = a.v.Err().Error()
	}
	if v.unfit == "" {
		var err error
		if v.position, err = a.position(); err != nil {
			v.unfit = err.Error()
		}
	}
	v.source, _ = a.sourceAlive()
	a.mu.Lock()
	v.serves = a.v.Role() == RolePrimary && a.fenced == ""
	v.rises = a.rising
	a.mu.Unlock()
	return v
}

// position is how far this volume's log is; all of it is durable then.
func (a *Agent) position() (position, error) {
	head := a.v.log.Head()
	if _, err := a.v.log.Sync(head); err != nil {
		return position{}, a.v.journalError(err)
	}
	return position{Generation: a.v.Generation(), LSN: head}, nil
}

const (
	// electionTries is how often a candidate asks for another number when others want to be promoted at the same time.
	electionTries = 12
	// electionPause is how long it waits then, at least, and as much again by chance, more in later tries.
	electionPause = 40 * time.Millisecond
)

// mandate is what a promotion that is not forced may begin: a generation that a
// majority of the members gave their word for. With fewer than three members it is
// the zero one, since no majority is possible without the primary: nobody can
// tell a dead one from a cut cable, and the order itself is the operator's word.
// Where there is an arbiter it decides alone. opMu is held.
func (a *Agent) mandate(ctx context.Context, o *PromoteOptions) (journal.Generation, error) {
	if a.arbiter.Leases() {
		return a.arbitrate(ctx, o.DryRun)
	}
	for try := 1; ; try++ {
		list, err := a.electors.list()
		switch {
		case errors.Is(err, errNoElectors):
			return journal.Generation{}, o.byOperator(err) // its source is of a version that tells none, or has not come so far
		case err != nil:
			return journal.Generation{}, fmt.Errorf("refused: %w: or say promote --force", err)
		case !list.has(a.v.id):
			return journal.Generation{}, errors.New("refused: this host is not among the members any more (mirror-agent member list): promote another one, or say promote --force")
		case needed(len(list.Members)) == 0:
			return journal.Generation{}, o.byOperator(errors.New(list.majority()))
		}
		g, again, err := a.elect(ctx, list, o.DryRun)
		if err == nil || !again || try == electionTries {
			return g, err
		}
		pause := electionPause + mathrand.N(electionPause*time.Duration(try))
		select {
		case <-ctx.Done():
			return journal.Generation{}, err
		case <-time.After(pause):
		}
	}
}

// byOperator: without a majority a promotion goes on by the operator's order only.
func (o *PromoteOptions) byOperator(why error) error {
	if o.auto {
		return fmt.Errorf("refused: %w", why)
	}
	return nil
}

// elect asks all members what they would say, then for their word. again: it may turn out otherwise at another time soon.
func (a *Agent) elect(ctx context.Context, list electorate, dryRun bool) (_ journal.Generation, again bool, err error) {
	at, err := a.position()
	if err != nil {
		return journal.Generation{}, false, err
	}
	b := ballot{Version: protocolVersion, Mirror: a.mirrorID(), Candidate: a.v.id, Node: a.node, Position: at, List: list}
	b.List.Members = nil
	x, why, newer := a.askAll(ctx, &list, &b)
	if newer != nil {
		_, err := a.electors.set(*newer)
		return journal.Generation{}, err == nil, errors.Join(err, errors.New("refused: the list of members was old"))
	}
	if !x.won() {
		return journal.Generation{}, rising(why), a.notElected(&x, &list, why)
	}
	if dryRun {
		return journal.Generation{}, false, nil
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	b.Proposed = x.proposal(id)
	// Its own word first, as any other member's: durable, and for this number never to another one.
	if own := a.vote(&b); !own.Granted {
		return journal.Generation{}, own.Refusal == refusedBound, fmt.Errorf("refused: %s", own.Reason)
	}
	x, why, _ = a.askAll(ctx, &list, &b)
	if !x.won() {
		return journal.Generation{}, true, a.notElected(&x, &list, why)
	}
	a.mu.Lock()
	a.rising = true
	a.mu.Unlock()
	return b.Proposed, false, nil
}

func (a *Agent) noLongerRising() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rising = false
}

// rising: somebody else is about to be promoted; what comes of it is soon known.
func rising(why []ballotReply) bool {
	for _, r := range why {
		if r.Refusal == refusedRises || r.Refusal == refusedBound {
			return true
		}
	}
	return false
}

// askAll asks all other members at once, until there are enough answers. It
// returns who refused, and a list of members that is newer than the candidate's.
func (a *Agent) askAll(ctx context.Context, list *electorate, b *ballot) (x election, why []ballotReply, newer *electorate) {
	ctx, cancel := context.WithTimeout(ctx, a.c.UnreachableAfter)
	x = newElection(len(list.Members), a.v.Seen())
	replies := make(chan ballotReply, len(list.Members))
	asked := 0
	for _, m := range list.Members {
		if m.ID != memberID(a.v.id) {
			asked++
			go func() { replies <- a.askMember(ctx, m, b) }()
		}
	}
	taken := 0
	defer func() { // none of them outlives it
		cancel()
		for ; taken < asked; taken++ {
			<-replies
		}
	}()
	for ; taken < asked && !x.won() && !(x.lost() && newer == nil); taken++ {
		r := <-replies
		if r.List != nil {
			newer = r.List
		}
		if r.Granted {
			x.count(granted, r.Seen)
			continue
		}
		x.count(max(r.Refusal, refusedOther), r.Seen)
		why = append(why, r)
	}
	return x, why, newer
}

// askMember asks one; who cannot be asked gives no word.
func (a *Agent) askMember(ctx context.Context, m elector, b *ballot) ballotReply {
	r := ballotReply{Node: m.Node}
	if len(m.Addresses) == 0 {
		r.Reason = m.Node + " has no address to be asked at"
		return r
	}
	answer, err := a.transport.ask(ctx, m.Addresses, encodeJSON(kindVote, b))
	if err == nil {
		err = decodeJSON(answer, &r)
	}
	if err == nil && r.List != nil {
		err = r.List.validate()
	}
	if err != nil {
		return ballotReply{Node: m.Node, Reason: fmt.Sprintf("%s cannot be asked: %v", m.Node, err)}
	}
	return r
}

// notElected says why, the most telling reason first.
func (a *Agent) notElected(x *election, list *electorate, why []ballotReply) error {
	for _, r := range why {
		switch r.Refusal {
		case refusedServes, refusedAhead, refusedApart:
			return fmt.Errorf("refused: %s; or say promote --force", r.Reason)
		case refusedFed:
			return fmt.Errorf("refused: %s: stop it first, or say promote --force to fence it", r.Reason)
		default:
		}
	}
	var reasons []string
	for _, r := range why {
		reasons = append(reasons, r.Reason)
	}
	return fmt.Errorf("refused: %d of the %d members have given their word, %d are needed (%s): start the others, or, when they are gone for good, "+
		"take them off the list (mirror-agent member remove), or say promote --force", x.yes, len(list.Members), x.needed, strings.Join(reasons, "; "))
}
