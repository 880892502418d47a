package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"mirror-agent/journal"
)

const (
	// followerSyncEvery is a follower's own pace: what it received is durable
	// about that soon, also when no FLUSH asks.
	followerSyncEvery = 100 * time.Millisecond
	// ackEvery bounds how long a received record goes unacknowledged.
	ackEvery = 50 * time.Millisecond
)

// receiver is a follower's side of one session. Messages come in order, one
// at a time; acknowledgements leave from its own goroutine.
type receiver struct {
	v      *Volume
	l      link
	mirror string
	name   string
	node   string
	agent  string                     // version of this program
	other  atomic.Pointer[HostStatus] // since the last hello
	// accept is asked before a hello is acted upon; the reason refuses it.
	accept func(*hello) (refused string)
	// adopt is called when the mirror's uuid becomes known to a blank volume.
	adopt func(uuid string) error
	// accepted is called, under busy, when a hello was: no other session may
	// feed the volume from here on.
	accepted func()
	// seen is called when the volume has stored the generation of a hello.
	seen func()
	// resynced is called when a resync is complete, stageFailed when the place
	// where it is built fails.
	resynced    func()
	stageFailed func(error)
	repaired    func()         // the log, which had rotted, is whole again
	members     func([]member) // the source has told of them
	// diverged exports what goes when a volume that was given up rejoins and that is in no export yet.
	diverged func(divergence) error
	// listTold is called with the source's list of the members; addresses are where they find this one.
	listTold  func(electorate)
	addresses func() []string

	verify *verifyServer

	closed   bool        // guarded by busy
	staging  *staging    // while a resync runs
	fork     journal.LSN // of a volume that was given up: up to where it offered its history
	newStage func(size int64) (*staging, error)

	// busy: one message at a time over all receivers of a volume, and none
	// while one is closed; guards staging, fork and closed.
	busy *sync.Mutex

	mu         sync.Mutex // guards below
	started    bool
	begun      bool   // started anew: whatever was acknowledged before, the source does not know it
	why        string // the stream broke, not yet told
	received   journal.LSN
	wanted     journal.LSN
	flags      recordsFlags // of the newest records
	sourceHead journal.LSN
	lastSeen   time.Time
	resyncDone int64
	resyncAll  int64
	resyncAt   time.Time
	told       members // by the source, last

	wake chan struct{}
	stop context.CancelFunc
	done chan struct{}
}

func newReceiver(v *Volume, l link) *receiver {
	ctx, stop := context.WithCancel(context.Background())
	r := &receiver{
		v: v, l: l, wake: make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
		verify: &verifyServer{v: v, l: l},
		accept: func(*hello) string { return "" }, adopt: func(string) error { return nil }, accepted: func() {}, seen: func() {}, resynced: func() {}, stageFailed: func(error) {}, repaired: func() {}, members: func([]member) {}, busy: new(sync.Mutex),
		diverged: func(divergence) error { return nil }, listTold: func(electorate) {}, addresses: func() []string { return nil },
	}
	go r.acknowledge(ctx)
	return r
}

// close ends the receiver; the session may go on but is not answered.
func (r *receiver) close() {
	r.busy.Lock()
	defer r.busy.Unlock()
	r.closeLocked()
}

func (r *receiver) closeLocked() {
	r.stop()
	<-r.done
	r.closed = true
	r.verify.close()
	r.dropStaging()
}

func (r *receiver) dropStaging() {
	if r.staging != nil {
		r.staging.suspend()
		r.staging = nil
	}
}

// handle takes one message. An error of a call goes back to the source. An
// error of anything else breaks the stream: the source is told, and all is
// dropped until it shakes hands again.
func (r *receiver) handle(ctx context.Context, b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errMessage
	}
	r.busy.Lock()
	defer r.busy.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	r.mu.Lock()
	r.lastSeen = time.Now()
	started := r.started || r.staging != nil
	r.mu.Unlock()
	switch b[0] {
	case kindHello:
		return r.hello(b[1:])
	case kindStart:
		return r.start(b[1:])
	case kindResync:
		return r.beginResync(b[1:])
	case kindRoom:
		return r.room(b[1:])
	case kindVerify:
		return r.verify.handle(b, r.verifyRefusal())
	case kindBye:
		return nil, nil
	case kindMembers:
		return nil, r.membersTold(b[1:])
	case kindMemberSet:
		return nil, r.memberSetTold(b[1:])
	case kindLeave:
		if !started || r.staging != nil || r.v.Role() != RoleSecondary {
			return nil, nil
		}
		return nil, r.v.setFlags(stateLeft, 0)
	case kindHashes, kindResyncEnd:
		if r.staging == nil {
			return nil, fmt.Errorf("%w: kind %d outside of a resync", errMessage, b[0])
		}
		reply, err := r.resyncCall(b)
		r.noteStage(err)
		return reply, err
	case kindRecords, kindBlock:
		if !started {
			return nil, nil
		}
		var err error
		if b[0] == kindRecords {
			err = r.records(ctx, b)
		} else {
			err = r.block(b)
		}
		if err != nil {
			r.noteStage(err)
			r.breakOff(err)
		}
		return nil, err
	}
	return nil, fmt.Errorf("%w: unknown kind %d", errMessage, b[0])
}

