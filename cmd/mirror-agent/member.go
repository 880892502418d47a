package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newMember(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "member",
		Short: "List or remove those whose word counts for a promotion",
	})
	c.AddCommand(newMemberList(a), newMemberRemove(a))
	return c
}

func newMemberList(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the members of the mirror, as this host was told",
		Long: `Lists the volumes whose word counts for a promotion: the source, and every target
and backup that has been in sync once. With three or more, promote needs the word
of all but one; a dead one counts until it is removed.`,
		Example: examples("mirror-agent member list", "mirror-agent member list --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := a.statusNow(c)
			if err != nil {
				return err
			}
			e := st.Electorate
			if e == nil {
				e = &mirror.ElectorateStatus{Members: []mirror.ElectorStatus{}, Meaning: "this host was never told who the members are"}
			}
			if asJSON {
				return a.printJSON(e)
			}
			for _, m := range e.Members {
				self := ""
				if m.Self {
					self = "   this host"
				}
				a.printf("%s  %-16s %s%s\n", m.ID[:min(len(m.ID), 16)], m.Node, strings.Join(m.Addresses, " "), self)
			}
			a.printf("%s\n", e.Meaning)
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newMemberRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "remove HOST|ADDRESS|ID",
		Short: "Take a member that is gone for good off the list",
		Long: `Takes a member that is gone for good off the list: it has no vote any more and is
not counted when a promotion asks for the word of the others. Give the order on
the source; on a target only when the source is lost. If the member is alive after
all, and you promote without its word, there may be two primaries: make sure that
it is not. One that comes into sync again is a member again.`,
		Example: examples("mirror-agent member remove ams1", "mirror-agent member remove 10.3.0.9:7400"),
		Args:    arguments("HOST|ADDRESS|ID"),
	}
	var who string
	return a.order(c,
		func(ctx context.Context, cl *control.Client, args []string) (mirror.Status, error) {
			who = args[0]
			return cl.RemoveMember(ctx, who)
		},
		func(st *mirror.Status) string {
			if st.Electorate == nil {
				return who + " was removed"
			}
			return fmt.Sprintf("%s was removed: %s", who, st.Electorate.Meaning)
		})
}
