package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testApp is an app without surroundings: its own environment and streams.
type testApp struct {
	app
	out, err bytes.Buffer
	vars     map[string]string
}

func newTestApp(t *testing.T) *testApp {
	t.Helper()
	a := &testApp{vars: map[string]string{"XDG_RUNTIME_DIR": t.TempDir(), "XDG_CONFIG_HOME": t.TempDir()}}
	a.app = app{
		stdout: &a.out, stderr: &a.err, uid: 1000,
		env:  func(name string) string { return a.vars[name] },
		now:  func() time.Time { return time.Date(2026, 11, 22, 14, 3, 0, 0, time.UTC) },
		stop: func(code int) { t.Errorf("stopped with %d", code) },
	}
	return a
}

// exec runs one command line and returns what it printed.
func (a *testApp) exec(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	a.out.Reset()
	a.err.Reset()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	code = a.run(ctx, args)
	return code, a.out.String(), a.err.String()
}

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test -update rewrites it)\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
