package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror/control"
)

func newCheckpoint(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "checkpoint",
		Short: "Name a point in the order of writes, or list the named ones",
	})
	c.AddCommand(newCheckpointCreate(a), newCheckpointList(a))
	return c
}

// ask runs f with a client of the agent.
func (a *app) ask(c *cobra.Command, f func(context.Context, *control.Client) error) error {
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.Context(), orderTimeout)
	defer cancel()
	return f(ctx, cl)
}

func newCheckpointCreate(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Name the present point in the order of writes, on all hosts",
		Long: `Puts a checkpoint into the log of the source. It travels to every target in the
order of writes: everything that was answered before is in it, nothing that comes
later. For a state that an application knows to be good, flush it first (sync,
fsfreeze, the database's own command).`,
		Example: examples("mirror-agent checkpoint create before-upgrade"),
		Args:    arguments("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, cl *control.Client) error {
				p, err := cl.CreateCheckpoint(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(p)
				}
				a.printf("checkpoint %s at LSN %d\n", p.Name, p.LSN)
				return nil
			})
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newCheckpointList(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the checkpoints that the log of this host still holds",
		Example: examples("mirror-agent checkpoint list", "mirror-agent checkpoint list --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, cl *control.Client) error {
				ps, err := cl.Checkpoints(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(ps)
				}
				if len(ps) == 0 {
					a.printf("no checkpoint in the log; `mirror-agent checkpoint create NAME` makes one on the source\n")
					return nil
				}
				window, err := cl.Window(ctx)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
				fmt.Fprintln(w, "NAME\tLSN\tTIME\tAGO\tIN WINDOW")
				for _, p := range ps {
					in := "no"
					if p.InWindow {
						in = "yes"
					}
					fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", p.Name, p.LSN, p.Time.Local().Format(sinceStamp), formatSpan(time.Since(p.Time)), in)
				}
				if err := w.Flush(); err != nil {
					return err
				}
				a.printf("this host can go back to %s at the earliest, and be drilled or promoted at any point since\n", window.From)
				return nil
			})
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
