package mirror

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
)

// A resync is a fuzzy copy (DESIGN: section 6): the source notes where its
// log is, copies what differs while the stream goes on, and the follower is
// consistent at the LSN reached at the end, where its log then begins.
//
// One goroutine sends both blocks and records, and yields to the applications
// between chunks (see yieldpace.go): records always go first. A block is read after all
// records sent so far were written, so whatever it shows too early comes
// again as a record, in order, before the end; that makes the copy right
// without any lock against the writers.

// resyncProgress is read by the status while the sender works.
type resyncProgress struct {
	zeroed            bool // the follower reads as zeroes: nothing to compare
	done, total, sent atomic.Int64
	started           atomic.Int64 // unix ns
	yieldsTo          atomic.Int64 // bytes per second, 0: it does not
}

func (p *resyncProgress) begin(total int64) {
	p.total.Store(total)
	p.done.Store(0)
	p.sent.Store(0)
	p.yieldsTo.Store(0)
	p.started.Store(time.Now().UnixNano())
}

func (p *resyncProgress) status() *Progress {
	at := p.started.Load()
	if at == 0 {
		return nil
	}
	return &Progress{DoneBytes: p.done.Load(), TotalBytes: p.total.Load(), SentBytes: p.sent.Load(), Started: time.Unix(0, at), YieldsTo: p.yieldsTo.Load()}
}

// runResync makes the follower equal and leaves s.sent where its log begins.
func (s *sender) runResync(ctx context.Context, out outcome) (err error) {
	c, err := newCopier(s)
	if err != nil {
		return err
	}
	p := &s.resync
	defer p.started.Store(0)
	done := Resynced{All: true, Started: time.Now()}
	defer func() {
		if err == nil {
			done.Reason, done.Ended = out.reason, time.Now()
			done.LookedAtBytes, done.SentBytes = p.total.Load(), p.sent.Load()
			s.resynced(done)
		}
	}()
	if out.kind == outcomePartial {
		compare, err := c.partial(ctx, out)
		if err != nil || compare == "" {
			done.All = false
			return err
		}
		out.reason = fmt.Sprintf("a partial resync cannot be, %s: all blocks are compared", compare)
	}
	s.report(followerNeedsResync, out.reason)
	s.sent = s.v.log.Head()
	s.hold.move(s.sent)
	c.size = s.v.size.Load() // after sent: a resize that this has not seen is a record that follows, and ends the resync
	begin := resyncBegin{From: s.sent, Size: c.size}
	if _, err := s.callResync(ctx, encodeJSON(kindResync, begin)); err != nil {
		return err
	}
	p.begin(c.size)
	if p.zeroed {
		err = c.copyData(ctx)
	} else {
		err = c.compareAll(ctx)
	}
	if err != nil {
		return err
	}
	return s.endResync(ctx)
}

// drainRecords sends what the log holds now.
func (s *sender) drainRecords(ctx context.Context) error {
	for head := s.v.log.Head(); s.sent < head; {
		if err := s.sendRecords(ctx); err != nil {
			return err
		}
		s.hold.move(s.sent)
	}
	// The log shows records an instant before reads do: a block must be read
	// with all in it that was sent.
	for s.v.overlay.end() < s.sent {
		runtime.Gosched()
	}
	return nil
}

func (s *sender) endResync(ctx context.Context) error {
	if err := s.drainRecords(ctx); err != nil {
		return err
	}
	// What the follower will call committed must be durable here (G3).
	if _, err := s.v.log.Sync(s.sent); err != nil {
		return s.v.journalError(err)
	}
	chain, err := s.v.log.ChainAt(s.sent)
	if err != nil {
		return fmt.Errorf("chain at LSN %d: %w", s.sent, err)
	}
	gs := keepBelow(s.v.History(), s.sent)
	_, err = s.callResync(ctx, encodeJSON(kindResyncEnd, resyncEnd{At: s.sent, Chain: chain, Generations: gs}))
	return err
}

func (s *sender) callResync(ctx context.Context, msg []byte) (r resyncReply, err error) {
	b, err := s.l.Call(ctx, msg)
	if err != nil {
		return r, fmt.Errorf("resync: %w", err)
	}
	if err := decodeJSON(b, &r); err != nil {
		return r, fmt.Errorf("resync: %w", err)
	}
	if r.Refused != "" {
		return r, &refusedError{kind: outcomeRefused, reason: r.Refused, retry: min(time.Duration(r.RetryMillis)*time.Millisecond, maxStageWait)}
	}
	return r, nil
}
