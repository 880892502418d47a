package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"mirror-agent/dataport"
)

// portUser is a client of the data port that keeps a ledger: a line for every
// message that it sent and for every one that it was handed, by session and stream.
// A stream is what one goroutine sends, so that its order is known.
type portUser struct {
	name        string
	reg         *dataport.Registration
	handed      atomic.Uint64
	handedBytes atomic.Uint64

	mu      sync.Mutex // guards the fields below
	port    *dataport.Port
	events  []eventLine
	rules   []*eventRule
	inbound []*dataport.Session // living, oldest first
	books   map[bookKey]*book
	lastSeq map[dataport.SessionID]uint64
	numbers map[byte]uint64 // last one of each stream
	loads   map[byte]*portLoad
	diary   *diary        // nil: none
	stalled chan struct{} // closed at the end of a stall; nil: none
	stallAt uint64        // messages handed over by when it begins
	faults  []string      // what must never happen, and did
}

type bookKey struct {
	Session string
	Stream  byte
	Sent    bool // else received
	Inbound bool // the session came in here
}

// book has 16 bytes for every message: its number and its hash.
type book struct {
	from      int // lines taken away before
	lines     []byte
	stateFrom int
	states    []byte // of what was sent: open, consumed, lost
	pending   bool   // the last line is about to be sent, and may be taken back
	unsettled int
}

const (
	stateOpen byte = iota
	stateConsumed
	stateLost
)

// bookPage is what a book has got since the last time.
type bookPage struct {
	bookKey
	Lines, States []byte
	Living        bool // the session still is
}

// eventLine is a dataport.Event as others see it.
type eventLine struct {
	Kind    string
	Path    uint32
	Target  string
	Reason  string
	Session string
	Inbound bool // of a session that came in
	At      time.Time
}

// eventRule is what the callback does at an event, inside the callback.
type eventRule struct {
	Kind  string
	Do    string // switch, close, sleep
	For   time.Duration
	spent bool
}

// loadSettings say what to send: Count messages, or without end.
type loadSettings struct {
	Stream  byte
	Kind    string // send, call, failing-call
	Count   int
	Size    int // least
	Spread  int // and up to so much more
	Pause   time.Duration
	Inbound bool // on the newest session that came in
	Seed    uint64
}

type portLoad struct {
	s      loadSettings
	cancel context.CancelFunc
	done   chan struct{}
}

const (
	messageHead  = 16 // magic, kind, stream, number
	messageMagic = "LDG1"
	noiseBytes   = 4 << 20
)

// ledgerNoise is what messages are made of: each takes another piece of it.
var ledgerNoise = sync.OnceValue(func() []byte {
	p := make([]byte, noiseBytes)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(p)
	return p
})

func newPortUser(name string) *portUser {
	return &portUser{name: name, books: map[bookKey]*book{}, lastSeq: map[dataport.SessionID]uint64{}, numbers: map[byte]uint64{}, loads: map[byte]*portLoad{}}
}

// OnMessage enters a message into the ledger and answers a call with its hash.
func (u *portUser) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) {
	u.mu.Lock()
	wait := u.stalled
	if u.handed.Load() < u.stallAt {
		wait = nil
	}
	u.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
	u.handed.Add(1)
	u.handedBytes.Add(uint64(len(m.Payload)))
	if len(m.Payload) < messageHead || string(m.Payload[:4]) != messageMagic {
		return nil, nil // one outside of the ledger
	}
	failing, stream, number := m.Payload[4] == 1, m.Payload[5], binary.LittleEndian.Uint64(m.Payload[8:])
	hash := xxhash.Sum64(m.Payload)
	u.mu.Lock()
	defer u.mu.Unlock()
	if last := u.lastSeq[m.Session.ID()]; m.Seq <= last {
		u.faults = append(u.faults, fmt.Sprintf("session %s: message of sequence %d after that of %d", m.Session.ID(), m.Seq, last))
	}
	u.lastSeq[m.Session.ID()] = m.Seq
	u.enter(u.key(m.Session, stream, false), number, hash)
	u.noteInbound(m.Session)
	if !m.Call {
		return nil, nil
	}
	if failing {
		return nil, fmt.Errorf("refused %d", number)
	}
	return binary.LittleEndian.AppendUint64(nil, hash), nil
}

