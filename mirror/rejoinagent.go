package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/journal"
)

// The agent of an old primary, from the moment it is fenced: it learns where its history parts from the newer one, says what
// only it has, and becomes a secondary when it is told to, or by itself where nobody loses anything by that.

// historyReply answers kindHistory: what this host knows of the mirror's history. Asking for it changes nothing.
type historyReply struct {
	Node        string               `json:"node"`
	Mirror      string               `json:"mirror"`
	Seen        journal.Generation   `json:"seen"`
	Generations []journal.Generation `json:"generations"`
}

func (a *Agent) serveHistory() []byte {
	return encodeJSON(0, historyReply{Node: a.node, Mirror: a.mirrorID(), Seen: a.v.Seen(), Generations: a.v.History()})[1:]
}

// askHistory asks at the other end of l, again and again, until that knows of a history newer than this fenced volume's.
func (a *Agent) askHistory(ctx context.Context, l link) {
	for {
		if b, err := l.Call(ctx, []byte{kindHistory}); err == nil {
			var r historyReply
			if decodeJSON(b, &r) == nil && r.Mirror == a.mirrorID() && a.noteFork(r.Node, r.Generations) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-l.Done():
			return
		case <-time.After(retryRefused):
		}
	}
}

// noteFork takes the history of a newer primary: durably where this fenced one's parts from it. Where that has everything that
// was written here this volume follows it from now on. False: the history is no newer than this one.
func (a *Agent) noteFork(who string, theirs []journal.Generation) bool {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if n := len(theirs); n == 0 || compareRank(theirs[n-1], a.v.Generation()) <= 0 {
		return false
	}
	a.mu.Lock()
	done := a.fenced == "" || a.closed || a.v.damageNow() != nil
	a.mu.Unlock()
	if done || a.v.Role() != RolePrimary || a.v.Err() != nil {
		return true
	}
	d, err := a.v.partedFrom(theirs)
	if err == nil && d.why == "" {
		err = a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
			a.v.fillAnchor(x)
			withSidecar(x, func(s *sidecar) { s.fork = d.at })
		}))
	}
	if err != nil {
		return true // the volume has failed, and says so
	}
	a.mu.Lock()
	news := a.parted == nil || *a.parted != d
	a.parted = &d
	a.mu.Unlock()
	if news {
		a.event("parted", "", "from the history of %s: %s", who, &d)
	}
	if !d.nothing() {
		return true
	}
	if err := a.stepDown(d.at); err == nil {
		a.event("demoted", "", "%s has everything that was written here: this volume follows it now", who)
	}
	return true
}

// stepDown makes the volume of a fenced primary a secondary that rejoins, and asks to be fed. opMu is held.
func (a *Agent) stepDown(exported journal.LSN) error {
	if err := a.v.giveUp(exported); err != nil {
		return err
	}
	a.stopLeading()
	a.mu.Lock()
	a.fenced, a.parted, a.starting, a.startError = "", nil, "", nil
	refused := make([]*inbound, 0, len(a.receivers))
	for _, in := range a.receivers {
		refused = append(refused, in)
	}
	a.mu.Unlock()
	for _, in := range refused {
		a.dismiss(in, a.node+" rejoins") // has a source that it refused ask again
	}
	return a.callIn()
}

