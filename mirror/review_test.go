package mirror

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// line is a session whose receiver stays while senders come and go, as an
// agent's feed has it.
type line struct {
	a, b *memLink
	r    *receiver
	src  *Volume
	p    *promise
	wg   sync.WaitGroup

	mu sync.Mutex // guards s
	s  *sender
}

func newLine(src, dst *Volume, p *promise) *line {
	l := &line{src: src, p: p}
	l.a, l.b = pair()
	l.r = newReceiver(dst, l.b)
	l.r.mirror, l.r.name, l.r.node = testUUID, "vol", "dst"
	l.r.newStage = inPlace(dst)
	l.b.serve(&l.wg, func(ctx context.Context, b []byte) ([]byte, error) { return l.r.handle(ctx, b) })
	l.a.serve(&l.wg, func(_ context.Context, b []byte) ([]byte, error) {
		l.mu.Lock()
		s := l.s
		l.mu.Unlock()
		if x, err := decodeAck(b); err == nil && s != nil {
			s.acknowledged(x)
		}
		return nil, nil
	})
	return l
}

// feed runs a new sender until stop, which waits for its end.
func (l *line) feed() (s *sender, stop func()) {
	s = newSender(l.src, l.a, l.p)
	s.mirror, s.name, s.node = testUUID, "vol", "src"
	l.mu.Lock()
	l.s = s
	l.mu.Unlock()
	l.p.session(0)
	l.p.setKick(0, s.poke)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.run(ctx)
	}()
	return s, func() { cancel(); <-done }
}

func (l *line) close() {
	l.a.cut()
	l.wg.Wait()
	l.r.close()
}

// awaitPromise waits until the promise is as wanted.
func awaitPromise(p *promise, want func(*promise) bool) bool {
	end := time.After(5 * time.Second)
	for {
		p.mu.Lock()
		ok, moved := want(p), p.moved
		p.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-moved:
		case <-end:
			return false
		}
	}
}

func counting(p *promise) bool { return p.w.standing == isCounting }

// disconnected is a duo whose session has ended.
func disconnected(t *testing.T) *duo {
	t.Helper()
	d := newDuo(t)
	if err := errors.Join(d.scenario(10, never), d.v[srcHost].Sync()); err != nil {
		t.Fatal(err)
	}
	d.session.close()
	return d
}

// TestSecondHandshakeOfASession: a follower that shakes hands again over the
// same session, with nothing new to tell, still says what it has. It did not,
// and after suspend and resume an idle mirror was never in sync again; with
// on-loss freeze no write could have changed that.
func TestSecondHandshakeOfASession(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	l := newLine(d.v[srcHost], d.v[dstHost], d.promise)
	defer l.close()
	for i := range 3 {
		_, stop := l.feed()
		if !awaitPromise(d.promise, counting) {
			stop()
			t.Fatalf("handshake %d: the follower does not come into sync", i)
		}
		stop()
	}
}

// TestLateAcknowledgement: what arrives when the sender has ended neither
// holds the log, which nobody would release, nor makes a target count.
func TestLateAcknowledgement(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	l := newLine(d.v[srcHost], d.v[dstHost], d.promise)
	defer l.close()
	s, stop := l.feed()
	if !awaitPromise(d.promise, counting) {
		t.Fatal("no sync")
	}
	stop()
	d.promise.giveUp(0)
	head := d.v[srcHost].log.Head()
	s.acknowledged(ack{Received: head, Durable: head, Applied: head})
	if _, holding := d.v[srcHost].pinned(); holding {
		t.Error("the tail is held for a session that has ended")
	}
	if d.counts() {
		t.Error("a target counts whose session has ended")
	}
}

// TestDeclaredIsBounded (G3): the source's word covers what the follower has
// of its log. A word beyond that would commit whatever another source puts
// there later.
func TestDeclaredIsBounded(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	dst := d.v[dstHost]
	a, _ := pair()
	defer a.cut()
	r := newReceiver(dst, a)
	defer r.close()
	head, chain := dst.log.HeadChain()
	if _, err := r.handle(t.Context(), encodeJSON(kindStart, start{At: head, Chain: chain})); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, recordsHeaderBytes)
	recordsHeader{From: head, Declared: head + 1<<20, Head: head + 1<<20}.put(msg)
	if _, err := r.handle(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	if got := journal.LSN(dst.declared.Load()); got > head {
		t.Fatalf("declared is %d, the log ends at %d", got, head)
	}
}

