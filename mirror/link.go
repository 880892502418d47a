package mirror

import "context"

// link is one session with a peer: ordered, exactly once, for good gone when
// done. The data port's sessions are links; tests have one in memory.
type link interface {
	// Send queues a message; it blocks while the peer's window is full. The
	// parts belong to the link until the receipt is done.
	Send(ctx context.Context, parts ...[]byte) (receipt, error)
	// Call sends a message and returns the peer's reply.
	Call(ctx context.Context, parts ...[]byte) ([]byte, error)
	Done() <-chan struct{}
	Err() error
	Peer() string
}

// receipt of a message: done when the peer has taken it, or the link is gone.
type receipt interface {
	Done() <-chan struct{}
}
