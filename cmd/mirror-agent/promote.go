package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

func newPromote(a *app) *cobra.Command {
	var asJSON bool
	var o mirror.PromoteOptions
	var limit time.Duration
	c := &cobra.Command{
		Use:   "promote",
		Short: "Make this target the primary: the source is gone, or hands over (--planned)",
		Long: `Makes the copy on this host the mirror's primary and serves it by NBD. Run it on
the target, after the source is gone. Hosts of the old generation are refused
from then on.

With three members or more (mirror-agent member list) it needs the word of all but
one of them: none of them further than this host, none fed by a live source. Who
gives it refuses the old source from then on. With two members nobody can tell a
dead source from a cut cable, and the order is your word that it is down. Where
there is an arbiter (--arbiter) that decides.

Refused while the source seems alive, or another host is further, or too few can be
asked: --force promotes all the same. What only the other hosts had is then not in
this copy; --dry-run says beforehand what that is, as far as this host can know.

--at goes back first, to a point that the log of this host still has (see
"mirror-agent checkpoint list"): a time, lsn:NUMBER or checkpoint:NAME. What came
after it is written to divergence-NAME-TIME.log beside the log before it is given
up; --dry-run says how much that is.

--planned is for a source that lives: it closes its front when it has answered what
it was asked, sends the rest of its log, and becomes a secondary that follows this
host. Nothing is lost and nothing is copied. When this host does not get everything
within --limit the source opens its front again, and goes on. Clients lose their
connection; unmount a filesystem on an attached device (mirror-agent detach) before,
and attach it here. mirror-agent failback brings the lead home again.

TLS is the target's: a TCP address off loopback is refused, and nothing is
promoted, unless it was started with --nbd-tls-cert and --nbd-tls-key.`,
		Example: examples(
			"mirror-agent promote",
			"mirror-agent promote --dry-run",
			"mirror-agent promote --at 2026-11-22T20:15:00Z --dry-run",
			"mirror-agent promote --at checkpoint:before-upgrade",
			"mirror-agent promote --planned --limit 10s",
			"mirror-agent promote --nbd unix:/run/mirror-agent/vol0.nbd --json",
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.NBD != "" {
				if _, err := parseNBD(o.NBD); err != nil {
					return usagef("--nbd: %w", err)
				}
			}
			if err := mirror.CheckPoint(o.At); err != nil {
				return usagef("--at: %w", err)
			}
			switch {
			case o.Planned && o.At != "":
				return usagef("--planned and --at exclude each other: planned loses nothing, --at goes back")
			case o.Planned && o.Force:
				return usagef("--planned and --force exclude each other: planned is with a source that lives, and loses nothing")
			case c.Flags().Changed("limit") && !o.Planned:
				return usagef("--limit is for --planned")
			case limit <= 0:
				return usagef("--limit %s: must be positive", limit)
			case o.Planned:
				o.LimitSeconds = limit.Seconds()
			}
			cl, err := a.client(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			ctx, cancel := context.WithTimeout(c.Context(), promoteTimeout)
			defer cancel()
			r, err := cl.Promote(ctx, o)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			if r.DryRun {
				a.printf("promote would go on from LSN %d and serve at %s; nothing was changed\n  %s\n", r.LSN, r.NBD, r.Missing)
				a.printGivenUp(r.GivenUp)
				return nil
			}
			a.printf("primary now: generation %s at LSN %d, after %s\n  %s\n", r.Generation, r.LSN, formatSeconds(r.Seconds), r.Missing)
			a.printGivenUp(r.GivenUp)
			if r.NBD != "" {
				a.printf("  clients connect to %s   (nbdinfo '%s')\n", r.NBD, nbdURI(r.NBD, r.NBDTLS))
			}
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&o.Force, "force", false, "promote although the source seems alive, another host is further, or too few have given their word")
	c.Flags().StringVar(&o.At, "at", "", "`POINT` to go back to first: a time, lsn:NUMBER or checkpoint:NAME")
	c.Flags().BoolVar(&o.Planned, "planned", false, "have the source, which lives, hand over: nothing is lost")
	c.Flags().DurationVar(&limit, "limit", mirror.DefaultHandoverLimit, "`TIME` that the source may keep its front closed with --planned")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say whether it would be refused, and what would be missing; change nothing")
	c.Flags().StringVar(&o.NBD, "nbd", "", "`ADDR` to serve at (default the target's --nbd)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) printGivenUp(g *mirror.GivenUp) {
	if g != nil {
		a.printf("  %s\n", g)
	}
}

// nbdURI is an address as libnbd's and qemu's tools want it.
func nbdURI(address string, tls bool) string {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "nbd+unix:///?socket=" + path
	}
	if tls {
		return "nbds://" + address
	}
	return "nbd://" + address
}