// TestCutTakesTheWordBack: what is cut was declared durable by a source whose
// records are gone; the word is not one about what comes to lie there.
func TestCutTakesTheWordBack(t *testing.T) {
	h := newHost(t, RoleSecondary)
	v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, VolumeOptions{SyncInterval: time.Hour, SyncBytes: 1 << 30, ApplyInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Abort()
	if err := v.log.Append([]*journal.Entry{{Op: journal.OpZero, Length: 512}}); err != nil {
		t.Fatal(err)
	}
	v.declare(v.log.Head())
	if err := v.cut(firstLSN); err != nil {
		t.Fatal(err)
	}
	if got := journal.LSN(v.declared.Load()); got != firstLSN {
		t.Fatalf("declared is %d after a cut at %d", got, firstLSN)
	}
}

// TestFullRingTakesTheWord: a follower whose ring is full of undeclared
// records goes on when the message that finds it full brings the word.
func TestFullRingTakesTheWord(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	src, dst := d.v[srcHost], d.v[dstHost]
	a, _ := pair()
	defer a.cut()
	r := newReceiver(dst, a)
	defer r.close()
	at, chain := dst.log.HeadChain()
	if _, err := r.handle(t.Context(), encodeJSON(kindStart, start{At: at, Chain: chain})); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.log.Sync(at); err != nil {
		t.Fatal(err)
	}
	dst.declare(at)
	dst.overlay.freeze()
	if err := dst.applyReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	const room = 120000 // eight of these fit into the ring, nine do not
	declared := at
	for i := range 9 {
		if _, err := src.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, room), 0); err != nil {
			t.Fatal(err)
		}
		msg := make([]byte, recordsHeaderBytes+room+4096)
		n, err := src.log.ReadRaw(at, msg[recordsHeaderBytes:])
		if err != nil {
			t.Fatal(err)
		}
		if i == 8 {
			declared = at
		}
		recordsHeader{From: at, Declared: declared, Head: at}.put(msg)
		if _, err := r.handle(ctx, msg[:recordsHeaderBytes+n]); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		at += journal.LSN(n)
	}
}

// TestPromotionPowerLoss cuts the power at every disk operation of a
// promotion: the volume is a primary then, or a secondary that its source
// goes on feeding. A generation record without its anchor made it diverge.
func TestPromotionPowerLoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	secondary, primary := 0, 0
	for n := 1; ; n++ {
		d := disconnected(t)
		h := d.hosts[dstHost]
		h.power.CutAfter(n)
		_, err := d.v[dstHost].beginGeneration(true)
		if err == nil {
			d.close()
			break
		}
		_ = d.v[dstHost].Abort()
		h.power.Restore(rng)
		v, _, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, testOptions())
		if err != nil {
			t.Fatalf("cut at operation %d: %v", n, err)
		}
		d.v[dstHost] = v
		if v.Role() == RolePrimary {
			primary++
			d.close()
			continue
		}
		secondary++
		d.session = connect(d.v[srcHost], v, d.promise, nil)
		if err := errors.Join(d.session.awaitSync(), d.finish()); err != nil {
			t.Fatalf("cut at operation %d: %v", n, err)
		}
		d.close()
	}
	if secondary == 0 {
		t.Fatal("no cut left a secondary")
	}
	t.Logf("%d cuts left a secondary, %d a primary", secondary, primary)
}

