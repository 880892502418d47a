package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

func newLogInspect(a *app) *cobra.Command {
	var asJSON, records bool
	c := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Say what a log holds: a journal that no agent uses, or a divergence-….log",
		Long: `Reads a log and says what is in it: whose it is, from where to where, how much was
written when, which checkpoints. Every record is verified; nothing is changed. FILE
is the journal of a volume whose agent does not run, or an excerpt that an old
source has left of what only it had.`,
		Example: examples("mirror-agent log inspect vol0.img.journal", "mirror-agent log inspect --records divergence-vol0-20261123T101500Z.log"),
		Args:    arguments("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			var each func(mirror.LogRecord) error
			switch {
			case records && asJSON:
				each = func(r mirror.LogRecord) error { return json.NewEncoder(a.stdout).Encode(r) }
			case records:
				each = func(r mirror.LogRecord) error {
					a.printf("%12d  %s  %-10s %s\n", r.LSN, r.Time.Format(time.RFC3339Nano), r.Op, where(r))
					return nil
				}
			}
			r, err := mirror.InspectLog(args[0], each)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			a.printLog(&r)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&records, "records", false, "print every record")
	return c
}

func where(r mirror.LogRecord) string {
	if r.Text != "" {
		return r.Text
	}
	return fmt.Sprintf("%d+%d", r.Offset, r.Length)
}

func (a *app) printLog(r *mirror.LogReport) {
	row := func(label, format string, args ...any) { a.printf("  %-12s%s\n", label, fmt.Sprintf(format, args...)) }
	a.printf("%s: %s of mirror %s\n", r.Path, r.Kind, r.Name)
	row("mirror", "%s, a device of %s", r.Mirror, formatSize(r.DeviceSize))
	if r.Role != "" {
		end := "not ended cleanly"
		if r.Clean {
			end = "ended cleanly"
		}
		row("role", "%s, %s", r.Role, end)
	}
	if r.Reason != "" {
		row("made", "%s on %s: %s", r.Created.Format(sinceStamp), r.Node, r.Reason)
	}
	if len(r.Generations) > 0 {
		row("generations", "%s", strings.Join(r.Generations, ", "))
	}
	row("log", "LSN %d to %d, %d records", r.From, r.Head, r.Records)
	if r.Kind == "journal" {
		row("applied", "up to LSN %d, %s are not in the device yet", r.Applied, formatSize(int64(r.Head-min(r.Head, r.Applied))))
	}
	if r.Records > 0 {
		row("changes", "%d writes of %s, %d zeroes and trims of %s, %s of the device touched",
			r.Writes, formatSize(int64(r.WriteBytes)), r.Zeroes, formatSize(int64(r.ZeroBytes)), formatSize(r.Blocks))
		row("time", "%s to %s", r.First.Format(sinceStamp), r.Last.Format(sinceStamp))
	}
	for _, p := range r.Checkpoints {
		row("checkpoint", "%s at LSN %d, %s", p.Name, p.LSN, p.Time.Format(sinceStamp))
	}
	if r.Damage != "" {
		row("damaged", "%s", r.Damage)
	}
}

func newLogApply(a *app) *cobra.Command {
	var asJSON, dry bool
	c := &cobra.Command{
		Use:   "apply FILE DEVICE",
		Short: "Replay a divergence-….log onto a copy of a device",
		Long: `Writes what the excerpt FILE holds onto DEVICE, an image or block device that no
agent uses and that is no mirror's own: on a copy of the device as it was where the
excerpt begins this gives what the old source had in the end. The excerpt is read
and verified as a whole before anything is written.`,
		Example: examples("mirror-agent log apply --dry-run divergence-vol0-20261123T101500Z.log copy.img", "mirror-agent log apply divergence-vol0-20261123T101500Z.log copy.img"),
		Args:    arguments("FILE", "DEVICE"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := mirror.ApplyExcerpt(c.Context(), args[0], args[1], dry)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			verb := "were written to"
			if dry {
				verb = "would be written to"
			}
			a.printf("%d writes of %s, %d zeroes and trims of %s %s %s\n",
				r.Writes, formatSize(int64(r.WriteBytes)), r.Zeroes, formatSize(int64(r.ZeroBytes)), verb, r.Device)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&dry, "dry-run", false, "verify the file and say what would be written; write nothing")
	return c
}
