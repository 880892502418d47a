package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"mirror-agent/journal"
)

const (
	// batchBytes is the most log that one message carries; a longer record
	// goes alone.
	batchBytes = 256 << 10
	// inFlightBatches bounds the sender's memory: messages not yet taken.
	inFlightBatches = 24
	// declareEvery is how often the durable LSN alone is worth a message.
	declareEvery = 100 * time.Millisecond
)

// sender feeds one follower over one session: handshake, resync if need be,
// then the log's records as they come. It ends with the session.
type sender struct {
	v       *Volume
	l       link
	promise *promise
	member  int    // this follower's index in the promise
	mirror  string // uuid
	name    string
	node    string
	agent   string                      // version of this program
	other   atomic.Pointer[HostStatus]  // since the handshake
	report  func(followerEvent, string) // state of the follower, for the operator
	// resynced is told of a copy that is complete.
	resynced func(Resynced)
	resync   resyncProgress
	// follower is its name in the anchor, id the volume that answered; "" is
	// a follower that nothing is kept of.
	follower string
	id       [16]byte
	met      followerState      // its answer to the hello
	list     func() *electorate // what followers are told of the members
	track    trackView          // at the handshake
	members  memberTelling
	roster   func([]member)       // fills in what is not known here
	known    func([16]byte) error // the volume that answered; an error ends the session's feed
	hold     *hold                // while run goes on

	load       func() loadSample // what the applications do, which a resync yields to
	resyncRate int64             // most bytes per second of a resync, 0: no limit
	chunk      int64             // bytes that a resync does at a time

	ring     int64 // capacity of the follower's log
	sent     journal.LSN
	declared journal.LSN
	wanted   journal.LSN
	flags    recordsFlags // told last
	kick     chan struct{}
	buffers  bufferQueue

	received, durable, applied atomic.Uint64
	trouble                    atomic.Uint32 // of the follower's device
	told                       atomic.Uint64 // declared to the follower and sent
	breaks                     chan string   // capacity 1: the follower cannot go on
	answers                    chan []byte   // capacity 1: of a verify, see verify.go

	// ackMu: an acknowledgement moves hold and promise as a whole, or not at
	// all after stop. Taken before any lock of the volume, promise or agent.
	ackMu     sync.Mutex
	streaming atomic.Bool // acknowledgements count; set under ackMu
	stopped   bool        // guarded by ackMu
	lived     bool        // it came as far as the stream; of run, and who waited for it
}

// refusedError: the follower or the histories do not allow a stream. The
// session stays of no use until something changes on either side.
type refusedError struct {
	kind   outcomeKind
	reason string
	retry  time.Duration      // not before this is over
	seen   journal.Generation // outcomeFenced: what the follower has seen
}

func (e *refusedError) Error() string { return e.reason }

func newSender(v *Volume, l link, p *promise) *sender {
	return &sender{
		v: v, l: l, promise: p, chunk: resyncChunkBytes, kick: make(chan struct{}, 1), breaks: make(chan string, 1), answers: make(chan []byte, 1), report: func(followerEvent, string) {},
		roster: func([]member) {}, known: func([16]byte) error { return nil }, resynced: func(Resynced) {}, list: func() *electorate { return nil },
	}
}

func (s *sender) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// run blocks until the session ends, ctx is cancelled or the follower refuses
// (a *refusedError).
func (s *sender) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer s.buffers.drop()
	// Nothing that this handshake may count on leaves the log under it.
	s.hold = s.v.newHold(s.l.Peer(), s.v.log.Tail(), func() { cancel(errOutrun) })
	defer s.hold.release()
	defer s.stop() // before that
	err := s.feed(ctx)
	if errors.Is(context.Cause(ctx), errOutrun) {
		return errOutrun
	}
	return err
}

// errOutrun: the follower held writers up for too long and lost its hold.
var errOutrun = errors.New("writers outran it for longer than push-back allows; what it lacks is tracked and resynced")

func (s *sender) feed(ctx context.Context) error {
	out, err := s.handshake(ctx)
	if err != nil {
		return err
	}
	switch out.kind {
	case outcomeStream:
		s.sent = out.at
		s.report(followerStream, "")
	case outcomeResync, outcomePartial:
		if err := s.runResync(ctx, out); err != nil {
			return err
		}
		s.report(followerCopied, "")
		if err := s.tellSets(ctx); err != nil {
			return err
		}
	default:
		return &refusedError{kind: out.kind, reason: out.reason, seen: out.seen}
	}
	s.hold.move(s.sent)
	s.lived = true
	s.goLive()
	// A generation's own record is part of every FLUSH: ask at once.
	s.promise.request(s.v.log.Durable())
	return s.stream(ctx)
}

// goLive lets acknowledgements count.
func (s *sender) goLive() {
	s.ackMu.Lock()
	defer s.ackMu.Unlock()
	if s.stopped {
		return
	}
	s.streaming.Store(true)
	s.promise.knows(s.member, s.id)
	s.count() // the acknowledgement may have come before
}

