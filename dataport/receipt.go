package dataport

import (
	"context"
	"time"
)

// Receipt follows one message. It is done when the peer's client has consumed the message (its OnMessage returned), or
// when the session ended before that was known. Until then the port owns the parts given to Send.
type Receipt struct {
	done chan struct{} // closed by the session, once
	err  error         // written before done is closed
}

// Done is closed when the message is consumed or failed.
func (r *Receipt) Done() <-chan struct{} { return r.done }

// Err returns nil while the receipt is open and when the message was consumed, else a *SessionError (ErrSessionLost).
func (r *Receipt) Err() error {
	select {
	case <-r.done:
		return r.err
	default:
		return nil
	}
}

// Wait waits for the receipt. When ctx ends first its error is returned and the message stays on its way.
func (r *Receipt) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// outMsg is a message on its way to the peer. All fields are guarded by the session's mutex; parts are read without it
// by a path's writer while writing > 0.
type outMsg struct {
	Receipt
	parts   [][]byte
	size    int     // of the parts
	need    int     // of the send window
	packed  *buffer // the only part, when the message goes packed
	cut     int     // bytes that are in frames already
	typ     frameType
	flags   frameFlags // flagCall, flagError, flagPacked
	call    uint64
	first   uint64 // sequence of its first frame, once there is one
	last    uint64 // sequence of its last frame, once allCut
	allCut  bool
	over    bool  // consumed or failed; finished when writing is 0 too
	failure error // what the receipt says when over
	writing int   // frames of it inside a write
}

// outFrame is a piece of a message. It lives until the peer's port has acknowledged it.
type outFrame struct {
	msg   *outMsg
	seq   uint64
	off   int
	n     int
	path  *path  // that has it; nil: waits to go out again
	not   *path  // while it waits: on which it is stuck
	end   uint64 // where it ends among the bytes written to path; 0: not yet written there
	acked bool
	sends int

	rescued time.Duration // when it last went out again because it was stuck
}

func (f *outFrame) cost() int { return f.n + frameCost }

// deque is a queue in a slice that is reused.
type deque[T any] struct {
	items []T
	head  int
}

func (d *deque[T]) len() int   { return len(d.items) - d.head }
func (d *deque[T]) at(i int) T { return d.items[d.head+i] }
func (d *deque[T]) push(v T)   { d.items = append(d.items, v) }
func (d *deque[T]) pop() T {
	var zero T
	v := d.items[d.head]
	d.items[d.head] = zero
	d.head++
	if d.head >= 64 && d.head*2 >= len(d.items) {
		n := copy(d.items, d.items[d.head:])
		clear(d.items[n:])
		d.items, d.head = d.items[:n], 0
	}
	return v
}
