package integration

import (
	"bytes"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules of the house: section 8 of the design, as a test.

const (
	module       = "mirror-agent"
	maxFileLines = 600
)

// rooms says for each package what it may import of the module. A package that
// is not listed may not exist; "*" is everything.
var rooms = map[string][]string{
	"blockdev":                {},
	"blockdev/crashtest":      {},
	"blockdev/histogram":      {},
	"blockdev/nbd":            {"blockdev", "blockdev/histogram", "dataport/socket"},
	"blockdev/nbd/kerneltest": {},
	"blockdev/nbd/certtest":   {},
	"journal":                 {"blockdev/histogram"},
	"dataport":                {"dataport/socket"},
	"dataport/socket":         {},
	"dataport/dataporttest":   {"dataport"},
	"mirror/control/page":     {"mirror"},
	"mirror":                  {"journal", "blockdev", "dataport", "blockdev/histogram"},
	"mirror/control":          {"mirror", "blockdev/histogram"},
	"mirror/drill":            {"mirror"},
	"mirror/hook":             {"mirror"},
	"cmd/mirror-agent":        {"*"},
	"integration":             {"*"},
	"scripts/bench":           {"blockdev", "blockdev/nbd", "dataport"}, // serves one itself, and carries messages, to be measured
	"integration/planted":     {},
}

// testRooms is what tests may import beyond that: fakes beside the real thing,
// and the layers below.
var testRooms = map[string][]string{
	"blockdev/nbd":   {"blockdev", "blockdev/nbd/kerneltest"},
	"journal":        {"blockdev", "blockdev/crashtest"},
	"dataport":       {"dataport/dataporttest"},
	"mirror":         {"dataport/dataporttest", "blockdev/nbd", "blockdev/crashtest"},
	"mirror/control": {"blockdev", "journal"},
}

// topLevel is what may lie in the root.
var topLevel = []string{
	"README.md", "Makefile", "go.mod", "go.sum", "LICENSE",
	"blockdev", "cmd", "dataport", "integration", "journal", "mirror", "scripts",
	"bin", "bench-data", "demo-data", "mirror-agent", // what .gitignore keeps out
}

var forbiddenFolders = []string{"util", "utils", "common", "helper", "helpers", "types", "pkg", "misc", "shared", "base"}

// sourceFiles returns the files of the checkout that could be committed, as paths from its
// root.
func sourceFiles(t *testing.T) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", path)
		if err != nil {
			return err
		}
		if d.IsDir() && (slices.Contains([]string{".git", "bin", "bench-data", "demo-data"}, rel) || strings.HasSuffix(rel, "testdata/rapid")) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && rel != "mirror-agent" {
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func goFiles(t *testing.T) (files []string) {
	for _, f := range sourceFiles(t) {
		if strings.HasSuffix(f, ".go") {
			files = append(files, f)
		}
	}
	return files
}

// roomOf maps a folder to its rule; scripts may hold programs that import
// nothing of the module.
func roomOf(dir string) (allowed []string, ok bool) {
	if allowed, ok = rooms[dir]; ok {
		return allowed, true
	}
	return nil, dir == "scripts" || strings.HasPrefix(dir, "scripts/")
}

// imports returns what a file imports of the module, without its prefix.
func imports(t *testing.T, file string) (own []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", file), nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if rest, ok := strings.CutPrefix(path, module+"/"); ok {
			own = append(own, rest)
		}
	}
	return own
}

func TestHouse_imports(t *testing.T) {
	var wires []string
	for _, file := range goFiles(t) {
		dir := filepath.ToSlash(filepath.Dir(file))
		allowed, ok := roomOf(dir)
		if !ok {
			t.Errorf("%s: no room of the house; section 8 of the design lists them", file)
			continue
		}
		test := strings.HasSuffix(file, "_test.go")
		for _, own := range imports(t, file) {
			switch {
			case slices.Contains(allowed, "*"), slices.Contains(allowed, own):
			case test && (own == dir || slices.Contains(testRooms[dir], own)):
			default:
				t.Errorf("%s imports %s; %s may import %v", file, own, dir, allowed)
			}
			if dir == "mirror" && own == "dataport" && !test {
				wires = append(wires, file)
			}
		}
	}
	if len(wires) > 1 {
		t.Errorf("dataport is wired into mirror in %d files, one is allowed: %v", len(wires), wires)
	}
}

func TestHouse_names(t *testing.T) {
	root, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range root {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s lies in the root; a file belongs into a room (or into the list here, with a reason)", e.Name())
		}
	}
	for _, file := range sourceFiles(t) {
		for part := range strings.SplitSeq(filepath.ToSlash(filepath.Dir(file)), "/") {
			if slices.Contains(forbiddenFolders, part) {
				t.Errorf("%s: a folder named %q says nothing about its subject", file, part)
			}
		}
	}
}

func TestHouse_files(t *testing.T) {
	docs := map[string]bool{}
	for _, file := range goFiles(t) {
		dir := filepath.ToSlash(filepath.Dir(file))
		if _, ok := docs[dir]; !ok {
			docs[dir] = false
		}
		b, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d are allowed: which two subjects are in it?", file, n, maxFileLines)
		}
		if filepath.Base(file) == "doc.go" {
			docs[dir] = true
			f, err := parser.ParseFile(token.NewFileSet(), file, b, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil || f.Doc == nil || len(f.Doc.Text()) < 200 {
				t.Errorf("%s should tell what the room holds: its main types, its invariants", file)
			}
		}
	}
	for dir, has := range docs {
		if !has {
			t.Errorf("%s has no doc.go", dir)
		}
	}
}

// Places of the machines that this was built on, and words that mean nothing to
// a reader elsewhere.
var foreign = []*regexp.Regexp{
	regexp.MustCompile(`/` + `work/[a-z.]`),
	regexp.MustCompile(`/root/(go|\.cache|\.pyenv)`),
	regexp.MustCompile(`/home/[a-z]+/`),
	regexp.MustCompile(`\.\./` + `shared/`),
	regexp.MustCompile(`(?i)\b(chat` + `gpt|clau` + `de|copi` + `lot|l` + `lm)\b`),
}

func TestHouse_words(t *testing.T) {
	for _, file := range sourceFiles(t) {
		if filepath.Ext(file) == ".sum" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 { // golden bytes
			continue
		}
		for i, line := range strings.Split(string(b), "\n") {
			for _, re := range foreign {
				if m := re.FindString(line); m != "" {
					t.Errorf("%s:%d: %q belongs to one machine only", file, i+1, m)
				}
			}
		}
	}
}

// Conditions on the platform are visible in a file's name or its build line; a
// test must not decide what the product does.
func TestHouse_noIfTesting(t *testing.T) {
	for _, file := range goFiles(t) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "dataport/dataporttest/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", file), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if i.Path.Value == `"testing"` {
				t.Errorf("%s imports testing; a fake is a room beside the real thing", file)
			}
		}
	}
}

// The product builds without cgo, for every platform named here.
func TestHouse_noCgo(t *testing.T) {
	for _, file := range goFiles(t) {
		dir, name := filepath.Split(file)
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		p, err := build.Default.ImportDir(filepath.Join("..", dir), 0)
		if err == nil && len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: %v", dir, p.CgoFiles)
		}
	}
}
