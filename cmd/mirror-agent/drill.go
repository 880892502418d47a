package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newDrill(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "drill",
		Short: "Try whether this host's copy would serve, beside everything else",
		Long: `Shows the copy of this host as it was at one point, by NBD and writable, while the
mirror goes on untouched. What is written goes into a scratch file that is thrown
away at the end.`,
	})
	c.AddCommand(newDrillStart(a), newDrillStop(a), newDrillStatus(a), newDrillRun(a), newDrillReport(a))
	return c
}

// addDrillFlags are those of a start.
func addDrillFlags(c *cobra.Command, o *mirror.DrillOptions, scratch *string) {
	c.Flags().StringVar(&o.At, "at", "", "`POINT` to show: a time, lsn:NUMBER or checkpoint:NAME (default the newest)")
	c.Flags().StringVar(&o.NBD, "nbd", "", "`ADDR` to serve at, unix:PATH or HOST:PORT (default a unix socket beside the mirror's)")
	c.Flags().StringVar(&o.Label, "label", "", "`NAME` of the drill in status and reports")
	c.Flags().StringVar(scratch, "scratch-size", "", "`SIZE` that the scratch may take (default half of what its filesystem has free)")
	c.Flags().StringVar(&o.ScratchDir, "scratch-dir", "", "`DIR` of the scratch (default beside the log)")
}

func checkDrill(o *mirror.DrillOptions, scratch string) error {
	if err := mirror.CheckPoint(o.At); err != nil {
		return usagef("--at: %w", err)
	}
	if o.NBD != "" {
		if _, err := parseNBD(o.NBD); err != nil {
			return usagef("--nbd: %w", err)
		}
	}
	if scratch != "" {
		n, err := parseSize(scratch)
		if err != nil {
			return usagef("--scratch-size: %w", err)
		}
		o.ScratchBytes = n
	}
	return nil
}

func newDrillStart(a *app) *cobra.Command {
	var asJSON bool
	var o mirror.DrillOptions
	var scratch string
	c := &cobra.Command{
		Use:   "start",
		Short: "Show this host's copy at a point, writable, by NBD",
		Long: `Opens a drill: an NBD export of this host's device as it was at a point that its log
still has. It stands still while records come in and are applied. Writes, and what
the mirror overwrites meanwhile, go into a sparse scratch file. When that is full, or
its disk so slow that the mirror would have to wait, the drill ends and says why.
A FLUSH is answered at once: nothing of a drill outlives the agent.`,
		Example: examples(
			"mirror-agent drill start",
			"mirror-agent drill start --at checkpoint:before-upgrade",
			"mirror-agent drill start --at 2026-11-22T20:15:00Z --nbd unix:/run/drill.nbd --scratch-size 20GiB",
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkDrill(&o, scratch); err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, cl *control.Client) error {
				st, err := cl.StartDrill(ctx, o)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(st)
				}
				a.view().drill(a.stdout, &st)
				a.printf("  end it with mirror-agent drill stop\n")
				return nil
			})
		},
	}
	addControlFlags(c)
	addDrillFlags(c, &o, &scratch)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newDrillStop(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "stop",
		Short:   "End the drill and throw its scratch away",
		Example: examples("mirror-agent drill stop"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, cl *control.Client) error {
				st, err := cl.StopDrill(ctx, 0)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(st)
				}
				a.printf("drill %d ended after %s; its scratch of %s is gone\n", st.ID, formatSpan(st.Ended.Sub(st.Started)), formatSize(st.ScratchBytes))
				return nil
			})
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newDrillStatus(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show the drill that runs, or how the last one ended",
		Example: examples("mirror-agent drill status", "mirror-agent drill status --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, cl *control.Client) error {
				st, err := cl.Drill(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(st)
				}
				if st.ID == 0 {
					a.printf("no drill since the agent started; mirror-agent drill start\n")
					return nil
				}
				a.view().drill(a.stdout, &st)
				return nil
			})
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) view() view { return view{paint: paint(a.colour), now: a.now()} }

// drill shows one, running or ended.
func (v view) drill(w io.Writer, st *mirror.DrillStatus) {
	name := ""
	if st.Label != "" {
		name = " " + st.Label
	}
	fmt.Fprintf(w, "drill %d%s at %s, %s\n", st.ID, name, st.Point, drillAge(st))
	if st.Running {
		fmt.Fprintf(w, "  device    %s   %s   opened in %s\n", nbdURI(st.NBD, st.NBDTLS), formatSize(st.SizeBytes), formatSeconds(st.OpenSeconds))
		fmt.Fprintf(w, "  clients   %s\n", v.clients(&st.Clients))
		fmt.Fprintf(w, "  scratch   %s of %s at most\n", formatSize(st.ScratchBytes), formatSize(st.ScratchLimit))
		return
	}
	fmt.Fprintf(w, "  ended     %s ago, after %s: %s\n", formatSpan(v.now.Sub(st.Ended)), formatSpan(st.Ended.Sub(st.Started)), st.Reason)
}

// drillAge is how much the point lacks.
func drillAge(st *mirror.DrillStatus) string {
	if st.RPOBytes == 0 {
		return "the newest that is known"
	}
	return fmt.Sprintf("%s and %s of log before the newest that is known", formatSeconds(st.RPOSeconds), formatSize(st.RPOBytes))
}

// drillLine is the drill in `status`.
func (v view) drillLine(st *mirror.DrillStatus) string {
	return fmt.Sprintf("%d at %s, %s, for %s; scratch %s of %s", st.ID, st.Point, st.NBD, formatSpan(v.now.Sub(st.Started)),
		formatSize(st.ScratchBytes), formatSize(st.ScratchLimit))
}
