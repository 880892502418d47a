package main

import (
	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

const sourceHelp = `Serves a device by NBD and mirrors every write to a target.

A first start creates what is missing: the device's file (with --size), the
log beside it. A device that belongs to another mirror is never touched. The
daemon stays in the foreground; SIGTERM ends it cleanly (clients drained, log
flushed and applied, exit status 0), a second signal at once.

Addresses of one host are written with commas: each is a path, all are used at
once, and when one fails the others carry on. Each --backup is a further host
that takes over, in the order given, when the target is out of reach. With
--backups hot they get every write all the time, as the target does, and take
over without a copy; with cold (the default) they get no connection before.

NBD at a TCP address off loopback needs TLS: --nbd-tls-cert and --nbd-tls-key,
and --nbd-tls-ca for whom to let in. TCP clients without TLS are refused then. A
unix socket is for this host's root only (0600); "attach" needs one, or TCP
without TLS, because the kernel's NBD client has none.`

func newSource(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "source --name NAME --device FILE --nbd ADDR [--target HOST:PORT[,...]] [flags]",
		Short: "Serve a device and mirror it to a target",
		Long:  sourceHelp,
		Example: examples(
			"# one target over two paths, one backup that takes over by itself",
			"mirror-agent source --name vol0 --device /srv/vol0.img --size 64GiB \\",
			"  --nbd unix:/run/mirror-agent/vol0.nbd --target 10.1.0.9:7400,10.2.0.9:7400 \\",
			"  --backup 10.3.0.9:7400 --switch auto --peer-key ed25519:… --peer-key ed25519:…",
			"",
			"# other hosts are the clients, each with a certificate of our authority",
			"mirror-agent source --name vol0 --device /srv/vol0.img --nbd 10.1.0.5:10809 --nbd-tls-cert /etc/mirror-agent/server-cert.pem \\",
			"  --nbd-tls-key /etc/mirror-agent/server-key.pem --nbd-tls-ca /etc/mirror-agent/ca-cert.pem",
			"",
			"# a laboratory on one machine, without keys",
			"mirror-agent source --name t --device t.img --size 1GiB --nbd 127.0.0.1:10809 --target 127.0.0.1:7400 --insecure",
		),
		DisableFlagsInUseLine: true,
		Args:                  arguments(),
		RunE:                  a.daemonCommand(mirror.RolePrimary, "name", "device", "nbd"),
	}
	addDaemonFlags(c.Flags())
	return c
}
