package mirror

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The agent's side of a handover (handover.go) as the target: promote --planned.

// promotePlanned asks the source for the lead and takes it. It goes on when the operator's command has gone away: the source
// has closed its front for it.
func (a *Agent) promotePlanned(o PromoteOptions, began time.Time) (PromoteResult, error) {
	if !a.opMu.TryLock() {
		return PromoteResult{}, errors.New("refused: another order is under way on this host: try again")
	}
	defer a.opMu.Unlock()
	limit := time.Duration(o.LimitSeconds * float64(time.Second))
	if limit <= 0 {
		limit = DefaultHandoverLimit
	}
	l, err := a.plannable(o)
	if err != nil {
		return PromoteResult{}, err
	}
	m := handoverMessage{Word: wordAsk, Token: cmp.Or(o.token, newToken()), LimitMillis: limit.Milliseconds(), DryRun: o.DryRun, Idle: o.Idle}
	if o.DryRun {
		r, err := a.ask(l, m)
		if err != nil {
			return PromoteResult{}, fmt.Errorf("ask %s: %w", l.Peer(), err)
		}
		if r.Refused != "" {
			return PromoteResult{}, fmt.Errorf("refused: %s", r.Refused)
		}
		return PromoteResult{Generation: rankString(a.v.Generation()), LSN: uint64(a.v.log.Head()), NBD: cmp.Or(o.NBD, a.c.NBD), DryRun: true, Missing: Missing{Known: true}, Lead: r.Lead}, nil
	}
	h := a.beginHandover(false, l.Peer(), m.Token, handFollow)
	a.moveHandover(h, handoverOrder)
	a.event("handover", l.Peer(), "asking %s for the lead", l.Peer())
	r, err := a.runTakeOver(h, l, m, o, limit, began)
	a.endHandover(h, err)
	if err != nil {
		a.event("handover", h.peer, "the lead was not taken: %v", err)
	}
	return r, err
}

func newToken() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// plannable says why this host cannot take the lead from a source that lives, before it is asked. It returns the session with the source.
func (a *Agent) plannable(o PromoteOptions) (link, error) {
	switch {
	case a.v.Err() != nil:
		return nil, a.v.Err()
	case a.v.Role() == RolePrimary:
		return nil, errors.New("refused: this volume is already primary")
	case o.Force:
		return nil, errors.New("refused: --planned and --force exclude each other: planned is with a source that lives, and nothing is lost")
	case a.v.damageNow() != nil:
		return nil, errors.New("refused: the log here is damaged and being repaired by the source: wait for it (mirror-agent explain)")
	case o.NBD == "" && a.c.NBD == "":
		return nil, errNoFront
	}
	if err := a.front.Check(cmp.Or(o.NBD, a.c.NBD)); err != nil {
		return nil, fmt.Errorf("refused: nbd: %w", err)
	}
	a.mu.Lock()
	in := a.inbound
	a.mu.Unlock()
	peer, alive := a.sourceAlive()
	switch {
	case in == nil || !alive:
		return nil, errors.New("refused: no source is connected that could hand over: when it is gone, mirror-agent promote")
	case !in.receiver.isStreaming():
		return nil, fmt.Errorf("refused: this host is not in sync with %s yet: wait until it is (mirror-agent status)", peer)
	}
	return in.link, nil
}

// ask gives the source the order. No answer is no refusal: it may have begun.
func (a *Agent) ask(l link, m handoverMessage) (handoverReply, error) {
	ctx, cancel := context.WithTimeout(a.tasks, handoverGrace)
	defer cancel()
	return a.tellHandover(ctx, l, m)
}

// runTakeOver goes through the steps of a target.
func (a *Agent) runTakeOver(h *handing, l link, m handoverMessage, o PromoteOptions, limit time.Duration, began time.Time) (r PromoteResult, err error) {
	var from handoverMessage
	for step := handAsk; ; {
		var e handoverEvent
		switch step {
		case handAsk:
			e, from, err = a.awaitHanded(h, l, m, limit)
		case handTake:
			a.event("handover", h.peer, "%s has handed over at LSN %d", h.peer, from.Head)
			r, err = a.takeLead(o, Missing{Known: true}, began, &memberInfo{ID: from.ID, Node: from.Node})
			r.HandedLSN = from.Head
			e = handoverBegun
			if a.v.Role() != RolePrimary {
				e = handoverFailed
			}
		default: // lead or follow
			return r, err
		}
		step = a.moveHandover(h, e)
	}
}

