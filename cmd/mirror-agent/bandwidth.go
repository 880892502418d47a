package main

import (
	"context"

	"github.com/spf13/cobra"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newBandwidth(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "bandwidth [LIMIT|none]",
		Short: "Limit what the source sends, or show the limit",
		Long: `Limits what the source sends to its target over all paths together, from now on
until the agent ends (--bandwidth, or bandwidth: in the file, is for its start).
Heartbeats are not limited, so that a low limit is no fault; but a target that gets
less than is written falls behind, and in mode flush a FLUSH waits for it.

A LIMIT is a rate (50MB/s, 20MiB/s, 100Mbit/s, none), or rules of which the first
that fits counts: DAYS HH:MM-HH:MM=RATE, days or time may be missing, * is always.
Times are this host's local time; a window over midnight belongs to the day it
begins on. Where no rule fits there is no limit.`,
		Example: examples("mirror-agent bandwidth", "mirror-agent bandwidth 50MB/s",
			"mirror-agent bandwidth 'Mon-Fri 08:00-18:00=20MB/s,Sat+Sun=none,*=100MB/s'", "mirror-agent bandwidth none"),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if err := arguments("LIMIT")(c, args); err != nil {
				return err
			}
			if _, err := dataport.ParseBandwidth(args[0]); err != nil {
				return &usageError{err}
			}
			return nil
		},
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, args []string) (mirror.Status, error) {
			if len(args) == 0 {
				return cl.Status(ctx)
			}
			return cl.SetBandwidth(ctx, args[0])
		},
		func(st *mirror.Status) string { return bandwidthNow(st.Network) })
}
