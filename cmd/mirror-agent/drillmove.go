package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	drilling "mirror-agent/mirror/drill"
)

const moveHelp = `The other kinds do the true thing, in steps, and take it back:

  switch-over  on the source: the flow moves to a backup (--to), which is timed and
               checked, and back. Clients go on.
  failover     on the target: it takes the lead from the source, which lives, and serves;
               RTO and RPO are measured, the checks run, and the lead goes home.
  failback     on either host: the lead goes home, where it stays, after a failover.

It begins only when the mirror is in sync, without an alarm, and nobody uses the front
that closes (--with-clients: they lose their device for that time). It says what will
happen and asks; --yes does not ask, --dry-run says it and ends. A check that fails,
Ctrl-C, and the times of FILE (wait 2m for each move, timeout 30m for all of the way
forward) lead back to where lead and flow were, for as long as "back" says (10m). After a
kill of this command one host leads as before: "drill run --kind failback" or "failback"
brings the lead home, "switch" the flow.

What checks write in a failover is written to the mirror. They find in their
environment MIRROR_AGENT_DRILL_KIND, _FROM, _TO, _LABEL, _MIRROR, _EXPORT, and _URI of
the front that serves on this host. With a mount or a device in FILE a failover attaches
the front, and no client of the source may be there then.

  label: quarterly
  kind: failover              # or --kind
  limit: 10s                  # that nobody may serve
  checks:
    - name: application
      run: /usr/local/sbin/app-on-fra2 check "$MIRROR_AGENT_DRILL_URI"`

func addMoveFlags(c *cobra.Command, f *drillFlags) {
	c.Flags().StringVar(&f.kind, "kind", "", "`KIND` of drill: view, switch-over, failover or failback (default what FILE says, or view)")
	c.Flags().StringVar(&f.to, "to", "", "`TARGET` that a switch-over moves the flow to: backup, the next one, or its HOST:PORT")
	c.Flags().BoolVar(&f.cold, "cold", false, "allow a switch-over to a backup that has to get what it lacks first")
	c.Flags().BoolVar(&f.clients, "with-clients", false, "begin although clients use the front that closes")
	c.Flags().BoolVar(&f.yes, "yes", false, "do not ask before lead or flow move")
	c.Flags().BoolVar(&f.dry, "dry-run", false, "say what would happen, or what is in the way; change nothing")
}

// config is what the file says, and the flags before it.
func (f *drillFlags) config(c *cobra.Command) (dc drilling.Config, err error) {
	var text []byte
	switch {
	case f.file != "":
		if text, err = os.ReadFile(f.file); err != nil {
			return dc, fmt.Errorf("config %w", err)
		}
	case f.kind == "" || f.kind == string(drilling.View):
		return dc, usagef("%s: missing --config FILE; see %[1]s --help", c.CommandPath())
	}
	dc, err = drilling.ParseConfig(text, func(dc *drilling.Config) {
		if f.kind != "" {
			dc.Kind = drilling.Kind(f.kind)
		}
		if f.to != "" {
			dc.To = f.to
		}
		dc.Cold, dc.WithClients = dc.Cold || f.cold, dc.WithClients || f.clients
	})
	switch {
	case err != nil && f.file == "":
		return dc, usagef("drill run: %w", err)
	case err != nil:
		return dc, fmt.Errorf("config %s: %w", f.file, err)
	case f.dry && dc.Kind == drilling.View:
		return dc, usagef("drill run: --dry-run is for the kinds that move something; a view changes nothing")
	}
	return dc, nil
}

// drillMove says what will happen, asks, and does it. Without a report nothing was begun.
func (a *app) drillMove(ctx context.Context, n *drilling.Runner, dc *drilling.Config, f *drillFlags) (*drilling.Report, error) {
	p, err := n.Prepare(ctx, dc)
	if err != nil {
		return nil, err
	}
	if !f.json || f.dry {
		a.printf("drill of %s from %s: %s\n", p.Mirror, p.Node, p.Kind)
		for i, line := range p.Lines {
			a.printf("  %d. %s\n", i+1, line)
		}
		a.printf("  %s\n  killed in the middle: %s\n", p.Back, p.Killed)
	}
	if f.dry {
		a.printf("nothing was changed\n")
		return nil, nil
	}
	if !f.yes {
		if a.answer == nil {
			return nil, usagef("drill run --kind %s: it asks before it begins, and there is no terminal to ask at: say --yes", dc.Kind)
		}
		word, err := a.answer(ctx, "begin? [y/N] ")
		if err != nil {
			return nil, fmt.Errorf("not begun: %w", err)
		}
		if w := strings.ToLower(strings.TrimSpace(word)); w != "y" && w != "yes" {
			return nil, errors.New("not begun; nothing was changed")
		}
	}
	return p.Run(ctx)
}

// askTerminal asks at the terminal. The reading goes on when ctx has ended: the process does not.
func (a *app) askTerminal(ctx context.Context, question string) (string, error) {
	fmt.Fprint(a.stderr, question)
	type line struct {
		text string
		err  error
	}
	said := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		said <- line{text, err}
	}()
	select {
	case l := <-said:
		return l.text, l.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// firstRead reads the first block of what is served at an address.
func firstRead(ctx context.Context, address, export string) error {
	c, err := dialNBD(ctx, address, export)
	if err != nil {
		return err
	}
	_, err = c.ReadAt(make([]byte, min(c.size, 4096)), 0)
	return errors.Join(err, c.Close())
}
