package drill

import (
	"strings"
	"testing"
	"time"
)

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]byte("label: nightly\nat: checkpoint:nightly\nmount: /mnt\nchecks:\n  - run: true\n    before-mount: true\n  - {name: db, run: ./db, timeout: 5m}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Device != Auto || c.Report != "." || c.Checks[0].Name != "true" || c.Checks[0].Timeout != defaultTimeout || !c.Checks[0].BeforeMount || c.Checks[1].Timeout != 5*time.Minute {
		t.Fatalf("%+v", c)
	}
	for text, want := range map[string]string{
		"":                                              "at least one",
		"checks: []":                                    "at least one",
		"checks: [{name: a}]":                           "number 1: run: give a command",
		"chekcs: [{run: a}]":                            "line 1: field chekcs not found",
		"checks: [{run: a, tim: 1s}]":                   "line 1: field tim not found",
		"checks: [{run: a, timeout: -1s}]":              "is negative",
		"checks: [{run: a, timeout: soon}]":             "line 1",
		"at: noon\nchecks: [{run: a}]":                  `point "noon"`,
		"device: tape\nchecks: [{run: a}]":              "choose auto, kernel, fuse or none",
		"mount: mnt\nchecks: [{run: a}]":                "give a directory from /",
		"device: none\nmount: /mnt\nchecks: [{run: a}]": "nothing is mounted",
		"mount-options: ro\nchecks: [{run: a}]":         "there is no mount",
		"checks: [{run: a, before-mount: true}]":        "there is no mount",
		"checks: [{run: a}]\ncleanup: [{name: b}]":      "cleanup, number 1",
		"a: [": "yaml",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, wanted %q", text, err, want)
		}
	}
}
