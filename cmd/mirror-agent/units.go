package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// parseSize reads a size in bytes: "4096", "64MiB", "1.5GiB", "10GB". A single
// letter counts in powers of 1024 as in qemu-img, truncate and lvcreate: 1G is
// 1GiB.
func parseSize(s string) (int64, error) {
	t := strings.TrimSpace(s)
	if n := len(t); n > 0 && strings.ContainsRune("kKmMgGtTpPeE", rune(t[n-1])) {
		t += "iB"
	}
	// ParseBytes drops commas, which would turn 1,5G into 15G.
	if strings.Contains(t, ",") {
		t = ""
	}
	n, err := humanize.ParseBytes(t)
	if err != nil || n > math.MaxInt64 {
		return 0, fmt.Errorf("size %q: give a number with a unit, like 64MiB or 1G", s)
	}
	return int64(n), nil
}

// parseDuration reads "500ms", "10s", "1m30s"; a bare 0 needs no unit.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < 0 {
		return 0, fmt.Errorf("duration %q: give a number with a unit, like 500ms or 10s", s)
	}
	return d, nil
}

// formatSize shows a size for a person.
func formatSize[N int64 | uint64](n N) string {
	if n < 0 {
		n = 0
	}
	return humanize.IBytes(uint64(n))
}

// formatSpan shows how long something has lasted, in one or two units.
func formatSpan(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

// formatSeconds shows a measured time.
func formatSeconds(s float64) string {
	if s < 0.0995 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	if s < 9.995 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}
