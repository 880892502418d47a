package main

import (
	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

const targetHelp = `Keeps a copy of a device that a source on another host mirrors to it.

A backup target is a target like any other: the source names it with --backup.
A first start creates what is missing: the device's file (with --size), the
log beside it. The copy can take the source's place at any time with
"mirror-agent promote"; give --nbd now, or then, for the address it serves at,
and --nbd-tls-cert and --nbd-tls-key now when that is a TCP address off loopback.`

func newTarget(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "target --name NAME --device FILE --listen HOST:PORT[,...] [flags]",
		Short: "Keep a copy of a source's device",
		Long:  targetHelp,
		Example: examples(
			"# reachable over two paths, ready to serve after a promotion",
			"mirror-agent target --name vol0 --device /srv/vol0.img --size 64GiB \\",
			"  --listen 10.1.0.9:7400,10.2.0.9:7400 --nbd unix:/run/mirror-agent/vol0.nbd --peer-key ed25519:…",
		),
		DisableFlagsInUseLine: true,
		Args:                  arguments(),
		RunE:                  a.daemonCommand(mirror.RoleSecondary, "name", "device", "listen"),
	}
	addDaemonFlags(c.Flags())
	return c
}
