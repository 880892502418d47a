package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

func newDemote(a *app) *cobra.Command {
	var o mirror.DemoteOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "demote --device DEVICE",
		Short: "Make an old primary's volume a target's, and keep what only it had",
		Long: `Run it on the host of an old source that another host has replaced, after its agent
has ended. What of its log no other host is known to have is written to
divergence-NAME-TIME.log beside the journal: mirror-agent log inspect shows it, log
apply replays it onto a copy. Then the volume is one that mirror-agent target takes;
the new primary compares it by hash and copies what differs. Until that is complete
it cannot be promoted.

Refused for a volume that was never told of a higher generation, since it may be
the newest there is: --force.`,
		Example: examples("mirror-agent demote --device /srv/vol0.img --dry-run", "mirror-agent demote --device /srv/vol0.img"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Device == "" {
				return usagef("%s: --device is missing; usage: %s", c.CommandPath(), useLine(c))
			}
			o.Node, _ = os.Hostname()
			r, err := mirror.Demote(c.Context(), o, time.Now())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			a.printDemoted(&r)
			return nil
		},
	}
	c.Flags().StringVar(&o.Device, "device", "", "`FILE` or block device of the volume")
	c.Flags().StringVar(&o.Journal, "journal", "", "its log `FILE` (default DEVICE.journal)")
	c.Flags().BoolVar(&o.Force, "force", false, "also a volume that no other host has fenced")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what only this host has; demote nothing")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) printDemoted(r *mirror.DemoteResult) {
	switch {
	case r.Bytes == 0:
		a.printf("%s: the other hosts have everything that was written here\n", r.Name)
	case r.DryRun:
		a.printf("%s: %s of log, LSN %d to %d, may be here only; demote exports them\n", r.Name, formatSize(r.Bytes), r.From, r.Head)
	default:
		a.printf("%s: %s of log, LSN %d to %d, may have been here only: %d records in %s\n", r.Name, formatSize(r.Bytes), r.From, r.Head, r.Export.Records, r.Export.Path)
	}
	if !r.Complete {
		a.printf("  the log does not reach back to what every other host has: what was written before LSN %d is in the device only\n", r.From)
	}
	if !r.DryRun {
		a.printf("  it is a target's volume now: start it with mirror-agent target, and name this host to the new primary (--target)\n")
	}
}