func (r *receiver) noteStage(err error) {
	if s := (*stageError)(nil); errors.As(err, &s) {
		r.stageFailed(err)
	}
}

// room enlarges the device for a resize that is to come.
func (r *receiver) room(b []byte) ([]byte, error) {
	var m room
	if err := decodeJSON(b, &m); err != nil {
		return nil, err
	}
	var reply roomReply
	switch {
	case r.v.Role() != RoleSecondary:
		reply.Refused = fmt.Sprintf("%s is %s", r.node, r.v.Role())
	case m.Size < 0 || m.Size > maxDeviceBytes:
		reply.Refused = fmt.Sprintf("%s cannot have a device of %d bytes", r.node, m.Size)
	default:
		if err := r.v.makeRoom(m.Size); err != nil {
			reply.Refused = fmt.Sprintf("%s: %v", r.node, err)
		}
	}
	return encodeJSON(0, reply)[1:], nil
}

// breakOff stops taking the stream and lets the source know.
func (r *receiver) breakOff(err error) {
	r.dropStaging()
	r.mu.Lock()
	r.started, r.why, r.resyncAll = false, err.Error(), 0
	r.mu.Unlock()
	r.poke()
}

func (r *receiver) hello(b []byte) ([]byte, error) {
	var h hello
	if err := decodeJSON(b, &h); err != nil {
		return nil, err
	}
	now := time.Now()
	r.other.Store(meet(h.Node, h.Agent, h.Time, now, now))
	head, chain := r.v.log.HeadChain()
	a := r.v.log.Anchor()
	f := followerState{
		Mirror: r.mirror, Name: r.name, Node: r.node, ID: r.v.id, Size: r.v.capacity(), Primary: r.v.Role() == RolePrimary,
		Blank: a.State&stateBlank != 0, Seen: a.Seen, Generations: r.v.History(),
		Head: head, Chain: chain, Committed: r.v.Committed(), Ring: r.v.log.Capacity(), Addresses: r.addresses(), Agent: r.agent, Time: now.UnixNano(),
	}
	if f.Blank && h.Mirror != r.mirror {
		// An empty volume that a first resync of another mirror was cut short
		// on: that one's generations say nothing about this one.
		a.Seen, f.Seen = journal.Generation{}, journal.Generation{}
	}
	switch {
	case h.Version != protocolVersion:
		f.Refused = fmt.Sprintf("%s speaks version %d of the protocol, %s version %d: update the older", h.Node, h.Version, r.node, protocolVersion)
	case !f.Blank && h.Mirror != r.mirror:
		f.Refused = fmt.Sprintf("%s holds mirror %q (uuid %s), not %q (uuid %s)", r.node, r.name, r.mirror, h.Name, h.Mirror)
	default:
		f.Refused = r.accept(&h)
	}
	if f.Refused == "" && compareRank(a.Seen, h.generation()) <= 0 && !f.Primary {
		r.accepted()
		r.dropStaging()
		r.mu.Lock()
		r.started, r.resyncAll = false, 0
		r.mu.Unlock()
		if a.State&stateDiverged != 0 {
			if err := r.rewind(&f, &h); err != nil {
				return nil, err
			}
		}
		if f.Blank {
			if err := r.adopt(h.Mirror); err != nil {
				return nil, err
			}
			f.Zeroed = r.v.reads0()
		}
		if !f.Blank && f.Size < h.Size { // the source has grown
			if err := r.v.makeRoom(h.Size); err != nil {
				f.Refused = fmt.Sprintf("%s: %v", r.node, err)
			}
			f.Size = r.v.capacity()
		}
		// G5: stored before anything of it is taken.
		if err := r.v.see(h.generation()); err != nil {
			return nil, err
		}
		r.seen()
	}
	return encodeJSON(0, f)[1:], nil
}

