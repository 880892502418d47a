package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newPath(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "path",
		Short: "List the network paths, have one built anew, or remove one",
	})
	c.AddCommand(newPathList(a), newPathReset(a), newPathRemove(a))
	return c
}

// pathRow is a path with the host it leads to, as path list --json prints it.
type pathRow struct {
	Target string `json:"target"`
	mirror.PathStatus

	named string // who named the address
}

func newPathList(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the network paths to the other hosts",
		Example: examples("mirror-agent path list", "mirror-agent path list --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := a.statusNow(c)
			if err != nil {
				return err
			}
			rows := pathRows(&st)
			if asJSON {
				return a.printJSON(rows)
			}
			if len(rows) == 0 {
				a.printf("%s: no path; `mirror-agent explain` says why\n", st.Name)
				return nil
			}
			pathTable(a.stdout, rows, paint(a.colour))
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func pathRows(st *mirror.Status) []pathRow {
	rows := []pathRow{}
	if st.Source != nil {
		for _, p := range st.Source.Paths {
			rows = append(rows, pathRow{st.Source.Peer, p, "source"})
		}
	}
	for i := range st.Followers {
		for _, p := range st.Followers[i].Paths {
			named := "config"
			if p.Announced {
				named = "target"
			}
			rows = append(rows, pathRow{st.Followers[i].Target, p, named})
		}
	}
	return rows
}

// pathTable lines the paths up in columns.
func pathTable(w io.Writer, rows []pathRow, p paint) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "to\tpath\tlocal\tremote\tnamed by\t%s\trtt\tsent\treceived\tresent\twhy\n", p.plain("state"))
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%.2f ms\t%s\t%s\t%d\t%s\n", r.Target, r.ID, r.Local, r.Remote, r.named, p.state(r.State),
			float64(r.RTTMicros)/1000, formatSize(r.BytesSent), formatSize(r.BytesReceived), r.ResentFrames, r.Reason)
	}
	t.Flush()
}

func newPathReset(a *app) *cobra.Command {
	return newPathOrder(a, (*control.Client).ResetPath, "path %d is built anew", &cobra.Command{
		Use:   "reset ID",
		Short: "Close a path so that it is built anew",
		Long: `Closes one path, by its number in "path list", so that it is built anew. Nothing
is lost: what was on its way goes out again on the other paths.`,
		Example: examples("mirror-agent path reset 2", "mirror-agent path reset 1 --target 10.1.0.9:7400"),
	})
}

func newPathRemove(a *app) *cobra.Command {
	return newPathOrder(a, (*control.Client).RemovePath, "path %d is closed when everything on it is acknowledged", &cobra.Command{
		Use:   "remove ID",
		Short: "Close a path for good",
		Long: `Closes one path, by its number in "path list", until the source is started anew.
It gets no more data; it is "draining" until what it has is acknowledged, in both
directions, and closed then. The last path stays.`,
		Example: examples("mirror-agent path remove 2", "mirror-agent path remove 1 --target 10.1.0.9:7400"),
	})
}

// newPathOrder completes a command that does something to one path.
func newPathOrder(a *app, do func(cl *control.Client, ctx context.Context, target string, id int) (mirror.Status, error), done string, c *cobra.Command) *cobra.Command {
	var target string
	var id int
	c.Args = func(c *cobra.Command, args []string) error {
		if err := arguments("ID")(c, args); err != nil {
			return err
		}
		var err error
		if id, err = strconv.Atoi(args[0]); err != nil || id < 0 {
			return usagef("path %q: give its number, as `mirror-agent path list` shows it", args[0])
		}
		return nil
	}
	c.Flags().StringVar(&target, "target", "", "`HOST:PORT` of the target whose path is meant (default the active one)")
	return a.order(c,
		func(ctx context.Context, cl *control.Client, _ []string) (mirror.Status, error) {
			to := target
			if to == "" {
				st, err := cl.Status(ctx)
				if err != nil {
					return st, err
				}
				to = st.ActiveTarget
			}
			return do(cl, ctx, to, id)
		},
		func(*mirror.Status) string { return fmt.Sprintf(done, id) })
}
