package main

import (
	"strings"
	"testing"
	"time"
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

// A median below its aim is marked, as it is shown: one that is rounded up to the aim is not.
func TestAims(t *testing.T) {
	for _, c := range []struct {
		aim, middle float64
		other, want string
	}{
		{0, 0.5, "nbdkit", "-"},
		{1.2, 1.3, "", "1.20"},
		{1.2, 1.196, "nbdkit", "1.20 × nbdkit"},
		{1.2, 1.194, "nbdkit", "1.20 × nbdkit, below aim"},
		{0.9, 0, "", "0.90"}, // not measured
	} {
		if got := aimed(c.aim, c.other, c.middle); got != c.want {
			t.Errorf("aimed(%v, %q, %v): %q, want %q", c.aim, c.other, c.middle, got, c.want)
		}
	}
	speed, cost, most := timed{aim: "a", bar: 0.7}, timed{aim: "a", bar: 1.15, low: true}, timed{aim: "a", most: time.Second}
	for _, c := range []struct {
		w      timed
		took   time.Duration
		ratio  float64
		missed bool
	}{
		{speed, time.Hour, 0.7, false},
		{speed, time.Hour, 0.6, true},
		{cost, time.Hour, 1.15, false},
		{cost, time.Hour, 1.2, true},
		{cost, time.Hour, 1.1, false},
		{most, time.Second, 0, false},
		{most, time.Second + 1, 0, true},
	} {
		if got := c.w.judged(c.took, c.ratio); strings.HasSuffix(got, belowAim) != c.missed {
			t.Errorf("%v, %v: %q", c.took, c.ratio, got)
		}
	}
	for _, c := range []struct {
		depth  int
		server string
		want   float64
	}{{32, "nbdkit", 1.2}, {32, "go-nbd", 2}, {1, "nbdkit", 1}, {1, "go-nbd", 0}, {32, "qemu-nbd", 0}} {
		if got := frontAim(job{block: 4 << 10, depth: c.depth}, c.server); got != c.want {
			t.Errorf("depth %d, %s: %v, want %v", c.depth, c.server, got, c.want)
		}
	}
	row := portTable(options{}, []portRun{{name: "slow", of: "TCP", aim: 0.8}}, map[string][]result{"slow": {{iops: 7}}, "TCP": {{iops: 10}}}, nil).rows[0]
	if row[4] != "0.80, below aim" {
		t.Errorf("%q", row)
	}
}

// What a restart went through is told by its middle turn, in records and bytes.
func TestUnapplied(t *testing.T) {
	if u := middleOf(nil); u != nil {
		t.Errorf("%v of nothing", u)
	}
	u := middleOf([]unappliedLog{{9 << 20, 4160}, {4160 * 1000, 4160}, {4160 * 1000 << 8, 4160}})
	if got := u.String(); got != "2268 records of 4160 bytes, 9 MiB" {
		t.Error(got)
	}
}

// A section may have a second table below the first.
func TestBelow(t *testing.T) {
	first := table{caption: "one", head: []string{"a"}, rows: [][]string{{"1"}}, below: &table{caption: "two", head: []string{"b"}, rows: [][]string{{"2"}}}}
	if got, want := first.markdown(), "one\n\n| a |\n|---|\n| 1 |\n\ntwo\n\n| b |\n|---|\n| 2 |\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// The second log goes to another filesystem that has room and is a disk.
func TestElsewhere(t *testing.T) {
	home := where{device: 1}
	same, full, memory, good := where{"same", 1, 9, false}, where{"full", 2, 4, false}, where{"memory", 3, 9, true}, where{"good", 4, 5, false}
	if got, ok := elsewhere(home, []where{same, full, memory, good}, 5); !ok || got.dir != "good" {
		t.Errorf("%+v, %v", got, ok)
	}
	if got, ok := elsewhere(home, []where{same, full, memory}, 5); ok {
		t.Errorf("%+v", got)
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
