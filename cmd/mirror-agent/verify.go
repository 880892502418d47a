package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

const verifyHelp = `Compares the device of this host, the source, with that of the active target, block by
block, while both are in use. Each block is compared as it was at one LSN on both
sides, so writes under way raise no false alarm. What is compared is what would be
read: the newest of log and backing device. Holes are passed over, and the verify
slows down while applications are at work.

It goes on in the agent until its end, whether anybody looks or not; Ctrl-C ends the
looking only. It waits while the target is away, and goes on where it was.

--repair writes what differs once more, as it is on the source, in the order of writes:
through the logs, to every target. An application's write is never undone by that.
A block that one side's disk does not give is taken from the other. --repair=target
takes the target's bytes for those that count: the applications see them change.

--direct reads both disks below the system's caches, where filesystem and disk can.

Exit status: 0 both are equal, or were repaired; 1 they differ, or it came to no end.`

// verifyFlags are what the command line says.
type verifyFlags struct {
	options                                    mirror.VerifyOptions
	rate                                       string
	stop, show, follow, background, jsonOutput bool
}

func newVerify(a *app) *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify",
		Short: "Compare this device with the target's while both are in use",
		Long:  verifyHelp,
		Example: examples("mirror-agent verify", "mirror-agent verify --rate 50MiB --background",
			"mirror-agent verify --follow", "mirror-agent verify --repair"),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(c); err != nil {
				return err
			}
			cl, err := a.client(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return a.verify(c.Context(), cl, &f)
		},
	}
	addControlFlags(c)
	fs := c.Flags()
	fs.StringVar(&f.options.Repair, "repair", "", "repair what differs; `SIDE`, source or target, says whose bytes count")
	fs.Lookup("repair").NoOptDefVal = "source"
	fs.StringVar(&f.rate, "rate", "", "compare at most `SIZE` in a second")
	fs.BoolVar(&f.options.NoYield, "no-yield", false, "do not slow down for applications that are at work")
	fs.BoolVar(&f.options.Direct, "direct", false, "read the disks below the system's caches, where that can be")
	fs.BoolVar(&f.options.Resume, "resume", false, "go on where the last one was stopped or interrupted")
	fs.BoolVar(&f.background, "background", false, "start it and return at once")
	fs.BoolVar(&f.follow, "follow", false, "show the one that runs until its end")
	fs.BoolVar(&f.stop, "stop", false, "end the one that runs")
	fs.BoolVar(&f.show, "show", false, "show what the last one found")
	fs.BoolVar(&f.jsonOutput, "json", false, "print JSON at the end")
	return c
}

// check finds what does not go together.
func (f *verifyFlags) check(c *cobra.Command) (err error) {
	if f.rate != "" {
		if f.options.RateBytes, err = parseSize(f.rate); err == nil && f.options.RateBytes == 0 {
			err = fmt.Errorf("--rate %s: must be more than 0", f.rate)
		}
		if err != nil {
			return &usageError{err}
		}
	}
	if r := f.options.Repair; r != "" && r != "source" && r != "target" {
		return usagef("--repair %q: choose source or target, whose bytes count", r)
	}
	for _, alone := range []string{"stop", "show", "follow"} {
		if !c.Flags().Changed(alone) {
			continue
		}
		for _, other := range []string{"stop", "show", "follow", "repair", "rate", "no-yield", "direct", "resume", "background"} {
			if other != alone && c.Flags().Changed(other) {
				return usagef("verify: --%s goes with no other flag that orders something; --%s is one", alone, other)
			}
		}
	}
	return nil
}

func (a *app) verify(ctx context.Context, cl *control.Client, f *verifyFlags) error {
	var err error
	ask, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	st, err := cl.Status(ask)
	if err != nil {
		return err
	}
	var r mirror.VerifyReport
	switch {
	case f.stop:
		r, err = cl.StopVerify(ask)
	case f.show, f.follow:
		r, err = cl.VerifyReport(ask)
	default:
		r, err = cl.Verify(ask, f.options)
	}
	if err != nil {
		return err
	}
	say := func(format string, args ...any) error {
		if f.jsonOutput {
			return a.printJSON(r)
		}
		a.printf(st.Name+": "+format+"\n", args...)
		return nil
	}
	switch {
	case f.stop:
		return say("verify of %s is stopped, %s of %s were compared; mirror-agent verify --resume goes on", r.Target, formatSize(r.DoneBytes), formatSize(r.TotalBytes))
	case f.background:
		return say("verify of %s runs; mirror-agent verify --follow shows it, --stop ends it", r.Target)
	case f.show:
	default:
		if ended, err := a.followVerify(ctx, cl, f.jsonOutput); err != nil || !ended {
			return err
		}
		end, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if r, err = cl.VerifyReport(end); err != nil {
			return err
		}
	}
	if f.jsonOutput {
		err = a.printJSON(r)
	} else {
		view{paint: paint(a.colour), now: a.now()}.verified(a.stdout, st.Name, &r)
	}
	if err == nil && !f.show {
		err = verifyVerdict(&r)
	}
	return err
}

// verifyVerdict is the exit status of a verify.
func verifyVerdict(r *mirror.VerifyReport) error {
	switch {
	case r.State != mirror.VerifyDone && r.Reason != "":
		return fmt.Errorf("the verify is %s: %s; mirror-agent verify --resume goes on where it was", r.State, r.Reason)
	case r.State != mirror.VerifyDone:
		return fmt.Errorf("the verify is %s; mirror-agent verify --resume goes on where it was", r.State)
	case r.Bad() > 0 && r.Options.Repair == "":
		return fmt.Errorf("%s differs in %d bytes: mirror-agent verify --repair sends the source's bytes there; look at the disks", r.Target, r.Bad())
	case r.Bad() > 0:
		return fmt.Errorf("%s differs in %d bytes that could not be repaired; look at the disks", r.Target, r.Bad())
	}
	return nil
}

const (
	verifyLook = 200 * time.Millisecond
	verifyTell = 10 * time.Second // where nothing can be redrawn
)

// followVerify shows how far the verify is until it has ended; false when nobody wants to look any more.
func (a *app) followVerify(ctx context.Context, cl *control.Client, quiet bool) (ended bool, err error) {
	tick := time.NewTicker(verifyLook)
	defer tick.Stop()
	v := view{paint: paint(a.colour)}
	told := a.now()
	for {
		st, err := askStatus(ctx, cl)
		switch {
		case ctx.Err() != nil:
			if !quiet {
				a.printf("%sthe verify goes on: mirror-agent verify --follow shows it again, --stop ends it\n", a.endLine())
			}
			return false, nil
		case errors.Is(err, io.EOF), errors.Is(err, control.ErrNoAgent):
			return false, fmt.Errorf("%w; mirror-agent verify --resume goes on where it was, when it runs again", err)
		case err != nil:
			return false, err
		case st.Verify == nil:
			return false, mirror.ErrNoVerify
		}
		r := st.Verify
		running := r.State == mirror.VerifyRunning || r.State == mirror.VerifyWaiting
		v.now = a.now()
		switch {
		case quiet:
		case a.redraw:
			a.printf("\r  %s\x1b[K", v.verifyLine(r))
		case running && v.now.Sub(told) >= verifyTell:
			a.printf("  %s\n", v.verifyLine(r))
			told = v.now
		}
		if !running {
			if !quiet {
				a.printf("%s", a.endLine())
			}
			return true, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// endLine ends a line that was redrawn.
func (a *app) endLine() string {
	if a.redraw {
		return "\n"
	}
	return ""
}
