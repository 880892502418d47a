package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"mirror-agent/journal"
)

// PromoteOptions are what the operator says when ordering a promotion.
type PromoteOptions struct {
	// Force promotes although the source seems alive.
	Force bool `json:"force"`
	// NBD is the address to serve at; empty means Config.NBD.
	NBD string `json:"nbd"`
	// DryRun changes nothing: it says whether the promotion would be refused, and what would be missing.
	DryRun bool `json:"dry_run"`
	// At is a point to go back to first, see CheckPoint; empty is the newest.
	At string `json:"at,omitempty"`
	// Planned asks the source, which lives, to hand over: nothing is lost, and it follows afterwards. See handover.go.
	Planned bool `json:"planned,omitempty"`
	// LimitSeconds is how long the source may keep its front closed for that; 0 is DefaultHandoverLimit.
	LimitSeconds float64 `json:"limit_seconds,omitempty"`
	// Idle: planned only while nobody uses the source's front.
	Idle bool `json:"idle,omitempty"`

	back  wayBack // that At means
	token uint64  // of the order; 0: a new one
	// auto: nobody has ordered it, see autopromote.go. mandate: what the members or the arbiter agreed upon, if they had to.
	auto    bool
	mandate journal.Generation
}

// PromoteResult tells what a promotion did.
type PromoteResult struct {
	Generation string  `json:"generation"`
	LSN        uint64  `json:"lsn"`
	NBD        string  `json:"nbd"`
	NBDTLS     bool    `json:"nbd_tls"` // clients have to use TLS
	Seconds    float64 `json:"seconds"` // from the order to the open front
	DryRun     bool    `json:"dry_run,omitempty"`
	Missing    Missing `json:"missing"`
	// GivenUp is what lay behind the point that was asked for.
	GivenUp *GivenUp `json:"given_up,omitempty"`
	// HandedLSN is where the source's log ended when it handed over, as it said itself; LSN lies no lower when nothing is missing.
	HandedLSN uint64 `json:"handed_lsn,omitempty"`
	// Lead is how the source is that would hand over (planned, dry run).
	Lead *LeadStatus `json:"lead,omitempty"`
}

// LeadStatus is how a host is that leads, as it says itself before it hands over.
type LeadStatus struct {
	Node    string   `json:"node"`
	Home    bool     `json:"home"`    // it is the source by its configuration
	Active  bool     `json:"active"`  // its data flows to the host that asks, whose word counts for the mode
	Clients int      `json:"clients"` // NBD connections, which end when it hands over
	State   string   `json:"state"`
	Alarms  []string `json:"alarms,omitempty"`
}

// leadStatus is told to the follower that is fed by the session.
func (a *Agent) leadStatus(session uint64) *LeadStatus {
	s := a.Status()
	l := &LeadStatus{Node: a.node, Home: s.Home, Clients: s.NBD.Connections, State: s.State}
	a.mu.Lock()
	for i, f := range a.followers {
		l.Active = l.Active || f.session == session && i == a.current
	}
	a.mu.Unlock()
	for _, x := range s.Alarms {
		l.Alarms = append(l.Alarms, x.Name+": "+x.Reason)
	}
	return l
}

