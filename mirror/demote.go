package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// How an old primary becomes a target: its agent has ended, what only it has had is exported, and its volume is marked as one
// that a source is to bring in sync. The blocks that differ are found by hash and copied; nothing is moved away by hand.

// DemoteOptions are what the operator says when ordering a demotion.
type DemoteOptions struct {
	// Device and Journal are the files of the volume; Journal "" is beside Device.
	Device, Journal string
	// Node is this host's name, for the export.
	Node string
	// Force demotes a volume that no other host has fenced: its device may be the newest there is.
	Force bool
	// DryRun says what would be exported, and changes nothing but what every start of the agent changes: a torn tail is cut,
	// what the log has is applied.
	DryRun bool
}

// DemoteResult says what a demotion did.
type DemoteResult struct {
	Name   string  `json:"name"`
	Fenced bool    `json:"fenced"`
	DryRun bool    `json:"dry_run,omitempty"`
	Export *Export `json:"export"` // nil: every follower had everything
	// Complete: the export has everything that a follower may lack. Else the log did not reach back to it.
	Complete bool   `json:"complete"`
	From     uint64 `json:"from"`
	Head     uint64 `json:"head"`
	Bytes    int64  `json:"bytes"` // of log between them
}

// Demote makes the volume of a primary, whose agent does not run, one that `target` takes: not promotable before a source has
// brought it in sync. What of its log no follower is known to have is exported first, durably, to divergence-NAME-TIME.log
// beside the journal.
func Demote(ctx context.Context, o DemoteOptions, now time.Time) (r DemoteResult, err error) {
	c := DefaultConfig()
	c.Device, c.Journal = o.Device, o.Journal
	name, err := nameOf(c.journalPath())
	if err != nil {
		return r, err
	}
	c.Name, r.Name, r.DryRun = name, name, o.DryRun
	opened, err := openVolumeFiles(ctx, &c)
	if err != nil {
		return r, err
	}
	v := opened.v
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, v.Close())
		}
	}()
	r.Fenced = v.flags()&stateFenced != 0
	switch {
	case v.Role() != RolePrimary:
		return r, fmt.Errorf("refused: %s is %s already: start it with mirror-agent target", o.Device, v.Role())
	case v.Err() != nil:
		return r, v.Err()
	case !r.Fenced && !o.Force:
		return r, fmt.Errorf("refused: no other host has fenced %s, it may be the newest there is: start its source once, while the new primary runs, so that it is told; or say --force", o.Device)
	}
	from, complete, err := v.unshared()
	if err != nil {
		return r, err
	}
	head := v.log.Head()
	r.Complete, r.From, r.Head, r.Bytes = complete, uint64(from), uint64(head), int64(head-from)
	if o.DryRun {
		return r, nil
	}
	if from < head {
		path := filepath.Join(filepath.Dir(c.journalPath()), fmt.Sprintf("divergence-%s-%s.log", name, now.UTC().Format("20060102T150405Z")))
		e, err := v.export(path, o.Node, "what no follower is known to have, before this volume was demoted", from)
		if err != nil {
			return r, fmt.Errorf("%w; nothing else was changed", err)
		}
		r.Export = &e
	}
	closed = true
	if err := v.Close(); err != nil { // everything is applied now
		return r, err
	}
	return r, demoteJournal(c.journalPath())
}

// nameOf returns the mirror's name by its journal.
func nameOf(journalPath string) (string, error) {
	if _, err := os.Stat(journalPath); err != nil {
		return "", fmt.Errorf("journal: %w", err)
	}
	f, err := blockdev.OpenFile(journalPath, blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		return "", fmt.Errorf("journal: %w; end its agent first", err)
	}
	a, err := readAnchor(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("%s is no journal: %w", journalPath, err)
	}
	return a.Name, nil
}

// unshared is where the part of the log begins that some follower is not known to have; complete: the log reaches back to there.
func (v *Volume) unshared() (from journal.LSN, complete bool, err error) {
	from = v.log.Head()
	followers := v.dirty.followers()
	if len(followers) == 0 {
		return v.log.Tail(), false, nil
	}
	for _, f := range followers {
		from = min(from, f.Acked)
	}
	if tail := v.log.Tail(); from < tail {
		return tail, false, nil
	}
	from, _, err = v.log.BoundaryBefore(from)
	return from, true, err
}

// demoteJournal makes the volume of a journal, which was ended cleanly, a blank secondary, durably.
func demoteJournal(path string) error {
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	l, rec, err := journal.Open(f, journal.Options{})
	if err != nil {
		return errors.Join(fmt.Errorf("journal %s: %w", path, err), f.Close())
	}
	err = l.WriteAnchor(func(a *journal.Anchor) {
		a.Role, a.Clean = uint8(RoleSecondary), rec.Clean
		if a.State&stateFenced == 0 {
			// The operator has named the loser: of two primaries with generations of one rank the other may feed it
			// now, and still nobody with an older one.
			a.Seen.ID = [16]byte{}
		}
		a.State = a.State&^(stateFenced|stateLeft) | stateBlank
	})
	return errors.Join(err, l.Close())
}
