package mirror

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"mirror-agent/journal"
)

// verifyServer is a follower's side of a verify, one for each session. A request comes in the order of the stream, so at is
// where the log ends at that moment. A scan is read beside the stream, which goes on and marks what it changes; everything else
// is short and read at once.
type verifyServer struct {
	v *Volume
	l link

	mu     sync.Mutex // guards below
	cancel context.CancelFunc
	done   chan struct{} // closed at the end of the scan that runs, nil before the first
	closed bool
}

// close ends the scan that runs, and waits for it.
func (s *verifyServer) close() { s.end(true) }

func (s *verifyServer) end(forGood bool) {
	s.mu.Lock()
	s.closed = s.closed || forGood
	cancel, done := s.cancel, s.done
	s.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// handle answers a request; refused is why this volume cannot be compared now, or "".
func (s *verifyServer) handle(b []byte, refused string) ([]byte, error) {
	q, err := decodeVerifyRequest(b)
	if err != nil {
		return nil, err
	}
	reply := verifyReply{status: verifyRefused, body: []byte(refused)}
	if refused == "" {
		if reply, err = s.answer(&q); err != nil {
			return nil, err
		}
	}
	return reply.encode(), nil
}

func (s *verifyServer) answer(q *verifyRequest) (verifyReply, error) {
	if end := s.v.overlay.end(); end < q.notBefore {
		return verifyReply{status: verifyNotYet, at: end}, nil
	}
	if size := s.v.size.Load(); q.end > size { // it has all resizes that the source had
		return verifyReply{}, fmt.Errorf("%w: verify up to %d on a device of %d bytes", errMessage, q.end, size)
	}
	r := newVerifyReader(s.v, q.direct)
	unit := q.unit
	if q.what == verifyHole || q.what == verifyBytes {
		unit = 0
	}
	w, at := s.v.overlay.watch(q.off, q.end, unit)
	if q.what == verifyScan {
		return s.begin(q, r, w, at), nil
	}
	defer w.stop()
	reply := verifyReply{at: at}
	switch q.what {
	case verifySums:
		sums, err := r.sums(context.Background(), &q.key, q.off, q.end, q.unit)
		if err != nil {
			return reply, err
		}
		reply.body = appendSums(nil, w.mark(sums))
	case verifyHole:
		to, dataEnd := r.holeTo(q.off, q.end)
		reply.body = binary.LittleEndian.AppendUint64(nil, uint64(min(to, w.untouchedTo())))
		reply.body = binary.LittleEndian.AppendUint64(reply.body, uint64(dataEnd))
	case verifyBytes:
		reply.body = make([]byte, q.end-q.off)
		if err := s.v.readOver(r, reply.body, q.off); err != nil {
			if err := r.fatal(err); err != nil {
				return reply, err
			}
			reply.status, reply.body = verifyUnreadable, []byte(err.Error())
		} else if w.any() {
			reply.status, reply.body = verifyNotYet, nil
		}
	}
	reply.below = r.below
	return reply, nil
}

// mark says of the sums of a watch's blocks which of them count: a block that was written since may have been read in between.
func (w *watch) mark(sums []blockSum) []blockSum {
	w.o.mu.RLock()
	defer w.o.mu.RUnlock()
	for i, touched := range w.changed {
		if touched {
			sums[i] = blockSum{state: sumTouched}
		}
	}
	return sums
}

// holeTo returns up to where from off on there is nothing, and where the data ends that comes then.
func (r *verifyReader) holeTo(off, end int64) (to, dataEnd int64) {
	start, dataEnd, err := r.v.nextData(off)
	switch {
	case errors.Is(err, io.EOF):
		return end, end
	case err != nil:
		return off, off
	}
	return min(max(start, off), end), dataEnd
}

// begin starts a scan, in place of the one before.
func (s *verifyServer) begin(q *verifyRequest, r *verifyReader, w *watch, at journal.LSN) verifyReply {
	s.end(false)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		cancel()
		w.stop()
		return verifyReply{status: verifyRefused, body: []byte("the session is ending")}
	}
	s.cancel, s.done = cancel, done
	s.mu.Unlock()
	go func() {
		defer close(done)
		defer cancel()
		defer w.stop()
		sums, err := r.sums(ctx, &q.key, q.off, q.end, q.unit)
		if err != nil {
			return // the volume or the session has ended, and the source sees that
		}
		a := verifyAnswer{below: r.below, number: q.number, at: at, sums: w.mark(sums)}
		_, _ = s.l.Send(ctx, a.encode())
	}()
	return verifyReply{at: at}
}

// verifyRefusal says why this follower cannot be compared now, or "".
func (r *receiver) verifyRefusal() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.v.Role() != RoleSecondary:
		return r.node + " is " + r.v.Role().String()
	case !r.started || r.staging != nil || r.v.flags()&(stateBlank|stateMerging) != 0:
		return r.node + " is not in sync"
	case r.v.damageNow() != nil:
		return "the log of " + r.node + " is damaged"
	}
	return ""
}
