package planted

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// overlay writes s beside the tree and returns the -overlay flag that puts it into a build.
func (s sources) overlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for file, text := range s {
		from, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return "-overlay=" + path
}

func goCommand(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	cmd.Env = slices.DeleteFunc(append(os.Environ(), "CGO_ENABLED=0"), func(e string) bool {
		return strings.HasPrefix(e, "MIRROR_AGENT_") // the default run has to see it
	})
	return cmd.CombinedOutput()
}

// TestPatchesFit: every patch is for the code as it is, and what it makes of it compiles.
func TestPatchesFit(t *testing.T) {
	faults := load(t)
	if len(faults) < 110 {
		t.Fatalf("only %d faults", len(faults))
	}
	var builds []sources // as many patches in each as do not touch each other
	for _, f := range faults {
		if err := f.plant(sources{}); err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if !slices.ContainsFunc(builds, func(s sources) bool { return f.plant(s) == nil }) {
			s := sources{}
			_ = f.plant(s)
			builds = append(builds, s)
		}
	}
	for _, s := range builds {
		if out, err := goCommand(t, "build", s.overlay(t), "./..."); err != nil {
			t.Errorf("the patched code does not compile: %v\n%s", err, out)
		}
	}
	t.Logf("%d faults in %d builds", len(faults), len(builds))
}

// A patch that does not fit, or fits twice, is refused.
func TestPatchMustFit(t *testing.T) {
	for _, c := range []struct {
		text string
		old  string
		fits bool
	}{
		{"a\nb\nc\n", "b\n", true},
		{"a\nb\nb\n", "b\n", false},
		{"a\nbb\n", "b\n", false},
		{"a\nc\n", "b\n", false},
	} {
		s := sources{"x": c.text}
		err := (&fault{hunks: []hunk{{"x", c.old, "new\n"}}}).plant(s)
		if (err == nil) != c.fits || (s["x"] != c.text) != c.fits {
			t.Errorf("%q in %q: %v, became %q", c.old, c.text, err, s["x"])
		}
	}
}

var failedTest = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// verdict says which test caught a fault; an error when none did, or none could.
func verdict(out []byte, err error) (by string, _ error) {
	var exit *exec.ExitError
	text := string(out)
	switch {
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return "", fmt.Errorf("does not build:\n%s", text)
	case bytes.Contains(out, []byte("[no tests to run]")):
		return "", errors.New("no test matches its Run")
	case err == nil:
		return "", errors.New("SURVIVED: no test noticed")
	case !errors.As(err, &exit):
		return "", err
	}
	if _, after, ok := strings.Cut(text, "panic: test timed out"); ok {
		_, name, _ := strings.Cut(after, "running tests:\n\t")
		name, _, _ = strings.Cut(strings.TrimSpace(name), " ")
		return name + " (hangs)", nil
	}
	if names := failedTest.FindAllStringSubmatch(text, -1); len(names) > 0 {
		return names[len(names)-1][1], nil // the innermost comes last
	}
	if strings.Contains(text, "panic: ") || strings.Contains(text, "fatal error: ") {
		return "a panic", nil
	}
	if strings.Contains(text, "found unexpected goroutines") {
		return "a goroutine that was left", nil
	}
	return "", fmt.Errorf("red without a test that failed:\n%s", text)
}

// TestPlanted plants every fault and looks who notices. It is long: only with MIRROR_AGENT_PLANTED (make planted).
func TestPlanted(t *testing.T) {
	wanted := os.Getenv("MIRROR_AGENT_PLANTED")
	if wanted == "" {
		t.Skip("runs the tests once per fault, for minutes: MIRROR_AGENT_PLANTED=1 or make planted runs it")
	}
	began := time.Now()
	var caught atomic.Int32
	var wg sync.WaitGroup
	faults := make(chan *fault)
	for range 2 { // one builds while the other waits for its tests
		wg.Go(func() {
			for f := range faults {
				start := time.Now()
				by, err := f.try(t)
				if err == nil {
					caught.Add(1)
				} else {
					by = "NOT CAUGHT"
					t.Errorf("%s (%s): %v", f.name, f.breaks, err)
				}
				fmt.Printf("  %-4s %-92s %6.1f s  %s\n", f.guarantee, f.breaks, time.Since(start).Seconds(), by)
			}
		})
	}
	for _, f := range load(t) {
		if wanted == "1" || strings.Contains(f.name, wanted) {
			faults <- f
		}
	}
	close(faults)
	wg.Wait()
	if caught.Load() == 0 {
		t.Error("no fault was planted")
	}
	fmt.Printf("%d faults caught in %v\n", caught.Load(), time.Since(began).Round(time.Second))
}

// try plants f alone and returns which test caught it.
func (f *fault) try(t *testing.T) (by string, err error) {
	s := sources{}
	if err := f.plant(s); err != nil {
		return "", err
	}
	args := append([]string{"test", s.overlay(t), "-count=1", "-failfast", "-timeout", f.timeout.String(), "-run", f.run}, f.packages...)
	return verdict(goCommand(t, args...))
}
