package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// order is a command that gives the agent an order and gets its state back.
// done says in one line what is true now.
func (a *app) order(c *cobra.Command, give func(context.Context, *control.Client, []string) (mirror.Status, error), done func(*mirror.Status) string) *cobra.Command {
	return a.orderWithin(c, orderTimeout, give, done)
}

// orderWithin is order for one that takes its time.
func (a *app) orderWithin(c *cobra.Command, limit time.Duration, give func(context.Context, *control.Client, []string) (mirror.Status, error), done func(*mirror.Status) string) *cobra.Command {
	var asJSON bool
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the state afterwards as JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client(c)
		if err != nil {
			return err
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(c.Context(), limit)
		defer cancel()
		st, err := give(ctx, cl, args)
		if err != nil {
			return err
		}
		if asJSON {
			return a.printJSON(st)
		}
		a.printf("%s: %s\n", st.Name, done(&st))
		return nil
	}
	return c
}
