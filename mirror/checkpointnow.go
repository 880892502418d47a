package mirror

import (
	"context"
	"errors"
	"time"
)

// Checkpoints that a source makes by itself.

const (
	autoCheckpoint = "auto-" // and the time
	// checkpointWait is how long such a checkpoint waits for the mode's promise. It is in the log by then.
	checkpointWait = time.Minute
)

// checkpointNowAndThen makes a checkpoint every CheckpointEvery while this host is the source and something is written.
func (a *Agent) checkpointNowAndThen(ctx context.Context) {
	if a.c.CheckpointEvery <= 0 {
		return
	}
	tick := time.NewTicker(a.c.CheckpointEvery)
	defer tick.Stop()
	var end uint64 // of the last one
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			a.mu.Lock()
			serving := a.serving
			a.mu.Unlock()
			if !serving || uint64(a.v.log.Head()) == end {
				continue
			}
			end = a.checkpointAt(ctx, now)
		}
	}
}

// checkpointAt makes one with a name by time and returns where the log ended after it, 0 when there is none.
func (a *Agent) checkpointAt(ctx context.Context, now time.Time) uint64 {
	ctx, cancel := context.WithTimeout(ctx, checkpointWait)
	defer cancel()
	_, err := a.CreateCheckpoint(ctx, autoCheckpoint+now.UTC().Format("20060102T150405Z"))
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			a.log.Warn().Err(err).Msg("checkpoint by time")
		}
		return 0
	}
	return uint64(a.v.log.Head())
}
