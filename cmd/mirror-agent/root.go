package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

const rootHelp = `mirror-agent mirrors a block device to another host while it is written.

Applications write to an NBD device that the source serves. Every write goes
to the source's log first, from there to the source's device, and over one or
several network paths to the target's log and device. When the target is out
of reach, the flow can move to a backup target (switch). When the source is
gone, a target takes its place (promote).

Try it on this machine, nothing to prepare:

  mirror-agent demo
  mirror-agent demo --drill

For real, on two hosts:

  fra$ mirror-agent keygen
  nyc$ mirror-agent keygen
  fra$ mirror-agent target --name vol0 --device /srv/vol0.img --size 64GiB \
         --listen 10.1.0.9:7400,10.2.0.9:7400 --peer-key ed25519:KEY_OF_NYC
  nyc$ mirror-agent source --name vol0 --device /srv/vol0.img --size 64GiB \
         --nbd unix:/run/mirror-agent/vol0.nbd \
         --target 10.1.0.9:7400,10.2.0.9:7400 --peer-key ed25519:KEY_OF_FRA
  nyc$ mirror-agent status

Every setting is a flag, an environment variable (--journal-size is
MIRROR_AGENT_JOURNAL_SIZE) or a key in the file of --config, and is looked for
in this order.

Exit status: 0 done, 1 refused or failed, 2 wrong usage.`

// newRoot builds the whole tree of commands for a.
func newRoot(a *app) *cobra.Command {
	root := group(&cobra.Command{
		Use:           "mirror-agent",
		Short:         "Mirrors a block device to another host while it is written",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	})
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, c.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "daemon", Title: "Run a mirror:"},
		&cobra.Group{ID: "see", Title: "See how it is:"},
		&cobra.Group{ID: "order", Title: "Give it an order:"},
		&cobra.Group{ID: "device", Title: "Use it as a block device:"},
		&cobra.Group{ID: "setup", Title: "Set up:"},
	)
	add := func(id string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("daemon", newSource(a), newTarget(a), newRun(a), newDemo(a))
	add("see", newStatus(a), newEvents(a), newExplain(a), newDoctor(a))
	add("order", newMode(a), newSuspend(a), newResume(a), newSwitch(a), newPromote(a), newFailback(a), newDemote(a), newPath(a), newListen(a), newBandwidth(a), newResize(a), newCheckpoint(a), newDrill(a), newLog(a), newVerify(a), newScrub(a), newMember(a))
	add("device", newAttach(a), newDetach(a))
	add("setup", newKeygen(a), newConfig(a), newVersion(a), newMan(a))
	root.SetCompletionCommandGroupID("setup")
	root.SetHelpCommandGroupID("setup")
	return root
}

// group makes c a command that only holds others: without one it shows its
// help, with an unknown one it suggests what may have been meant.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return usagef("unknown command %q%s; see %s --help", args[0], didYouMean(args[0], commandNames(c)), c.CommandPath())
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if c.HasParent() {
			return usagef("%s: name what to do: %s", c.CommandPath(), strings.Join(commandNames(c), ", "))
		}
		return c.Help()
	}
	return c
}

func commandNames(c *cobra.Command) []string {
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// arguments refuses any number of arguments other than those named in words.
// An optional one is written in brackets.
func arguments(words ...string) cobra.PositionalArgs {
	least := 0
	for _, w := range words {
		if !strings.HasPrefix(w, "[") {
			least++
		}
	}
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s: missing argument %s; usage: %s", c.CommandPath(), words[len(args)], useLine(c))
		case len(args) > len(words):
			return usagef("%s: unexpected argument %q; usage: %s", c.CommandPath(), args[len(words)], useLine(c))
		}
		return nil
	}
}

func useLine(c *cobra.Command) string { return strings.TrimSuffix(c.UseLine(), " [flags]") }

// examples indents the lines of a help text's examples.
func examples(lines ...string) string {
	return "  " + strings.Join(lines, "\n  ")
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }
