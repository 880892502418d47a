package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newListen(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "listen",
		Short: "List or change the addresses that other hosts reach this one at",
	})
	c.AddCommand(newListenList(a),
		newListenChange(a, "add HOST:PORT", "Listen at one more address",
			`Listens at one more address of this host, until the agent ends; write it to
--listen for the next start. The other hosts are told and make a path to it.`,
			(*control.Client).Listen,
			func(st *mirror.Status, address string) string {
				if !slices.Contains(st.Listen, address) && len(st.Listen) > 0 { // port 0: the one that it got
					address = st.Listen[len(st.Listen)-1]
				}
				return "listening at " + address
			}),
		newListenChange(a, "remove HOST:PORT", "Listen at an address no more",
			`Ends listening at an address, as "listen list" shows it, until the agent ends. The
other hosts are told: what they made a path to by our word they close, after
what is on its way there has arrived. A target keeps its last address.`,
			(*control.Client).Unlisten,
			func(_ *mirror.Status, address string) string {
				return "not listening at " + address + " any more"
			}))
	return c
}

// listenState is what listen list prints.
type listenState struct {
	Listen    []string `json:"listen"`
	Announced []string `json:"announced"`
}

func newListenList(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List where this host listens, and what of it the others are told",
		Example: examples("mirror-agent listen list", "mirror-agent listen list --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := a.statusNow(c)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(listenState{st.Listen, st.Announced})
			}
			if len(st.Listen) == 0 {
				a.printf("%s: not listening; `mirror-agent listen add HOST:PORT` changes that\n", st.Name)
				return nil
			}
			a.printf("%s: listening at %s\n", st.Name, strings.Join(st.Listen, ", "))
			if len(st.Announced) == 0 {
				a.printf("  the other hosts are told nothing: this host has no address that they could reach\n")
			} else {
				a.printf("  the other hosts are told %s\n", strings.Join(st.Announced, ", "))
			}
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newListenChange(a *app, use, short, long string, give func(*control.Client, context.Context, string) (mirror.Status, error),
	done func(*mirror.Status, string) string,
) *cobra.Command {
	var address string
	verb, _, _ := strings.Cut(use, " ")
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		Example: examples(fmt.Sprintf("mirror-agent listen %s 10.3.0.9:7400", verb)),
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("HOST:PORT")(c, args); err != nil {
				return err
			}
			if err := hostPort(args[0]); err != nil {
				return usagef("%v", err)
			}
			address = args[0]
			return nil
		},
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			return give(cl, ctx, address)
		},
		func(st *mirror.Status) string { return done(st, address) })
}
