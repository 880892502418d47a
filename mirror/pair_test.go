package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// session connects a source volume with a follower volume over a link in
// memory, as two agents would.
type session struct {
	a, b     *memLink
	sender   *sender
	receiver *receiver
	promise  *promise
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	states []followerEvent
	said   string // the reason of the last one that had any
	caught chan struct{}
	ended  chan error
}

const testUUID = "6f4e2f0e-0000-4000-8000-000000000001"

func connect(src, dst *Volume, p *promise, stage func(int64) (*staging, error)) *session {
	return connectAs("dst", src, dst, p, stage)
}

// connectAs: the source knows the follower by that name.
func connectAs(name string, src, dst *Volume, p *promise, stage func(int64) (*staging, error)) *session {
	return connectWith(func(s *sender) { s.follower = name }, src, dst, p, stage)
}

// connectWith: set changes the sender before it runs.
func connectWith(set func(*sender), src, dst *Volume, p *promise, stage func(int64) (*staging, error)) *session {
	s := &session{promise: p, caught: make(chan struct{}), ended: make(chan error, 1)}
	s.a, s.b = pair()
	var once sync.Once
	s.sender = newSender(src, s.a, p)
	s.sender.mirror, s.sender.name, s.sender.node = testUUID, "vol", "src"
	s.sender.chunk = resyncBlockBytes // many of them on a small device
	set(s.sender)
	s.sender.report = func(e followerEvent, why string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.states = append(s.states, e)
		s.said = cmp.Or(why, s.said)
		if e == followerCaughtUp {
			once.Do(func() { close(s.caught) }) // again when an acknowledgement comes after cut
		}
	}
	s.receiver = newReceiver(dst, s.b)
	s.receiver.mirror, s.receiver.name, s.receiver.node = testUUID, "vol", "dst"
	s.receiver.newStage = stage
	if stage == nil {
		s.receiver.newStage = func(int64) (*staging, error) { return nil, errors.New("no resync expected") }
	}
	s.b.serve(&s.wg, func(ctx context.Context, b []byte) ([]byte, error) { return s.receiver.handle(ctx, b) })
	s.a.serve(&s.wg, func(_ context.Context, b []byte) ([]byte, error) {
		switch b[0] {
		case kindAck:
			x, err := decodeAck(b)
			if err == nil {
				s.sender.acknowledged(x)
			}
			return nil, err
		case kindVerified:
			s.sender.verified(b)
		case kindBroken:
			s.sender.broken(string(b[1:]))
		}
		return nil, nil
	})
	p.session(0)
	p.setKick(0, s.sender.poke)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for { // a follower whose volume fails leaves, as its agent would
			moved, err := dst.watch()
			if err != nil {
				s.cut()
				return
			}
			select {
			case <-moved:
			case <-s.a.Done():
				return
			}
		}
	}()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		err := s.sender.run(ctx)
		if err != nil {
			s.cut()
		}
		s.ended <- err
	}()
	return s
}

// cut breaks the connection; nobody waits for the follower any more.
func (s *session) cut() {
	s.a.cut()
	s.sender.stop() // or an acknowledgement that is being taken counts again after this
	s.promise.giveUp(0)
}

func (s *session) close() {
	s.cut()
	s.cancel()
	s.wg.Wait()
	s.promise.giveUp(0) // an acknowledgement may have come after cut
	s.receiver.close()
}

func (s *session) had(e followerEvent) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.states {
		if x == e {
			return true
		}
	}
	return false
}

func (s *session) awaitSync() error {
	select {
	case <-s.caught:
		return nil
	case err := <-s.ended:
		return fmt.Errorf("session ended: %w", err)
	case <-time.After(20 * time.Second):
		return errors.New("no sync within 20 s")
	}
}

// inPlace stages a resync in the device of a blank volume.
func inPlace(v *Volume) func(int64) (*staging, error) {
	return func(size int64) (*staging, error) { return openStaging(v, "", size) }
}

// duo is a source and a follower, in sync and in mode flush.
type duo struct {
	hosts    [2]*host
	v        [2]*Volume
	promise  *promise
	session  *session
	model    []byte
	states   [][]byte // content after each operation
	flushed  int      // operations covered by an answered flush while the follower counted
	answered int      // … by any answered flush
	fill     byte     // of what apart wrote last
}