// stop: no acknowledgement counts, or holds the log, from here on. The end of
// run does it; whoever ends run does it first where the promise must not
// move in between. The agent's lock must not be held.
func (s *sender) stop() {
	s.ackMu.Lock()
	defer s.ackMu.Unlock()
	s.stopped = true
	s.streaming.Store(false)
}

func (s *sender) handshake(ctx context.Context) (outcome, error) {
	h := hello{
		Version: protocolVersion, Mirror: s.mirror, Name: s.name, Node: s.node, Size: s.v.size.Load(),
		Generations: s.v.History(), Head: s.v.log.Head(), Durable: s.v.log.Durable(), Agent: s.agent,
	}
	asked := time.Now()
	h.Time = asked.UnixNano()
	b, err := s.l.Call(ctx, encodeJSON(kindHello, h))
	if err != nil {
		return outcome{}, fmt.Errorf("hello: %w", err)
	}
	var f followerState
	if err := decodeJSON(b, &f); err != nil {
		return outcome{}, fmt.Errorf("hello: %w", err)
	}
	s.other.Store(meet(f.Node, f.Agent, f.Time, asked, time.Now()))
	s.ring, s.id, s.met = f.Ring, f.ID, f
	if err := s.known(s.id); err != nil {
		return outcome{}, err
	}
	s.v.dirty.adopt(s.follower, s.id)
	s.track = s.v.dirty.view(s.follower)
	out := decide(sourceView{
		mirror: s.mirror, size: s.v.size.Load(), generations: h.Generations,
		head: s.v.log.Head(), tail: s.v.intactFrom(), chainAt: s.v.log.ChainAt, track: s.track,
	}, f)
	if f.Rejoins {
		out = s.rejoin(out, &f)
	}
	if out.kind == outcomeResync {
		s.resync.zeroed = f.Zeroed
	}
	if out.kind != outcomeStream {
		return out, nil
	}
	b, err = s.l.Call(ctx, encodeJSON(kindStart, start{At: out.at, Chain: out.chain}))
	if err != nil {
		return outcome{}, fmt.Errorf("start: %w", err)
	}
	var r startReply
	if err := decodeJSON(b, &r); err != nil {
		return outcome{}, fmt.Errorf("start: %w", err)
	}
	if r.Refused != "" {
		return outcome{kind: outcomeDiverged, reason: r.Refused}, nil
	}
	return out, nil
}

