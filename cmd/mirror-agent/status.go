package main

import (
	"context"
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

const (
	askTimeout     = 10 * time.Second
	orderTimeout   = 2 * time.Minute
	resizeTimeout  = 10 * time.Minute
	promoteTimeout = 11 * time.Minute
)

func newStatus(a *app) *cobra.Command {
	var asJSON, watch bool
	var interval time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the mirror's state on this host",
		Long: `Shows whether the mirror is fine, how far behind the targets are, what is wrong
and what to do. The fields of --json keep their names.

RPO is the age of the oldest write that is not yet durable on that host.`,
		Example: examples(
			"mirror-agent status",
			"mirror-agent status --watch",
			"mirror-agent status --name vol0 --json | jq '.followers[].rpo_seconds'",
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if interval <= 0 {
				return usagef("--interval %s: must be positive", interval)
			}
			cl, err := a.client(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if watch {
				return a.watch(c.Context(), cl, interval, asJSON)
			}
			st, err := askStatus(c.Context(), cl)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(st)
			}
			view{paint: paint(a.colour), now: a.now()}.status(a.stdout, &st)
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch one line each time")
	c.Flags().BoolVar(&watch, "watch", false, "go on until Ctrl-C")
	c.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two looks with --watch")
	return c
}

// statusNow asks the agent that c's flags name.
func (a *app) statusNow(c *cobra.Command) (mirror.Status, error) {
	cl, err := a.client(c)
	if err != nil {
		return mirror.Status{}, err
	}
	defer cl.Close()
	return askStatus(c.Context(), cl)
}

func askStatus(ctx context.Context, cl *control.Client) (mirror.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return cl.Status(ctx)
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
