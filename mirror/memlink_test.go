package mirror

import (
	"context"
	"errors"
	"sync"
)

// memLink is a link in memory: ordered delivery to one handler on the other
// side, cut at any time. pair returns both ends.
type memLink struct {
	name  string
	other *memLink
	once  *sync.Once
	done  chan struct{}

	queue chan memMessage
}

type memMessage struct {
	b     []byte
	reply chan memReply // of a call
	taken chan struct{}
}

type memReply struct {
	b   []byte
	err error
}

var errLinkCut = errors.New("link cut")

// pair returns two ends; each delivers to its handler in its own goroutine
// until the link is cut.
func pair() (*memLink, *memLink) {
	done, once := make(chan struct{}), new(sync.Once)
	a := &memLink{name: "a", once: once, done: done, queue: make(chan memMessage, 8)}
	b := &memLink{name: "b", once: once, done: done, queue: make(chan memMessage, 8)}
	a.other, b.other = b, a
	return a, b
}

func (l *memLink) serve(wg *sync.WaitGroup, handler func(ctx context.Context, b []byte) ([]byte, error)) {
	wg.Add(1)
	go func() {
		defer wg.Done()
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-l.done; cancel() }()
		for {
			select {
			case m := <-l.queue:
				select {
				case <-l.done:
					return
				default:
				}
				b, err := handler(ctx, m.b)
				close(m.taken)
				if m.reply != nil {
					m.reply <- memReply{b, err}
				}
			case <-l.done:
				return
			}
		}
	}()
}

func (l *memLink) cut() { l.once.Do(func() { close(l.done) }) }

type memReceipt chan struct{}

func (r memReceipt) Done() <-chan struct{} { return r }

func (l *memLink) push(ctx context.Context, m memMessage) error {
	select {
	case l.other.queue <- m:
		return nil
	case <-l.done:
		return errLinkCut
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *memLink) Send(ctx context.Context, parts ...[]byte) (receipt, error) {
	m := memMessage{taken: make(chan struct{})}
	for _, p := range parts {
		m.b = append(m.b, p...)
	}
	if err := l.push(ctx, m); err != nil {
		return nil, err
	}
	return memReceipt(m.taken), nil
}

func (l *memLink) Call(ctx context.Context, parts ...[]byte) ([]byte, error) {
	m := memMessage{taken: make(chan struct{}), reply: make(chan memReply, 1)}
	for _, p := range parts {
		m.b = append(m.b, p...)
	}
	if err := l.push(ctx, m); err != nil {
		return nil, err
	}
	select {
	case r := <-m.reply:
		return r.b, r.err
	case <-l.done:
		return nil, errLinkCut
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memLink) Done() <-chan struct{} { return l.done }
func (l *memLink) Err() error            { return errLinkCut }
func (l *memLink) Peer() string          { return l.name }
