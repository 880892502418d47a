package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// The agent's side of a handover (handover.go) as the source.

// handoverMessage is what the two say to each other, a Call each.
type handoverMessage struct {
	Word  handoverWord `json:"word"`
	Token uint64       `json:"token"` // of the order, chosen by the target
	Node  string       `json:"node"`
	ID    [16]byte     `json:"id"` // of the volume
	// LimitMillis: the source gives up after that. DryRun: it only says whether it would begin.
	LimitMillis int64 `json:"limit_ms,omitempty"`
	DryRun      bool  `json:"dry_run,omitempty"`
	// Idle: not while clients use the front. Anywhere (invite): also a host that is not home.
	Idle     bool   `json:"idle,omitempty"`
	Anywhere bool   `json:"anywhere,omitempty"`
	Why      string `json:"why,omitempty"`
	Head     uint64 `json:"head,omitempty"` // handed: where the log ends, and its chain there
	Chain    uint64 `json:"chain,omitempty"`
}

type handoverWord string

const (
	wordAsk    handoverWord = "ask"    // target → source
	wordHanded handoverWord = "handed" // source → target
	wordBack   handoverWord = "back"   // source → target: it leads on; or a volume that handed over → who was to lead: do not any more
	wordInvite handoverWord = "invite" // source → target: ask me
)

// handoverReply refuses with a reason.
type handoverReply struct {
	Refused string `json:"refused,omitempty"`
	Again   bool   `json:"again,omitempty"` // what it is refused for passes by itself
	Node    string `json:"node"`
	Primary bool   `json:"primary,omitempty"`
	// Lead is how the host is that would hand over; of a dry run that is not refused.
	Lead *LeadStatus `json:"lead,omitempty"`
}

// handing is a handover under way on this host, or the last one.
type handing struct {
	source bool
	peer   string
	token  uint64
	began  time.Time
	news   chan handoverMessage // of a target; a word too many is dropped
	ended  chan struct{}        // closed at the end, when err is set

	level journal.LSN // of a source: what the target has

	step handoverStep // guarded by the agent's mu
	err  error
}

const (
	// DefaultHandoverLimit is how long a planned promotion may keep the front closed.
	DefaultHandoverLimit = 30 * time.Second
	// handoverGrace is how much longer than the source a target waits for the source's word.
	handoverGrace = 5 * time.Second
)

var errHandingOver = errors.New("mirror: the lead is being handed over")

// moveHandover takes the next step.
func (a *Agent) moveHandover(h *handing, e handoverEvent) handoverStep {
	a.mu.Lock()
	h.step = nextHandoverStep(h.step, e)
	step := h.step
	a.mu.Unlock()
	a.stepped(step)
	return step
}

// beginHandover makes h the one under way, if there is none. opMu is held.
func (a *Agent) beginHandover(source bool, peer string, token uint64, from handoverStep) *handing {
	h := &handing{source: source, peer: peer, token: token, began: time.Now(), news: make(chan handoverMessage, 4), ended: make(chan struct{}), step: from}
	a.mu.Lock()
	a.handing = h
	a.mu.Unlock()
	return h
}

// endHandover: err is why it came to nothing.
func (a *Agent) endHandover(h *handing, err error) {
	a.mu.Lock()
	h.err = err
	a.lastHanding, a.handing = h, nil
	a.mu.Unlock()
	close(h.ended)
}

