package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newLog(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "log",
		Short: "Give the log another size, or say what a log holds",
	})
	c.AddCommand(newLogResize(a), newLogInspect(a), newLogApply(a))
	return c
}

func newLogResize(a *app) *cobra.Command {
	var bytes int64
	c := &cobra.Command{
		Use:   "resize SIZE",
		Short: "Give the log another size while it is in use",
		Long: `Moves the log into a new file of SIZE bytes, which takes the old one's name when
it is complete. Clients and targets go on meanwhile; both files need their space.
A smaller log keeps less history for a target that was away. The log on a block
device has the device's size.`,
		Example: examples("mirror-agent log resize 8GiB"),
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("SIZE")(c, args); err != nil {
				return err
			}
			var err error
			if bytes, err = parseSize(args[0]); err != nil {
				return usagef("%v", err)
			}
			return nil
		},
	}
	return a.orderWithin(c, resizeTimeout,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			return cl.ResizeLog(ctx, bytes)
		},
		func(*mirror.Status) string { return "the log has " + formatSize(bytes) + " now" })
}
