package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newMode(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "mode async|flush|receive|durable",
		Short: "Change what a write and a FLUSH wait for",
		Long: `Changes the mirror's mode while it runs.

  async    a write is answered when it is in this host's log, a FLUSH when that
           is durable
  flush    … a FLUSH when it is durable on this host and on the active target:
           nothing that was flushed is lost, also when this host burns down
  receive  … and a write when the target has received it, too: nothing that was
           answered is lost when this host burns down, but the target goes on
  durable  … and a write when it is durable on both hosts: nothing that was
           answered is lost, also when the power fails on both

What was answered before keeps what it was promised. The command returns when the
new promise holds for everything written so far, too.`,
		Example:   examples("mirror-agent mode flush", "mirror-agent mode receive --name vol0"),
		ValidArgs: []string{string(mirror.ModeAsync), string(mirror.ModeFlush), string(mirror.ModeReceive), string(mirror.ModeDurable)},
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("async|flush|receive|durable")(c, args); err != nil {
				return err
			}
			if _, err := mirror.ParseMode(args[0]); err != nil {
				return &usageError{err}
			}
			return nil
		},
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, args []string) (mirror.Status, error) {
			return cl.SetMode(ctx, args[0])
		},
		func(st *mirror.Status) string { return "mode " + modeMeaning(st.Mode, st.OnLoss) })
}
