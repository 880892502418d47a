package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
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
// Lock order: opMu, then feedMu, then mu.
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

	feedMu sync.Mutex // every receiver's busy

	opMu sync.Mutex // one operator's order, or start and end, at a time

	wg      sync.WaitGroup
	verdict chan struct{} // a signal that the first handshake has ended
	running atomic.Bool

	mu         sync.Mutex // guards all below
	uuid       string
	promise    *promise // nil on a secondary
	followers  []*follower
	current    int
	serving    bool
	nbd        string
	fenced     string // why, when fenced
	suspended  bool
	promoting  bool   // no source may feed this volume now
	starting   string // why the front is not open yet
	startError error
	receivers  map[uint64]*inbound // by session
	inbound    *inbound            // the one that feeds this volume
	state      stateReport
	tasks      context.Context
	stopTasks  context.CancelFunc
	closed     bool
}

// follower is one configured target and what is known of it.
type follower struct {
	target  string
	kind    string
	state   FollowerState
	reason  string
	since   time.Time
	sender  *sender // while a session is up
	session uint64
	cancel  context.CancelFunc
	last    ack
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
	o, err := openVolumeFiles(ctx, &c)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		c: c, front: front, v: o.v, node: node, fresh: o.fresh, unclean: o.recovery != nil && !o.recovery.Clean && !o.fresh,
		log: c.Log.With().Str("mirror", c.Name).Logger(), events: newEventLog(), verdict: make(chan struct{}, 1),
		uuid: uuidString(o.v.log.Anchor().Mirror), receivers: map[uint64]*inbound{},
	}
	a.tasks, a.stopTasks = context.WithCancel(context.Background())
	a.followers = c.followers()
	if o.recovery != nil && o.recovery.Cut {
		a.event("recovered", "", "a torn tail of %d bytes was cut from the log", o.recovery.CutBytes)
	}
	t, err := newPortTransport(&c, a)
	if err != nil {
		return nil, errors.Join(err, o.v.Close())
	}
	a.transport = t
	return a, nil
}

func uuidString(id [16]byte) string {
	if id == [16]byte{} {
		return ""
	}
	return uuid.UUID(id).String()
}

func (c *Config) followers() []*follower {
	var fs []*follower
	now := time.Now()
	if len(c.Target) > 0 {
		fs = append(fs, &follower{target: c.Target[0], kind: "target", state: FollowerConnecting, since: now})
	}
	for _, b := range c.Backups {
		fs = append(fs, &follower{target: b[0], kind: "backup", state: FollowerIdle, since: now})
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
		a.event("started", "", "secondary, waiting for its source")
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	stopped := false
	for {
		a.noteState()
		if err := a.v.Err(); err != nil && !stopped {
			stopped = true
			a.event("failed", "", "%v", err)
			a.giveWay()
		}
		select {
		case <-ctx.Done():
			return a.end()
		case <-tick.C:
		}
	}
}

// giveWay: the volume has failed. A follower leaves the port, so that the
// source turns to a backup; a primary's front goes on answering errors.
func (a *Agent) giveWay() {
	if a.v.Role() == RoleSecondary {
		a.closeInbound()
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			_ = a.transport.close()
		}()
	}
}

// startPrimary begins a generation where the last end was not clean, asks the
// followers for a higher one, and opens the front.
func (a *Agent) startPrimary(ctx context.Context) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.flags()&stateFenced != 0 {
		a.mu.Lock()
		a.fenced = fmt.Sprintf("generation %s was met before", rankString(a.v.Seen()))
		a.mu.Unlock()
		a.event("fenced", "", "a higher generation was met before this start; the front stays closed")
		return nil
	}
	if a.unclean {
		g, err := a.v.beginGeneration(false)
		if err != nil {
			return err
		}
		a.event("generation", "", "generation %s after an unclean end", rankString(g))
	}
	a.lead()
	if len(a.c.Target) == 0 {
		return a.serve("")
	}
	if err := a.transport.open(&a.c); err != nil {
		return err
	}
	if a.fresh {
		return a.serve("")
	}
	a.mu.Lock()
	a.starting = fmt.Sprintf("asking the followers for a higher generation, for up to %s", a.c.StartWait)
	a.mu.Unlock()
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		a.askFirst(a.tasks)
	}()
	return nil
}

// lead makes the promise of a primary's mode the volume's gate.
func (a *Agent) lead() {
	p := newPromise(a.c.Mode, a.c.OnLoss, len(a.c.Target) > 0, a.v.log.Durable())
	a.mu.Lock()
	a.promise = p
	a.mu.Unlock()
	a.v.gate.Store(&gateBox{p})
}

