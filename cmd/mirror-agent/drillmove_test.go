package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDrillMove_asks: nothing moves without a word of the operator, who is told before what would happen.
func TestDrillMove_asks(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer string // of the terminal; "none": there is none
		args   string
		code   int
		call   string
		want   string
	}{
		{"dry run", "none", "--dry-run", 0, "", "nothing was changed"},
		{"nobody to ask", "none", "", 2, "", "there is no terminal to ask at: say --yes"},
		{"no", "n\n", "", 1, "", "not begun; nothing was changed"},
		{"nothing", "", "", 1, "", "not begun"},
		{"interrupted", "!", "", 1, "", "not begun: interrupt received"},
		{"yes", "y\n", "", 1, "switch 10.3.0.9:7400", "the drill failed: 10.3.0.9:7400 is in sync: not so after 50ms"},
		{"--yes", "none", "--yes", 1, "switch 10.3.0.9:7400", "the drill failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, f := newTestApp(t), &fakeAgent{state: healthy()}
			agentAt(t, a, "vol0", f)
			asked := ""
			if c.answer != "none" {
				a.answer = func(_ context.Context, question string) (string, error) {
					asked = question
					if c.answer == "!" {
						return "", errors.New("interrupt received")
					}
					return c.answer, nil
				}
			}
			dir := t.TempDir()
			file, key := filepath.Join(dir, "drill.yaml"), filepath.Join(dir, "key")
			if err := os.WriteFile(file, []byte("wait: 50ms\ncold: true\nreport: "+dir), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, _, stderr := a.exec(t, "keygen", "--key", key); code != 0 {
				t.Fatal(stderr)
			}
			code, stdout, stderr := a.exec(t, append([]string{"drill", "run", "--kind", "switch-over", "--config", file, "--key", key}, strings.Fields(c.args)...)...)
			if code != c.code || !strings.Contains(stdout+stderr, c.want) || (asked != "") != (c.answer != "none") {
				t.Errorf("code %d, asked %q\nstdout %s\nstderr %s", code, asked, stdout, stderr)
			}
			if calls := strings.Join(f.calls, ","); calls != c.call {
				t.Errorf("the agent was told %q, want %q", calls, c.call)
			}
			if !strings.Contains(stdout, "  1. the flow moves from 10.1.0.9:7400 to 10.3.0.9:7400; clients (2) go on\n") || !strings.Contains(stdout, "killed in the middle: mirror-agent switch 10.1.0.9:7400\n") {
				t.Errorf("the plan:\n%s", stdout)
			}
			reports, err := filepath.Glob(filepath.Join(dir, "drill-vol0-switch-over-*.json"))
			if err != nil || (len(reports) == 1) != (c.call != "") {
				t.Errorf("reports: %q (%v)", reports, err)
			}
		})
	}
}
