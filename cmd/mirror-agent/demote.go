package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

func newDemote(a *app) *cobra.Command {
	var o mirror.DemoteOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "demote",
		Short: "Let an old primary's volume follow the new one, and keep what only it had",
		Long: `For the host of an old source that another host has replaced. What was written
here after that one was promoted goes to divergence-NAME-TIME.log beside the journal:
mirror-agent log inspect shows it, log apply replays it onto a copy. Then the volume
rejoins as a target: it gets from the new primary what either side has changed since,
and no more. Until that is complete it keeps its own old state, which only promote
--force would serve.

The agent of the old source runs, and is fenced: it does this by itself, without an
end. With --device: to the files of an agent that has ended; start it with
mirror-agent target then. A volume that nobody has fenced may be the newest there is,
and is refused; with --device, --force demotes it all the same.

Where nothing was written here after the promotion nobody has to say this: such a
volume follows the new primary by itself.`,
		Example: examples("mirror-agent demote --dry-run", "mirror-agent demote", "mirror-agent demote --device /srv/vol0.img"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.demote(c, o)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			a.printDemoted(&r, o.Device != "")
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().StringVar(&o.Device, "device", "", "`FILE` or block device of a volume whose agent has ended")
	c.Flags().StringVar(&o.Journal, "journal", "", "its log `FILE` (default DEVICE.journal)")
	c.Flags().BoolVar(&o.Force, "force", false, "with --device: also a volume that no other host has fenced")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what only this host has; demote nothing")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// demote asks the agent that runs, or does it to the files of one that has ended.
func (a *app) demote(c *cobra.Command, o mirror.DemoteOptions) (mirror.DemoteResult, error) {
	if o.Device != "" {
		o.Node, _ = os.Hostname()
		return mirror.Demote(c.Context(), o, time.Now())
	}
	if o.Journal != "" || o.Force {
		return mirror.DemoteResult{}, usagef("%s: --journal and --force need --device; usage: %s", c.CommandPath(), useLine(c))
	}
	cl, err := a.client(c)
	if err != nil {
		return mirror.DemoteResult{}, fmt.Errorf("%w; or say --device DEVICE, when the agent has ended", err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.Context(), promoteTimeout)
	defer cancel()
	return cl.Demote(ctx, o)
}

func (a *app) printDemoted(r *mirror.DemoteResult, offline bool) {
	where := "was written here only, after another host was promoted"
	if !r.Exact {
		where = "may be here only"
	}
	what := fmt.Sprintf("%s of log, %d writes, LSN %d to %d", formatSize(r.Bytes), r.Writes, r.From, r.Head)
	switch {
	case r.Writes == 0:
		a.printf("%s: the other hosts have everything that was written here\n", r.Name)
	case r.DryRun:
		a.printf("%s: %s, %s; demote exports it\n", r.Name, what, where)
	default:
		a.printf("%s: %s, %s: %d records in %s\n", r.Name, what, where, r.Export.Records, r.Export.Path)
	}
	if !r.Complete {
		a.printf("  the log does not reach back to what every other host has: what was written before LSN %d is in the device only\n", r.From)
	}
	switch {
	case r.DryRun:
	case offline:
		a.printf("  it is a target's volume now: start it with mirror-agent target, and name this host to the new primary (--target)\n")
	default:
		a.printf("  it follows the new primary now, as soon as that reaches it: mirror-agent status\n")
	}
}
