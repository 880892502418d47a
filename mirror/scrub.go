package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// A scrub reads the log from its disk, slowly, and checks every record: rot is found while the other side still has the same
// bytes. They are fetched from there (kindFetch, the same messages in both directions) and put where the rot is, while
// everything goes on. Where nobody has them:
//
//	below applied             the device has it all; followers that need it from the log are resynced. An alarm until the
//	                          tail has passed it
//	a payload not applied     the volume stops, before it is applied; a start repairs it or is refused (repair.go)
//	a header not applied      an alarm: what is in memory is applied as ever, and then it is history. A restart before that
//	                          needs the other side

// ScrubStatus is what the scrub of the log does, or did last.
type ScrubStatus struct {
	Running      bool      `json:"running"`
	EverySeconds float64   `json:"every_seconds"` // 0: only when it is ordered
	Started      time.Time `json:"started,omitzero"`
	Ended        time.Time `json:"ended,omitzero"`
	Next         time.Time `json:"next,omitzero"`
	DoneBytes    int64     `json:"done_bytes"`
	TotalBytes   int64     `json:"total_bytes"`
	Found        int       `json:"found"`  // places that had rotted, in the last one
	Mended       int       `json:"mended"` // of these, from the other side
	// Rot is what could not be mended, RotLSN where; 0: nothing.
	Rot    string `json:"rot,omitempty"`
	RotLSN uint64 `json:"rot_lsn,omitempty"`
}

const (
	scrubSlice = 256 << 10
	scrubRate  = 8 << 20 // bytes per second at least
	// scrubShare of the time between two of them is what one takes at most.
	scrubShare = 4
	// scrubStart is when the first one begins after a start, if one is due by then.
	scrubStart = time.Minute
	// maxScrubMoves: a log that is cut, or begins anew, that often is not read to its end.
	maxScrubMoves = 100
	// maxMendBytes is fetched for one place at most.
	maxMendBytes = 64 << 20
)

// Scrub has the log scrubbed now.
func (a *Agent) Scrub(context.Context) error {
	if err := a.v.Err(); err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	if a.v.damageNow() != nil {
		return errors.New("refused: the log is damaged and is being repaired: mirror-agent explain")
	}
	select {
	case a.checks.scrubNow <- struct{}{}:
	default: // it is ordered already
	}
	return nil
}

// scrubDue is when the next scrub begins: a while after the last one has ended, and not at once after a start.
func scrubDue(last, now time.Time, every time.Duration) time.Time {
	due := last.Add(every)
	if soon := now.Add(min(scrubStart, every)); due.Before(soon) {
		due = soon
	}
	return due
}

// scrubNowAndThen runs until ctx ends.
func (a *Agent) scrubNowAndThen(ctx context.Context) {
	k := &a.checks
	for {
		due := time.NewTimer(time.Duration(1<<63 - 1)) // never
		if every := a.c.ScrubEvery; every > 0 {
			k.mu.Lock()
			at := scrubDue(k.scrub.Ended, time.Now(), every)
			k.scrub.Next = at
			k.mu.Unlock()
			due.Reset(time.Until(at))
		}
		select {
		case <-ctx.Done():
		case <-due.C:
		case <-k.scrubNow:
		}
		due.Stop()
		if ctx.Err() != nil {
			return
		}
		if a.v.Err() == nil && a.v.damageNow() == nil {
			a.runScrub(ctx)
		}
	}
}

// runScrub reads the log once, as it is now.
func (a *Agent) runScrub(ctx context.Context) {
	log := a.v.log
	at, end := log.Tail(), log.Durable()
	speed := float64(scrubRate)
	if every := a.c.ScrubEvery; every > 0 {
		speed = max(speed, float64(end-at)*scrubShare/every.Seconds())
	}
	a.scrubbing(func(s *ScrubStatus) { // what stays rotten is an alarm meanwhile, too
		*s = ScrubStatus{Running: true, Started: time.Now(), TotalBytes: int64(end - at), Rot: s.Rot, RotLSN: s.RotLSN}
	})
	stays := false
	begin, moved, mended := at, 0, journal.LSN(0)
	for at < end && ctx.Err() == nil && a.v.Err() == nil && moved < maxScrubMoves {
		next, err := log.Scrub(at, end, scrubSlice)
		rot := (*journal.CorruptError)(nil)
		switch {
		case err == nil:
		case errors.As(err, &rot):
			if next = a.rotMet(ctx, rot, mended == rot.LSN); next == rot.LSN {
				mended = next
			} else {
				stays = true
			}
		case errors.Is(err, journal.ErrNotBoundary): // the log has begun anew
			next, moved = log.Tail(), moved+1
		case errors.Is(err, journal.ErrGone), errors.Is(err, journal.ErrCut), errors.Is(err, journal.ErrBeyondHead):
			next, moved = max(next, log.Tail()), moved+1
		case next == at:
			a.scrubbing(func(s *ScrubStatus) { s.Found++ })
			a.rotStays(at, fmt.Sprintf("it cannot be read at LSN %d: %v", at, err))
			next, stays = a.boundaryBehind(at), true
		}
		at, end = next, min(end, max(log.Durable(), log.Tail()))
		a.scrubbing(func(s *ScrubStatus) { s.DoneBytes = int64(at - begin) })
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(scrubSlice / speed * float64(time.Second))):
		}
	}
	if ctx.Err() != nil {
		return // the next start begins again
	}
	var s ScrubStatus
	a.scrubbing(func(x *ScrubStatus) {
		if x.Running, x.Ended = false, time.Now(); !stays {
			x.Rot, x.RotLSN = "", 0
		}
		s = *x
	})
	a.keepChecks()
	a.event("scrub-done", "", "%d bytes of the log are read: %s", s.DoneBytes, s.Verdict())
}

