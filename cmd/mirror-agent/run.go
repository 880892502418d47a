package main

import "github.com/spf13/cobra"

const runHelp = `Runs a mirror as its configuration file says.

The keys are the flags' names, and "role: source" or "role: target". Lists may
be written as lists; "backup" has an element for each host. Flags given here
and MIRROR_AGENT_* come before the file. "mirror-agent config check FILE" finds
mistakes without starting anything.

  # /etc/mirror-agent/vol0.yaml
  role: source
  name: vol0
  device: /srv/vol0.img
  size: 64GiB
  nbd: unix:/run/mirror-agent/vol0.nbd
  target: [10.1.0.9:7400, 10.2.0.9:7400]
  backup:
    - [10.3.0.9:7400, 10.4.0.9:7400]
    - 10.5.0.9:7400
  switch: auto
  peer-key:
    - ed25519:…
    - ed25519:…`

func newRun(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:                   "run --config FILE [flags]",
		Short:                 "Run a mirror as its configuration file says",
		Long:                  runHelp,
		Example:               examples("mirror-agent run --config /etc/mirror-agent/vol0.yaml", "mirror-agent run --config vol0.yaml --log-level debug"),
		DisableFlagsInUseLine: true,
		Args:                  arguments(),
		RunE:                  a.daemonCommand(0),
	}
	addDaemonFlags(c.Flags())
	return c
}
