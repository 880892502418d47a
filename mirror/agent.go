package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"mirror-agent/journal"
)

// Agent runs one mirror on this host: a volume, what feeds it, and what it
// feeds. Its methods may be called from any goroutine.
//
// Lock order: opMu, then voteMu, then moveMu and feedMu, then mu.
type Agent struct {
	c         Config
	front     Front
	v         *Volume
	log       zerolog.Logger
	events    *eventLog
	transport transport
	node      string
	fresh     bool
	unclean   bool
	stateLock *os.File // of the state directory, or nil

	feedMu sync.Mutex // every receiver's busy

	checks checks // verify and scrub
	drills drills

	resizing sync.Mutex // one ResizeLog at a time; nothing else waits for it

	opMu sync.Mutex // one operator's order, or start and end, at a time

	voteMu   sync.Mutex // one vote, or begin of a generation, at a time
	electors *electorateStore
	arbiter  Arbiter
	askMu    sync.Mutex // one call of the arbiter at a time

	moveMu sync.Mutex // one move of the data flow at a time, by order or by itself

	stepped func(handoverStep) // a handover on this host has come to a step; set before Run

	wg      sync.WaitGroup
	refused chan struct{} // closed when the start was refused after all; startError says why
	verdict chan struct{} // a signal that the first handshake has ended
	running atomic.Bool
	pulse   atomic.Pointer[Pulse] // written by Run's loop only

	hangUpDue atomic.Bool // the connections of a lead that is over are still there

	mu          sync.Mutex // guards all below
	uuid        string
	promise     *promise    // nil on a secondary
	followers   []*follower // in the order of the list; while this volume leads it only grows
	current     int         // the active one
	serving     bool
	nbd         string
	fenced      string      // why, when fenced
	parted      *divergence // from whom fenced it, once that is known
	suspended   bool
	promoting   bool   // no source may feed this volume now
	rising      bool   // it has the members' word, and is about to begin a generation
	starting    string // why the front is not open yet
	startError  error
	held        resyncHold // why no resync is taken now
	handing     *handing   // the handover under way
	lastHanding *handing   // the one before
	yielded     time.Time  // when the lead was left to another host that asked for it
	offered     string     // a host that has handed over, and says that it is not fed

	calling map[uint64]bool // sessions over which this host asks to be fed
	called  followReply     // the last answer to that
	callers map[uint64]link // sessions of hosts that ask

	members    []memberInfo // as the last source told of them, see memberfile.go
	candidates []candidate  // members that are dialled
	lastPort   int          // of a candidate
	leading    time.Time    // since when this volume leads

	receivers map[uint64]*inbound // by session
	inbound   *inbound            // the one that feeds this volume
	source    heard               // who fed it last
	lease     leaseReport
	granted   *grantedLease // of a promotion that has not begun
	state     stateReport
	stuck     []Alarm // what the watchdog has found
	tasks     context.Context
	stopTasks context.CancelFunc
	closed    bool
}

// follower is one configured target and what is known of it.
type follower struct {
	target    string
	addresses []string
	name      string // in the anchor
	kind      string
	hot       bool // fed all the time, not only while it is the active one
	state     FollowerState
	reason    string
	since     time.Time
	up        bool    // there is a session
	away      string  // why it is unreachable, until its next session
	asked     bool    // its generation is known, or it has refused
	sender    *sender // while a session is up
	session   uint64
	feeding   chan struct{} // closed when the newest sender has ended; nil before the first
	cancel    context.CancelFunc
	last      ack
	resynced  *Resynced
	again     chan struct{} // capacity 1: what it refused for has passed

	port    int      // the transport's; noPort: it dials this host
	id      [16]byte // of its volume, once it is known
	home    bool     // it is the source by its configuration
	dynamic bool     // it is not configured here
}

// inbound is the session that feeds a secondary.
type inbound struct {
	session  uint64
	link     link
	receiver *receiver
}