// Verdict says what was found, in words.
func (s *ScrubStatus) Verdict() string {
	switch {
	case s.Found == 0:
		return "sound"
	case s.Mended == s.Found:
		return places(int64(s.Found)) + " had rotted, mended from the other side"
	}
	return fmt.Sprintf("%s had rotted, %d mended from the other side", places(int64(s.Found)), s.Mended)
}

func places(n int64) string {
	if n == 1 {
		return "1 place"
	}
	return fmt.Sprintf("%d places", n)
}

func (a *Agent) scrubbing(f func(*ScrubStatus)) {
	a.checks.mu.Lock()
	defer a.checks.mu.Unlock()
	f(&a.checks.scrub)
}

// rotMet has rot mended, or says what that means; it returns where to go on. again: it was mended there just now.
func (a *Agent) rotMet(ctx context.Context, rot *journal.CorruptError, again bool) journal.LSN {
	a.scrubbing(func(s *ScrubStatus) { s.Found++ })
	a.event("scrub-rot", "", "%s: %v", a.c.journalPath(), rot)
	end, peer, err := rot.LSN, "", errors.New("the disk does not keep what is written there")
	if !again {
		end, peer, err = a.mendRot(ctx, rot.LSN)
	}
	if err == nil {
		a.scrubbing(func(s *ScrubStatus) { s.Mended++ })
		a.event("mended", peer, "what had rotted in the log from LSN %d to %d came from %s", rot.LSN, end, peer)
		return rot.LSN // and is looked at again
	}
	if ctx.Err() != nil || errors.Is(err, journal.ErrGone) {
		return max(rot.LSN, a.v.log.Tail())
	}
	what := fmt.Sprintf("%v; it could not be mended: %v", rot, err)
	if rot.LSN < a.v.log.Applied() || rot.Payload {
		_ = a.v.rotFound(rot) // stops the volume, or has followers resynced that need it
	}
	a.rotStays(rot.LSN, what)
	return a.boundaryBehind(rot.LSN)
}

func (a *Agent) rotStays(at journal.LSN, what string) {
	a.scrubbing(func(s *ScrubStatus) { s.Rot, s.RotLSN = what, uint64(at) })
	a.event("scrub-not-mended", "", "%s", what)
}

// boundaryBehind is the next boundary that is known without reading, or the head.
func (a *Agent) boundaryBehind(at journal.LSN) journal.LSN {
	log := a.v.log
	for p := at + 1; p < log.Head(); p += scrubSlice {
		if b, _, err := log.BoundaryBefore(p); err == nil && b > at {
			return b
		}
	}
	return log.Head()
}

// mendRot fetches the records from at on from the other side and puts them there.
func (a *Agent) mendRot(ctx context.Context, at journal.LSN) (end journal.LSN, peer string, err error) {
	l := a.inboundLink()
	if s := a.streamingSender(); s != nil && a.v.Role() == RolePrimary {
		l = s.l
	}
	if l == nil {
		return 0, "", errors.New("the other side is not connected")
	}
	chain, err := a.v.log.ChainAt(at)
	if err != nil {
		return 0, "", err
	}
	from, raw := at, []byte(nil)
	for len(raw) < maxMendBytes {
		b, err := l.Call(ctx, encodeJSON(kindFetch, fetch{Mirror: a.mirrorID(), From: from, Chain: chain}))
		if err != nil {
			return 0, "", err
		}
		r, some, err := decodeFetchReply(b)
		switch {
		case err != nil:
			return 0, "", err
		case r.Refused != "":
			return 0, "", errors.New(r.Refused)
		case len(some) == 0:
			return 0, "", fmt.Errorf("%s has nothing at LSN %d", l.Peer(), from)
		}
		raw = append(raw, some...)
		end, err := a.v.log.Mend(at, raw)
		if !errors.Is(err, journal.ErrNotMended) {
			return end, l.Peer(), a.v.journalError(err)
		}
		if err := journal.ParseRaw(some, func(r journal.Record, _ []byte) error { from, chain = r.End(), r.Chain; return nil }); err != nil {
			return 0, "", err
		}
	}
	return 0, "", fmt.Errorf("more than %d bytes are rotten", maxMendBytes)
}

// scrubStatusLocked puts the scrub into the status. What has left the log is no alarm any more.
func (a *Agent) scrubStatusLocked(s *Status, scrub *ScrubStatus) {
	scrub.EverySeconds = a.c.ScrubEvery.Seconds()
	if scrub.RotLSN != 0 && scrub.RotLSN < s.Log.Tail {
		scrub.Rot, scrub.RotLSN = "", 0
	}
	s.Scrub = scrub
	if scrub.RotLSN == 0 {
		return
	}
	x := Alarm{
		Name: "log-rot", Since: scrub.Started, Reason: a.c.journalPath() + ": " + scrub.Rot,
		NextStep: "look at its disk; nothing is lost, the device has all that is there: a target that needs this part of the log is resynced; the alarm ends when the log has moved on",
	}
	if scrub.RotLSN >= s.Log.Applied {
		x.NextStep = "connect the other side, then mirror-agent scrub: it is mended from there; do not restart this agent before; look at its disk"
	}
	s.Alarms = append(s.Alarms, x)
}