// Demote makes the volume of this running agent, which another host has fenced, one that rejoins as a target; what only it has
// is exported first. See the function Demote, which does it to the files of an agent that has ended.
func (a *Agent) Demote(_ context.Context, o DemoteOptions) (r DemoteResult, err error) {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.mu.Lock()
	fenced := a.fenced
	a.mu.Unlock()
	r.Name, r.DryRun, r.Fenced = a.c.Name, o.DryRun, fenced != ""
	switch {
	case a.v.Role() != RolePrimary:
		return r, fmt.Errorf("refused: this volume is %s already", a.v.Role())
	case a.v.Err() != nil:
		return r, a.v.Err()
	case a.v.damageNow() != nil:
		return r, fmt.Errorf("refused: the log is damaged: %w: what only this host has cannot be told; move device and journal away and start an empty target", a.v.damageNow().rot)
	case fenced == "":
		return r, errors.New("refused: no other host has fenced this one: promote that one first, and let it be reached from here")
	}
	if err := a.v.exportOwn(&r, &a.c, a.node, time.Now()); err != nil || o.DryRun {
		return r, err
	}
	if r.Export != nil {
		a.event("exported", "", "%d records, LSN %d to %d, to %s", r.Export.Records, r.Export.From, r.Export.To, r.Export.Path)
	}
	if err := a.stepDown(journal.LSN(r.From)); err != nil {
		return r, err
	}
	a.event("demoted", "", "by the operator; this volume rejoins as a target of the new primary")
	return r, nil
}

// exportOwn finds what only this volume has and writes it to c's place for that, unless it is nothing or r is of a dry run.
func (v *Volume) exportOwn(r *DemoteResult, c *Config, node string, now time.Time) error {
	from, complete, err := v.unshared()
	if err != nil {
		return err
	}
	reason := "what no follower is known to have, before this volume was demoted"
	if fork := parseSidecar(v.log.Anchor().Extra).fork; fork >= v.log.Tail() && fork != 0 {
		from, complete, r.Exact, reason = fork, true, true, "what was written after another volume was promoted, before this one was demoted"
	}
	head := v.log.Head()
	r.Complete, r.From, r.Head, r.Bytes = complete, uint64(from), uint64(head), int64(head-from)
	if r.Records, r.Writes, err = v.countFrom(from); err != nil {
		return v.journalError(err)
	}
	if r.DryRun || r.Writes == 0 {
		return nil
	}
	path, err := c.exportPath(now)
	if err != nil {
		return err
	}
	e, err := v.export(path, node, reason, from)
	if err != nil {
		return fmt.Errorf("%w; nothing else was changed", err)
	}
	r.Export = &e
	return nil
}

// exportMore is called when the history of a new source parts from that of this volume, which was given up, before the place
// from which on it was exported.
func (a *Agent) exportMore(d divergence) error {
	from := d.at
	if d.why != "" {
		from = a.v.log.Tail()
	}
	path, err := a.c.exportPath(time.Now())
	if err != nil {
		return err
	}
	e, err := a.v.export(path, a.node, "what was written after another volume was promoted", from)
	if err != nil {
		return err
	}
	a.event("exported", "", "%d records, LSN %d to %d, to %s", e.Records, e.From, e.To, e.Path)
	return a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
		a.v.fillAnchor(x)
		withSidecar(x, func(s *sidecar) { s.exported = from })
	}))
}

// noteResynced keeps how the copy to follower i went.
func (a *Agent) noteResynced(i int, r Resynced) {
	a.mu.Lock()
	f := a.followers[i]
	for _, o := range a.followers { // a volume may be a follower twice: by its address here, and as one that has called in
		if o == f || o.id == f.id && f.id != [16]byte{} {
			o.resynced = &r
		}
	}
	target := f.target
	a.mu.Unlock()
	how := "of what had changed"
	if r.All {
		how = "compared"
	}
	a.event("resynced", target, "%s %s, %s sent, in %s: %s", humanize.IBytes(uint64(r.LookedAtBytes)), how, humanize.IBytes(uint64(r.SentBytes)),
		r.Ended.Sub(r.Started).Round(time.Millisecond), r.Reason)
}

// fencedStateLocked says what the operator of a fenced volume can do.
func (a *Agent) fencedStateLocked() stateReport {
	s := stateReport{state: "fenced", reason: a.fenced}
	s.next = "applications must use the other side now; mirror-agent demote --dry-run says what only this host has, mirror-agent demote keeps that in a file and lets this volume follow the new primary"
	if a.parted != nil {
		s.reason += "; " + a.parted.String()
	}
	return s
}
