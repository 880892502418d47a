package main

import (
	"strings"
	"testing"
)

const passes = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestOne"}
{"Action":"output","Package":"m/a","Test":"TestOne","Output":"=== RUN   TestOne\n"}
{"Action":"pass","Package":"m/a","Test":"TestOne","Elapsed":0}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.1s\n"}
{"Action":"pass","Package":"m/a"}
`

const skips = passes + `{"Action":"output","Package":"m/a","Test":"TestFS","Output":"    fs_test.go:7: needs root\n"}
{"Action":"output","Package":"m/a","Test":"TestFS","Output":"--- SKIP: TestFS (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestFS"}
`

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, in string
		allowed  string
		strict   bool
		ok       bool
		says     []string
	}{
		{"all pass", passes, "", true, true, []string{"ok  \tm/a", "1 passed, 0 failed, 0 skipped"}},
		{"nothing ran", "", "", false, false, []string{"no test was run"}},
		{"a test fails", passes + `{"Action":"output","Package":"m/a","Test":"TestTwo","Output":"    got 3\n"}
{"Action":"fail","Package":"m/a","Test":"TestTwo"}
{"Action":"fail","Package":"m/a"}
`, "", false, false, []string{"got 3", "--- FAIL: m/a.TestTwo", "1 passed, 1 failed, 0 skipped"}},
		{"what a failed test said last stands at the end", passes + `{"Action":"output","Package":"m/a","Test":"TestTwo","Output":"    two_test.go:7: not within 2s\n"}
{"Action":"output","Package":"m/a","Test":"TestTwo","Output":"        its log\n"}
{"Action":"fail","Package":"m/a","Test":"TestTwo"}
{"Action":"fail","Package":"m/a"}
`, "", false, false, []string{"its log", "--- FAIL: m/a.TestTwo\n    two_test.go:7: not within 2s\n1 passed"}},
		{"a build fails", passes + `{"ImportPath":"m/b","Action":"build-output","Output":"b.go:1: syntax\n"}
{"Action":"fail","Package":"m/b","FailedBuild":"m/b"}
`, "", false, false, []string{"b.go:1: syntax", "package m/b", "1 passed, 1 failed"}},
		{"a panic", passes + `{"Action":"output","Package":"m/c","Test":"TestBoom","Output":"goroutine 7\n"}
{"Action":"fail","Package":"m/c"}
`, "", false, false, []string{"no end: m/c.TestBoom", "goroutine 7"}},
		{"skip, not strict", skips, "", false, true, []string{"--- SKIP: m/a.TestFS: fs_test.go:7: needs root", "1 skipped"}},
		{"skip, strict", skips, "", true, false, []string{"skipped although this machine should run it"}},
		{"skip, strict and listed", skips, "# why\nm/a.TestFS no loop devices here\n", true, true, []string{"no loop devices here"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			allowed, err := readAllowed(strings.NewReader(c.allowed))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			r := newReport(&out, allowed, c.strict, false)
			if err := r.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if ok := r.close(); ok != c.ok {
				t.Errorf("content: %v, want %v", ok, c.ok)
			}
			for _, s := range c.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("says nothing of %q:\n%s", s, &out)
				}
			}
		})
	}
}

func TestReadAllowed_withoutReason(t *testing.T) {
	if _, err := readAllowed(strings.NewReader("m/a.TestFS\n")); err == nil {
		t.Error("a skip without a reason was taken")
	}
}
