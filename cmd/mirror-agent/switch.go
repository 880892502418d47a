package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

const settleTimeout = 2 * time.Second

func newSwitch(a *app) *cobra.Command {
	to := "backup"
	c := &cobra.Command{
		Use:   "switch [backup|primary|HOST:PORT]",
		Short: "Move the flow of data to a backup target, or back",
		Long: `Moves the flow of data: to the next backup target (the default), back to the
first target ("primary"), or to the target with this address. Clients go on
undisturbed. What the new target lacks is sent to it; until then the state says
so. A hot backup that is in sync (--backups hot) lacks nothing. With --switch auto the source does this by itself when the target is out of
reach; it never goes back by itself.`,
		Example:   examples("mirror-agent switch", "mirror-agent switch primary", "mirror-agent switch 10.3.0.9:7400"),
		ValidArgs: []string{"backup", "primary"},
		Args:      arguments("[backup|primary|HOST:PORT]"),
	}
	c.PreRunE = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		to = args[0]
		if to != "backup" && to != "primary" && hostPort(to) != nil {
			return usagef("switch to %q: choose backup, primary or a target's HOST:PORT%s", to, didYouMean(to, []string{"backup", "primary"}))
		}
		return nil
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			return switchTo(ctx, cl, to)
		},
		func(st *mirror.Status) string {
			for i := range st.Followers {
				if f := &st.Followers[i]; f.Active {
					return "data flows to " + f.Target + " (" + f.Kind + "), " + f.State
				}
			}
			return "switched; state " + st.State
		})
}

// switchTo gives the order and waits a little until the state shows it: the
// agent answers as soon as the port has moved, its status follows.
func switchTo(ctx context.Context, cl *control.Client, to string) (mirror.Status, error) {
	before, err := cl.Status(ctx)
	if err != nil {
		return before, err
	}
	st, err := cl.Switch(ctx, to)
	settle, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for err == nil && st.ActiveTarget == before.ActiveTarget && st.ActiveTarget != to && settle.Err() == nil {
		wait(settle, pollPause)
		st, err = cl.Status(ctx)
	}
	return st, err
}