func (u *portUser) key(s *dataport.Session, stream byte, sent bool) bookKey {
	return bookKey{s.ID().String(), stream, sent, s.Peer().Inbound}
}

// enter writes a line into the ledger, and into the diary when there is one; u.mu is held.
func (u *portUser) enter(k bookKey, number, hash uint64) (b *book, line int) {
	b = u.books[k]
	if b == nil {
		b = &book{}
		u.books[k] = b
	}
	b.lines = binary.LittleEndian.AppendUint64(b.lines, number)
	b.lines = binary.LittleEndian.AppendUint64(b.lines, hash)
	u.diary.note(k, number, hash)
	return b, b.from + len(b.lines)/16 - 1
}

// settle notes the fate of a message that was sent.
func (u *portUser) settle(b *book, line int, state byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	b.states[line-b.stateFrom] = state
	b.unsettled--
}

// noteInbound keeps the list of sessions that came in; u.mu is held.
func (u *portUser) noteInbound(s *dataport.Session) {
	if s == nil || !s.Peer().Inbound || slices.Contains(u.inbound, s) || s.Err() != nil {
		return
	}
	u.inbound = append(u.inbound, s)
}

// session to send on, nil when there is none.
func (u *portUser) session(inbound bool) *dataport.Session {
	if p := u.thePort(); p != nil && !inbound {
		return p.Session()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inbound = slices.DeleteFunc(u.inbound, func(s *dataport.Session) bool { return s.Err() != nil })
	if len(u.inbound) == 0 {
		return nil
	}
	return u.inbound[len(u.inbound)-1]
}

// stall has the client take nothing any more after so many further messages, or ends that.
func (u *portUser) stall(on bool, after int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stalled != nil {
		close(u.stalled)
		u.stalled = nil
	}
	if on {
		u.stalled, u.stallAt = make(chan struct{}), u.handed.Load()+uint64(after)
	}
}

func (u *portUser) startLoad(s *loadSettings) error {
	ctx, cancel := context.WithCancel(context.Background())
	l := &portLoad{s: *s, cancel: cancel, done: make(chan struct{})}
	u.mu.Lock()
	defer u.mu.Unlock()
	if old := u.loads[s.Stream]; old != nil {
		select {
		case <-old.done:
		default:
			cancel()
			return fmt.Errorf("stream %d is in use", s.Stream)
		}
	}
	u.loads[s.Stream] = l
	go u.run(ctx, l)
	return nil
}

// stopLoad ends sending; what is on its way stays there.
func (u *portUser) stopLoad(stream byte) error {
	u.mu.Lock()
	l := u.loads[stream]
	u.mu.Unlock()
	if l == nil {
		return fmt.Errorf("no load on stream %d", stream)
	}
	l.cancel()
	<-l.done
	return nil
}

func (u *portUser) run(ctx context.Context, l *portLoad) {
	defer close(l.done)
	r := rand.New(rand.NewPCG(l.s.Seed, uint64(l.s.Stream)))
	for n := 0; (l.s.Count == 0 || n < l.s.Count) && ctx.Err() == nil; {
		s := u.session(l.s.Inbound)
		if s == nil {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if u.one(ctx, s, &l.s, r) {
			n++
		}
		if l.s.Pause > 0 {
			time.Sleep(l.s.Pause)
		}
	}
}

// one sends a message, or calls, and reports whether it entered the ledger.
func (u *portUser) one(ctx context.Context, s *dataport.Session, l *loadSettings, r *rand.Rand) bool {
	size := max(l.Size, messageHead)
	if l.Spread > 0 {
		size += r.IntN(l.Spread)
	}
	head, parts := make([]byte, messageHead), make([][]byte, 0, 2)
	copy(head, messageMagic)
	if l.Kind == "failing-call" {
		head[4] = 1
	}
	head[5] = l.Stream
	u.mu.Lock()
	u.numbers[l.Stream]++
	number := u.numbers[l.Stream]
	u.mu.Unlock()
	binary.LittleEndian.PutUint64(head[8:], number)
	parts = append(parts, head)
	for rest := size - messageHead; rest > 0; {
		p := ledgerNoise()
		at := r.IntN(len(p))
		p = p[at:min(len(p), at+rest)]
		parts, rest = append(parts, p), rest-len(p)
	}
	d := xxhash.New()
	for _, p := range parts {
		_, _ = d.Write(p)
	}
	u.mu.Lock()
	k := u.key(s, l.Stream, true)
	b, line := u.enter(k, number, d.Sum64())
	b.states = append(b.states, stateOpen)
	b.unsettled++
	b.pending = true
	u.mu.Unlock()
	if l.Kind == "send" {
		return u.send(ctx, s, k, b, line, parts)
	}
	u.sent(b)
	reply, err := s.Call(context.WithoutCancel(ctx), parts...)
	var remote *dataport.RemoteError
	state := stateConsumed
	switch {
	case errors.Is(err, dataport.ErrSessionLost):
		state = stateLost
	case l.Kind == "failing-call":
		if !errors.As(err, &remote) || remote.Text != fmt.Sprintf("refused %d", number) {
			u.fault("failing call %d: %v", number, err)
		}
	case err != nil || len(reply) != 8 || binary.LittleEndian.Uint64(reply) != d.Sum64():
		u.fault("call %d: reply %x, error %v; its hash is %x", number, reply, err, d.Sum64())
	}
	u.settle(b, line, state)
	return true
}

func (u *portUser) sent(b *book) {
	u.mu.Lock()
	defer u.mu.Unlock()
	b.pending = false
}

func (u *portUser) send(ctx context.Context, s *dataport.Session, k bookKey, b *book, line int, parts [][]byte) bool {
	receipt, err := s.Send(ctx, parts...)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, dataport.ErrSessionLost) {
			u.fault("line %d: send: %v", line, err)
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		b.lines, b.states, b.pending = b.lines[:len(b.lines)-16], b.states[:len(b.states)-1], false
		b.unsettled--
		u.diary.takeBack(k)
		return false
	}
	u.sent(b)
	go func() {
		<-receipt.Done()
		state := stateConsumed
		if err := receipt.Err(); err != nil {
			state = stateLost
			if !errors.Is(err, dataport.ErrSessionLost) {
				u.fault("line %d: receipt: %v", line, err)
			}
		}
		u.settle(b, line, state)
	}()
	return true
}

func (u *portUser) fault(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.faults) < 20 {
		u.faults = append(u.faults, fmt.Sprintf(format, args...))
	}
}

