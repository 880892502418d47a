package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// table is a result: for the terminal, and for the README between the marks of its section.
type table struct {
	section string // front, volume, mirror, times, port
	one     string // what a bar of length one is; "": nbdkit
	caption string
	head    []string
	rows    [][]string
	plot    []plotted // one line for each row: how many times as fast as what it is compared with
	notes   []string  // the commands; not for the README
	below   *table    // of the same section
}

type plotted struct {
	label string
	ratio float64
}

// show prints the table and, when the user named a README, puts it there.
func (b *bench) show(t table) error {
	for part := &t; part != nil; part = part.below {
		part.print()
	}
	if b.o.readme == "" {
		return nil
	}
	text, err := os.ReadFile(b.o.readme)
	if err != nil {
		return err
	}
	changed, err := replaceSection(string(text), t.section, t.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", b.o.readme, err)
	}
	return os.WriteFile(b.o.readme, []byte(changed), 0o644)
}

func (t *table) print() {
	fmt.Printf("%s\n\n", t.caption)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(t.head, "\t"))
	for _, r := range t.rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
	if len(t.plot) > 0 {
		fmt.Println()
		t.bars(os.Stdout)
	}
	if len(t.notes) > 0 {
		fmt.Println("\ncommands (DIR: -dir, SOCK: a temporary directory):")
	}
	for _, n := range t.notes {
		fmt.Println("  " + n)
	}
	fmt.Println()
}

// Bars: so many characters are the other's speed, longer ones end at the most.
const (
	barOfOne = 16
	barMost  = 4 * barOfOne
)

func (t *table) bars(w io.Writer) {
	widest := 0
	for _, p := range t.plot {
		widest = max(widest, utf8.RuneCountInString(p.label))
	}
	one := t.one
	if one == "" {
		one = "nbdkit"
	}
	fmt.Fprintf(w, "%-*s  %s%*s\n", widest, "", one, barOfOne-len(one)+1, "▼")
	for _, p := range t.plot {
		n := int(p.ratio*barOfOne + 0.5)
		end := ""
		if n > barMost {
			n, end = barMost, "…"
		}
		fmt.Fprintf(w, "%-*s  %s%s %.2f\n", widest, p.label, strings.Repeat("█", n), end, p.ratio)
	}
}

func (t *table) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n\n| %s |\n|%s\n", t.caption, strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, r := range t.rows {
		fmt.Fprintf(&s, "| %s |\n", strings.Join(r, " | "))
	}
	if len(t.plot) > 0 {
		s.WriteString("\n```text\n")
		t.bars(&s)
		s.WriteString("```\n")
	}
	if t.below != nil {
		s.WriteString("\n" + t.below.markdown())
	}
	return s.String()
}

// belowAim marks the aim that a median misses.
const belowAim = ", below aim"

// aimed is the cell of an aim: so many times as fast as the other, 0 is none. It says so when the median, as it is shown, is
// below; a median of 0 was not measured.
func aimed(aim float64, other string, middle float64) string {
	if aim == 0 {
		return "-"
	}
	cell := fmt.Sprintf("%.2f", aim)
	if other != "" {
		cell += " × " + other
	}
	if middle > 0 && math.Round(middle*100) < math.Round(aim*100) {
		cell += belowAim
	}
	return cell
}

// replaceSection puts new text between the marks of a section.
func replaceSection(text, section, with string) (string, error) {
	begin, end := "<!-- make bench: "+section+" -->\n", "<!-- end of "+section+" -->"
	before, rest, ok := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("no section %q…%q", strings.TrimSpace(begin), end)
	}
	return before + begin + with + end + after, nil
}