// stream sends the log as it grows, until the session or ctx ends.
func (s *sender) stream(ctx context.Context) error {
	tick := time.NewTicker(declareEvery)
	defer tick.Stop()
	for {
		changed := s.v.log.Changed()
		if err := s.v.Err(); err != nil && s.sent >= s.v.log.Head() {
			return s.lastWords(ctx, err)
		}
		if s.sent < s.v.log.Head() {
			if err := s.sendRecords(ctx); err != nil {
				return err
			}
			continue
		}
		if flags, wanted := s.promise.orders(s.member); wanted > s.wanted || flags != s.flags {
			if err := s.sendHeader(ctx); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-s.kick:
		case <-tick.C:
			if err := s.tellMembers(ctx); err != nil {
				return err
			}
			if s.v.log.Durable() > s.declared {
				if err := s.sendHeader(ctx); err != nil {
					return err
				}
			}
		case why := <-s.breaks:
			return errors.Join(fmt.Errorf("%s cannot go on: %s", s.l.Peer(), why), s.checkSent())
		case <-s.l.Done():
			return s.l.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkSent looks for rot in what the follower may have refused: what is sent is read without looking at the payloads.
func (s *sender) checkSent() error {
	err := s.v.log.Verify(max(journal.LSN(s.received.Load()), s.v.log.Tail()), s.sent)
	if rot := (*journal.CorruptError)(nil); errors.As(err, &rot) {
		return s.v.rotFound(rot)
	}
	return nil // anything else is not about rot
}

// lastWords: this volume has failed, and all that its log holds has been sent: better there than nowhere. The follower checks
// every byte, so what the failed disk garbles goes no further.
func (s *sender) lastWords(ctx context.Context, why error) error {
	if s.v.log.Durable() > s.declared {
		if err := s.sendHeader(ctx); err != nil {
			return err
		}
	}
	return why
}

// sendRecords sends the next records of the log in one message.
func (s *sender) sendRecords(ctx context.Context) error {
	// A follower's ring must never be full of what it may not commit, since
	// the word that it may comes behind these records.
	if undeclared := int64(s.sent - min(s.sent, s.v.log.Durable())); s.ring > 0 && undeclared > min(s.ring/4, 64<<20) && s.v.log.Failed() == nil {
		if _, err := s.v.log.Sync(s.sent); err != nil {
			return s.v.journalError(err)
		}
	}
	buf, err := s.buffers.get(ctx, s.l)
	if err != nil {
		return err
	}
	n, err := s.v.log.ReadRaw(s.sent, buf[recordsHeaderBytes:])
	var short journal.ErrShortBuffer
	if errors.As(err, &short) {
		buf = make([]byte, recordsHeaderBytes+short.Need)
		n, err = s.v.log.ReadRaw(s.sent, buf[recordsHeaderBytes:])
	}
	if errors.Is(err, io.EOF) {
		s.buffers.putBack(buf)
		return nil
	}
	if rot := (*journal.CorruptError)(nil); errors.As(err, &rot) {
		err = s.v.rotFound(rot)
	}
	if err != nil {
		return fmt.Errorf("read the log at LSN %d: %w", s.sent, s.v.journalError(err))
	}
	return s.sendMessage(ctx, buf, n)
}

func (s *sender) sendHeader(ctx context.Context) error {
	buf, err := s.buffers.get(ctx, s.l)
	if err != nil {
		return err
	}
	return s.sendMessage(ctx, buf, 0)
}

func (s *sender) sendMessage(ctx context.Context, buf []byte, n int) error {
	h := recordsHeader{From: s.sent, Declared: s.v.log.Durable(), Head: s.v.log.Head()}
	h.Flags, h.Wanted = s.promise.orders(s.member)
	h.put(buf)
	r, err := s.l.Send(ctx, buf[:recordsHeaderBytes+n])
	if err != nil {
		return err
	}
	s.buffers.put(buf, r)
	s.sent += journal.LSN(n)
	s.declared, s.wanted, s.flags = h.Declared, h.Wanted, h.Flags
	s.told.Store(uint64(h.Declared))
	return nil
}

// broken: the follower dropped the stream; run ends with the reason.
func (s *sender) broken(why string) {
	select {
	case s.breaks <- why:
	default:
	}
}

func (s *sender) lastAck() ack {
	return ack{
		Received: journal.LSN(s.received.Load()), Durable: journal.LSN(s.durable.Load()), Applied: journal.LSN(s.applied.Load()),
		Trouble: uint8(s.trouble.Load()),
	}
}

// farewell waits until the follower is durable up to head and has been told
// that the source is, then takes leave. Called beside run, which must be
// streaming.
func (s *sender) farewell(ctx context.Context, head journal.LSN) {
	s.promise.request(head)
	tick := time.NewTicker(declareEvery / 4)
	defer tick.Stop()
	for journal.LSN(s.durable.Load()) < head || journal.LSN(s.told.Load()) < head {
		select {
		case <-tick.C:
		case <-s.l.Done():
			return
		case <-ctx.Done():
			return
		}
	}
	// The reply says that all before it was taken.
	_, _ = s.l.Call(ctx, []byte{kindBye})
}

// acknowledged takes an ack of the follower. It is called from the link's
// delivery, concurrently with run.
func (s *sender) acknowledged(a ack) {
	s.received.Store(uint64(a.Received))
	s.durable.Store(uint64(a.Durable))
	s.applied.Store(uint64(a.Applied))
	s.trouble.Store(uint32(a.Trouble))
	s.ackMu.Lock()
	if s.streaming.Load() {
		s.count()
	}
	s.ackMu.Unlock()
	s.poke()
}

// count lets what the follower has count for the mode. ackMu is held.
func (s *sender) count() {
	durable := journal.LSN(s.durable.Load())
	if durable == 0 {
		return
	}
	if s.follower != "" && s.v.dirty.acked(s.follower, s.id, durable) {
		s.v.poke()
	}
	s.hold.move(durable)
	switch s.promise.acknowledge(s.member, journal.LSN(s.received.Load()), durable, s.v.log.Head()) {
	case cameLevel:
		s.report(followerCaughtUp, "")
	case fellBehind:
		s.report(followerBehind, "")
	case noNews:
	}
}

// makeRoom has the follower enlarge its device, if it is there.
func (s *sender) makeRoom(ctx context.Context, size int64) error {
	b, err := s.l.Call(ctx, encodeJSON(kindRoom, room{size}))
	select {
	case <-s.l.Done():
		return nil // it is away: it is asked when it comes back
	default:
	}
	if err != nil {
		return fmt.Errorf("ask %s for room: %w", s.l.Peer(), err)
	}
	var r roomReply
	if err := decodeJSON(b, &r); err != nil {
		return fmt.Errorf("ask %s for room: %w", s.l.Peer(), err)
	}
	if r.Refused != "" {
		return fmt.Errorf("%w; nothing was changed", errors.New(r.Refused))
	}
	return nil
}

// leave tells a follower that the data flow goes to another target from now
// on, so that it is not promoted with old data by mistake. Best effort: one
// that cannot be reached cannot be told.
func (s *sender) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = s.l.Call(ctx, []byte{kindLeave})
}
