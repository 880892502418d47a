package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"mirror-agent/blockdev"
	"mirror-agent/journal"
)

// How an old primary becomes a target: what only it has had is exported, and its volume is given up (rejoin.go). Here by its
// files, when its agent has ended; a running one does it in rejoinagent.go.

// DemoteOptions are what the operator says when ordering a demotion.
type DemoteOptions struct {
	// Device and Journal are the files of the volume; Journal "" is beside Device.
	Device  string `json:"-"`
	Journal string `json:"-"`
	// Node is this host's name, for the export.
	Node string `json:"-"`
	// Force demotes a volume that no other host has fenced: its device may be the newest there is.
	Force bool `json:"force,omitempty"`
	// DryRun says what would be exported, and changes nothing but what every start of the agent changes: a torn tail is cut,
	// what the log has is applied.
	DryRun bool `json:"dry_run,omitempty"`
}

// DemoteResult says what a demotion did.
type DemoteResult struct {
	Name   string  `json:"name"`
	Fenced bool    `json:"fenced"`
	DryRun bool    `json:"dry_run,omitempty"`
	Export *Export `json:"export"` // nil: every follower had everything
	// Complete: the export has everything that a follower may lack. Else the log did not reach back to it.
	Complete bool `json:"complete"`
	// Exact: From is where this history parts from the new primary's. Else it is what all followers are known to have.
	Exact   bool   `json:"exact"`
	From    uint64 `json:"from"`
	Head    uint64 `json:"head"`
	Bytes   int64  `json:"bytes"`   // of log between them
	Records uint64 `json:"records"` // there
	Writes  uint64 `json:"writes"`  // of these, the ones that change the device or name a point of it
}

// Demote makes the volume of a primary, whose agent does not run, one that `target` takes: promotable by force only before a
// source has brought it in sync. What of its log the new primary has not, or when that is not known what some follower may
// not have, is exported first, durably, to divergence-NAME-TIME.log beside the journal.
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
	defer func() { err = errors.Join(err, v.Close()) }() // everything is applied then
	r.Fenced = v.flags()&stateFenced != 0
	switch {
	case v.Role() != RolePrimary:
		return r, fmt.Errorf("refused: %s is %s already: start it with mirror-agent target", o.Device, v.Role())
	case v.Err() != nil:
		return r, v.Err()
	case !r.Fenced && !o.Force:
		return r, fmt.Errorf("refused: no other host has fenced %s, it may be the newest there is: start its source once, while the new primary runs, so that it is told; or say --force", o.Device)
	}
	if err := v.exportOwn(&r, &c, o.Node, now); err != nil || o.DryRun {
		return r, err
	}
	return r, v.giveUp(journal.LSN(r.From))
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
