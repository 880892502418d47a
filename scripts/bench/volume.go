package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"
)

// volumeLoad is a job that several clients run at the same time, each over a connection of its own.
type volumeLoad struct {
	job
	clients int
	bar     float64 // what is aimed at, × nbdkit; 0: nothing
	durable bool    // waits for the log's disk: measured with the log on another one, too
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
		loads = append(loads, volumeLoad{job: j, clients: 1, bar: f.bar, durable: true})
	}
	for _, n := range []int{1, 16, 64} {
		j := random
		j.name, j.fua, j.depth = fmt.Sprintf("4 KiB random write with FUA, %d clients", n), true, 1
		loads = append(loads, volumeLoad{job: j, clients: n, bar: 1, durable: n == 1})
	}
	mixed := random
	mixed.name, mixed.reads, mixed.depth = "4 KiB random 70 % read 30 % write, depth 32", 70, 32
	plain := random
	plain.name, plain.depth = "4 KiB random write, no flush, depth 32", 32
	sequential := job{name: "1 MiB sequential write, depth 8", write: true, block: 1 << 20, depth: 8, deviceSize: size}
	flushed := sequential
	flushed.name, flushed.once = "1 MiB sequential write, the device once and a flush", true
	return append(
		loads, volumeLoad{job: mixed, clients: 1, bar: 0.9}, volumeLoad{job: plain, clients: 1},
		volumeLoad{job: flushed, clients: 1, bar: 0.45}, volumeLoad{job: sequential, clients: 1},
	)
}

// volume measures the agent with its log, but nothing mirrored, beside nbdkit that writes in place. Before anything is
// measured the log has wrapped; what the applier does for a run counts for it.
func (b *bench) volume(ctx context.Context) error {
	wanted, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	loads := b.volumeLoads()
	t, err := b.volumeTable(ctx, wanted, loads, b.dir)
	if err != nil {
		return err
	}
	other, err := b.otherDisk()
	if err != nil {
		progress("log and volume: the log on another disk is not measured: %v", err)
		return b.show(t)
	}
	defer func() {
		b.end() // what an error left running there
		other.end()
	}()
	loads = slices.DeleteFunc(loads, func(l volumeLoad) bool { return !l.durable })
	for i := range loads {
		if other.loop {
			loads[i].bar = 0
		}
	}
	apart, err := b.volumeTable(ctx, wanted, loads, other.dir)
	if err != nil {
		return err
	}
	apart.caption = fmt.Sprintf("The log on another disk: %s. Everything else as above.", other.what)
	t.below = &apart
	return b.show(t)
}

// volumeTable measures loads with the log in journalDir.
func (b *bench) volumeTable(ctx context.Context, wanted *regexp.Regexp, loads []volumeLoad, journalDir string) (t table, err error) {
	agent, kit := &peer{name: "mirror-agent"}, &peer{name: "nbdkit"}
	peers := []*peer{agent, kit}
	if err := b.startNbdkit(ctx, kit); err != nil {
		return t, err
	}
	if err := b.startAlone(ctx, agent, journalDir); err != nil {
		return t, err
	}
	ring, err := humanize.ParseBytes(b.o.journal)
	if err != nil {
		return t, fmt.Errorf("-journal: %w", err)
	}
	if err := b.wrap(ctx, agent, loads[0].deviceSize, loads[0].deviceSize); err != nil {
		return t, err
	}
	for round := range b.o.volumeRounds + 1 { // the first one warms up
		progress("log and volume: turn %d of %d", round, b.o.volumeRounds)
		for _, l := range loads {
			for k := range peers {
				p := peers[(k+round)%len(peers)]
				if !wanted.MatchString(l.name + "/" + p.name) {
					continue
				}
				r, err := b.measureVolume(ctx, p, l, b.o.volumeTime, ring)
				if err != nil {
					return t, fmt.Errorf("%s, %s: %w\n%s", p.name, l.name, err, b.logs(p))
				}
				if round > 0 {
					p.keep(l.name, r)
				}
			}
		}
	}
	t = table{
		section: "volume", head: []string{"load", "mirror-agent, requests/s", "nbdkit", "ratio", "aim", "CPU µs each", "nbdkit's", "unapplied, MiB"},
		caption: fmt.Sprintf("A source without a target beside nbdkit's file plugin in place; device of %d MiB, log of %s that has gone around before; %d turns of %v, each after a lead-in of the same load until it "+
			"has written as much as the log holds, %v at most; medians, ratios turn by turn (least–greatest). Unapplied is what the log holds for the device when a run ends.", b.o.sizeMiB, b.o.journal, b.o.volumeRounds, b.o.volumeTime, leadTimes*b.o.volumeTime),
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
			number("%.1f", median(ours, cpu)), number("%.1f", median(theirs, cpu)), number("%.0f", median(ours, func(r result) float64 { return r.unapplied })),
		})
		t.plot = append(t.plot, plotted{l.name, middleRatio(ours, theirs)})
	}
	for _, p := range peers {
		t.notes = append(t.notes, p.commands...)
	}
	b.end()
	b.started = nil
	return t, nil
}

