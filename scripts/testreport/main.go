package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

func main() {
	allowedFile := flag.String("allowed", "", "file that lists the skips that are in order, each with a reason")
	strict := flag.Bool("strict", false, "a skip that is not listed is an error")
	verbose := flag.Bool("v", false, "print the output of all tests")
	flag.Parse()

	allowed := map[string]string{}
	if *allowedFile != "" {
		f, err := os.Open(*allowedFile)
		if err != nil {
			fmt.Fprintln(os.Stderr, "testreport:", err)
			os.Exit(2)
		}
		allowed, err = readAllowed(f)
		f.Close()
		if err != nil {
			fmt.Fprintf(os.Stderr, "testreport: %s: %v\n", *allowedFile, err)
			os.Exit(2)
		}
	}
	r := newReport(os.Stdout, allowed, *strict, *verbose)
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	if !r.close() {
		os.Exit(1)
	}
}

// readAllowed reads "package.Test reason" lines; a reason is obligatory.
func readAllowed(in io.Reader) (map[string]string, error) {
	allowed := map[string]string{}
	s := bufio.NewScanner(in)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); reason == "" {
			return nil, fmt.Errorf("line %d: %s has no reason; write one after the name", n, name)
		}
		allowed[name] = reason
	}
	return allowed, s.Err()
}

// report gathers the events of a run.
type report struct {
	out             io.Writer
	allowed         map[string]string
	strict, verbose bool

	output  map[string]*strings.Builder // by package, or package.Test; dropped when it passes
	passed  int
	failed  []string
	said    map[string][]string // by those of failed: what they logged last
	skipped []string
	reasons map[string]string // of skips
	broken  []string          // packages that failed beside their tests: build, panic, deadline
	packs   int
}

func newReport(out io.Writer, allowed map[string]string, strict, verbose bool) *report {
	return &report{out: out, allowed: allowed, strict: strict, verbose: verbose, output: map[string]*strings.Builder{}, said: map[string][]string{}, reasons: map[string]string{}}
}

func (r *report) read(in io.Reader) error {
	b := bufio.NewReader(in)
	for {
		line, err := b.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				fmt.Fprint(r.out, line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	key := e.Package
	if e.Test != "" {
		key += "." + e.Test
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.keep(key, e)
	case "pass":
		if e.Test != "" {
			r.passed++
		} else {
			r.packs++
		}
		delete(r.output, key)
	case "skip":
		if e.Test == "" { // a package without tests
			break
		}
		r.skipped = append(r.skipped, key)
		if o := r.output[key]; o != nil {
			r.reasons[key] = lastLine(o.String())
		}
		delete(r.output, key)
	case "fail":
		r.fail(key, e)
	}
}

// keep holds a test's output until its end is known; a package's own closing
// line goes out at once.
func (r *report) keep(key string, e event) {
	closing := e.Test == "" && (strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t") || strings.HasPrefix(e.Output, "?  "))
	switch {
	case r.verbose || closing:
		fmt.Fprint(r.out, e.Output)
		return
	case strings.HasPrefix(e.Output, "=== "): // RUN, PAUSE, CONT, NAME
		return
	}
	o := r.output[key]
	if o == nil {
		o = &strings.Builder{}
		r.output[key] = o
	}
	o.WriteString(e.Output)
}

func (r *report) fail(key string, e event) {
	o := r.output[key]
	delete(r.output, key)
	if e.Test != "" {
		r.failed = append(r.failed, key)
		if o != nil {
			r.said[key] = logged(o.String())
		}
	} else {
		r.packs++
		if e.FailedBuild != "" || !r.anyFailed(e.Package) {
			r.broken = append(r.broken, e.Package)
		}
		// A panic or deadline leaves tests without an end: what they said matters.
		for k, left := range r.output {
			if strings.HasPrefix(k, e.Package+".") {
				fmt.Fprintf(r.out, "--- no end: %s\n%s", k, left)
			}
		}
	}
	if o != nil {
		fmt.Fprint(r.out, o)
	}
}

func (r *report) anyFailed(pack string) bool {
	for _, f := range r.failed {
		if strings.HasPrefix(f, pack+".") {
			return true
		}
	}
	return false
}

// close prints the summary and says whether all is well.
func (r *report) close() bool {
	sort.Strings(r.skipped)
	var refused []string
	for _, s := range r.skipped {
		note := r.reasons[s]
		if reason, ok := r.allowed[s]; ok {
			note = "in order here: " + reason
		} else {
			refused = append(refused, s)
		}
		fmt.Fprintf(r.out, "--- SKIP: %s: %s\n", s, note)
	}
	ok := true
	for _, f := range r.failed {
		fmt.Fprintf(r.out, "--- FAIL: %s\n", f)
		for _, line := range r.said[f] {
			fmt.Fprintf(r.out, "    %s\n", line)
		}
		ok = false
	}
	for _, b := range r.broken {
		fmt.Fprintf(r.out, "--- FAIL: package %s (build, panic, leak or deadline: see above)\n", b)
		ok = false
	}
	if r.strict && len(refused) > 0 {
		fmt.Fprintf(r.out, "skipped although this machine should run it (or list it with a reason): %s\n", strings.Join(refused, " "))
		ok = false
	}
	if r.passed == 0 && ok {
		fmt.Fprintln(r.out, "no test was run")
		ok = false
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, len(r.failed)+len(r.broken), len(r.skipped))
	return ok
}

// logged returns the beginnings of what a test said last by its methods Log, Error and so on. What failed is among them, and is
// found at the end of a long output too.
func logged(output string) (lines []string) {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if !place.MatchString(line) {
			continue
		}
		if len(line) > loggedBytes {
			line = strings.ToValidUTF8(line[:loggedBytes], "") + "…"
		}
		lines = append(lines, line)
	}
	return lines[max(0, len(lines)-loggedLines):]
}

const loggedLines, loggedBytes = 15, 300

// place is where a test says something.
var place = regexp.MustCompile(`^\w+_test\.go:\d+: `)

func lastLine(s string) string {
	last := ""
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			last = line
		}
	}
	return last
}
