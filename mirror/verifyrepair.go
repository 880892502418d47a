package mirror

import (
	"context"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// What differs is repaired by an ordinary record: the bytes of the side that counts, once more, in the source's log. It goes to the
// followers in the order of writes, is durable, declared and applied like any other, and no crash can leave half of it. It is
// entered only if nobody has written there since the bytes were read (journal.AppendUnless): an application's write is never
// undone, and none waits.
//
// The source's bytes count: they are what the applications see. Where one side's disk does not give them the other's do,
// and with sideTarget the follower's, for an operator who knows that the source's disk is the bad one.

// repairTries is how often the application may write in between; then the block is found equal or the next verify sees it.
const repairTries = 8

// mend repairs d, and says in it what became of it. An error is none of d's.
func (c *comparer) mend(ctx context.Context, d *Difference, v verdict) error {
	from := c.repair
	switch v {
	case unitUnreadable:
		d.Why = "neither side's disk gives it"
		return nil
	case unitUnreadableHere:
		from = sideTarget
	case unitUnreadableThere:
		from = sideSource
	}
	for range repairTries {
		why, overtaken, err := c.rewrite(ctx, d, from)
		if err != nil || why != "" {
			d.Why = why
			return err
		}
		vs, _, err := c.exactly(ctx, d.Offset, d.Offset+d.Length)
		if err != nil {
			d.Why = "written again, and not looked at since"
			return err
		}
		if equal(vs) {
			if d.Repaired = repairedFrom[from]; overtaken {
				d.Repaired = "by an application's write"
			}
			return nil
		}
	}
	d.Why = "differs still, after it was written again: look at the disks"
	return nil
}

var repairedFrom = map[verifySide]string{sideSource: "from the source", sideTarget: "from the target"}

func equal(vs []verdict) bool {
	for _, v := range vs {
		if v != unitEqual {
			return false
		}
	}
	return true
}

// rewrite enters the bytes of one side into the log; why says that they cannot be had. Overtaken by somebody else's write
// it enters nothing.
func (c *comparer) rewrite(ctx context.Context, d *Difference, from verifySide) (why string, overtaken bool, err error) {
	w, at := c.v.overlay.watch(d.Offset, d.Offset+d.Length, 0)
	defer w.stop()
	var p []byte
	if from == sideSource {
		var bad []bool
		if p, bad, _, err = c.r.capture(ctx, d.Offset, d.Offset+d.Length, verifyUnitBytes); err != nil {
			return "", false, err
		}
		for _, b := range bad {
			if b {
				return "the source's disk does not give it", false, nil
			}
		}
	} else {
		r, err := c.ask(ctx, &verifyRequest{what: verifyBytes, direct: c.r.below, unit: verifyUnitBytes, notBefore: at, off: d.Offset, end: d.Offset + d.Length})
		switch {
		case err != nil:
			return "", false, err
		case r.status == verifyUnreadable:
			return fmt.Sprintf("the target's disk does not give it: %s", r.body), false, nil
		case int64(len(r.body)) != d.Length:
			return "", false, fmt.Errorf("%w: %d bytes instead of %d", errMessage, len(r.body), d.Length)
		}
		p = r.body
	}
	e := &journal.Entry{Op: journal.OpWrite, Offset: uint64(d.Offset), Length: uint32(d.Length), Payload: p}
	if allZero(p) {
		e.Op, e.Payload = journal.OpZero, nil
	}
	err = c.v.appendUnless(ctx, e, w.any)
	if errors.Is(err, journal.ErrStale) {
		return "", true, nil
	}
	return "", false, err
}

// appendUnless enters e unless stale says otherwise when it is its turn. It stands in no line: it may wait for as long as others
// fill the log.
func (v *Volume) appendUnless(ctx context.Context, e *journal.Entry, stale func() bool) error {
	for {
		moved, err := v.watch()
		if err != nil {
			return err
		}
		if err := v.gate.Load().admit(ctx); err != nil {
			return err
		}
		if err := v.writable(); err != nil {
			return err
		}
		err = v.log.AppendUnless([]*journal.Entry{e}, stale)
		if err == nil {
			v.pace()
			return nil
		}
		if !isFull(err) || errors.Is(err, journal.ErrTooLarge) {
			return v.journalError(err)
		}
		if err := v.awaitRoom(ctx, moved); err != nil {
			return err
		}
	}
}
