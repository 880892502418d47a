package integration

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDemoDrill runs what `make demo` offers to a newcomer: the story of a bad
// day, played and judged by the program itself.
func TestDemoDrill(t *testing.T) {
	dir := shortDir(t)
	t.Setenv("TMPDIR", dir)
	r := runAgentWithin(t, 3*time.Minute, "demo", "--drill", "--size", "64MiB")
	if r.code != 0 {
		t.Fatalf("exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if len(strings.TrimSpace(r.stdout)) < 200 {
		t.Errorf("hardly a report:\n%s", r.stdout)
	}
	t.Logf("report:\n%s", r.stdout)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestDemoDrill_json(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the drill")
	}
	r := runAgentWithin(t, 3*time.Minute, "demo", "--drill", "--json", "--size", "32MiB", "--mode", "async")
	var report map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("exit status %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	if r.code != 0 {
		t.Errorf("exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