// TestUncleanEndIsRemembered: a start that goes no further than opening the
// volume must not make an unclean end look clean, since the next start would
// go on in the generation that lost records.
func TestUncleanEndIsRemembered(t *testing.T) {
	h := newHost(t, RolePrimary)
	v := h.mustOpen(t)
	if _, err := v.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	_ = v.Abort()
	for range 2 { // opened and closed without a generation, then seen
		v, rec, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, testOptions())
		if err != nil {
			t.Fatal(err)
		}
		if rec.Clean {
			t.Fatal("the end was not clean, and no generation was begun since")
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v = h.mustOpen(t) // begins the generation
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v, rec, err := openVolume(keepOpen{h.journal}, keepOpen{h.device}, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Abort()
	if !rec.Clean {
		t.Fatal("a clean end is not one")
	}
}

// TestMergeThatFails: a volume whose staging was taken over and cannot be
// merged is not whole. It must not be fed or promoted.
func TestMergeThatFails(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	v := d.v[dstHost]
	bad := errors.New("bad sector")
	file := blockdev.NewFaulty(blockdev.NewMemory(testDevice, nil), blockdev.Rule{Op: blockdev.OpRead, Err: bad})
	st, err := newStaging(v, file, func() error { t.Error("the staging file was removed"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := st.write(bytes.Repeat([]byte{7}, resyncBlockBytes), 0, resyncBlockBytes, false); err != nil {
		t.Fatal(err)
	}
	at, chain := v.log.HeadChain()
	if err := st.finish(at+4096, chain, v.History()); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if v.Err() == nil {
		t.Fatal("the volume goes on without what lies in the staging file")
	}
	if _, err := v.beginGeneration(true); err == nil && v.Err() == nil {
		t.Fatal("it can be promoted")
	}
}

type closeSeen struct {
	*blockdev.Faulty
	closed bool
}

func (c *closeSeen) Close() error { c.closed = true; return c.Faulty.Close() }

// TestStagingSyncThatFails (G9): what a failed fdatasync left in the staging
// file is not reused, and its lock is given back.
func TestStagingSyncThatFails(t *testing.T) {
	d := disconnected(t)
	defer d.close()
	v := d.v[dstHost]
	bad := errors.New("bad sector")
	file := &closeSeen{Faulty: blockdev.NewFaulty(blockdev.NewMemory(testDevice, nil), blockdev.Rule{Op: blockdev.OpSync, Err: bad})}
	removed := false
	st, err := newStaging(v, file, func() error { removed = true; return nil })
	if err != nil {
		t.Fatal(err)
	}
	at, chain := v.log.HeadChain()
	if err := st.finish(at+4096, chain, v.History()); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if !removed || !file.closed {
		t.Fatalf("removed %v, closed %v", removed, file.closed)
	}
	if v.Err() != nil || v.flags()&stateMerging != 0 {
		t.Fatalf("the old state is gone: %v", v.Err())
	}
}

// TestForeignGenerations: another mirror's generations fence nobody.
func TestForeignGenerations(t *testing.T) {
	src := sourceView{mirror: "m", size: 1 << 20, generations: []journal.Generation{gen(1, 0, 1, 800)}, head: 1600, tail: 800, chainAt: chains}
	f := followerState{Mirror: "n", Node: "f", Size: 1 << 20, Seen: gen(1, 3, 9, 0), Generations: []journal.Generation{gen(1, 3, 9, 0)}}
	if got := decide(src, f); got.kind != outcomeUnrelated {
		t.Errorf("higher: %+v", got)
	}
	f.Seen = gen(1, 0, 9, 0)
	if got := decide(src, f); got.kind != outcomeUnrelated {
		t.Errorf("same rank: %+v", got)
	}
}

// TestBlankOfAnotherMirror: a follower whose first resync was cut short and
// whose source was given up takes another mirror, of any generation.
func TestBlankOfAnotherMirror(t *testing.T) {
	v := newHost(t, RoleSecondary).mustOpen(t)
	defer v.Abort()
	if err := v.see(gen(5, 3, 9, 0)); err != nil {
		t.Fatal(err)
	}
	a, _ := pair()
	defer a.cut()
	r := newReceiver(v, a)
	defer r.close()
	r.mirror = "6f4e2f0e-0000-4000-8000-00000000ffff"
	var adopted string
	r.adopt = func(id string) error { adopted = id; return nil }
	h := hello{Version: protocolVersion, Mirror: testUUID, Name: "vol", Size: testDevice, Generations: []journal.Generation{gen(1, 0, 1, firstLSN)}}
	b, err := r.handle(t.Context(), encodeJSON(kindHello, h))
	if err != nil {
		t.Fatal(err)
	}
	var f followerState
	if err := decodeJSON(b, &f); err != nil {
		t.Fatal(err)
	}
	got := decide(sourceView{mirror: testUUID, size: testDevice, generations: h.Generations, chainAt: chains}, f)
	if got.kind != outcomeResync || adopted != testUUID {
		t.Fatalf("%+v, adopted %q", got, adopted)
	}
}

// TestGenerationRecordIsChecked: a generation record that cannot be read back
// is refused; in the log it would keep the volume from its next start.
func TestGenerationRecordIsChecked(t *testing.T) {
	src := newHost(t, RolePrimary)
	v, _, err := openVolume(keepOpen{src.journal}, keepOpen{src.device}, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Abort()
	at, chain := v.log.HeadChain()
	if err := v.log.Append([]*journal.Entry{{Op: journal.OpGeneration, Payload: []byte("short")}}); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 4096)
	n, err := v.log.ReadRaw(at, raw)
	if err != nil {
		t.Fatal(err)
	}
	dst := newHost(t, RoleSecondary).mustOpen(t)
	defer dst.Abort()
	if err := dst.restart(at, chain, nil, func(*journal.Anchor) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.appendRaw(t.Context(), at, raw[:n]); err == nil {
		t.Fatal("taken")
	}
	if head := dst.log.Head(); head != at {
		t.Fatalf("the log moved to %d", head)
	}
}

// TestExpectation: a target that came back is expected anew; the time that
// was given to it when it was lost before does not cut that short.
func TestExpectation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPromise(ModeFlush, OnLossContinue, 1, 0)
		p.acknowledge(0, 100, 100, 100)
		first := p.lost(0)
		p.acknowledge(0, 100, 100, 100)
		second := p.lost(0)
		p.expire(first)
		got, done := waits(t, p, 200)
		if !got {
			t.Fatal("a flush was answered alone, before its time")
		}
		p.expire(second)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// TestFrozenWritesEndUnanswered: closing does not let through what freeze
// held back.
func TestFrozenWritesEndUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPromise(ModeFlush, OnLossFreeze, 1, 0)
		done := make(chan error, 1)
		go func() { done <- p.admit(t.Context()) }()
		synctest.Wait()
		p.close()
		if err := <-done; !errors.Is(err, blockdev.ErrShutdown) {
			t.Fatalf("admitted: %v", err)
		}
	})
}
