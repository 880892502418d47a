package mirror

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// TestCutUnderOwnPace: a cut comes while the log is being made durable at its own pace. The sync then says that its records
// were cut, and whoever had begun it took that for the end of the log: a follower never applied anything again, or
// acknowledged nothing, and nobody was told.
func TestCutUnderOwnPace(t *testing.T) {
	for _, c := range []struct {
		name string
		o    VolumeOptions
		// prepare is called when there is something to be made durable; begin has it done, wait long enough for that.
		prepare func(t *testing.T, v *Volume) (begin func(), end func())
		wait    time.Duration
		moved   func(v *Volume) journal.LSN
	}{
		{
			name: "the applier", o: VolumeOptions{SyncInterval: time.Second, SyncBytes: 1 << 40, ApplyInterval: time.Second}, wait: 3 * time.Second,
			prepare: func(*testing.T, *Volume) (begin, end func()) {
				time.Sleep(time.Second) // one tick sees it, the next one acts
				synctest.Wait()
				return func() {}, func() {}
			},
			moved: func(v *Volume) journal.LSN { return v.log.Applied() },
		},
		{
			name: "foresight", o: foreseen(quietOptions()), wait: time.Second,
			prepare: func(_ *testing.T, v *Volume) (begin, end func()) {
				return func() { v.foresight.due <- struct{}{} }, func() {}
			},
			moved: func(v *Volume) journal.LSN { return v.log.Durable() },
		},
		{
			name: "acknowledgements", o: quietOptions(), wait: time.Second,
			prepare: func(_ *testing.T, v *Volume) (begin, end func()) {
				a, b := pair()
				var wg sync.WaitGroup
				a.serve(&wg, func(context.Context, []byte) ([]byte, error) { return nil, nil })
				r := newReceiver(v, b)
				begin = func() {
					r.mu.Lock()
					r.started, r.received = true, v.log.Head()
					r.mu.Unlock()
				}
				return begin, func() { a.cut(); wg.Wait(); r.close() }
			},
			moved: func(v *Volume) journal.LSN { return v.log.Durable() },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, RolePrimary)
				j := blockdev.NewFaulty(keepOpen{h.journal})
				v, _, err := openVolume(j, keepOpen{h.device}, c.o)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = v.Abort() }()
				if _, err := v.beginGeneration(true); err != nil {
					t.Fatal(err)
				}
				write := func() {
					t.Helper()
					if _, err := v.WriteAt(make([]byte, 4096), 0); err != nil {
						t.Fatal(err)
					}
				}
				to := v.log.Head()
				write()
				begin, end := c.prepare(t, v)
				defer end()
				goOn, cut := make(chan struct{}), make(chan error)
				j.Set(blockdev.Rule{Op: blockdev.OpSync, Times: 1, Hook: func(blockdev.Op, int64, int64) error { <-goOn; return nil }})
				go func() { cut <- v.cut(to) }()
				synctest.Wait() // its anchor is being synced
				begin()
				time.Sleep(c.wait)
				synctest.Wait()
				close(goOn)
				if err := <-cut; err != nil {
					t.Fatal(err)
				}
				write()
				begin()
				time.Sleep(c.wait)
				synctest.Wait()
				if got, head := c.moved(v), v.log.Head(); got != head {
					t.Fatalf("it came to %d, the log to %d", got, head)
				}
			})
		})
	}
}

func foreseen(o VolumeOptions) VolumeOptions {
	o.Foresight = true
	return o
}
