package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

const (
	lastClaim   = 36
	claimsTable = "README.md"
	tableBegin  = "<!-- TestClaims writes this: MIRROR_AGENT_UPDATE=1 -->\n"
	tableEnd    = "<!-- to here -->\n"
)

// checkClaimsTable compares the table with what was seen; with
// MIRROR_AGENT_UPDATE=1 it writes it. A claim that this run did not ask for (-run) keeps its row.
func checkClaimsTable(t *testing.T, results map[int]string) {
	t.Helper()
	text, err := os.ReadFile(claimsTable)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: %q … %q", claimsTable, tableBegin, tableEnd)
	}
	rows := map[int]string{}
	for line := range strings.Lines(old) {
		var n int
		if _, err := fmt.Sscanf(line, "| %d |", &n); err == nil {
			rows[n] = line
		}
	}
	head := "| claim | it says | what is played | test | result |\n|---|---|---|---|---|\n"
	var b strings.Builder
	b.WriteString(head)
	for i := 1; i <= lastClaim; i++ {
		if results[i] != "" {
			rows[i] = claimRow(i, results[i])
		}
		b.WriteString(rows[i])
	}
	if b.String() == old {
		return
	}
	if os.Getenv("MIRROR_AGENT_UPDATE") == "1" {
		if err := os.WriteFile(claimsTable, []byte(before+tableBegin+b.String()+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the table in %s is not what this run shows; MIRROR_AGENT_UPDATE=1 writes it:\n%s", claimsTable, b.String())
}

func claimRow(i int, result string) string {
	c := claims[i]
	file := "none"
	if c.test != nil {
		f := runtime.FuncForPC(reflect.ValueOf(c.test).Pointer())
		at, _ := f.FileLine(f.Entry())
		file = fmt.Sprintf("`TestClaims/%02d`, %s", i, filepath.Base(at))
	}
	return fmt.Sprintf("| %d | %s | %s | %s | %s |\n", i, c.says, c.scenario, file, result)
}