// awaitHanded asks, and waits for the source's word. The word may come by another session than the one that it was asked by.
func (a *Agent) awaitHanded(h *handing, l link, m handoverMessage, limit time.Duration) (handoverEvent, handoverMessage, error) {
	late := time.NewTimer(limit + handoverGrace)
	defer late.Stop()
	look := time.NewTicker(callInAgain / 5)
	defer look.Stop()
	for end := time.Now().Add(limit); ; <-look.C {
		r, err := a.ask(l, m)
		if err != nil || r.Refused == "" {
			break
		}
		if !r.Again || time.Now().After(end) {
			return handoverRefused, m, fmt.Errorf("refused: %s", r.Refused)
		}
	}
	for {
		select {
		case n := <-h.news:
			if n.Word == wordHanded {
				return a.checkHanded(n)
			}
			return handoverBack, n, fmt.Errorf("%s did not hand over and goes on: %s", h.peer, n.Why)
		case <-look.C:
			if in := a.inboundLink(); in != nil && in != l {
				return handoverBack, m, fmt.Errorf("the connection with %s was lost; it is back, leads on and feeds this host: order it again", h.peer)
			}
		case <-late.C:
			return handoverLate, m, fmt.Errorf("%s has not said whether it handed over: look at mirror-agent explain there; if it did, mirror-agent promote here takes the lead, and nothing is lost", h.peer)
		case <-a.tasks.Done():
			return handoverLate, m, ErrClosed
		}
	}
}

// checkHanded: the log here is the source's, to its end, and durable. It is known to be; that is made sure of once more, since
// all depends on it.
func (a *Agent) checkHanded(n handoverMessage) (handoverEvent, handoverMessage, error) {
	head, chain := a.v.log.HeadChain()
	if uint64(head) != n.Head || chain != n.Chain || a.v.log.Durable() < head {
		return handoverLate, n, fmt.Errorf("%s has handed over at LSN %d, this host has the log up to %d: mirror-agent promote there takes the lead again, and nothing is lost", n.Node, n.Head, head)
	}
	return handoverTold, n, nil
}

// handoverNews takes the source's word for who waits for it, and says why nobody does.
func (a *Agent) handoverNews(m *handoverMessage) (refused string) {
	a.mu.Lock()
	h := a.handing
	waits := h != nil && !h.source && h.token == m.Token && h.step == handAsk
	a.mu.Unlock()
	if waits {
		select {
		case h.news <- *m:
		default: // it has what decides it
		}
		return ""
	}
	if m.Word == wordBack {
		return a.yield(m)
	}
	// Nobody promotes this host from here on before the source has had the time to take the lead again.
	if !a.opMu.TryLock() {
		return ""
	}
	defer a.opMu.Unlock()
	if a.v.Role() == RolePrimary {
		return ""
	}
	a.mu.Lock()
	a.yielded = time.Now()
	a.mu.Unlock()
	return fmt.Sprintf("%s did not wait for the lead any more", a.node)
}

// yield: a volume that has handed over to this host is about to lead again.
func (a *Agent) yield(m *handoverMessage) (refused string) {
	if !a.opMu.TryLock() {
		return a.node + " is busy with an order: try again"
	}
	defer a.opMu.Unlock()
	if a.v.Role() == RolePrimary {
		return fmt.Sprintf("%s has taken the lead, generation %s", a.node, rankString(a.v.Generation()))
	}
	a.mu.Lock()
	a.yielded = time.Now()
	a.mu.Unlock()
	a.event("handover", m.Node, "%s takes the lead again", m.Node)
	return ""
}

// yieldedNow says that this host has just left the lead to another one, which may not be known as the source yet.
func (a *Agent) yieldedNow() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.yielded.IsZero() && time.Since(a.yielded) < a.c.UnreachableAfter+handoverGrace
}

// heardOfHandover takes the word of a volume that calls in and says that it has handed over to whom it does not know to lead.
func (a *Agent) heardOfHandover(m *follow) {
	to, ok := parseHandedOver(m.Handed)
	a.mu.Lock()
	h := a.handing
	if ok {
		a.offered = m.Node
	}
	waits := ok && h != nil && !h.source && h.token == to.token && h.step == handAsk
	a.mu.Unlock()
	if waits {
		select {
		case h.news <- handoverMessage{Word: wordHanded, Token: to.token, Node: m.Node, ID: m.ID, Head: m.Head, Chain: m.Chain}:
		default:
		}
	}
}

// leadAgain is asked before a volume that has handed over is promoted: whoever was to lead must not do it too.
func (a *Agent) leadAgain() error {
	to, ok := a.v.handedOver()
	if !ok {
		return nil
	}
	for _, l := range a.otherMembers() {
		r, err := a.ask(l, handoverMessage{Word: wordBack, Token: to.token})
		switch {
		case err != nil:
			return fmt.Errorf("refused: %s is connected and does not answer: %w", l.Peer(), err)
		case r.Refused != "":
			return fmt.Errorf("refused: %s", r.Refused)
		}
	}
	return nil
}

// otherMembers are the sessions of a secondary over which it asks to be fed, or is asked.
func (a *Agent) otherMembers() (ls []link) {
	for _, port := range a.dialledPorts() {
		if l, _ := a.transport.session(port); l != nil {
			ls = append(ls, l)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.callers {
		ls = append(ls, l)
	}
	return ls
}