func (r *receiver) start(b []byte) ([]byte, error) {
	var s start
	if err := decodeJSON(b, &s); err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) ([]byte, error) {
		return encodeJSON(0, startReply{Refused: fmt.Sprintf(format, args...)})[1:], nil
	}
	if r.v.Role() != RoleSecondary || r.v.flags()&stateBlank != 0 {
		return refuse("%s cannot continue a log: it is %s", r.node, r.v.Role())
	}
	chain, err := r.v.log.ChainAt(s.At)
	if err != nil {
		return refuse("%s has no record boundary at LSN %d: %v", r.node, s.At, err)
	}
	if chain != s.Chain {
		return refuse("the log of %s differs at LSN %d", r.node, s.At)
	}
	head := r.v.log.Head()
	if r.v.flags()&stateDiverged != 0 {
		if s.At != head {
			return refuse("%s has a history of its own from LSN %d on", r.node, s.At)
		}
		if err := r.v.journalError(r.v.log.WriteAnchor(func(a *journal.Anchor) { forgetFork(a); r.v.fillAnchor(a) })); err != nil {
			return nil, err
		}
	}
	if s.At < head {
		if err := r.v.cut(s.At); err != nil {
			if errors.Is(err, journal.ErrCommitted) {
				return refuse("%s: %v", r.node, err)
			}
			return nil, err
		}
	}
	if err := r.begin(s.At); err != nil {
		return nil, err
	}
	return encodeJSON(0, startReply{})[1:], nil
}

func (r *receiver) begin(at journal.LSN) error {
	r.mu.Lock()
	r.started, r.begun, r.received = true, true, at
	r.mu.Unlock()
	r.poke()
	return r.cameBack()
}

// cameBack: a source that had left feeds this volume again, or one that it had handed over to.
func (r *receiver) cameBack() error {
	if err := r.v.forgetHandedOver(); err != nil {
		return err
	}
	if r.v.flags()&stateLeft == 0 {
		return nil
	}
	return r.v.setFlags(0, stateLeft)
}

func (r *receiver) records(ctx context.Context, b []byte) error {
	h, raw, err := decodeRecords(b)
	if err != nil {
		return err
	}
	if r.staging != nil {
		return r.stageRecords(h, raw)
	}
	r.mu.Lock()
	at := r.received
	r.sourceHead = h.Head
	r.mu.Unlock()
	if h.From != at {
		return fmt.Errorf("records from LSN %d, expected %d: %w", h.From, at, ErrBehind)
	}
	// Before the append, which may wait for room that only this word makes.
	r.v.declare(min(h.Declared, at))
	if len(raw) > 0 {
		if at, err = r.v.appendRaw(ctx, at, raw); err != nil {
			return fmt.Errorf("append at LSN %d: %w", h.From, err)
		}
	}
	if r.v.damageNow() != nil {
		err := r.v.repairStep(h.Head)
		if r.v.damageNow() == nil {
			r.repaired()
		}
		if err != nil {
			return err
		}
	}
	r.v.declare(min(h.Declared, at))
	r.mu.Lock()
	r.received = at
	r.wanted, r.flags = max(r.wanted, h.Wanted), h.Flags
	if h.Flags&pushDurable != 0 {
		r.wanted = max(r.wanted, at)
	}
	r.mu.Unlock()
	r.poke()
	return nil
}

func (r *receiver) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// acknowledge makes durable what was received and tells the source.
func (r *receiver) acknowledge(ctx context.Context) {
	defer close(r.done)
	tick := time.NewTicker(ackEvery)
	defer tick.Stop()
	told := ack{Durable: ^journal.LSN(0)} // the first one is always news
	var lastSync time.Time
	for {
		var due bool
		select {
		case <-ctx.Done():
			return
		case <-r.l.Done():
			return
		case <-r.wake:
		case <-tick.C:
			due = true
		}
		r.mu.Lock()
		started, received, wanted, flags, why := r.started, r.received, r.wanted, r.flags, r.why
		begun := started && r.begun
		r.why, r.begun = "", r.begun && !begun
		r.mu.Unlock()
		if why != "" {
			if _, err := r.l.Send(ctx, append([]byte{kindBroken}, why...)); err != nil {
				return
			}
		}
		if !started {
			continue
		}
		if begun {
			told = ack{Durable: ^journal.LSN(0)}
		}
		durable := r.v.log.Durable()
		if durable < received && (durable < min(wanted, received) || due && time.Since(lastSync) >= followerSyncEvery) {
			var err error
			if durable, err = r.v.log.Sync(received); r.v.over(err) {
				return
			}
			if err != nil {
				continue // what was received is another history's now
			}
			lastSync = time.Now()
			r.v.changed()
		}
		a := ack{Received: received, Durable: min(durable, received), Applied: r.v.log.Applied(), Trouble: r.v.troubleNow().kind()}
		if a.Trouble == told.Trouble && a.Durable == told.Durable && (a.Received == told.Received || !due && flags&pushReceived == 0) && (a.Applied == told.Applied || !due) {
			continue
		}
		if _, err := r.l.Send(ctx, a.encode()); err != nil {
			return
		}
		told = a
	}
}

// progress of the resync under way, or nil.
func (r *receiver) progress() *Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resyncAll == 0 {
		return nil
	}
	return &Progress{DoneBytes: r.resyncDone, TotalBytes: r.resyncAll, Started: r.resyncAt}
}

func (r *receiver) isStreaming() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started && r.resyncAll == 0
}
