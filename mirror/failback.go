package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// The way home: the host that is the source by its configuration takes the lead again, by a planned handover, once it is in sync.

// FailbackOptions are what the operator says.
type FailbackOptions struct {
	// LimitSeconds is how long the front may be closed for the handover; 0 is DefaultHandoverLimit.
	LimitSeconds float64 `json:"limit_seconds,omitempty"`
	// DryRun changes nothing: it says what would happen now.
	DryRun bool `json:"dry_run,omitempty"`
	// Idle: only while nobody uses the front that closes.
	Idle bool `json:"idle,omitempty"`
	// To is the host that is to lead in place of home, by its name; to undo a failback. On the host that leads.
	To string `json:"to,omitempty"`
}

// FailbackResult tells what a failback did, or would do.
type FailbackResult struct {
	Home    string `json:"home"`    // the host that leads afterwards
	Primary string `json:"primary"` // the one that led before
	// Ready: home is in sync and the handover can begin. Else Waiting says what has to come first; it comes by itself.
	Ready      bool      `json:"ready"`
	Waiting    string    `json:"waiting,omitempty"`
	LagBytes   uint64    `json:"lag_bytes"`
	Resync     *Progress `json:"resync,omitempty"`
	DryRun     bool      `json:"dry_run,omitempty"`
	Generation string    `json:"generation,omitempty"`
	LSN        uint64    `json:"lsn,omitempty"`
	HandedLSN  uint64    `json:"handed_lsn,omitempty"` // see PromoteResult
	NBD        string    `json:"nbd,omitempty"`        // at home; empty when that is another host
	NBDTLS     bool      `json:"nbd_tls,omitempty"`
	Seconds    float64   `json:"seconds,omitempty"`
}

// Failback brings the lead home. On either host: home, or the one that leads. It refuses while home is not in sync; with
// DryRun it says how far that is.
func (a *Agent) Failback(ctx context.Context, o FailbackOptions) (FailbackResult, error) {
	if a.c.Role == RolePrimary && o.To == "" {
		return a.failbackHere(o)
	}
	return a.failbackThere(ctx, o)
}

// failbackHere is failback on the host that is to lead.
func (a *Agent) failbackHere(o FailbackOptions) (FailbackResult, error) {
	r := FailbackResult{Home: a.node, DryRun: o.DryRun}
	if a.v.Role() == RolePrimary {
		return r, fmt.Errorf("refused: %s is home and is primary already", a.node)
	}
	a.mu.Lock()
	in, called := a.inbound, a.called
	a.mu.Unlock()
	switch {
	case in == nil && called.Primary && called.Refused == "":
		r.Primary, r.Waiting = called.Node, "the connection with "+called.Node+" begins"
	case in == nil && called.Refused != "":
		return r, fmt.Errorf("refused: nobody feeds this host: %s; see mirror-agent explain on both hosts", called.Refused)
	case in == nil:
		return r, errors.New("refused: no primary is connected: start it, or mirror-agent promote when it is gone for good")
	default:
		r.Primary = in.link.Peer()
		in.receiver.mu.Lock()
		received, head := in.receiver.received, in.receiver.sourceHead
		in.receiver.mu.Unlock()
		r.LagBytes, r.Resync = uint64(max(head, received)-received), in.receiver.progress()
		r.Ready = in.receiver.isStreaming()
	}
	switch {
	case r.Resync != nil:
		r.Waiting = fmt.Sprintf("%s gets what it lacks: %s of %s compared", r.Home, humanize.IBytes(uint64(r.Resync.DoneBytes)), humanize.IBytes(uint64(r.Resync.TotalBytes)))
	case !r.Ready && r.Waiting == "":
		r.Waiting = r.Home + " and " + r.Primary + " compare their logs"
	}
	if o.DryRun {
		return r, nil
	}
	if !r.Ready {
		return r, fmt.Errorf("refused: not in sync yet: %s; mirror-agent failback waits for it", r.Waiting)
	}
	p, err := a.promotePlanned(PromoteOptions{Planned: true, LimitSeconds: o.LimitSeconds, Idle: o.Idle}, time.Now())
	r.Generation, r.LSN, r.HandedLSN, r.NBD, r.NBDTLS, r.Seconds = p.Generation, p.LSN, p.HandedLSN, p.NBD, p.NBDTLS, p.Seconds
	return r, err
}

