package mirror

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// TestPromiseOfWrites: when a write is answered, by mode, policy and what the target has.
func TestPromiseOfWrites(t *testing.T) {
	has := func(received, durable journal.LSN) func(*promise) {
		return func(p *promise) { p.acknowledge(0, 100, 100, 100); p.acknowledge(0, received, durable, 200) }
	}
	then := func(fs ...func(*promise)) func(*promise) {
		return func(p *promise) {
			for _, f := range fs {
				f(p)
			}
		}
	}
	lost := func(p *promise) { p.lost(0) }
	tests := []struct {
		name   string
		mode   Mode
		onLoss OnLoss
		do     func(*promise)
		waits  bool
	}{
		{"async never waits", ModeAsync, OnLossContinue, has(100, 100), false},
		{"flush never waits", ModeFlush, OnLossContinue, has(100, 100), false},
		{"receive waits for the target", ModeReceive, OnLossContinue, has(199, 100), true},
		{"received", ModeReceive, OnLossContinue, has(200, 100), false},
		{"durable is what a flush waits for", ModeDurable, OnLossContinue, has(200, 100), false},
		{"target never there, continue", ModeReceive, OnLossContinue, func(*promise) {}, false},
		{"target never there, freeze", ModeReceive, OnLossFreeze, func(*promise) {}, true},
		{"lost and expected", ModeReceive, OnLossContinue, then(has(200, 200), lost), true},
		{"given up, continue", ModeReceive, OnLossContinue, then(has(100, 100), func(p *promise) { p.giveUp(0) }), false},
		{"given up, freeze", ModeReceive, OnLossFreeze, then(has(200, 200), func(p *promise) { p.giveUp(0) }), true},
		{"a new session begins with nothing", ModeReceive, OnLossFreeze, then(has(200, 200), func(p *promise) { p.session(0) }), true},
		{"it counts with all of it", ModeReceive, OnLossContinue, then(func(p *promise) { p.giveUp(0) }, has(199, 199)), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPromise(tt.mode, tt.onLoss, 1, 50)
				tt.do(p)
				done := make(chan error, 1)
				go func() {
					durable, err := p.written(context.Background(), 200)
					if err == nil && durable != (tt.mode == ModeDurable) {
						err = errors.New("the wrong kind of promise")
					}
					done <- err
				}()
				synctest.Wait()
				if got := len(done) == 0; got != tt.waits {
					t.Fatalf("waits: %v, want %v", got, tt.waits)
				}
				p.close()
				if err := <-done; tt.waits != errors.Is(err, blockdev.ErrShutdown) {
					t.Fatalf("after the end: %v", err)
				}
			})
		})
	}
}

// TestPromiseWeaker: who waits when the mode becomes weaker is let go, when it becomes stronger the next one waits.
func TestPromiseWeaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPromise(ModeReceive, OnLossContinue, 1, 50)
		kicks := 0
		p.setKick(0, func() { kicks++ })
		p.acknowledge(0, 100, 100, 100)
		done := make(chan error, 1)
		wait := func() { _, err := p.written(context.Background(), 200); done <- err }
		go wait()
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("answered without the target")
		}
		p.setMode(ModeFlush)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		p.setMode(ModeReceive)
		go wait()
		synctest.Wait()
		if len(done) > 0 || kicks != 2 {
			t.Fatalf("answered without the target, or the follower was not told at once (%d kicks)", kicks)
		}
		p.acknowledge(0, 200, 100, 200)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// TestModes: what the follower has when a write, and when a FLUSH, is answered. Changed while it runs.
func TestModes(t *testing.T) {
	src, dst := newHost(t, RolePrimary).mustOpen(t), newHost(t, RoleSecondary).mustOpen(t)
	t.Cleanup(func() { _ = errors.Join(src.Close(), dst.Close()) })
	p := newPromise(ModeAsync, OnLossContinue, 1, 0)
	src.gate.Store(&gateBox{p})
	s := connect(src, dst, p, inPlace(dst))
	t.Cleanup(s.close)
	if err := s.awaitSync(); err != nil {
		t.Fatal(err)
	}
	for round, m := range []Mode{ModeReceive, ModeDurable, ModeFlush, ModeReceive, ModeAsync, ModeDurable} {
		p.setMode(m)
		for i := range 20 {
			if _, err := src.WriteAt([]byte("data"), int64(round*20+i)%32*4096); err != nil {
				t.Fatal(err)
			}
			// Nothing else writes: what the log ends with is this write.
			lsn, received, durable := src.log.Head(), dst.log.Head(), dst.log.Durable()
			if m == ModeReceive && received < lsn {
				t.Fatalf("%s: answered at LSN %d, the follower has received %d", m, lsn, received)
			}
			if m == ModeDurable && (durable < lsn || src.log.Durable() < lsn) {
				t.Fatalf("%s: answered at LSN %d, durable are %d here and %d there", m, lsn, src.log.Durable(), durable)
			}
		}
		if m != ModeAsync {
			if err := src.Sync(); err != nil {
				t.Fatal(err)
			}
			if lsn := src.log.Head(); dst.log.Durable() < lsn {
				t.Fatalf("%s: a FLUSH was answered at LSN %d, the follower is durable up to %d", m, lsn, dst.log.Durable())
			}
		}
	}
}

// TestReceiveIsPrompt: in ModeReceive the follower says at once what it has, not with its next timer.
func TestReceiveIsPrompt(t *testing.T) {
	src, dst := newHost(t, RolePrimary).mustOpen(t), newHost(t, RoleSecondary).mustOpen(t)
	t.Cleanup(func() { _ = errors.Join(src.Close(), dst.Close()) })
	p := newPromise(ModeReceive, OnLossContinue, 1, 0)
	src.gate.Store(&gateBox{p})
	s := connect(src, dst, p, inPlace(dst))
	t.Cleanup(s.close)
	if err := s.awaitSync(); err != nil {
		t.Fatal(err)
	}
	const writes = 200
	began := time.Now()
	for i := range writes {
		if _, err := src.WriteAt([]byte("data"), int64(i)%32*4096); err != nil {
			t.Fatal(err)
		}
	}
	// Not a measurement: with the timer alone it takes writes × ackEvery.
	if took := time.Since(began); took > writes*ackEvery/2 {
		t.Errorf("%d writes took %s", writes, took)
	}
}
