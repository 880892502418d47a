package planted

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const root = "../.."

// fault is one patch.
type fault struct {
	name, breaks, guarantee string
	packages                []string
	run                     string
	timeout                 time.Duration
	hunks                   []hunk
}

// hunk replaces lines of a file.
type hunk struct {
	file     string
	old, new string
}

// load reads all patches.
func load(t *testing.T) (faults []*fault) {
	t.Helper()
	names, err := filepath.Glob("*.patch")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parse(string(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.name = strings.TrimSuffix(name, ".patch")
		faults = append(faults, f)
	}
	return faults
}

func parse(text string) (*fault, error) {
	header, diff, ok := strings.Cut(text, "\n\n")
	if !ok {
		return nil, fmt.Errorf("no diff below the header")
	}
	f := &fault{}
	for line := range strings.SplitSeq(header, "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Fault":
			f.breaks = value
		case "Guarantee":
			f.guarantee = value
		case "Packages":
			f.packages = strings.Fields(value)
		case "Run":
			f.run = value
		case "Timeout":
			d, err := time.ParseDuration(value)
			if err != nil {
				return nil, err
			}
			f.timeout = d
		default:
			return nil, fmt.Errorf("unknown header %q", line)
		}
	}
	if f.breaks == "" || f.guarantee == "" || len(f.packages) == 0 || f.run == "" || f.timeout == 0 {
		return nil, fmt.Errorf("the header is not complete: %+v", f)
	}
	return f, f.parseDiff(diff)
}

func (f *fault) parseDiff(diff string) error {
	file, open := "", false
	for line := range strings.Lines(diff) {
		var h *hunk
		if open {
			h = &f.hunks[len(f.hunks)-1]
		}
		switch {
		case strings.HasPrefix(line, "--- "):
			open = false
		case strings.HasPrefix(line, "+++ b/"):
			file = strings.TrimSpace(line[6:])
		case strings.HasPrefix(line, "@@ ") && file != "":
			f.hunks, open = append(f.hunks, hunk{file: file}), true
		case h == nil:
			return fmt.Errorf("line %q lies in no hunk", line)
		case line == "\n": // a blank line whose blank an editor took away
			h.old, h.new = h.old+line, h.new+line
		case line[0] == ' ':
			h.old, h.new = h.old+line[1:], h.new+line[1:]
		case line[0] == '-':
			h.old += line[1:]
		case line[0] == '+':
			h.new += line[1:]
		default:
			return fmt.Errorf("line %q is none of a diff", line)
		}
	}
	if len(f.hunks) == 0 {
		return fmt.Errorf("no hunk")
	}
	return nil
}

// sources is files by path from the root, as changed so far.
type sources map[string]string

// plant changes what is in s; on an error nothing is changed.
func (f *fault) plant(s sources) error {
	changed := sources{}
	for _, h := range f.hunks {
		text, ok := changed[h.file]
		if !ok {
			text, ok = s[h.file]
		}
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, h.file))
			if err != nil {
				return err
			}
			text = string(b)
		}
		at, times := 0, 0
		for i := range text {
			if (i == 0 || text[i-1] == '\n') && strings.HasPrefix(text[i:], h.old) {
				at, times = i, times+1
			}
		}
		if times != 1 {
			return fmt.Errorf("%s: these lines are there %d times, not once; write the patch anew:\n%s", h.file, times, h.old)
		}
		changed[h.file] = text[:at] + h.new + text[at+len(h.old):]
	}
	for file, text := range changed {
		s[file] = text
	}
	return nil
}
