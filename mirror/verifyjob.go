package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// The agent's part of a verify: one at a time, against the active target, from the operator's order to its end. It waits while the
// target is not in sync and goes on where it was. How it went is kept beside the journal (checks.go).

const (
	verifyRetry = 200 * time.Millisecond
	// verifyFailures in a row, with the target in sync, end it.
	verifyFailures = 20
	// maxToldDifferences make an event each.
	maxToldDifferences = 20

	verifyKeep = 10 * time.Second // between two notes of how far it is
)

// Verify starts a verify of the active target. It returns at once.
func (a *Agent) Verify(_ context.Context, o VerifyOptions) (VerifyReport, error) {
	side, err := o.side()
	if err != nil {
		return VerifyReport{}, err
	}
	if o.RateBytes < 0 {
		return VerifyReport{}, fmt.Errorf("rate %d: must not be negative", o.RateBytes)
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	target, err := a.verifyTarget()
	if err != nil {
		return VerifyReport{}, err
	}
	r, err := a.checks.before(target, o)
	if err != nil {
		return VerifyReport{}, err
	}
	r.State, r.Reason, r.Target, r.Options, r.Ended = VerifyRunning, "", target, o, time.Time{}
	r.TotalBytes = a.v.size.Load()
	t := &verifyTally{r: r, began: time.Now(), from: r.DoneBytes}
	told := 0
	t.found = func(d Difference) {
		if told++; told <= maxToldDifferences { // the report has them all
			a.tellDifference(target, d)
		}
	}
	ctx, cancel := context.WithCancelCause(a.tasks)
	done := make(chan struct{})
	k := &a.checks
	k.mu.Lock()
	k.verify, k.stop, k.done = t, cancel, done
	k.mu.Unlock()
	a.event("verify-started", target, "the device is compared with that of %s from byte %d on", target, r.DoneBytes)
	a.spawn(func() {
		defer close(done)
		defer cancel(nil)
		a.runVerify(ctx, t, side)
	})
	return t.report(false, time.Now()), nil
}

// before is what a new verify begins with: nothing, or what the last one left to be resumed.
func (k *checks) before(target string, o VerifyOptions) (VerifyReport, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var last VerifyReport
	if k.verify != nil {
		last = k.verify.report(true, time.Now())
	}
	switch {
	case last.running():
		return last, fmt.Errorf("refused: a verify is under way, %s of %s: mirror-agent verify --follow shows it, --stop ends it",
			humanize.IBytes(uint64(last.DoneBytes)), humanize.IBytes(uint64(last.TotalBytes)))
	case !o.Resume:
		return VerifyReport{Started: time.Now()}, nil
	case k.verify == nil:
		return last, errors.New("refused: there was no verify before: there is nothing to resume; mirror-agent verify begins one")
	case last.State == VerifyDone || last.Target != target:
		return last, fmt.Errorf("refused: the last verify, of %s, is %s: there is nothing to resume; mirror-agent verify begins a new one", last.Target, last.State)
	}
	return last, nil
}

func (o *VerifyOptions) side() (verifySide, error) {
	switch o.Repair {
	case "":
		return 0, nil
	case "source":
		return sideSource, nil
	case "target":
		return sideTarget, nil
	}
	return 0, fmt.Errorf("repair %q: choose source or target, whose bytes count", o.Repair)
}

// verifyTarget is what can be verified now.
func (a *Agent) verifyTarget() (string, error) {
	if err := a.v.Err(); err != nil {
		return "", fmt.Errorf("refused: %w", err)
	}
	if a.v.Role() != RolePrimary {
		where := "on its source's host"
		if l := a.inboundLink(); l != nil {
			where = "on " + l.Peer() + ", its source"
		}
		return "", fmt.Errorf("refused: this volume is secondary: run mirror-agent verify %s", where)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.fenced != "":
		return "", fmt.Errorf("refused: %s: %w", a.fenced, ErrFenced)
	case len(a.followers) == 0:
		return "", fmt.Errorf("refused: %w; there is nothing to compare with", errNoTarget)
	case a.closed:
		return "", ErrClosed
	}
	f := a.followers[min(a.current, len(a.followers)-1)]
	if f.state != FollowerStreaming {
		return "", fmt.Errorf("refused: %s is %s: wait until it is in sync (mirror-agent status), then verify", f.target, f.state)
	}
	return f.target, nil
}

// errStopped ends a verify by the operator's order.
var errStopped = errors.New("by the operator")

// StopVerify ends the verify that runs; how far it came is kept.
func (a *Agent) StopVerify(ctx context.Context) (VerifyReport, error) {
	k := &a.checks
	k.mu.Lock()
	t, stop, done := k.verify, k.stop, k.done
	k.mu.Unlock()
	if t == nil || stop == nil {
		return VerifyReport{}, errors.New("refused: no verify is under way")
	}
	if r := t.report(false, time.Now()); !r.running() {
		return VerifyReport{}, fmt.Errorf("refused: no verify is under way, the last one is %s", r.State)
	}
	stop(errStopped)
	select {
	case <-done:
		return t.report(false, time.Now()), nil
	case <-ctx.Done():
		return VerifyReport{}, ctx.Err()
	}
}

// VerifyReport tells of the verify that runs or ran last, with the differences. ErrNoVerify: there was none.
func (a *Agent) VerifyReport(context.Context) (VerifyReport, error) {
	a.checks.mu.Lock()
	t := a.checks.verify
	a.checks.mu.Unlock()
	if t == nil {
		return VerifyReport{}, ErrNoVerify
	}
	return t.report(true, time.Now()), nil
}

// ErrNoVerify: nothing was compared yet.
var ErrNoVerify = errors.New("no verify was run here yet: mirror-agent verify starts one")

func (a *Agent) tellDifference(target string, d Difference) {
	text := fmt.Sprintf("%d bytes at %d, LSN %d: %s", d.Length, d.Offset, d.LSN, d.Kind)
	switch {
	case d.Repaired != "":
		text += ", repaired " + d.Repaired
	case d.Why != "":
		text += ", not repaired: " + d.Why
	}
	a.event("verify-difference", target, "%s", text)
}

// runVerify goes over the device, and ends with a state that says how that went.
func (a *Agent) runVerify(ctx context.Context, t *verifyTally, side verifySide) {
	a.keepChecks()
	state, reason := a.verifyAll(ctx, t, side)
	t.change(func(r *VerifyReport) { r.State, r.Reason, r.Ended = state, reason, time.Now() })
	a.keepChecks()
	r := t.report(false, time.Now())
	kind, text := "verify-"+state, fmt.Sprintf("%s of %s: %s%s", humanize.IBytes(uint64(r.DoneBytes)), humanize.IBytes(uint64(r.TotalBytes)), r.Found(), reasonSuffix(reason))
	a.event(kind, r.Target, "%s", text)
}

func (a *Agent) verifyAll(ctx context.Context, t *verifyTally, side verifySide) (state, reason string) {
	r := t.report(false, time.Now())
	sample := a.loadNow
	if r.Options.NoYield {
		sample = nil
	}
	pace := newYieldPace(r.Options.RateBytes, sample)
	var c *comparer
	kept, failures := time.Now(), 0
	for off := r.DoneBytes; off < a.v.size.Load(); {
		s, why := a.verifySender(r.Target)
		if why != "" {
			return VerifyFailed, why
		}
		err := errNotInSync
		if s != nil {
			if c == nil || c.sender != s {
				if c, err = newComparer(s, r.Options.Direct, side, t); err != nil {
					return VerifyFailed, err.Error()
				}
			}
			t.change(func(r *VerifyReport) { r.State, r.Reason = VerifyRunning, "" })
			off, err = a.verifyNext(ctx, c, pace, off)
		}
		switch {
		case ctx.Err() != nil:
			if errors.Is(context.Cause(ctx), errStopped) {
				return VerifyStopped, errStopped.Error()
			}
			return VerifyInterrupted, "the agent ended"
		case err == nil:
			failures = 0
		case errors.Is(err, errNotInSync):
			t.change(func(r *VerifyReport) { r.State, r.Reason = VerifyWaiting, err.Error() })
		default:
			if failures++; failures == verifyFailures {
				return VerifyFailed, err.Error()
			}
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(verifyRetry):
			}
		}
		if time.Since(kept) >= verifyKeep {
			a.keepChecks()
			kept = time.Now()
		}
	}
	return VerifyDone, ""
}

