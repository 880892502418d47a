package main

import (
	"strings"
	"testing"
)

func TestReplaceSection(t *testing.T) {
	const text = "a\n<!-- make bench: front -->\nold\n<!-- end of front -->\nb\n"
	got, err := replaceSection(text, "front", "new\n")
	if want := strings.Replace(text, "old", "new", 1); err != nil || got != want {
		t.Errorf("%q (%v), want %q", got, err, want)
	}
	for _, section := range []string{"volume", "fro"} {
		if _, err := replaceSection(text, section, ""); err == nil {
			t.Errorf("section %q was found", section)
		}
	}
}

func TestBars(t *testing.T) {
	var s strings.Builder
	(&table{plot: []plotted{{"one", 1}, {"half a one", 0.5}, {"much", 9}}}).bars(&s)
	lines := strings.Split(s.String(), "\n")
	for i, n := range []int{barOfOne, barOfOne / 2, barMost} {
		if got := strings.Count(lines[i+1], "█"); got != n {
			t.Errorf("%q: %d blocks, want %d", lines[i+1], got, n)
		}
	}
}
