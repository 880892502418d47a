package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// failbackLook is how often home is looked at while it gets into sync.
const failbackLook = 200 * time.Millisecond

func newFailback(a *app) *cobra.Command {
	var asJSON bool
	var o mirror.FailbackOptions
	var limit time.Duration
	c := &cobra.Command{
		Use:   "failback",
		Short: "Bring the lead home, to the host that is configured as the source",
		Long: `Makes the host that is configured as the source the primary again, after a promotion.
Run it there or on the host that leads. It waits until home is in sync, which comes by
itself when the agents run, and says how far that is; Ctrl-C ends the waiting and
changes nothing. Then the one that leads hands over, as with promote --planned: it
answers what it was asked, home gets the rest of the log, and the other one follows.
Nothing is lost.

Clients lose their connection when the front closes there, and find it at home.
Unmount a filesystem on an attached device before (mirror-agent detach).`,
		Example: examples("mirror-agent failback --dry-run", "mirror-agent failback", "mirror-agent failback --limit 10s --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if limit <= 0 {
				return usagef("--limit %s: must be positive", limit)
			}
			o.LimitSeconds = limit.Seconds()
			cl, err := a.client(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			r, err := a.failback(c.Context(), cl, o, asJSON)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			a.printFailback(&r)
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would happen now; change nothing")
	c.Flags().DurationVar(&limit, "limit", mirror.DefaultHandoverLimit, "`TIME` that the front may be closed for the handover")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON at the end, and no progress")
	return c
}

// failback waits until home is in sync and orders it then.
func (a *app) failback(ctx context.Context, cl *control.Client, o mirror.FailbackOptions, quiet bool) (mirror.FailbackResult, error) {
	said := ""
	for {
		r, err := askFailback(ctx, cl, mirror.FailbackOptions{DryRun: true}, askTimeout)
		if err != nil || o.DryRun {
			return r, err
		}
		if r.Ready {
			if !quiet {
				a.printf("%s hands over to %s ...\n", r.Primary, r.Home)
			}
			return askFailback(ctx, cl, o, promoteTimeout)
		}
		if line := waitingFor(&r); line != said && !quiet {
			said = line
			a.printf("%s\n", line)
		}
		wait(ctx, failbackLook)
		if ctx.Err() != nil {
			return r, fmt.Errorf("ended while it waited (%s); nothing was changed", r.Waiting)
		}
	}
}

func askFailback(ctx context.Context, cl *control.Client, o mirror.FailbackOptions, limit time.Duration) (mirror.FailbackResult, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return cl.Failback(ctx, o)
}

func waitingFor(r *mirror.FailbackResult) string {
	s := r.Waiting
	if r.LagBytes > 0 {
		s += ", " + formatSize(r.LagBytes) + " behind"
	}
	return s
}

func (a *app) printFailback(r *mirror.FailbackResult) {
	switch {
	case r.DryRun && r.Ready:
		a.printf("failback would begin at once: %s hands over to %s, which is in sync; nothing was changed\n", r.Primary, r.Home)
	case r.DryRun:
		a.printf("failback would wait: %s; nothing was changed\n", waitingFor(r))
	default:
		a.printf("%s leads again: generation %s at LSN %d, after %s\n", r.Home, r.Generation, r.LSN, formatSeconds(r.Seconds))
		if r.NBD != "" {
			a.printf("  clients connect to %s   (nbdinfo '%s')\n", r.NBD, nbdURI(r.NBD, r.NBDTLS))
		}
	}
}
