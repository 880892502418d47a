package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newScrub(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "scrub",
		Short: "Read the log of this host now and check every record",
		Long: `Reads the log of this host from its disk, slowly, and checks every record. What has
rotted is put right from the other side, which has the same bytes, while everything
goes on. It happens by itself every --scrub-every (24 h); "status" shows the last one.`,
		Example: examples("mirror-agent scrub", "mirror-agent events --follow"),
		Args:    arguments(),
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) { return cl.Scrub(ctx) },
		func(*mirror.Status) string {
			return "the log is being scrubbed; mirror-agent status shows how far it is"
		})
}
