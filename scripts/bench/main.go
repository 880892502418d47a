package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

type options struct {
	agent   string
	only    string
	rounds  int
	seconds int
	sizeMiB int
	journal string
	dir     string

	frontRounds int
	frontMatch  string
	frontTime   time.Duration

	volumeRounds int
	volumeTime   time.Duration
	journalDir   string
	portRounds   int
	portTime     time.Duration
	readme       string
}

func main() {
	var o options
	flag.StringVar(&o.agent, "agent", "bin/mirror-agent", "the binary")
	flag.StringVar(&o.only, "only", "", "front: the NBD server; volume: log and volume, not mirrored; mirror: the mirror; port: the data port; default all")
	flag.IntVar(&o.rounds, "rounds", 5, "turns; each runs every peer with every load once")
	flag.IntVar(&o.seconds, "seconds", 3, "length of each run")
	flag.IntVar(&o.sizeMiB, "size", 512, "device in MiB")
	flag.StringVar(&o.journal, "journal", "256MiB", "journal of the agents")
	flag.StringVar(&o.dir, "dir", ".", "where the files go: the disk that is measured")
	flag.IntVar(&o.frontRounds, "front-rounds", 7, "turns of the NBD servers by themselves")
	flag.StringVar(&o.frontMatch, "match", "", "front, volume and port: only what is like this `REGEXP`, matched with LOAD/TRANSPORT/SERVER, LOAD/SERVER or LOAD")
	flag.DurationVar(&o.frontTime, "front-time", time.Second, "length of each of their runs")
	flag.IntVar(&o.volumeRounds, "volume-rounds", 5, "turns of log and volume")
	flag.DurationVar(&o.volumeTime, "volume-time", 3*time.Second, "length of each of their runs")
	flag.StringVar(&o.journalDir, "journal-dir", "", "where the log of log and volume goes (default -dir)")
	flag.IntVar(&o.portRounds, "port-rounds", 5, "turns of the data port")
	flag.DurationVar(&o.portTime, "port-time", time.Second, "length of each of its runs over loopback; the others take longer")
	flag.StringVar(&o.readme, "readme", "", "a `FILE` whose sections front, volume and port are written anew")
	serve := flag.String("serve", "", "internal: be one of the servers that are measured")
	flag.Parse()
	if !slices.Contains([]string{"", "front", "volume", "mirror", "port"}, o.only) {
		fmt.Fprintf(os.Stderr, "bench: -only %s: say front, volume, mirror or port\n", o.only)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := func() error { return run(ctx, o) }
	if *serve != "" {
		do = func() error {
			switch *serve {
			case "port-target":
				return runPortTarget(ctx, flag.Args())
			case "port-source":
				return runPortSource(ctx)
			}
			return runServer(ctx, *serve, flag.Args())
		}
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	o.agent, err = filepath.Abs(o.agent)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "bench-data")
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Sockets have short names of their own: a unix address holds 108 bytes.
	sockets, err := os.MkdirTemp("", "mab")
	if err != nil {
		return err
	}
	defer os.RemoveAll(sockets)

	b := &bench{o: o, dir: dir, sockets: sockets}
	defer b.end()
	if o.only != "port" {
		progress("filling %d MiB", o.sizeMiB)
		if err := b.fill(); err != nil {
			return err
		}
	}
	for _, section := range []struct {
		name string
		run  func(context.Context) error
	}{{"front", b.front}, {"volume", b.volume}, {"mirror", b.mirrored}, {"port", b.port}} {
		if o.only == "" || o.only == section.name {
			if err := section.run(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// mirrored measures the mirror beside what is not mirrored and beside qemu's.
func (b *bench) mirrored(ctx context.Context) error {
	o := b.o
	peers := []*peer{{name: "nbdkit", flush: "this disk, not mirrored"}, {name: "mirror-agent", flush: "both disks"}, {name: "qemu", flush: "this disk; the other has it in memory"}}
	start := []func(context.Context, *peer) error{b.startNbdkit, b.startAgents, b.startQemu}
	for i, p := range peers {
		progress("starting %s", p.name)
		if err := start[i](ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	loads := []load{{"randwrite 4k, depth 32", nil}, {"the same, flush every 32", []string{"--fsync=32"}}}
	for round := range o.rounds + 1 { // the first one warms up
		for _, l := range loads {
			for _, p := range peers {
				r, err := b.measure(ctx, p, l)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, l.name, err)
				}
				progress("turn %d of %d: %-12s %-26s %8.0f writes/s, %.3f CPU s per 1000", round, o.rounds, p.name, l.name, r.iops, r.cpu)
				if round > 0 {
					p.keep(l, r)
				}
			}
		}
	}
	report(os.Stdout, o, peers, loads)
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