// failbackThere is failback on another host.
func (a *Agent) failbackThere(ctx context.Context, o FailbackOptions) (FailbackResult, error) {
	r := FailbackResult{Primary: a.node, DryRun: o.DryRun}
	if a.v.Role() != RolePrimary {
		return r, a.notHereError()
	}
	a.mu.Lock()
	var home *follower
	for _, f := range a.followers {
		if o.To == "" && f.home || o.To != "" && o.To == f.node() {
			home = f
		}
	}
	var s *sender
	var state FollowerState
	if home != nil {
		r.Home, state, s = home.target, home.state, home.sender
	}
	a.mu.Unlock()
	if s != nil {
		head, ack := a.v.log.Head(), s.lastAck()
		r.LagBytes, r.Resync = uint64(head-min(head, ack.Durable)), s.resync.status()
	}
	switch {
	case home == nil && o.To != "":
		return r, fmt.Errorf("refused: no host of the name %q follows this one: mirror-agent status shows all", o.To)
	case home == nil:
		return r, errors.New("refused: home is not connected: no host that is configured as the source follows this one; start its agent there, as ever (mirror-agent source …)")
	case state == FollowerStreaming && s != nil:
		r.Ready = true
	case state == FollowerRefused || state == FollowerDown || state == FollowerSuspended:
		return r, fmt.Errorf("refused: %s is %s: see mirror-agent explain", r.Home, state)
	case r.Resync != nil:
		r.Waiting = fmt.Sprintf("%s gets what it lacks: %s of %s compared", r.Home, humanize.IBytes(uint64(r.Resync.DoneBytes)), humanize.IBytes(uint64(r.Resync.TotalBytes)))
	default:
		r.Waiting = fmt.Sprintf("%s is %s", r.Home, state)
	}
	if o.DryRun {
		return r, nil
	}
	if !r.Ready {
		return r, fmt.Errorf("refused: not in sync yet: %s; mirror-agent failback waits for it", r.Waiting)
	}
	if n := a.front.Stats().Connections; o.Idle && n > 0 {
		return r, fmt.Errorf("refused: %s has clients: %d NBD connections", a.node, n)
	}
	return r, a.invite(ctx, s.l, o, &r)
}

// notHereError: a secondary that is not home cannot do it.
func (a *Agent) notHereError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.inbound; in != nil {
		for _, m := range a.members {
			if m.Home && m.Node == in.link.Peer() {
				return fmt.Errorf("refused: %s is home and is primary already", m.Node)
			}
		}
		return fmt.Errorf("refused: this host is neither home nor primary: run it on %s, which leads, or at home", in.link.Peer())
	}
	return errors.New("refused: this host is neither home nor primary, and no primary is connected: run it at home, once that follows the one that leads")
}

// node is what the follower calls itself; "" before it has.
func (f *follower) node() string {
	if f.sender == nil {
		return ""
	}
	if h := f.sender.other.Load(); h != nil {
		return h.Name
	}
	return ""
}

// invite has home ask for the lead, and waits until it has it.
func (a *Agent) invite(ctx context.Context, l link, o FailbackOptions, r *FailbackResult) error {
	began, token := time.Now(), newToken()
	limit := time.Duration(o.LimitSeconds * float64(time.Second))
	if limit <= 0 {
		limit = DefaultHandoverLimit
	}
	call, cancel := context.WithTimeout(ctx, handoverGrace)
	reply, err := a.tellHandover(call, l, handoverMessage{Word: wordInvite, Token: token, LimitMillis: limit.Milliseconds(), Idle: o.Idle, Anywhere: o.To != ""})
	cancel()
	switch {
	case err != nil:
		return fmt.Errorf("ask %s to take the lead: %w", r.Home, err)
	case reply.Refused != "":
		return fmt.Errorf("refused: %s", reply.Refused)
	}
	ctx, cancel = context.WithTimeout(ctx, limit+2*handoverGrace)
	defer cancel()
	look := time.NewTicker(declareEvery / 2)
	defer look.Stop()
	for {
		a.mu.Lock()
		h, in := a.lastHanding, a.inbound
		a.mu.Unlock()
		if h != nil && h.token == token {
			if h.err != nil {
				return h.err
			}
			// In sync is before the record of its generation, perhaps.
			if g := a.v.Generation(); a.v.Role() == RoleSecondary && in != nil && in.receiver.isStreaming() && g.First >= h.level {
				r.Generation, r.LSN, r.HandedLSN, r.Seconds = rankString(g), uint64(g.First), uint64(h.level), time.Since(began).Seconds()
				return nil
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("%s was asked to take the lead and does not feed this host: look at mirror-agent status there: %w", r.Home, ctx.Err())
		}
	}
}

// invited: the primary says that this host is to ask for the lead.
func (a *Agent) invited(m *handoverMessage) (refused string) {
	o := PromoteOptions{Planned: true, LimitSeconds: float64(m.LimitMillis) / 1000, Idle: m.Idle, token: m.Token}
	if a.c.Role != RolePrimary && !m.Anywhere {
		return a.node + " is not home: it is configured as a target"
	}
	if _, err := a.plannable(o); err != nil {
		return fmt.Sprintf("%s: %v", a.node, err)
	}
	a.spawn(func() {
		if _, err := a.promotePlanned(o, time.Now()); err != nil {
			a.event("failed", m.Node, "failback: %v", err)
		}
	})
	return ""
}