// askFirst opens the front of a restarted source once a follower has
// answered, or when none did in time and alone is allowed.
func (a *Agent) askFirst(ctx context.Context) {
	alone := time.NewTimer(a.c.StartWait)
	defer alone.Stop()
	select {
	case <-ctx.Done():
		return
	case <-a.verdict:
	case <-alone.C:
		if a.c.Alone == AloneRefuse {
			a.mu.Lock()
			a.starting = fmt.Sprintf("no follower answered within %s and alone is refuse", a.c.StartWait)
			a.mu.Unlock()
			a.event("alone", "", "no follower answered within %s: waiting for one (alone: refuse)", a.c.StartWait)
			select {
			case <-ctx.Done():
				return
			case <-a.verdict:
			}
		} else {
			a.event("alone", "", "no follower answered within %s: serving alone (alone: serve)", a.c.StartWait)
		}
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.mu.Lock()
	blocked := a.fenced != "" || a.closed
	blocked = blocked || a.serving
	a.starting = ""
	a.mu.Unlock()
	if blocked {
		return
	}
	if err := a.serve(""); err != nil {
		a.mu.Lock()
		a.startError = err
		a.mu.Unlock()
		a.event("failed", "", "%v", err)
	}
}

// serve opens the front. opMu is held.
func (a *Agent) serve(address string) error {
	stored := string(a.v.log.Anchor().Extra)
	if address == "" {
		address = cmp.Or(a.c.NBD, stored)
	}
	if address == "" {
		return errors.New("nbd: no address to serve at, give --nbd unix:PATH or HOST:PORT")
	}
	at, err := a.front.Open(served{a.v}, a.c.Name, address)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	a.mu.Lock()
	a.serving, a.nbd = true, at
	a.mu.Unlock()
	if stored != address && a.c.Role == RoleSecondary {
		// A promoted target serves there again after a restart.
		if err := a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) { x.Extra = []byte(address); a.v.fillAnchor(x) })); err != nil {
			return err
		}
	}
	a.event("serving", "", "NBD at %s, generation %s", at, rankString(a.v.Generation()))
	return nil
}

// served is the volume as the front sees it: its end is the agent's business.
type served struct{ *Volume }

// Close does nothing: the agent closes the volume.
func (served) Close() error { return nil }

// fence stops this primary for good: a higher generation exists (G5).
func (a *Agent) fence(reason string) {
	a.mu.Lock()
	if a.fenced != "" {
		a.mu.Unlock()
		return
	}
	a.fenced = reason
	a.serving = false
	p := a.promise
	a.mu.Unlock()
	a.v.refuse(ErrFenced)
	a.front.Abort()
	if p != nil {
		p.close()
	}
	if err := a.v.setFlags(stateFenced, 0); err != nil {
		a.log.Error().Err(err).Msg("store that the volume is fenced")
	}
	a.event("fenced", "", "%s: the front is closed, nothing more is written here", reason)
	a.signalVerdict()
}

func (a *Agent) signalVerdict() {
	select {
	case a.verdict <- struct{}{}:
	default:
	}
}

// SetMode changes the mode; what was answered under the old one stays true.
func (a *Agent) SetMode(_ context.Context, m Mode) error {
	if _, err := ParseMode(string(m)); err != nil {
		return err
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.mu.Lock()
	p := a.promise
	a.c.Mode = m
	a.mu.Unlock()
	if p != nil {
		p.update(func() { p.mode = m })
	}
	a.event("mode", "", "mode is %s", m)
	return nil
}

// Switch moves the data flow: "backup" (or "") to the next backup target,
// "primary" back to the first target, or a target's address. It returns once
// the port has switched; the follower may still be resynced after that.
func (a *Agent) Switch(ctx context.Context, to string) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.Role() != RolePrimary {
		return fmt.Errorf("this volume is %s: switch is an order for the source; to take over here use promote", a.v.Role())
	}
	index := -1
	switch to {
	case "", "backup":
		if len(a.c.Backups) == 0 {
			return errors.New("no backup is configured: start the source with --backup HOST:PORT")
		}
	case "primary":
		index = 0
	default:
		for i, f := range a.followers {
			if f.target == to {
				index = i
			}
		}
		if index < 0 {
			return fmt.Errorf("no target %q: choose backup, primary or one of the addresses that status shows", to)
		}
	}
	return a.transport.switchTo(ctx, index)
}

// Suspend stops the data flow to the followers, Resume starts it again.
func (a *Agent) Suspend(context.Context) error { return a.setSuspended(true) }

// Resume starts the data flow again after Suspend.
func (a *Agent) Resume(context.Context) error { return a.setSuspended(false) }

func (a *Agent) setSuspended(on bool) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.Role() != RolePrimary {
		return errors.New("this volume is secondary: suspend and resume are orders for the source")
	}
	a.mu.Lock()
	already := a.suspended == on
	a.suspended = on
	p := a.promise
	a.mu.Unlock()
	if already {
		return nil
	}
	if on {
		a.transition(-1, followerSuspend, "by the operator")
		if p != nil {
			p.giveUp()
		}
		a.stopSender()
		return a.transport.suspend()
	}
	a.transition(-1, followerResume, "")
	if err := a.transport.resume(); err != nil {
		return err
	}
	a.feedAgain()
	return nil
}