const (
	srcHost = 0
	dstHost = 1
)

func newDuo(t testing.TB) *duo {
	t.Helper()
	return duoOf(t, newHost(t, RolePrimary), newHost(t, RoleSecondary))
}

// newTrackedDuo's source knows what its follower lacks.
func newTrackedDuo(t testing.TB) *duo {
	t.Helper()
	src := newHost(t, RolePrimary)
	src.track()
	return duoOf(t, src, newHost(t, RoleSecondary))
}

func duoOf(t testing.TB, src, dst *host) *duo {
	t.Helper()
	d := &duo{hosts: [2]*host{src, dst}, model: make([]byte, testDevice)}
	d.states = [][]byte{bytes.Clone(d.model)}
	d.v[srcHost], d.v[dstHost] = d.hosts[srcHost].mustOpen(t), d.hosts[dstHost].mustOpen(t)
	d.lead()
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, inPlace(d.v[dstHost]))
	if err := d.session.awaitSync(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *duo) lead() {
	v := d.v[srcHost]
	d.promise = newPromise(ModeFlush, OnLossContinue, 1, v.log.Durable())
	v.gate.Store(&gateBox{d.promise})
}

func (d *duo) close() {
	d.session.close()
	d.promise.close()
	for _, v := range d.v {
		_ = v.Abort()
	}
}

