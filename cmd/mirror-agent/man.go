package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan writes the manual pages. cobra/doc is not used: it takes a help text for Markdown and runs what is indented in ours
// into one paragraph, and would bring a Markdown parser along.
func newMan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write a manual page for each command into a folder",
		Long: `Writes mirror-agent.1 and mirror-agent-COMMAND.1 for each command into DIR, as the
package does. The date in them is that of SOURCE_DATE_EPOCH, where it is set.`,
		Example: examples("mirror-agent man /tmp/man && man /tmp/man/mirror-agent-promote.1"),
		Args:    arguments("DIR"),
		Hidden:  true,
		RunE: func(c *cobra.Command, args []string) error {
			date := a.now()
			if epoch := a.env("SOURCE_DATE_EPOCH"); epoch != "" {
				var seconds int64
				if _, err := fmt.Sscan(epoch, &seconds); err != nil {
					return fmt.Errorf("SOURCE_DATE_EPOCH %q: give seconds since 1970", epoch)
				}
				date = time.Unix(seconds, 0).UTC()
			}
			return writeManual(c.Root(), args[0], date)
		},
	}
}

// writeManual writes the pages of c and of all commands below it.
func writeManual(c *cobra.Command, dir string, date time.Time) error {
	c.InitDefaultHelpFlag()
	if err := os.WriteFile(filepath.Join(dir, manName(c)+".1"), []byte(manPage(c, date)), 0o644); err != nil {
		return fmt.Errorf("manual page: %w", err)
	}
	for _, sub := range c.Commands() {
		if !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := writeManual(sub, dir, date); err != nil {
			return err
		}
	}
	return nil
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is one page in man(7)'s language.
func manPage(c *cobra.Command, date time.Time) string {
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	name := manName(c)
	fmt.Fprintf(&b, ".TH %s 1 %q %q %q\n", strings.ToUpper(name), date.Format(time.DateOnly), "mirror-agent "+version, "mirror-agent manual")
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(name), roff(c.Short))
	section("SYNOPSIS")
	fmt.Fprintf(&b, ".B %s\n", roff(c.UseLine()))
	section("DESCRIPTION")
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	b.WriteString(roffText(text))
	if c.HasExample() {
		section("EXAMPLES")
		b.WriteString(roffText(c.Example))
	}
	if c.HasAvailableFlags() {
		section("OPTIONS")
		c.Flags().VisitAll(func(f *pflag.Flag) { b.WriteString(roffFlag(f)) })
	}
	var see []string
	if c.HasParent() {
		see = append(see, manName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			see = append(see, manName(sub))
		}
	}
	if len(see) > 0 {
		section("SEE ALSO")
		for i, s := range see {
			comma := ","
			if i == len(see)-1 {
				comma = ""
			}
			fmt.Fprintf(&b, ".BR %s (1)%s\n", roff(s), comma)
		}
	}
	return b.String()
}

func roffFlag(f *pflag.Flag) string {
	if f.Hidden {
		return ""
	}
	value, usage := pflag.UnquoteUsage(f)
	head := "--" + f.Name
	if f.Shorthand != "" {
		head = "-" + f.Shorthand + ", " + head
	}
	switch {
	case f.NoOptDefVal != "" && f.Value.Type() != "bool":
		head += "[=" + value + "]"
	case value != "":
		head += " " + value
	}
	if d := f.DefValue; d != "" && d != "false" && d != "[]" && d != "0" && !strings.Contains(usage, "(default") {
		usage += " (default " + d + ")"
	}
	return fmt.Sprintf(".TP\n.B %s\n%s\n", roff(head), roff(usage))
}

// roffText keeps lines that are indented as they are, and fills the others.
func roffText(text string) string {
	var b strings.Builder
	asIs := false
	for line := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		indented := strings.HasPrefix(line, " ")
		switch {
		case line == "" && asIs: // within or behind it
			b.WriteString("\n")
			continue
		case line == "":
			b.WriteString(".PP\n")
			continue
		case indented && !asIs:
			b.WriteString(".PP\n.nf\n")
		case !indented && asIs:
			b.WriteString(".fi\n.PP\n")
		}
		asIs = indented
		b.WriteString(roff(line) + "\n")
	}
	if asIs {
		b.WriteString(".fi\n")
	}
	return b.String()
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`)

// roff escapes a line of text. No line of it is taken for a request.
func roff(line string) string {
	line = roffEscapes.Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
