package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mirror-agent/mirror"
)

func newConfig(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "config", Short: "Check a configuration file"})
	c.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Find mistakes in a configuration file without starting anything",
		Long: `Reads a configuration file as "run" would, with MIRROR_AGENT_* before it, checks
every key and value, the host's key, the peers' keys and the TLS files, and says what would be
run. Nothing is opened or created. A mistake is named with its line.`,
		Example: examples("mirror-agent config check /etc/mirror-agent/vol0.yaml"),
		Args:    arguments("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			flags := pflag.NewFlagSet("check", pflag.ContinueOnError)
			addDaemonFlags(flags)
			if err := flags.Set("config", args[0]); err != nil {
				return err
			}
			l, err := newLoader(a, flags)
			if err != nil {
				return err
			}
			s, err := l.load(0)
			if err != nil {
				return err
			}
			if err := a.complete(&s, l); err != nil {
				return err
			}
			a.printf("%s: ok\n  %s\n", args[0], summary(&s))
			if s.front.tls != nil {
				for _, w := range s.front.tls.warnings {
					a.printf("  warning: %s\n", w)
				}
			}
			return nil
		},
	})
	return c
}

// summary says in one line what a daemon with these settings would do.
func summary(s *settings) string {
	c := &s.config
	if c.Role == mirror.RoleSecondary {
		return fmt.Sprintf("target of %s: %s, listening at %s", c.Name, c.Device, strings.Join(c.Listen, ", "))
	}
	line := fmt.Sprintf("source of %s: %s, served at %s, mode %s", c.Name, c.Device, c.NBD, c.Mode)
	if len(c.Target) == 0 {
		return line + ", no target"
	}
	line += ", target " + strings.Join(c.Target, ",")
	for i, b := range c.Backups {
		line += fmt.Sprintf(", backup %d %s", i+1, strings.Join(b, ","))
		if i < len(c.HotBackups) && c.HotBackups[i] {
			line += " (hot)"
		}
	}
	return line + fmt.Sprintf(", switch %s", c.Switch)
}
