package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
	"golang.org/x/term"

	"mirror-agent/blockdev/nbd"
)

// The exit status, section 7 of the design.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed
	exitUsage  = 2
)

// app is the process as the commands see it.
type app struct {
	stdout, stderr io.Writer
	env            func(string) string
	now            func() time.Time
	uid            int
	colour         bool // stdout is a terminal that wants colours
	redraw         bool // stdout is a terminal
	logColour      bool // the same for stderr

	size func() (width, height int) // of the terminal; 0, 0 or nil: unknown

	// kernel finds the kernel's NBD driver; nil is nbd.OpenKernel.
	kernel func() (*nbd.Kernel, error)

	// answer asks the operator a question and returns the line; nil: nobody is there to ask.
	answer func(ctx context.Context, question string) (string, error)

	// stop is called to end at once, by the second signal.
	stop func(code int)
}

func main() {
	a := &app{
		stdout: os.Stdout, stderr: os.Stderr, env: os.Getenv, now: time.Now, uid: os.Geteuid(),
		redraw: isatty.IsTerminal(os.Stdout.Fd()), stop: os.Exit,
	}
	a.colour = a.redraw && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
	a.size = func() (int, int) {
		w, h, _ := term.GetSize(int(os.Stdout.Fd()))
		return w, h
	}
	a.logColour = isatty.IsTerminal(os.Stderr.Fd()) && a.env("NO_COLOR") == ""
	if isatty.IsTerminal(os.Stdin.Fd()) {
		a.answer = a.askTerminal
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano // the library's only place for it; seconds are too coarse
	ctx, release := a.untilSignal()
	code := a.run(ctx, os.Args[1:])
	release()
	os.Exit(code)
}

// untilSignal returns a context that the first SIGINT or SIGTERM cancels; the
// second ends the process at once.
func (a *app) untilSignal() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s := <-signals
		cancel(fmt.Errorf("%s received", s))
		s = <-signals
		fmt.Fprintf(a.stderr, "mirror-agent: second signal (%s): ended at once; the journal is recovered at the next start\n", s)
		a.stop(exitFailed)
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// run executes one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var usage *usageError
	code := exitFailed
	if errors.As(err, &usage) {
		code = exitUsage
	}
	var silent *silentError
	if !errors.As(err, &silent) {
		fmt.Fprintf(a.stderr, "mirror-agent: %s\n", oneLine(err.Error()))
	}
	return code
}

// usageError is a command line that makes no sense: exit status 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// silentError ends with status 1 when everything has been said already.
type silentError struct{ err error }

func (e *silentError) Error() string { return e.err.Error() }
func (e *silentError) Unwrap() error { return e.err }

func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}