// Open validates c, opens or creates the volume (never touching a device of
// another mirror), listens on the data port, and returns an agent that Run
// sets in motion. front serves the volume while it is a primary. The agent
// must be ended by Run or Close.
func Open(ctx context.Context, c Config, front Front) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	node := c.NodeName
	if node == "" {
		node, _ = os.Hostname()
	}
	arbiter, err := newArbiter(&c)
	if err != nil {
		return nil, err
	}
	lock, err := c.lockStateDir()
	if err != nil {
		return nil, err
	}
	a, err := open(ctx, c, front, node, arbiter)
	if err != nil {
		if lock != nil {
			err = errors.Join(err, lock.Close())
		}
		return nil, err
	}
	a.stateLock = lock
	return a, nil
}

func open(ctx context.Context, c Config, front Front, node string, arbiter Arbiter) (*Agent, error) {
	o, err := openVolumeFiles(ctx, &c)
	if err != nil {
		return nil, err
	}
	if err := c.removeStaleDrill(); err != nil {
		return nil, errors.Join(err, o.v.Close(), o.undo())
	}
	a := &Agent{
		arbiter: arbiter,
		c:       c, front: front, v: o.v, node: node, fresh: o.fresh, unclean: o.recovery != nil && !o.recovery.Clean && !o.fresh,
		log: c.Log.With().Str("mirror", c.Name).Logger(), events: newEventLog(), verdict: make(chan struct{}, 1), refused: make(chan struct{}),
		uuid: uuidString(o.v.log.Anchor().Mirror), receivers: map[uint64]*inbound{},
		calling: map[uint64]bool{}, callers: map[uint64]link{}, stepped: func(handoverStep) {},
	}
	a.electors = openElectorate(c.electoratePath(), a.mirrorID)
	if err := a.checkAuto(); err != nil {
		return nil, errors.Join(err, o.v.Close(), o.undo())
	}
	a.tasks, a.stopTasks = context.WithCancel(context.Background())
	a.followers = c.followers()
	a.loadMembers()
	a.checks.open(&c)
	if n := a.v.differs; n > 0 {
		a.event("device-differs", "", "%d of %d samples of what was last written to the device differ: has something else written to it? mirror-agent verify compares all of it", n, a.v.samples)
	}
	if o.recovery != nil && o.recovery.Cut {
		a.event("recovered", "", "a torn tail of %d bytes was cut from the log", o.recovery.CutBytes)
	}
	if d := o.v.damageNow(); d != nil {
		a.event(stateDamaged, "", "%s: %v; everything up to LSN %d was promised", c.journalPath(), d.rot, d.promise)
	}
	if n := o.v.spare(); n > 0 {
		a.event("device-grown", "", "%s has %d bytes more than the %d that are mirrored; they are not used before mirror-agent resize", c.Device, n, o.v.size.Load())
	}
	if err := a.openTransport(&c); err != nil {
		return nil, errors.Join(err, o.v.Close(), o.undo())
	}
	return a, nil
}

func (a *Agent) mirrorID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.uuid
}

func uuidString(id [16]byte) string {
	if id == [16]byte{} {
		return ""
	}
	return uuid.UUID(id).String()
}

// followers are the configured ones, the target first. That one is hot where any backup is.
func (c *Config) followers() []*follower {
	var fs []*follower
	add := func(kind string, addresses []string, hot bool) {
		f := &follower{target: addresses[0], addresses: addresses, name: followerName(addresses[0]), kind: kind, hot: hot, since: time.Now(), port: len(fs)}
		f.state = FollowerIdle
		if hot || len(fs) == 0 {
			f.state = FollowerConnecting
		}
		fs = append(fs, f)
	}
	if len(c.Target) > 0 {
		add("target", c.Target, slices.Contains(c.HotBackups, true))
	}
	for i, b := range c.Backups {
		add("backup", b, i < len(c.HotBackups) && c.HotBackups[i])
	}
	return fs
}

// event records what happened, for the operator, and logs it.
func (a *Agent) event(kind, target, format string, args ...any) {
	e := Event{Kind: kind, Mirror: a.c.Name, Target: target, Text: fmt.Sprintf(format, args...), LSN: uint64(a.v.log.Head())}
	a.events.add(e)
	a.log.Info().Str("event", kind).Str("peer", target).Uint64("lsn", e.LSN).Msg(e.Text)
}