// Promote makes this secondary a primary of a new generation, durable before
// anything is served, and opens the front at what its log holds.
func (a *Agent) Promote(ctx context.Context, o PromoteOptions) (PromoteResult, error) {
	began := time.Now()
	if o.Planned && o.At != "" {
		return PromoteResult{}, errors.New("refused: a planned promotion loses nothing, one at a point goes back: say one of both")
	}
	if o.Planned {
		return a.promotePlanned(o, began)
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if err := a.v.Err(); err != nil {
		return PromoteResult{}, err
	}
	if a.v.Role() == RolePrimary {
		return a.serveAnyway(o, began)
	}
	if a.v.flags()&stateBlank != 0 {
		return PromoteResult{}, fmt.Errorf("refused: this volume has never been in sync, there is nothing consistent to serve: %w", ErrNotPromotable)
	}
	if d := a.v.damageNow(); d != nil && !o.Force {
		return PromoteResult{}, fmt.Errorf("refused: %w, and everything up to LSN %d was promised: start the source, which repairs it, or say promote --force to go on with the state at LSN %d, without what was promised beyond: %w",
			d.rot, d.promise, a.v.log.Head(), ErrNotPromotable)
	}
	if o.NBD == "" && a.c.NBD == "" {
		return PromoteResult{}, errNoFront
	}
	if err := a.front.Check(cmp.Or(o.NBD, a.c.NBD)); err != nil {
		return PromoteResult{}, fmt.Errorf("refused: nbd: %w", err)
	}
	if a.v.flags()&stateLeft != 0 && !o.Force {
		return PromoteResult{}, errors.New("refused: the source moved its data flow to another target, what is here is old: promote that target, or say promote --force to go on with this state")
	}
	if a.v.flags()&stateDiverged != 0 && !o.Force {
		return PromoteResult{}, errors.New("refused: this volume was given up, and has not yet got what the new primary has: wait until it is in sync, or say promote --force to go on with its own old state")
	}
	if peer, alive := a.sourceAlive(); alive && !o.Force {
		return PromoteResult{}, fmt.Errorf("refused: %s, the source, is alive: mirror-agent promote --planned has it hand over, nothing is lost; or stop it first, or say promote --force to fence it", peer)
	}
	if a.yieldedNow() && !o.Force {
		return PromoteResult{}, errors.New("refused: the lead was just left to another host: look at mirror-agent status in some seconds")
	}
	missing := a.missing(time.Now())
	back, err := a.wayBack(o.At)
	if err != nil {
		return PromoteResult{}, err
	}
	o.back = back
	if !o.Force {
		if o.mandate, err = a.mandate(ctx, &o); err != nil {
			return PromoteResult{}, err
		}
		defer a.noLongerRising()
	}
	if o.DryRun {
		return PromoteResult{
			Generation: rankString(a.v.Generation()), LSN: back.at.LSN, NBD: cmp.Or(o.NBD, a.c.NBD), DryRun: true, Missing: missing, GivenUp: back.givenUp,
		}, nil
	}
	if !o.Force {
		if err := a.leadAgain(); err != nil {
			return PromoteResult{}, err
		}
	}
	return a.takeLead(o, missing, began, nil)
}

// forgetStaging removes what a resync that this promotion has ended had built so far.
func (a *Agent) forgetStaging() {
	path := a.c.stagingPath()
	if path == "" || a.v.flags()&stateMerging != 0 {
		return
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn().Err(err).Msg("the copy of a resync that this promotion has ended takes space")
	}
}

var errNoFront = errors.New("refused: no NBD address is configured on this host: promote --nbd unix:PATH or HOST:PORT")

// takeLead makes this secondary a primary of a new generation and opens the front. from is the source that has handed over and
// will follow, if one has. opMu is held.
func (a *Agent) takeLead(o PromoteOptions, missing Missing, began time.Time, from *memberInfo) (PromoteResult, error) {
	a.endDrill(errDrillPromoted)
	a.voteMu.Lock() // no word for another one from here on
	a.mu.Lock()
	a.promoting = true
	a.mu.Unlock()
	sources := a.closeInbound() // no record of the old generation from here on
	var err error
	if o.mandate.Major != 0 && !mayBegin(a.v.Seen(), o.mandate) {
		err = fmt.Errorf("refused: generation %s was agreed upon meanwhile: promote again, or see which host is primary", rankString(a.v.Seen()))
	}
	if err == nil && a.v.damageNow() != nil {
		err = a.v.giveUpRepair()
	}
	if err == nil {
		err = o.back.goBack(a)
	}
	var g journal.Generation
	if err == nil {
		g, err = a.v.beginAs(true, o.mandate)
	}
	a.mu.Lock()
	a.promoting = false
	a.mu.Unlock()
	a.voteMu.Unlock()
	for _, in := range sources {
		a.dismiss(in, a.node+" was promoted")
	}
	if err != nil {
		return PromoteResult{}, fmt.Errorf("promote: %w", err)
	}
	a.forgetStaging()
	a.onlyConfigured()
	a.lead()
	if from != nil && len(a.c.Target) == 0 {
		a.addFollower(*from, noPort, true)
	}
	a.event("promoted", "", "primary of generation %s from LSN %d; %s", rankString(g), g.First, missing)
	err = a.serve(o.NBD)
	if err := a.openFollowers(); err != nil {
		a.event("failed", "", "followers: %v", err)
	}
	a.shutUnfed()
	a.feedAgain() // on the sessions of one that has called in
	a.dialMembers()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.startError = err
		return PromoteResult{}, fmt.Errorf("promoted to generation %s, but it does not serve: %w; promote --nbd with another address", rankString(g), err)
	}
	return PromoteResult{
		Generation: rankString(g), LSN: uint64(g.First), NBD: a.nbd, NBDTLS: a.front.Stats().TLS, Seconds: time.Since(began).Seconds(),
		Missing: missing, GivenUp: o.back.givenUp,
	}, nil
}

// serveAnyway opens the front of a volume that is primary and does not serve:
// its address was taken, or it still asks its followers.
func (a *Agent) serveAnyway(o PromoteOptions, began time.Time) (PromoteResult, error) {
	a.mu.Lock()
	serving, fenced := a.serving, a.fenced
	a.mu.Unlock()
	if fenced != "" {
		return PromoteResult{}, fmt.Errorf("refused: %s: %w", fenced, ErrFenced)
	}
	if o.At != "" {
		return PromoteResult{}, errors.New("refused: this volume is primary; only a target goes back to a point: stop this agent and promote a target --at")
	}
	if serving {
		return PromoteResult{}, errors.New("refused: this volume is already primary and serves")
	}
	if o.DryRun {
		return PromoteResult{Generation: rankString(a.v.Generation()), LSN: uint64(a.v.log.Head()), NBD: cmp.Or(o.NBD, a.c.NBD), DryRun: true, Missing: Missing{Known: true}}, nil
	}
	if err := a.serve(o.NBD); err != nil {
		return PromoteResult{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.starting, a.startError = "", nil
	return PromoteResult{
		Generation: rankString(a.v.Generation()), LSN: uint64(a.v.log.Head()), NBD: a.nbd, NBDTLS: a.front.Stats().TLS,
		Seconds: time.Since(began).Seconds(),
	}, nil
}
