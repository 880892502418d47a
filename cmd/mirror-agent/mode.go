package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newMode(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "mode async|flush",
		Short: "Change what a FLUSH waits for",
		Long: `Changes the mirror's mode while it runs.

  async   a FLUSH is answered when the data is durable on this host
  flush   … on this host and on the active target: nothing that was flushed is
          lost, also when this host burns down

A write is answered in both as soon as it is in this host's log.`,
		Example:   examples("mirror-agent mode flush", "mirror-agent mode async --name vol0"),
		ValidArgs: []string{string(mirror.ModeAsync), string(mirror.ModeFlush)},
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("async|flush")(c, args); err != nil {
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