// Events returns the kept events (the last 1000) with a sequence above after,
// and a channel that is closed when a newer one arrives.
func (a *Agent) Events(after uint64) ([]Event, <-chan struct{}) { return a.events.after(after) }

// Run sets the agent in motion and blocks until ctx is cancelled (a clean
// end: front drained, log flushed and applied, nil) or the start fails. A
// volume that fails later stops, but the agent goes on explaining it until
// ctx is cancelled; then the reason is returned.
func (a *Agent) Run(ctx context.Context) error {
	a.running.Store(true)
	if a.v.Role() == RolePrimary {
		if err := a.startPrimary(ctx); err != nil {
			return errors.Join(err, a.Close())
		}
	} else {
		a.tellSecondary()
		if err := a.callIn(); err != nil {
			return errors.Join(err, a.Close())
		}
	}
	a.spawn(func() { a.scrubNowAndThen(a.tasks) })
	a.spawn(func() { a.checkpointNowAndThen(a.tasks) })
	if a.c.AutoPromote {
		a.spawn(func() { a.promoteByItself(a.tasks) })
	}
	a.spawn(func() { a.watchOver(a.tasks) })
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	stopped := false
	for {
		a.noteState()
		a.goOn()
		a.hangUp()
		a.beat()
		if err := a.v.Err(); err != nil && !stopped {
			stopped = true
			a.event("failed", "", "%v", err)
			a.endDrill(err)
			a.giveWay()
		}
		select {
		case <-ctx.Done():
			return a.end()
		case <-a.refused:
			return a.end()
		case <-tick.C:
		}
	}
}

// spawn runs f beside the agent; Close waits for it. Once that has begun,
// nothing is started any more. mu must not be held.
func (a *Agent) spawn(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		f()
	}()
}

// giveWay: the volume has failed. A follower leaves the port, so that the
// source turns to a backup; a primary's front goes on answering errors.
func (a *Agent) giveWay() {
	if a.v.Role() == RoleSecondary {
		a.closeInbound()
		a.spawn(func() { _ = a.transport.close() })
	}
}

// end is the clean end.
func (a *Agent) end() error {
	failed := a.v.Err()
	a.mu.Lock()
	startError := a.startError
	serving := a.serving
	a.mu.Unlock()
	if serving {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := a.front.Close(ctx); err != nil {
			a.log.Warn().Err(err).Msg("drain the front")
			a.front.Abort()
		}
		cancel()
	}
	if failed == nil && a.v.Role() == RolePrimary {
		a.partWithFollowers()
	}
	return errors.Join(failed, startError, a.Close())
}

// partWithFollowers lets all that are streaming have everything and know that
// it is durable here, so that all devices are equal after all have ended.
func (a *Agent) partWithFollowers() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	senders := a.streamingSenders()
	if len(senders) == 0 {
		return
	}
	head := a.v.log.Head()
	if _, err := a.v.log.Sync(head); err != nil {
		return
	}
	var wg sync.WaitGroup
	for _, s := range senders {
		wg.Go(func() { s.farewell(ctx, head) })
	}
	wg.Wait()
}

// Close ends the agent without draining the front; Run does that. May be
// called twice.
func (a *Agent) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	p := a.promise
	a.mu.Unlock()
	a.stopTasks()
	a.front.Abort() // before what waits for the promise gets its error: no client is to see that
	if p != nil {
		p.close()
	}
	a.stopSenders()
	err := a.transport.close()
	a.closeInbound()
	a.wg.Wait()
	err = errors.Join(err, a.arbiter.Close(), a.v.Close())
	if a.stateLock != nil {
		err = errors.Join(err, a.stateLock.Close())
	}
	return err
}

// adopt gives a blank volume the mirror's identity.
func (a *Agent) adopt(id string) error {
	u, err := uuid.Parse(id)
	if err != nil {
		return fmt.Errorf("%w: mirror uuid %.40q", errMessage, id)
	}
	if err := a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
		if x.Mirror != u {
			x.Seen = journal.Generation{} // of another mirror, see receiver.hello
		}
		x.Mirror = u
		a.v.fillAnchor(x)
	})); err != nil {
		return err
	}
	a.mu.Lock()
	a.uuid = id
	a.mu.Unlock()
	return nil
}
