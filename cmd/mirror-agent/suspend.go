package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newSuspend(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "suspend",
		Short: "Stop the flow of data to the targets",
		Long: `Stops the flow of data to the targets, for example to keep a network free for a
while. Writes go on (unless --on-loss freeze) and are sent after "resume".`,
		Example: examples("mirror-agent suspend"),
		Args:    arguments(),
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			return cl.Suspend(ctx)
		},
		func(*mirror.Status) string {
			return "suspended; the targets fall behind until `mirror-agent resume`"
		})
}

func newResume(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "resume",
		Short:   "Start the flow of data again after suspend",
		Example: examples("mirror-agent resume"),
		Args:    arguments(),
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			return cl.Resume(ctx)
		},
		func(st *mirror.Status) string { return "resumed; state " + st.State })
}