// call says m over l and returns the answer.
func (a *Agent) tellHandover(ctx context.Context, l link, m handoverMessage) (r handoverReply, err error) {
	m.Node, m.ID = a.node, a.v.id
	b, err := l.Call(ctx, encodeJSON(kindHandover, m))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// onHandover takes a word of the other side.
func (a *Agent) onHandover(l link, session uint64, b []byte) ([]byte, error) {
	var m handoverMessage
	if err := decodeJSON(b, &m); err != nil {
		return nil, err
	}
	var refused string
	var again bool
	var lead *LeadStatus
	switch m.Word {
	case wordAsk:
		refused, again = a.handOverAsked(l, session, &m)
		if refused == "" && m.DryRun {
			lead = a.leadStatus(session)
		}
	case wordHanded, wordBack:
		refused = a.handoverNews(&m)
	case wordInvite:
		refused = a.invited(&m)
	default:
		return nil, fmt.Errorf("%w: handover %.20q", errMessage, m.Word)
	}
	return encodeJSON(0, handoverReply{Refused: refused, Again: again, Node: a.node, Primary: a.v.Role() == RolePrimary, Lead: lead})[1:], nil
}

// handOverAsked begins a handover to the follower that is fed by the session, or says why not.
func (a *Agent) handOverAsked(l link, session uint64, m *handoverMessage) (refused string, again bool) {
	if !a.opMu.TryLock() {
		return a.node + " is busy with another order: try again", true
	}
	begun := false
	defer func() {
		if !begun {
			a.opMu.Unlock()
		}
	}()
	a.mu.Lock()
	var s *sender
	for _, f := range a.followers {
		if f.session == session && f.sender != nil && f.sender.streaming.Load() && f.state == FollowerStreaming {
			s = f.sender
		}
	}
	serving, fenced, suspended, closed := a.serving, a.fenced, a.suspended, a.closed
	a.mu.Unlock()
	switch {
	case a.v.Role() != RolePrimary:
		return a.node + " does not lead", false
	case a.v.Err() != nil:
		return fmt.Sprintf("%s has failed: %v", a.node, a.v.Err()), false
	case closed || fenced != "" || !serving:
		return fmt.Sprintf("%s does not serve: see mirror-agent explain there", a.node), false
	case suspended:
		return fmt.Sprintf("the data flow of %s is suspended: mirror-agent resume there", a.node), false
	case s == nil:
		return fmt.Sprintf("%s is not in sync with this host yet: wait for it (mirror-agent status)", a.node), true
	case m.Idle && a.front.Stats().Connections > 0:
		return fmt.Sprintf("%s has clients: %d NBD connections", a.node, a.front.Stats().Connections), false
	case m.DryRun:
		return "", false
	}
	limit := time.Duration(m.LimitMillis) * time.Millisecond
	if limit <= 0 {
		limit = DefaultHandoverLimit
	}
	h := a.beginHandover(true, m.Node, m.Token, handLead)
	begun = true
	a.event("handover", m.Node, "asked by %s: the front is closed, within %s %s has to have everything", m.Node, limit, m.Node)
	a.spawn(func() {
		defer a.opMu.Unlock()
		a.moveHandover(h, handoverAsked)
		a.endHandover(h, a.runHandOver(h, l, s, limit))
	})
	return "", false
}

// runHandOver goes through the steps of a source. An error says why this host leads on.
func (a *Agent) runHandOver(h *handing, l link, s *sender, limit time.Duration) (why error) {
	ctx, cancel := context.WithTimeout(a.tasks, limit)
	defer cancel()
	a.mu.Lock()
	address := a.nbd
	a.mu.Unlock()
	for step := handDrain; ; {
		var e handoverEvent
		switch step {
		case handDrain:
			e, why = a.drainFront(ctx)
		case handLevel:
			e, why = a.makeLevel(ctx, h, l, s)
		case handDemote:
			e, why = a.demoteNow(h)
		case handReturn:
			a.event("handover", h.peer, "not handed over to %s: %v; this host goes on", h.peer, why)
			a.takeFrontBack(l, h, address, why)
			e = handoverOpened
		case handHanded:
			e = a.tellHanded(ctx, l, h)
		case handTake: // the target has declined
			why = fmt.Errorf("%s gave up before it was told", h.peer)
			if _, err := a.takeLead(PromoteOptions{NBD: address}, Missing{Known: true}, time.Now(), nil); err != nil {
				a.event("failed", "", "take the lead again: %v", err)
			}
			e = handoverBegun
		default: // lead or follow
			return why
		}
		step = a.moveHandover(h, e)
	}
}

// limitOr says what ended a wait.
func limitOr(ctx context.Context, what error) handoverEvent {
	if ctx.Err() != nil {
		return handoverLate
	}
	if what != nil {
		return handoverFailed
	}
	return handoverLost
}

// drainFront answers who was let in, and closes. From here on nothing is written.
func (a *Agent) drainFront(ctx context.Context) (handoverEvent, error) {
	a.mu.Lock()
	a.serving, a.nbd = false, ""
	a.mu.Unlock()
	err := a.front.Close(ctx)
	a.v.refuse(errHandingOver)
	if err != nil {
		return limitOr(ctx, err), fmt.Errorf("not all requests of clients could be answered: %w", err)
	}
	a.event("handover", "", "the front is closed, all requests were answered")
	return handoverDrained, nil
}

// makeLevel waits until the follower is durable up to the head and knows that this side is.
func (a *Agent) makeLevel(ctx context.Context, h *handing, l link, s *sender) (handoverEvent, error) {
	tick := time.NewTicker(declareEvery / 10)
	defer tick.Stop()
	for {
		head := a.v.log.Head()
		if _, err := a.v.log.Sync(head); err != nil {
			return handoverFailed, a.v.journalError(err)
		}
		s.promise.request(head)
		if !s.streaming.Load() {
			return handoverLost, errors.New("it is not in sync any more")
		}
		if ack := s.lastAck(); ack.Durable >= head && s.told.Load() >= uint64(head) && a.v.log.Head() == head {
			h.level = head
			return handoverLevel, nil
		}
		select {
		case <-tick.C:
		case <-l.Done():
			return handoverLost, fmt.Errorf("the connection was lost: %w", l.Err())
		case <-ctx.Done():
			ack := s.lastAck()
			return handoverLate, fmt.Errorf("it could not get level in time, %d bytes of the log are missing there", a.v.log.Head()-min(ack.Durable, a.v.log.Head()))
		}
	}
}

// demoteNow makes the volume a secondary, durably. It is the point of no return.
func (a *Agent) demoteNow(h *handing) (handoverEvent, error) {
	head := h.level // and nothing beyond: that is all that the target is known to have
	if err := a.v.stepDown(head, handedOver{token: h.token, node: h.peer}); err != nil {
		return handoverFailed, err
	}
	a.event("handover", h.peer, "secondary from LSN %d on: the lead is %s's to take", head, h.peer)
	a.stopLeading()
	return handoverStored, nil
}

// takeFrontBack: the source leads on. The target is told why, since somebody waits there.
func (a *Agent) takeFrontBack(l link, h *handing, address string, why error) {
	if a.v.Err() != nil {
		return // the volume has stopped: there is nothing to serve
	}
	a.v.refused.Store(nil)
	a.mu.Lock()
	fenced := a.fenced != ""
	a.mu.Unlock()
	if fenced {
		a.v.refuse(ErrFenced)
		return
	}
	if err := unlessFenced(a.serve(address)); err != nil {
		a.mu.Lock()
		a.startError = err
		a.mu.Unlock()
		a.event("failed", "", "open the front again: %v", err)
	}
	ctx, cancel := context.WithTimeout(a.tasks, a.c.UnreachableAfter)
	defer cancel()
	_, _ = a.tellHandover(ctx, l, handoverMessage{Word: wordBack, Token: h.token, Why: why.Error()})
}

// tellHanded gives the target its word. Whoever does not answer is told again when this host calls in.
func (a *Agent) tellHanded(ctx context.Context, l link, h *handing) handoverEvent {
	head, chain := a.v.log.HeadChain()
	r, err := a.tellHandover(ctx, l, handoverMessage{Word: wordHanded, Token: h.token, Head: uint64(head), Chain: chain})
	e := handoverAccepted
	switch {
	case err != nil:
		a.event("handover", h.peer, "whether %s has heard that the lead is its own is not known: %v", h.peer, err)
		e = handoverLost
	case r.Refused != "" && !r.Primary:
		a.event("handover", h.peer, "%s", r.Refused)
		return handoverDeclined
	}
	if err := a.callIn(); err != nil {
		a.event("failed", "", "dial the others: %v", err)
	}
	return e
}
