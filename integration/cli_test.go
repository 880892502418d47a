package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCLI runs testdata/*.txtar: what the command line prints and how it ends.
//
//	exits CODE COMMAND ARGS…   like exec, with the exact exit status
//	waits SOCKET               until an agent answers there
//	oneline                    the last command's stderr is one line
func TestCLI(t *testing.T) {
	bin := program(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_RUNTIME_DIR", filepath.Join(e.WorkDir, "run"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"oneline": oneline,
			"waits":   waits,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != want {
		ts.Fatalf("exit status %d, want %d", code, want)
	}
}

func oneline(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: oneline")
	}
	said := ts.ReadFile("stderr")
	n := 0
	for i := range len(said) {
		if said[i] == '\n' {
			n++
		}
	}
	if n != 1 {
		ts.Fatalf("%d lines on stderr, one is wanted", n)
	}
}

func waits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waits SOCKET")
	}
	for end := time.Now().Add(startLimit); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("mirror-agent", "status", "--control", args[0])
		if err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("no agent answers at %s: %v", args[0], err)
		}
	}
}
