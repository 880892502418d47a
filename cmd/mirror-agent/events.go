package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

func newEvents(a *app) *cobra.Command {
	var asJSON, follow bool
	var after uint64
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened: roles, states, paths",
		Long: `Shows the agent's recent history, oldest first: changes of role, state and paths,
alarms, orders. The agent keeps the last 1000 events since its start.`,
		Example: examples(
			"mirror-agent events",
			"mirror-agent events --follow",
			`mirror-agent events --json | jq 'select(.kind == "target-unreachable")'`,
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			show := a.eventPrinter(asJSON)
			if follow {
				switch err := cl.Follow(c.Context(), after, show); {
				case errors.Is(err, context.Canceled) && c.Context().Err() != nil:
					return nil
				case errors.Is(err, io.EOF):
					return errors.New("the agent has ended; start it again, then follow again")
				default:
					return err
				}
			}
			ctx, cancel := context.WithTimeout(c.Context(), askTimeout)
			defer cancel()
			list, err := cl.Events(ctx, after)
			for _, e := range list {
				if err := show(e); err != nil {
					return err
				}
			}
			return err
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, one event a line")
	c.Flags().BoolVar(&follow, "follow", false, "wait for further events until Ctrl-C")
	c.Flags().Uint64Var(&after, "after", 0, "only events after the one with this `SEQUENCE`")
	return c
}

func (a *app) eventPrinter(asJSON bool) func(mirror.Event) error {
	if asJSON {
		lines := json.NewEncoder(a.stdout)
		return func(e mirror.Event) error { return lines.Encode(e) }
	}
	p := paint(a.colour)
	return func(e mirror.Event) error {
		var where []string
		if e.Target != "" {
			where = append(where, e.Target)
		}
		if e.Path != "" {
			where = append(where, "path "+e.Path)
		}
		s := fmt.Sprintf("%s  %-20s", p.dim(e.Time.Local().Format("2006-01-02 15:04:05.000")), e.Kind)
		if len(where) > 0 {
			s += "  " + strings.Join(where, " ")
		}
		_, err := fmt.Fprintln(a.stdout, s+"  "+e.Text)
		return err
	}
}