// scenario runs n scripted operations on the source until one fails or it is
// enough.
func (d *duo) scenario(n int, enough func() bool) error {
	rng := rand.New(rand.NewPCG(7, 7))
	v := d.v[srcHost]
	for i := range n {
		if enough() {
			return nil
		}
		off := int64(rng.IntN(testDevice - 24<<10))
		size := int64(1 + rng.IntN(16<<10))
		p := make([]byte, size)
		for k := range p {
			p[k] = byte(i + k*7)
		}
		kind := rng.IntN(10)
		d.change(kind, off, p)
		var err error
		switch kind {
		case 0:
			err = v.Zero(off, size)
		case 1:
			err = v.Trim(off, size)
		case 2, 3:
			counted := d.counts()
			if err = v.Sync(); err == nil {
				d.answered = len(d.states) - 1
				if counted && d.counts() {
					d.flushed = d.answered
				}
			}
		case 4:
			ws := []blockdev.Write{{Offset: off, Data: p, Sync: true}}
			v.WriteBatch(ws)
			if err = ws[0].Err; err == nil {
				d.answered = len(d.states) - 1
			}
		default:
			_, err = v.WriteAt(p, off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func never() bool { return false }

func (d *duo) counts() bool { return d.promise.counts() }

// change notes what the content is after an operation, before it is tried.
func (d *duo) change(kind int, off int64, p []byte) {
	switch kind {
	case 0, 1:
		clear(d.model[off : off+int64(len(p))])
	case 2, 3:
		return
	default:
		copy(d.model[off:], p)
	}
	d.states = append(d.states, bytes.Clone(d.model))
}

// stateOf finds which operations a volume's content has: always a prefix.
func (d *duo) stateOf(v *Volume, least int) (int, error) {
	got, err := content(v)
	if err != nil {
		return 0, err
	}
	for i := len(d.states) - 1; i >= 0; i-- {
		if bytes.Equal(got, d.states[i]) {
			if i < least {
				return i, fmt.Errorf("content is that after operation %d, %d were flushed", i, least)
			}
			return i, nil
		}
	}
	return -1, fmt.Errorf("content is that of no prefix of the operations (%d, %d flushed)", len(d.states)-1, least)
}

func equalLogs(a, b *Volume) error {
	ha, ca := a.log.HeadChain()
	hb, cb := b.log.HeadChain()
	if ha != hb || ca != cb {
		return fmt.Errorf("logs differ: heads %d and %d, chains %x and %x", ha, hb, ca, cb)
	}
	x, err := content(a)
	if err != nil {
		return err
	}
	y, err := content(b)
	if err != nil {
		return err
	}
	if !bytes.Equal(x, y) {
		return fmt.Errorf("contents differ at %d", firstDifference(x, y))
	}
	return nil
}

// crashOnce cuts the power of one side at its n-th disk operation of the
// scenario, and checks G2, G3 and that both go on without a resync. Reports
// whether the power was cut at all.
func crashOnce(t testing.TB, side, n, ops int, rng *rand.Rand) (bool, error) {
	d := newDuo(t)
	defer d.close()
	power := d.hosts[side].power
	power.CutAfter(n)
	// A follower that is away for longer than the log reaches back needs a
	// resync: the source goes on alone for some operations only.
	left := 15
	err := d.scenario(ops, func() bool {
		if side == dstHost && power.Lost() {
			left--
		}
		return left == 0
	})
	power.CutAfter(1 << 30) // whatever goes on behind the scenes is not cut any more
	if side == srcHost && err == nil && !power.Lost() {
		return false, d.finish()
	}
	if side == dstHost {
		if err != nil {
			return true, fmt.Errorf("the source failed for the follower's power: %w", err)
		}
		if !power.Lost() {
			return false, d.finish()
		}
	}
	d.session.close()
	_ = d.v[side].Abort()
	power.Restore(rng)
	v, err := d.hosts[side].open()
	if err != nil {
		return true, fmt.Errorf("open after power loss: %w", err)
	}
	d.v[side] = v
	least := d.flushed
	if side == srcHost {
		least = d.answered
	}
	at, err := d.stateOf(v, least)
	if err != nil {
		return true, fmt.Errorf("after power loss: %w", err)
	}
	// The other side stays promotable to everything that was flushed (G2, G4).
	if side == srcHost {
		if _, err := d.stateOf(d.v[dstHost], d.flushed); err != nil {
			return true, fmt.Errorf("the follower of a burnt source: %w", err)
		}
		d.model = bytes.Clone(d.states[at])
		d.lead()
	}
	d.session = connect(d.v[srcHost], d.v[dstHost], d.promise, nil)
	if err := d.session.awaitSync(); err != nil {
		return true, fmt.Errorf("after power loss: %w", err)
	}
	if d.session.had(followerNeedsResync) {
		return true, errors.New("a plain crash needed a resync")
	}
	return true, d.finish()
}

// finish goes on for a while and compares both sides.
func (d *duo) finish() error {
	if err := d.scenario(12, never); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		return err
	}
	d.v[srcHost].overlay.freeze()
	return equalLogs(d.v[srcHost], d.v[dstHost])
}

// TestPowerLoss cuts the power of each side at every write and every sync of
// a scenario of 200 operations. MIRROR_AGENT_SEED repeats a run's survivors.
func TestPowerLoss(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MIRROR_AGENT_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	const ops = 200
	for side, name := range []string{"source", "follower"} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, uint64(side)))
			step := 1
			if testing.Short() || raceEnabled {
				step = 17
			}
			cuts := 0
			for n := 1; ; n += step {
				cut, err := crashOnce(t, side, n, ops, rng)
				if err != nil {
					t.Fatalf("cut at operation %d (MIRROR_AGENT_SEED=%d): %v", n, seed, err)
				}
				if !cut {
					break
				}
				cuts++
			}
			if cuts < 60/step { // how many there are depends on what the disk takes at once
				t.Fatalf("only %d cuts", cuts)
			}
			t.Logf("%d cuts", cuts)
		})
	}
}

// TestFollowerChainAfterCut: what a follower had to cut never comes back.
func TestFollowerCutsUncommittedTail(t *testing.T) {
	d := newDuo(t)
	defer d.close()
	if err := d.scenario(20, never); err != nil {
		t.Fatal(err)
	}
	if err := d.v[srcHost].Sync(); err != nil {
		t.Fatal(err)
	}
	at := d.v[dstHost].log.Head()
	if err := d.v[dstHost].cut(firstLSN); !errors.Is(err, journal.ErrCommitted) {
		t.Fatalf("a committed record was cut: %v", err)
	}
	if d.v[dstHost].log.Head() != at {
		t.Fatal("a refused cut changed the log")
	}
}
