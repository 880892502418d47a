package main

import (
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int64
	}{
		{"4096", 4096},
		{"64MiB", 64 << 20},
		{"1G", 1 << 30},
		{"2k", 2048},
		{"1.5GiB", 3 << 29},
		{"10GB", 10_000_000_000},
		{" 1 TiB ", 1 << 40},
		{"0", 0},
	} {
		if got, err := parseSize(tt.in); err != nil || got != tt.want {
			t.Errorf("%q: %d, %v, want %d", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"", "G", "1,5G", "-1G", "1X", "64MiB3", "99999999999999T"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"500ms": 500 * time.Millisecond, "10s": 10 * time.Second, "0": 0, "1m30s": 90 * time.Second} {
		if got, err := parseDuration(in); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "10", "-1s", "1 day"} {
		if got, err := parseDuration(in); err == nil {
			t.Errorf("%q: %s, want an error", in, got)
		}
	}
}

func TestFormatSpan(t *testing.T) {
	for want, in := range map[string]time.Duration{
		"0 s": -time.Second, "47 s": 47 * time.Second, "2 min 5 s": 125 * time.Second,
		"3 h 12 min": 192 * time.Minute, "4 days": 100 * time.Hour,
	} {
		if got := formatSpan(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := keyNames()
	for in, want := range map[string]string{
		"targts": "target", "listne": "listen", "Target": "target", "journal_size": "journal-size",
		"onloss": "on-loss", "zzz": "", "x": "",
	} {
		got := didYouMean(in, names)
		if want != "" {
			want = ` (did you mean "` + want + `"?)`
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
