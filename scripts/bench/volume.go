package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"
)

// volumeLoad is a job that several clients run at the same time, each over a connection of its own.
type volumeLoad struct {
	job
	clients int
	bar     float64 // what is aimed at, × nbdkit; 0: nothing
}

func (b *bench) volumeLoads() []volumeLoad {
	size := int64(b.o.sizeMiB) << 20
	random := job{write: true, random: true, block: 4 << 10, deviceSize: size}
	var loads []volumeLoad
	for _, f := range []struct {
		every int
		bar   float64
	}{{1, 1}, {8, 1.3}, {64, 1.5}} {
		j := random
		j.name, j.flushEvery, j.depth = fmt.Sprintf("4 KiB random write, a flush every %d", f.every), f.every, f.every
		loads = append(loads, volumeLoad{j, 1, f.bar})
	}
	for _, n := range []int{1, 16, 64} {
		j := random
		j.name, j.fua, j.depth = fmt.Sprintf("4 KiB random write with FUA, %d clients", n), true, 1
		loads = append(loads, volumeLoad{j, n, 1})
	}
	mixed := random
	mixed.name, mixed.reads, mixed.depth = "4 KiB random 70 % read 30 % write, depth 32", 70, 32
	plain := random
	plain.name, plain.depth = "4 KiB random write, no flush, depth 32", 32
	sequential := job{name: "1 MiB sequential write, depth 8", write: true, block: 1 << 20, depth: 8, deviceSize: size}
	flushed := sequential
	flushed.name, flushed.once = "1 MiB sequential write, the device once and a flush", true
	return append(loads, volumeLoad{mixed, 1, 0.9}, volumeLoad{plain, 1, 0}, volumeLoad{flushed, 1, 0.45}, volumeLoad{sequential, 1, 0})
}

// volume measures the agent with its log, but nothing mirrored, beside nbdkit that writes in place. Before anything is
// measured the log has wrapped; what the applier does for a run counts for it.
func (b *bench) volume(ctx context.Context) error {
	wanted, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	agent, kit := &peer{name: "mirror-agent"}, &peer{name: "nbdkit"}
	peers := []*peer{agent, kit}
	if err := b.startNbdkit(ctx, kit); err != nil {
		return err
	}
	if err := b.startAlone(ctx, agent); err != nil {
		return err
	}
	loads := b.volumeLoads()
	if err := b.wrap(ctx, agent, loads[0].deviceSize, loads[0].deviceSize); err != nil {
		return err
	}
	for round := range b.o.volumeRounds + 1 { // the first one warms up
		progress("log and volume: turn %d of %d", round, b.o.volumeRounds)
		for _, l := range loads {
			for k := range peers {
				p := peers[(k+round)%len(peers)]
				if !wanted.MatchString(l.name + "/" + p.name) {
					continue
				}
				r, err := b.measureVolume(ctx, p, l, b.o.volumeTime)
				if err != nil {
					return fmt.Errorf("%s, %s: %w\n%s", p.name, l.name, err, b.logs(p))
				}
				if round > 0 {
					p.keep(l.name, r)
				}
			}
		}
	}
	t := table{
		section: "volume", head: []string{"load", "mirror-agent, requests/s", "nbdkit", "ratio", "aim", "CPU µs each", "nbdkit's"},
		caption: fmt.Sprintf("A source without a target beside nbdkit's file plugin in place; device of %d MiB, log of %s that has gone around before; %d turns of %v; medians, "+
			"ratios turn by turn (least–greatest).", b.o.sizeMiB, b.o.journal, b.o.volumeRounds, b.o.volumeTime),
	}
	for _, l := range loads {
		ours, theirs := agent.results[l.name], kit.results[l.name]
		if len(ours)+len(theirs) == 0 {
			continue
		}
		rate, cpu := func(r result) float64 { return r.iops }, func(r result) float64 { return r.cpu * 1000 }
		number := func(format string, v float64) string { return fmt.Sprintf(format, v) }
		t.rows = append(t.rows, []string{
			l.name, number("%.0f", median(ours, rate)), number("%.0f", median(theirs, rate)), ratio(ours, theirs), aimed(l.bar, "", middleRatio(ours, theirs)),
			number("%.1f", median(ours, cpu)), number("%.1f", median(theirs, cpu)),
		})
		t.plot = append(t.plot, plotted{l.name, middleRatio(ours, theirs)})
	}
	for _, p := range peers {
		t.notes = append(t.notes, p.commands...)
	}
	b.end()
	b.started = nil
	return b.show(t)
}

// startAlone starts a source that has no target.
func (b *bench) startAlone(ctx context.Context, p *peer) error {
	p.socket = b.socket("alone")
	if err := b.copies("alone.img"); err != nil {
		return err
	}
	journal := b.file("alone.log")
	if b.o.journalDir != "" {
		journal = filepath.Join(b.o.journalDir, "bench-alone.log")
		defer os.Remove(journal) // the agent keeps it open
	}
	if err := b.start(p, b.o.agent, "source", "--name", "bench", "--device", b.file("alone.img"), "--journal", journal,
		"--journal-size", b.o.journal, "--nbd", "unix:"+p.socket, "--insecure", "--control", b.socket("alone.ctl")); err != nil {
		return err
	}
	return b.until(ctx, p, 30*time.Second, exists(p.socket))
}

// wrap writes so many bytes to a device of that size, to fill a log.
func (b *bench) wrap(ctx context.Context, p *peer, size, most int64) error {
	c, err := dialNBD("unix", p.socket)
	if err != nil {
		return err
	}
	defer c.close()
	j := job{write: true, block: 1 << 20, depth: 8, deviceSize: size}
	for written := int64(0); written < most; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, err := c.run(j, 100*time.Millisecond)
		if err != nil {
			return err
		}
		written += int64(n) << 20
	}
	return nil
}

// measureVolume runs one load and waits until the server is idle again; its CPU time until then counts.
func (b *bench) measureVolume(ctx context.Context, p *peer, l volumeLoad, length time.Duration) (r result, err error) {
	before, err := p.cpuTicks()
	if err != nil {
		return r, err
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total int
		most  time.Duration
		first error
	)
	for range l.clients {
		c, err := dialNBD("unix", p.socket)
		if err != nil {
			return r, err
		}
		wg.Go(func() {
			defer c.close()
			n, took, err := c.run(l.job, length)
			mu.Lock()
			defer mu.Unlock()
			total, most = total+n, max(most, took)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	if first != nil {
		return r, first
	}
	after, err := b.idle(ctx, p)
	if err != nil {
		return r, err
	}
	r = result{iops: float64(total) / most.Seconds(), cpu: float64(after-before) / ticksPerSecond / float64(total) * 1000}
	syncAll()
	return r, nil
}
