package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guide is what README.md tells to type, and shows as the answer: the lines of its indented blocks that begin with a host's prompt.
type guide struct {
	t     testing.TB
	steps []*guideStep
	keys  map[string]string // of the README → of this run
}

type guideStep struct {
	host, command string
	shown         []string // the lines below it
	line          int      // in README.md
	taken         bool
}

const readme = "../README.md"

var (
	promptLine = regexp.MustCompile(`^    (\w+)# (.*)$`)
	keyWord    = regexp.MustCompile(`ed25519:[A-Za-z0-9+/]{43}`)
)

func readGuide(t testing.TB) *guide {
	t.Helper()
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	g := &guide{t: t, keys: map[string]string{}}
	g.steps = guideSteps(string(b))
	if len(g.steps) < 20 {
		t.Fatalf("%d commands with a host's prompt in README.md", len(g.steps))
	}
	return g
}

func guideSteps(text string) (steps []*guideStep) {
	var now *guideStep
	for i, line := range strings.Split(text, "\n") {
		m := promptLine.FindStringSubmatch(line)
		switch {
		case m != nil:
			now = &guideStep{host: m[1], command: m[2], line: i + 1}
			steps = append(steps, now)
		case !strings.HasPrefix(line, "    ") && strings.TrimSpace(line) != "":
			now = nil
		case now == nil || strings.TrimSpace(line) == "":
		case len(now.shown) == 0 && strings.HasSuffix(now.command, `\`):
			now.command = strings.TrimSuffix(now.command, `\`) + strings.TrimSpace(line)
		default:
			now.shown = append(now.shown, strings.TrimSpace(line))
		}
	}
	return steps
}

// take finds the next command of a host that begins so. One that is not there any more fails the test: the guide has changed.
func (g *guide) take(host, begin string) *guideStep {
	g.t.Helper()
	for _, s := range g.steps {
		if !s.taken && s.host == host && strings.HasPrefix(s.command, begin) {
			s.taken = true
			return s
		}
	}
	g.t.Fatalf("README.md has no (further) `%s# %s`: the guide has changed, and this test has to follow", host, begin)
	return nil
}

// line returns the whole line of README.md that has a text, one that has no prompt.
func (g *guide) line(has string) string {
	g.t.Helper()
	b, err := os.ReadFile(readme)
	if err != nil {
		g.t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "    ") && strings.Contains(l, has) {
			return g.said(strings.TrimSpace(l))
		}
	}
	g.t.Fatalf("README.md has no indented line with %q", has)
	return ""
}

// file returns the indented block of README.md whose first line begins so, with the keys of this run.
func (g *guide) file(begin string) string {
	g.t.Helper()
	b, err := os.ReadFile(readme)
	if err != nil {
		g.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n\n    "+begin)
	if !ok {
		g.t.Fatalf("README.md has no block that begins with %q", begin)
	}
	text := begin
	for l := range strings.Lines("    " + rest) {
		body, ok := strings.CutPrefix(l, "    ")
		if !ok || promptLine.MatchString(l) {
			break
		}
		text += body
	}
	return g.said(text)
}

// said is a text of the README with the keys of this run; shown is the way back.
func (g *guide) said(s string) string {
	return keyWord.ReplaceAllStringFunc(s, func(k string) string {
		if g.keys[k] == "" {
			g.t.Fatalf("README.md uses the key %s, which no keygen of it has printed", k)
		}
		return g.keys[k]
	})
}

func (g *guide) shown(s string) string {
	for theirs, ours := range g.keys {
		s = strings.ReplaceAll(s, ours, theirs)
	}
	return s
}

// left makes sure that every command was taken, or is in the list of those that another test carries out.
func (g *guide) left(elsewhere map[string]string) {
	g.t.Helper()
	used := map[string]bool{}
	for _, s := range g.steps {
		if s.taken {
			continue
		}
		test := ""
		for begin, name := range elsewhere {
			if strings.HasPrefix(s.host+"# "+s.command, begin) {
				test, used[begin] = name, true
			}
		}
		if test == "" {
			g.t.Errorf("README.md:%d: `%s# %s` is carried out by no test", s.line, s.host, s.command)
		}
	}
	for begin, name := range elsewhere {
		if out, err := tryTool(toolTimeout, "grep", "-l", "^func "+name+"(", "-r", "."); err != nil || !used[begin] {
			g.t.Errorf("`%s` is not in README.md, or there is no %s: %s", begin, name, out)
		}
	}
}

var (
	screenWord = regexp.MustCompile(`[█░▒]+|\d+(?:\.\d+){3}(?::\d+)?|\b[\d]+(?:[.,:\-T]\d+)*Z?(?: ?(?:ns|µs|ms|min|s|h|B|KiB|MiB|GiB|%)\b|%|)`)
	passing    = regexp.MustCompile(`(data flows to .*), [a-z-]+$`) // a state that does not last
	shortKey   = regexp.MustCompile(`(ed25519:\S{8})[^\s,;]*`)
	guidePort  = regexp.MustCompile(`:(7400|10809)$`)
	manyHashes = regexp.MustCompile(`#(?:,? #)+`)
	blanks     = regexp.MustCompile(`\s+`)
)

// stable is a line without what differs from run to run: numbers, sizes, times, bars, ports of the moment. Addresses stay.
func stable(line string) string {
	line = passing.ReplaceAllString(line, "$1")
	line = screenWord.ReplaceAllStringFunc(shortKey.ReplaceAllString(line, "$1…"), func(w string) string {
		if strings.Count(w, ".") >= 3 && !strings.ContainsAny(w, " ") {
			host, _, _ := strings.Cut(w, ":")
			return host + guidePort.FindString(w)
		}
		return "#"
	})
	return manyHashes.ReplaceAllString(strings.TrimSpace(blanks.ReplaceAllString(line, " ")), "#")
}

// differ compares what README.md shows with what was printed: the same lines, but for what is not stable. A line "…" stands for any number of
// others; lines that drop says yes to belong to a machine.
func differ(shown, printed []string, drop func(line string) bool) (err error) {
	set := func(lines []string) (l []string) {
		for _, line := range lines {
			if s := stable(line); s != "" && (drop == nil || !drop(s)) && !slices.Contains(l, s) {
				l = append(l, s)
			}
		}
		return l
	}
	want, got := set(shown), set(printed)
	var b strings.Builder
	for _, w := range want {
		if w != "…" && !slices.Contains(got, w) {
			fmt.Fprintf(&b, "  only in README.md: %s\n", w)
		}
	}
	for _, p := range got {
		if !slices.Contains(want, p) && !slices.Contains(want, "…") {
			fmt.Fprintf(&b, "  only printed:      %s\n", p)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return fmt.Errorf("it is not what README.md shows:\n%sprinted was:\n%s", &b, strings.Join(printed, "\n"))
}

// TestGuideReader: the reader of the guide and its comparison see what they are there for.
func TestGuideReader(t *testing.T) {
	steps := guideSteps("words\n\n    nyc1# one --a \\\n            --b\n    out 1\n    fra2# two      # why\n\n    more\nwords\n    not shown\n")
	if len(steps) != 2 || steps[0].command != "one --a --b" || len(steps[0].shown) != 1 || steps[1].host != "fra2" || strings.Join(steps[1].shown, "|") != "more" {
		t.Errorf("steps %+v %+v", steps[0], steps[1])
	}
	for _, c := range []struct {
		shown, printed string
		same           bool
	}{
		{"primary · in sync · flush   since 2026-11-22 22:45:50 (3 s)", "primary · in sync · flush since 2027-01-02 01:02:03 (1 min 4 s)", true},
		{"primary · in sync", "primary · degraded", false},
		{"path 1  10.1.0.5:44846 → 10.1.0.9:7400   active   1.03 ms  ██░░  45 %", "path 2 10.1.0.5:1024 → 10.1.0.9:7400 active 12 ms █░ 3 %", true},
		{"→ 10.1.0.9:7400", "→ 10.2.0.9:7400", false},
		{"→ 10.1.0.9:7400", "→ 10.1.0.9:7401", false},
		{"8,176 writes  32 MiB", "0 writes  0 B", true},
		{"8,176 writes  32 MiB", "0 reads  0 B", false},
		{"first\n…", "first\nsecond", true},
		{"first", "first\nsecond", false},
		{"first\n…\nlast", "first\nsecond", false},
	} {
		if err := differ(strings.Split(c.shown, "\n"), strings.Split(c.printed, "\n"), nil); (err == nil) != c.same {
			t.Errorf("%q and %q: %v", c.shown, c.printed, err)
		}
	}
}
