package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	writerDepth     = 8
	writerMaxBlocks = 8
	writerPause     = 8 * time.Millisecond // between two writes of one worker
	flushPause      = 100 * time.Millisecond
)

// writer is the application of the drill: several writes in flight, a FLUSH
// every now and then, everything in the ledger. Each worker has blocks of its
// own, so two writes to one block are never in flight at once.
type writer struct {
	client *nbdClient
	ledger *ledger
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu           sync.Mutex // guards all below
	err          error
	lastAnswer   time.Time
	longestGap   time.Duration // between two answered writes, of all workers
	flushes      int
	lastFlush    time.Time // when the last answered FLUSH was sent
	longestFlush time.Duration
}

// startWriter writes within [from, to) bytes until stop.
func startWriter(c *nbdClient, l *ledger, from, to int64) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{client: c, ledger: l, cancel: cancel, lastAnswer: time.Now()}
	first, share := from/ledgerBlock, (to-from)/ledgerBlock/writerDepth
	for i := range int64(writerDepth) {
		w.done.Go(func() { w.write(ctx, first+i*share, share, uint64(i)) })
	}
	w.done.Go(func() { w.flush(ctx) })
	return w
}

func (w *writer) write(ctx context.Context, first, blocks int64, seed uint64) {
	pick := rand.New(rand.NewPCG(w.ledger.seed, seed))
	buf := make([]byte, writerMaxBlocks*ledgerBlock)
	for ctx.Err() == nil {
		n := 1 + pick.IntN(writerMaxBlocks)
		at := first + pick.Int64N(blocks-int64(n))
		p := buf[:n*ledgerBlock]
		w.ledger.issue(at, p)
		if _, err := w.client.WriteAt(p, at*ledgerBlock); err != nil {
			w.fail(err)
			return
		}
		now := time.Now()
		w.ledger.answer(at, n, now)
		w.answered(now)
		wait(ctx, writerPause)
	}
}

func (w *writer) flush(ctx context.Context) {
	for ctx.Err() == nil {
		sent, mark := time.Now(), w.ledger.now()
		if err := w.client.Flush(); err != nil {
			w.fail(err)
			return
		}
		w.ledger.flush(mark)
		w.mu.Lock()
		w.flushes++
		w.lastFlush = sent
		w.longestFlush = max(w.longestFlush, time.Since(sent))
		w.mu.Unlock()
		wait(ctx, flushPause)
	}
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) answered(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longestGap = max(w.longestGap, now.Sub(w.lastAnswer))
	w.lastAnswer = now
}

// failed returns the first error of a write or a flush.
func (w *writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// flushedSince tells whether a FLUSH sent after t has been answered.
func (w *writer) flushedSince(t time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastFlush.After(t)
}

// measure starts a new measurement of the longest pauses and returns the last.
func (w *writer) measure() (gap, flush time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gap, flush = w.longestGap, w.longestFlush
	w.longestGap, w.longestFlush = 0, 0
	return gap, flush
}

// stop ends the workers, flushes once more, and returns the first error.
func (w *writer) stop() error {
	w.halt()
	if err := w.failed(); err != nil {
		return err
	}
	mark := w.ledger.now()
	if err := w.client.Flush(); err != nil {
		return err
	}
	w.ledger.flush(mark)
	return nil
}

// halt ends the workers and nothing more; the server may be dead.
func (w *writer) halt() {
	w.cancel()
	w.done.Wait()
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