// verifyNext compares the next chunk, when it is time for it.
func (a *Agent) verifyNext(ctx context.Context, c *comparer, pace *yieldPace, off int64) (int64, error) {
	next, err := c.step(ctx, off, func() (int64, error) {
		chunk := pace.chunk(maxVerifyChunk)
		return chunk, pace.wait(ctx, chunk, c.inSync)
	})
	if err != nil {
		return off, err
	}
	c.tally.change(func(r *VerifyReport) {
		r.DoneBytes, r.TotalBytes, r.Yields = next, a.v.size.Load(), pace.busy
		if r.RateBytes = 0; pace.rate < paceFree {
			r.RateBytes = int64(pace.rate)
		}
	})
	return next, nil
}

// verifySender is the sender that streams to target now, nil when none does; why it never will again.
func (a *Agent) verifySender(target string) (_ *sender, why string) {
	if err := a.v.Err(); err != nil {
		return nil, err.Error()
	}
	a.mu.Lock()
	fenced, current := a.fenced, ""
	if len(a.followers) > 0 {
		current = a.followers[min(a.current, len(a.followers)-1)].target
	}
	a.mu.Unlock()
	switch {
	case fenced != "":
		return nil, fenced
	case a.v.Role() != RolePrimary:
		return nil, fmt.Sprintf("another host leads now, generation %s", rankString(a.v.Seen()))
	case current != target:
		return nil, fmt.Sprintf("the data flow moved to %s", current)
	}
	return a.streamingSender(), ""
}

// loadNow is what the applications have done by now.
func (a *Agent) loadNow() loadSample {
	f, l := a.front.Stats(), a.v.log.Stats()
	return loadSample{
		ops:  f.Reads + f.Writes + f.Flushes,
		took: time.Duration(l.AppendTime.Sum) + time.Duration(a.v.flushTook.Load()),
		of:   l.AppendTime.Count + a.v.flushes.Load(),
	}
}
