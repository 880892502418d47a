package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

type result struct {
	iops float64
	cpu  float64 // seconds of all servers per 1000 requests

	unapplied float64 // MiB of log that were not in the device when the run ended
}

// ticksPerSecond is USER_HZ, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// idle waits until each server of p has used no more than 2 % of a core for half a second, and
// returns the CPU time used so far.
func (b *bench) idle(ctx context.Context, p *peer) (int64, error) {
	last, err := p.cpuTicks()
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		now, err := p.cpuTicks()
		if err != nil {
			return 0, err
		}
		if now-last <= int64(len(p.procs)) {
			return now, nil
		}
		if last = now; time.Now().After(deadline) {
			return 0, errors.New("servers are busy 30 s after the load")
		}
	}
}

// cpuTicks is the CPU time of all servers of the peer so far.
func (p *peer) cpuTicks() (sum int64, err error) {
	for _, cmd := range p.procs {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("%s has ended: %w", p.name, err)
		}
		// The name may hold blanks; the fields are counted from its end.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] { // utime, stime
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

func median(rs []result, of func(result) float64) float64 {
	var v []float64
	for _, r := range rs {
		v = append(v, of(r))
	}
	return middle(v)
}

// middle is the median; of an even number the mean of the two in the middle.
func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// ratios are the rates of a divided by those of b, turn by turn.
func ratios(a, b []result) (v []float64) {
	for i := range min(len(a), len(b)) {
		v = append(v, a[i].iops/b[i].iops)
	}
	return v
}

func middleRatio(a, b []result) float64 { return middle(ratios(a, b)) }

// ratio is the median of the ratios, with the least and the greatest.
func ratio(a, b []result) string {
	v := ratios(a, b)
	if len(v) == 0 {
		return "-"
	}
	m := middle(v)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", m, v[0], v[len(v)-1])
}
