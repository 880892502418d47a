package dataport_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mirror-agent/dataport"
)

// entry is a message that a courier has sent, or may have.
type entry struct {
	n       uint32
	receipt *dataport.Receipt // nil: a call
	over    bool              // the call has returned
	err     error             // of the call
}

// courier is one goroutine that sends: what it gets through on a session must arrive in this order.
type courier struct {
	id   uint32
	jobs chan job
	done chan struct{}

	mu   sync.Mutex
	n    uint32
	sent map[dataport.SessionID][]*entry
	by   map[dataport.SessionID]*dataport.Session
	bad  string
}

type job struct {
	session func() *dataport.Session
	count   int
	size    int
	call    bool
	patient time.Duration // for a place in the window, or for the reply; 0: as long as it takes
}

// newCourier starts one; ctx ends what still blocks.
func newCourier(ctx context.Context, id uint32) *courier {
	f := &courier{id: id, jobs: make(chan job, 64), done: make(chan struct{}), sent: map[dataport.SessionID][]*entry{}, by: map[dataport.SessionID]*dataport.Session{}}
	go func() {
		defer close(f.done)
		for j := range f.jobs {
			for i := 0; i < j.count && ctx.Err() == nil; i++ {
				f.one(ctx, j)
			}
		}
	}()
	return f
}

func (f *courier) give(j job) {
	select {
	case f.jobs <- j:
	default: // it is behind: enough to do
	}
}

func (f *courier) one(ctx context.Context, j job) {
	s := j.session()
	if s == nil {
		return
	}
	if j.patient > 0 {
		limited, cancel := context.WithTimeout(ctx, j.patient)
		defer cancel()
		ctx = limited
	}
	f.mu.Lock()
	e := &entry{n: f.n}
	f.n++
	f.by[s.ID()] = s
	if j.call {
		f.sent[s.ID()] = append(f.sent[s.ID()], e)
	}
	f.mu.Unlock()
	parts := numbered(f.id, e.n, j.size)
	if j.call {
		reply, err := s.Call(ctx, parts...)
		f.mu.Lock()
		defer f.mu.Unlock()
		e.over, e.err = true, err
		var remote *dataport.RemoteError
		switch isRemote := errors.As(err, &remote); {
		case isRemote && e.n%7 == 3 && remote.Text == fmt.Sprintf("no to %d", e.n):
			e.err = nil
		case isRemote:
			f.bad = fmt.Sprintf("call %d: %v", e.n, err)
		case err == nil && (e.n%7 == 3 || string(reply) != string(parts[0][:8])):
			f.bad = fmt.Sprintf("call %d: reply %x", e.n, reply)
		case err != nil && !errors.Is(err, dataport.ErrSessionLost) && ctx.Err() == nil:
			f.bad = fmt.Sprintf("call %d: %v", e.n, err)
		}
		return
	}
	r, err := s.Send(ctx, parts...)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		e.receipt = r
		f.sent[s.ID()] = append(f.sent[s.ID()], e)
	case !errors.Is(err, dataport.ErrSessionLost) && ctx.Err() == nil:
		f.bad = fmt.Sprintf("send %d: %v", e.n, err)
	}
}

// check compares what was sent with what the other side's client was handed.
func (f *courier) check(other *witness) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	if f.bad != "" {
		return fmt.Errorf("flow %d: %s", f.id, f.bad)
	}
	for id, sent := range f.sent {
		if err := checkStream(sent, other.got[streamKey{id, f.id}], f.by[id].Err()); err != nil {
			return fmt.Errorf("flow %d on session %s: %w", f.id, id, err)
		}
	}
	for k, got := range other.got {
		if k.flow == f.id && f.sent[k.session] == nil {
			return fmt.Errorf("flow %d: %v was delivered on session %s, where nothing was sent", f.id, got, k.session)
		}
	}
	return nil
}

// checkStream: got is what was sent, in order and once; without what was not admitted; all of it when the session lives,
// and never less than what a receipt said.
func checkStream(sent []*entry, got []uint32, lost error) error {
	failed := false // a receipt: none after it may succeed
	for i, e := range sent {
		delivered := len(got) > 0 && got[0] == e.n
		if delivered {
			got = got[1:]
		}
		err := e.err
		if e.receipt != nil {
			select {
			case <-e.receipt.Done():
				err = e.receipt.Err()
			default:
				return fmt.Errorf("receipt of message %d (%d of %d) is still open, session error %v", e.n, i, len(sent), lost)
			}
		} else if !e.over {
			return fmt.Errorf("call %d has not returned", e.n)
		}
		switch {
		case err == nil && !delivered:
			return fmt.Errorf("receipt %d succeeded, not delivered; next is %v", e.n, got)
		case err == nil && failed && e.receipt != nil:
			return fmt.Errorf("receipt %d succeeded after one that failed", e.n)
		case errors.Is(err, dataport.ErrSessionLost) && lost == nil:
			return fmt.Errorf("message %d: %w, and the session lives", e.n, err)
		case err != nil && e.receipt != nil && !errors.Is(err, dataport.ErrSessionLost):
			return fmt.Errorf("receipt %d: %w", e.n, err)
		}
		failed = failed || err != nil && e.receipt != nil
	}
	if len(got) > 0 {
		return fmt.Errorf("delivered beside what was sent, out of order or twice: %v", got)
	}
	return nil
}