// startAlone starts a source that has no target.
func (b *bench) startAlone(ctx context.Context, p *peer, journalDir string) error {
	p.socket, p.control = b.socket("alone"), b.socket("alone.ctl")
	_ = os.Remove(p.socket) // of the table before, whose device belongs to another log
	_ = os.Remove(b.file("alone.img"))
	if err := b.copies("alone.img"); err != nil {
		return err
	}
	journal := filepath.Join(journalDir, "bench-alone.log")
	defer os.Remove(journal) // the agent keeps it open
	if err := b.start(p, b.o.agent, "source", "--name", "bench", "--device", b.file("alone.img"), "--journal", journal,
		"--journal-size", b.o.journal, "--nbd", "unix:"+p.socket, "--insecure", "--control", p.control); err != nil {
		return err
	}
	return b.until(ctx, p, 30*time.Second, exists(p.socket))
}

// wrap writes so many bytes to a device of that size, to fill a log.
func (b *bench) wrap(ctx context.Context, p *peer, size, most int64) error {
	return b.write(ctx, p, job{write: true, block: 1 << 20, depth: 8, deviceSize: size}, most)
}

// write runs a load until it has written so many bytes.
func (b *bench) write(ctx context.Context, p *peer, j job, most int64) error {
	c, err := dialNBD("unix", p.socket)
	if err != nil {
		return err
	}
	defer c.close()
	for written := int64(0); written < most; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, err := c.run(j, 100*time.Millisecond)
		if err != nil {
			return err
		}
		written += int64(n) * int64(j.block)
	}
	return nil
}

// leadTimes is how many times as long as a run its lead-in is at most.
const leadTimes = 3

// lead runs a load on all connections, for nothing, until so many bytes are written or it took long enough: a log that
// begins empty takes for a while what the device could not.
func lead(cs []*client, j job, bytes uint64, most time.Duration) error {
	var written atomic.Uint64
	var all errgroup.Group
	began := time.Now()
	for _, c := range cs {
		all.Go(func() error {
			for written.Load() < bytes && time.Since(began) < most {
				n, _, err := c.run(j, 50*time.Millisecond)
				if err != nil {
					return err
				}
				written.Add(uint64(n) * uint64(j.block) * uint64(100-j.reads) / 100)
			}
			return nil
		})
	}
	return all.Wait()
}

// measureVolume runs one load, after a lead-in of so many bytes, and waits until the server is idle again; its CPU time from
// the lead-in until then counts. A load that is done once has no lead-in.
func (b *bench) measureVolume(ctx context.Context, p *peer, l volumeLoad, length time.Duration, leadBytes uint64) (r result, err error) {
	var cs []*client
	defer func() {
		for _, c := range cs {
			_ = c.close()
		}
	}()
	for range l.clients {
		c, err := dialNBD("unix", p.socket)
		if err != nil {
			return r, err
		}
		cs = append(cs, c)
	}
	if !l.once {
		if err := lead(cs, l.job, leadBytes, leadTimes*length); err != nil {
			return r, err
		}
	}
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
	for _, c := range cs {
		wg.Go(func() {
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
	if p.control != "" {
		s, err := b.status(p.control)
		if err != nil {
			return r, err
		}
		r.unapplied = float64(s.Log.Head-s.Log.Applied) / (1 << 20)
	}
	after, err := b.idle(ctx, p)
	if err != nil {
		return r, err
	}
	r = result{unapplied: r.unapplied, iops: float64(total) / most.Seconds(), cpu: float64(after-before) / ticksPerSecond / float64(total) * 1000}
	syncAll()
	return r, nil
}