// settled waits until every load has ended and every message is consumed or lost.
func (u *portUser) settled(within time.Duration) error {
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		open, running := 0, 0
		u.mu.Lock()
		for _, b := range u.books {
			open += b.unsettled
		}
		for _, l := range u.loads {
			select {
			case <-l.done:
			default:
				running++
			}
		}
		u.mu.Unlock()
		if open == 0 && running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s %d messages of %s are still open and %d loads run", within, open, u.name, running)
		}
	}
}

// takeLedger returns and forgets what the ledger has got since the last time.
func (u *portUser) takeLedger() []bookPage {
	u.mu.Lock()
	defer u.mu.Unlock()
	living := map[string]bool{}
	for _, s := range u.inbound {
		living[s.ID().String()] = s.Err() == nil
	}
	if u.port != nil {
		if s := u.port.Session(); s != nil {
			living[s.ID().String()] = s.Err() == nil
		}
	}
	var pages []bookPage
	for k, b := range u.books {
		settled := slices.Index(b.states, stateOpen)
		if settled < 0 {
			settled = len(b.states)
		}
		n := len(b.lines)
		if b.pending {
			n -= 16
		}
		pages = append(pages, bookPage{bookKey: k, Lines: slices.Clone(b.lines[:n]), States: slices.Clone(b.states[:settled]), Living: living[k.Session]})
		b.from += n / 16
		b.stateFrom += settled
		b.lines, b.states = slices.Clone(b.lines[n:]), slices.Clone(b.states[settled:])
	}
	return pages
}
