package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/journal"
)

// A source that lost power may have lost the end of its log, which its followers have: in the modes receive and durable a write
// was answered for that. So before it begins a new generation, which would cut that off for ever, it fetches back what they
// have and it has not:
//
//   - only what continues its own log, by the chain at its head, which the follower compares, and record by record;
//   - only of its own newest generation: no generation record is taken, and from nobody who has seen a higher one, which
//     fences this source instead;
//   - of all who can be reached, one after the other: what one has more than another comes on top.
//
// What comes is what this source wrote once, so it is no matter how much of it was answered. It is durable before the
// generation's record is. A crash in the middle leaves a log that is longer than before, and the next start goes on.

var errNotOwn = errors.New("mirror: what came back is not of this generation")

// endTakingBack: this primary was fenced. What its log holds now is compared with the other history, or follows it, so nothing
// may come to it from a third host any more; what is being entered is, on return.
func (v *Volume) endTakingBack() {
	v.backMu.Lock()
	v.backEnd = true
	v.backMu.Unlock()
}

// takeBack enters records that this primary had lost.
func (v *Volume) takeBack(ctx context.Context, raw []byte) error {
	if err := journal.ParseRaw(raw, func(r journal.Record, _ []byte) error {
		if r.Op == journal.OpGeneration {
			return fmt.Errorf("%w: a generation begins at LSN %d", errNotOwn, r.LSN)
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := v.checkRaw(raw); err != nil {
		return err
	}
	for {
		moved, err := v.watch()
		if err != nil {
			return err
		}
		v.backMu.Lock()
		if err = ErrFenced; !v.backEnd {
			_, err = v.log.AppendRaw(v.log.Head(), raw)
		}
		v.backMu.Unlock()
		if errors.Is(err, ErrFenced) {
			return err
		}
		if !errors.Is(err, journal.ErrFull) {
			v.pace()
			return v.journalError(err)
		}
		if err := v.awaitRoom(ctx, moved); err != nil {
			return err
		}
	}
}

// fetchBack fetches from the host at the other end of l what its log has beyond this one's. seen is the highest generation that
// it knows; nothing was taken when that is above this volume's. took is how many bytes came.
func (v *Volume) fetchBack(ctx context.Context, l link, mirror string) (took int64, seen journal.Generation, err error) {
	for {
		head, chain := v.log.HeadChain()
		b, err := l.Call(ctx, encodeJSON(kindFetch, fetch{Mirror: mirror, From: head, Chain: chain}))
		if err != nil {
			return took, seen, err
		}
		r, raw, err := decodeFetchReply(b)
		if err != nil {
			return took, seen, err
		}
		seen = r.Seen
		if compareRank(seen, v.Seen()) > 0 || r.Refused != "" || len(raw) == 0 { // it has nothing more, or another history
			break
		}
		if err := v.takeBack(ctx, raw); err != nil {
			return took, seen, err
		}
		took += int64(len(raw))
	}
	_, err = v.log.Sync(v.log.Head())
	return took, seen, v.journalError(err)
}

// fetchLinks are the sessions with all others, whoever dialled; follower is the index in the list, -1 for one that is not in it.
func (a *Agent) fetchLinks() map[link]int {
	links := map[link]int{}
	a.mu.Lock()
	ports := map[int]int{}
	for i, f := range a.followers {
		if f.port != noPort {
			ports[f.port] = i
		}
	}
	for _, c := range a.candidates {
		ports[c.port] = -1
	}
	for _, l := range a.callers {
		links[l] = -1
	}
	a.mu.Unlock()
	for port, i := range ports {
		if l, _ := a.transport.session(port); l != nil {
			links[l] = i
		}
	}
	return links
}

// fetchBackFirst asks the followers for what this log may have lost, for StartWait at most, then lets the source begin.
func (a *Agent) fetchBackFirst(ctx context.Context) {
	a.mu.Lock()
	a.starting = fmt.Sprintf("asking the followers for what the end of the log may have lost, for up to %s", a.c.StartWait)
	a.mu.Unlock()
	deadline := time.Now().Add(a.c.StartWait)
	var first time.Time // when one had been asked
	asked, told := map[link]bool{}, false
	tick := time.NewTicker(retryBroken / 8)
	defer tick.Stop()
	for {
		for l, i := range a.fetchLinks() {
			if asked[l] || !a.fetchFrom(ctx, l) {
				continue
			}
			asked[l] = true
			if first.IsZero() {
				first = time.Now()
			}
			if i >= 0 {
				a.mu.Lock()
				a.followers[i].asked = true
				a.mu.Unlock()
			}
		}
		a.mu.Lock()
		over := a.fenced != "" || a.closed || a.v.Role() != RolePrimary // which has met a newer one, and follows it, perhaps
		known := len(a.followers) > 0
		a.mu.Unlock()
		now := time.Now()
		switch {
		case over || ctx.Err() != nil:
			return
		case !first.IsZero() && (known && a.allAsked() || now.Sub(first) >= a.c.UnreachableAfter):
			a.beginAfterFetch(a.c.StartWait)
			return
		case first.IsZero() && now.After(deadline) && a.c.Alone != AloneRefuse:
			a.beginAfterFetch(0)
			return
		case first.IsZero() && now.After(deadline) && !told:
			a.mu.Lock()
			a.starting = fmt.Sprintf("no follower answered within %s and alone is refuse", a.c.StartWait)
			a.mu.Unlock()
			a.event("alone", "", "no follower answered within %s: waiting for one (alone: refuse)", a.c.StartWait)
			told = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// fetchFrom asks one host. False: it could not be asked.
func (a *Agent) fetchFrom(ctx context.Context, l link) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a session that ends takes its calls along; the wait for room in the log must end too
		select {
		case <-l.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	from := a.v.log.Head()
	took, seen, err := a.v.fetchBack(ctx, l, a.mirrorID())
	if took > 0 {
		a.event("fetched-back", l.Peer(), "%s of log that this host had lost, LSN %d to %d, came back", humanize.IBytes(uint64(took)), from, from+journal.LSN(took))
	}
	if errors.Is(err, ErrFenced) {
		return true
	}
	if compareRank(seen, a.v.Seen()) > 0 {
		a.fence(fmt.Sprintf("%s has seen generation %s, this is %s", l.Peer(), rankString(seen), rankString(a.v.Generation())), seen)
		return true
	}
	if err != nil {
		a.log.Warn().Err(err).Str("peer", l.Peer()).Msg("fetch back what the log may have lost")
	}
	return err == nil || errors.Is(err, errNotOwn) || errors.Is(err, journal.ErrChain)
}

// beginAfterFetch begins the generation, with all that could be got back.
func (a *Agent) beginAfterFetch(wait time.Duration) {
	a.opMu.Lock()
	a.mu.Lock()
	over := a.fenced != "" || a.closed || a.v.Role() != RolePrimary
	a.mu.Unlock()
	if over {
		a.opMu.Unlock()
		return
	}
	err := a.beginLead()
	if err == nil {
		a.startAsking(wait)
	}
	a.opMu.Unlock()
	if err != nil {
		a.refuseStart(err)
		return
	}
	a.feedAgain()
	a.feedCandidates()
}

// feedCandidates makes members, whose sessions came up before this volume led, followers.
func (a *Agent) feedCandidates() {
	a.mu.Lock()
	cs := a.candidates
	a.mu.Unlock()
	for _, c := range cs {
		if l, session := a.transport.session(c.port); l != nil {
			if i := a.portFollower(c.port, true); i >= 0 {
				a.sessionUp(i, l, session)
			}
		}
	}
}