// ResetPath closes a path (its ID in Status) so that it is built anew.
func (a *Agent) ResetPath(_ context.Context, target string, id int) error {
	a.mu.Lock()
	known := target == ""
	for i, f := range a.followers {
		known = known || f.target == target && i == a.current
	}
	a.mu.Unlock()
	if !known {
		return fmt.Errorf("%s is not the active target: status shows the paths that can be reset", target)
	}
	return a.transport.resetPath(id)
}

// PromoteOptions are what the operator says when ordering a promotion.
type PromoteOptions struct {
	// Force promotes although the source seems alive.
	Force bool `json:"force"`
	// NBD is the address to serve at; empty means Config.NBD.
	NBD string `json:"nbd"`
}

// PromoteResult tells what a promotion did.
type PromoteResult struct {
	Generation string  `json:"generation"`
	LSN        uint64  `json:"lsn"`
	NBD        string  `json:"nbd"`
	Seconds    float64 `json:"seconds"` // from the order to the open front
}

// Promote makes this secondary a primary of a new generation, durable before
// anything is served, and opens the front at what its log holds.
func (a *Agent) Promote(_ context.Context, o PromoteOptions) (PromoteResult, error) {
	began := time.Now()
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if err := a.v.Err(); err != nil {
		return PromoteResult{}, err
	}
	if a.v.Role() == RolePrimary {
		return a.serveAnyway(o, began)
	}
	if a.v.flags()&stateBlank != 0 {
		return PromoteResult{}, fmt.Errorf("refused: this volume has never been in sync, there is nothing consistent to serve: %w", ErrNotPromotable)
	}
	if o.NBD == "" && a.c.NBD == "" {
		return PromoteResult{}, errors.New("refused: no NBD address is configured on this host: promote --nbd unix:PATH or HOST:PORT")
	}
	if peer, alive := a.sourceAlive(); alive && !o.Force {
		return PromoteResult{}, fmt.Errorf("refused: %s, the source, is alive: stop it first, or say promote --force to fence it", peer)
	}
	a.mu.Lock()
	a.promoting = true
	a.mu.Unlock()
	a.closeInbound() // no record of the old generation from here on
	g, err := a.v.beginGeneration(true)
	a.mu.Lock()
	a.promoting = false
	a.mu.Unlock()
	if err != nil {
		return PromoteResult{}, fmt.Errorf("promote: %w", err)
	}
	a.lead()
	if err := a.serve(o.NBD); err != nil {
		return PromoteResult{}, err
	}
	a.event("promoted", "", "primary of generation %s from LSN %d", rankString(g), g.First)
	if len(a.c.Target) > 0 {
		if err := a.transport.open(&a.c); err != nil {
			a.event("failed", "", "followers: %v", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return PromoteResult{Generation: rankString(g), LSN: uint64(g.First), NBD: a.nbd, Seconds: time.Since(began).Seconds()}, nil
}

// serveAnyway opens the front of a volume that is primary and does not serve:
// its address was taken, or it still asks its followers.
func (a *Agent) serveAnyway(o PromoteOptions, began time.Time) (PromoteResult, error) {
	a.mu.Lock()
	serving, fenced := a.serving, a.fenced
	a.mu.Unlock()
	if fenced != "" {
		return PromoteResult{}, fmt.Errorf("refused: %s: %w", fenced, ErrFenced)
	}
	if serving {
		return PromoteResult{}, errors.New("refused: this volume is already primary and serves")
	}
	if err := a.serve(o.NBD); err != nil {
		return PromoteResult{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.starting, a.startError = "", nil
	return PromoteResult{
		Generation: rankString(a.v.Generation()), LSN: uint64(a.v.log.Head()), NBD: a.nbd, Seconds: time.Since(began).Seconds(),
	}, nil
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
		a.partWithFollower()
	}
	return errors.Join(failed, startError, a.Close())
}

// partWithFollower lets the active follower have everything and know that it
// is durable here, so that both devices are equal after both have ended.
func (a *Agent) partWithFollower() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	a.mu.Lock()
	var s *sender
	if a.current < len(a.followers) {
		s = a.followers[a.current].sender
	}
	a.mu.Unlock()
	if s == nil || !s.streaming.Load() {
		return
	}
	head := a.v.log.Head()
	if _, err := a.v.log.Sync(head); err != nil {
		return
	}
	s.farewell(ctx, head)
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
	if p != nil {
		p.close()
	}
	a.front.Abort()
	a.stopSender()
	err := a.transport.close()
	a.closeInbound()
	a.wg.Wait()
	return errors.Join(err, a.v.Close())
}

// adopt gives a blank volume the mirror's identity.
func (a *Agent) adopt(id string) error {
	u, err := uuid.Parse(id)
	if err != nil {
		return fmt.Errorf("%w: mirror uuid %.40q", errMessage, id)
	}
	if err := a.v.journalError(a.v.log.WriteAnchor(func(x *journal.Anchor) {
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
