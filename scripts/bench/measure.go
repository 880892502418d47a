package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// load is one of fio's jobs.
type load struct {
	name string
	args []string
}

type result struct {
	iops     float64
	p50, p99 time.Duration
	cpu      float64 // seconds of all servers per 1000 writes
}

// ticksPerSecond is USER_HZ, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

func fioArgs(o options, p *peer, l load) []string {
	return append([]string{
		"--name=bench", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + p.socket, "--rw=randwrite", "--bs=4k", "--iodepth=32",
		"--norandommap", "--randrepeat=0", "--time_based", "--runtime=" + strconv.Itoa(o.seconds), "--output-format=json",
	}, l.args...)
}

// measure runs one load on one peer and waits until its servers are idle.
func (b *bench) measure(ctx context.Context, p *peer, l load) (r result, err error) {
	before, err := p.cpuTicks()
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "fio", fioArgs(b.o, p, l)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("fio: %w\n%s\n%s", err, out, b.logs(p))
	}
	i := bytes.IndexByte(out, '{')
	if i < 0 {
		return r, fmt.Errorf("fio printed no JSON: %s", out)
	}
	var fio struct {
		Jobs []struct {
			Error int
			Write struct {
				IOPS     float64 `json:"iops"`
				TotalIOs int64   `json:"total_ios"`
				Clat     struct {
					Percentile map[string]int64 `json:"percentile"`
				} `json:"clat_ns"`
			}
		}
	}
	if err := json.NewDecoder(bytes.NewReader(out[i:])).Decode(&fio); err != nil {
		return r, fmt.Errorf("fio's report: %w", err)
	}
	if len(fio.Jobs) != 1 || fio.Jobs[0].Error != 0 || fio.Jobs[0].Write.TotalIOs == 0 {
		return r, fmt.Errorf("fio failed: %s", out)
	}
	w := fio.Jobs[0].Write
	after, err := b.idle(ctx, p)
	if err != nil {
		return r, err
	}
	return result{
		iops: w.IOPS, p50: time.Duration(w.Clat.Percentile["50.000000"]), p99: time.Duration(w.Clat.Percentile["99.000000"]),
		cpu: float64(after-before) / ticksPerSecond / float64(w.TotalIOs) * 1000,
	}, nil
}

// idle waits until p has used no more than 2 % of a core for half a second, and
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
		if now-last <= 1 {
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

// report prints the table and the commands.
func report(out io.Writer, o options, peers []*peer, loads []load) {
	fmt.Fprintf(out, "%d turns of %d s on a device of %d MiB; medians, ratios within each turn\n\n", o.rounds, o.seconds, o.sizeMiB)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "load\tserver\twrites/s\tp50\tp99\tCPU s/1000\t÷ nbdkit\t÷ qemu\tdurable when a flush returns")
	for _, l := range loads {
		for _, p := range peers {
			rs := p.results[l.name]
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%s\t%s\t%.3f\t%s\t%s\t%s\n", l.name, p.name,
				median(rs, func(r result) float64 { return r.iops }),
				time.Duration(median(rs, func(r result) float64 { return float64(r.p50) })).Round(time.Microsecond),
				time.Duration(median(rs, func(r result) float64 { return float64(r.p99) })).Round(10*time.Microsecond),
				median(rs, func(r result) float64 { return r.cpu }),
				ratio(rs, peers[0].results[l.name]), ratio(rs, peers[2].results[l.name]), p.flush)
		}
	}
	w.Flush()
	fmt.Fprintln(out, "\ncommands (DIR: -dir, SOCK: a temporary directory):")
	for _, p := range peers {
		for _, c := range p.commands {
			fmt.Fprintf(out, "  %s\n", c)
		}
	}
	for _, l := range loads {
		fmt.Fprintf(out, "  fio %s\n", strings.Join(fioArgs(o, &peer{socket: "SOCK/…"}, l), " "))
	}
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
