package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// Checkpoint is a named place in the order of writes, the same on every host: a record of the log.
type Checkpoint struct {
	Name string    `json:"name"`
	LSN  uint64    `json:"lsn"`  // everything below is in it
	Time time.Time `json:"time"` // when the source made it
	// InWindow: this host can be shown as it was then, and be promoted there. Of Agent.Checkpoints.
	InWindow bool `json:"in_window"`
}

// end is where its record ends: the point that its name stands for.
func (c *Checkpoint) end() uint64 { return c.LSN + uint64(journal.RecordSize(len(c.Name))) }

// maxCheckpoints are listed at most, the newest.
const maxCheckpoints = 1000

func validCheckpoint(name string) error {
	if err := validName(name); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Checkpoint puts a checkpoint into the order of writes: everything answered before is in it. It returns when it is durable as
// the mode promises. Names may be used again; each is a checkpoint of its own. For a primary.
func (v *Volume) Checkpoint(ctx context.Context, name string) (Checkpoint, error) {
	if err := validCheckpoint(name); err != nil {
		return Checkpoint{}, err
	}
	if v.Role() != RolePrimary {
		return Checkpoint{}, fmt.Errorf("this volume is %s: a checkpoint is made on the source", v.Role())
	}
	if err := v.writable(); err != nil {
		return Checkpoint{}, err
	}
	e := &journal.Entry{Op: journal.OpCheckpoint, Payload: []byte(name)}
	if err := v.append([]*journal.Entry{e}); err != nil {
		return Checkpoint{}, err
	}
	if err := v.flush(ctx, e.End); err != nil {
		return Checkpoint{}, err
	}
	c := Checkpoint{Name: name, LSN: uint64(e.LSN)}
	err := v.log.Scan(e.LSN, e.End, func(r journal.Record) error {
		c.Time = time.Unix(0, r.Time)
		return nil
	})
	if errors.Is(err, journal.ErrGone) {
		c.Time, err = time.Now(), nil
	}
	return c, err
}

// Checkpoints returns those that the log holds, oldest first. It reads all headers of the log.
func (v *Volume) Checkpoints() ([]Checkpoint, error) {
	for {
		found, err := v.checkpoints(v.log.Tail())
		if !errors.Is(err, journal.ErrGone) {
			return found, v.journalError(err)
		}
	}
}

func (v *Volume) checkpoints(tail journal.LSN) ([]Checkpoint, error) {
	found := []Checkpoint{}
	err := v.log.Scan(tail, v.log.Head(), func(r journal.Record) error {
		if r.Op != journal.OpCheckpoint || r.PayloadLen > maxNameBytes {
			return nil
		}
		name := make([]byte, r.PayloadLen)
		if err := v.log.ReadData(name, r.Data()); err != nil {
			return err
		}
		if validCheckpoint(string(name)) == nil { // else of a newer version, or rot that Verify finds
			found = append(found, Checkpoint{Name: string(name), LSN: uint64(r.LSN), Time: time.Unix(0, r.Time)})
			if len(found) > 2*maxCheckpoints {
				found = append(found[:0], found[len(found)-maxCheckpoints:]...)
			}
		}
		return nil
	})
	return found[max(0, len(found)-maxCheckpoints):], err
}

// CreateCheckpoint puts a named checkpoint into the order of writes, on this host and on all that follow it.
func (a *Agent) CreateCheckpoint(ctx context.Context, name string) (Checkpoint, error) {
	c, err := a.v.Checkpoint(ctx, name)
	if err == nil {
		a.event("checkpoint", "", "checkpoint %s at LSN %d", name, c.LSN)
	}
	return c, err
}

// Checkpoints returns the checkpoints that this host's log still holds, oldest first, the newest thousand.
func (a *Agent) Checkpoints(context.Context) ([]Checkpoint, error) {
	all, err := a.v.Checkpoints()
	first := uint64(a.v.firstPoint())
	for i := range all {
		all[i].InWindow = all[i].end() >= first
	}
	return all, err
}
