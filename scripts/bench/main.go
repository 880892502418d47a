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
	runTime time.Duration
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
	flag.StringVar(&o.only, "only", "", "front: the NBD server; volume: log and volume, not mirrored; mirror: the mirror in all modes; times: restart, switch-over, promotion, resync; port: the data port; default all")
	flag.IntVar(&o.rounds, "rounds", 5, "turns of the mirror, and how often each time is taken")
	flag.DurationVar(&o.runTime, "time", 2*time.Second, "length of each run of the mirror")
	flag.IntVar(&o.sizeMiB, "size", 512, "device in MiB")
	flag.StringVar(&o.journal, "journal", "256MiB", "journal of the agents")
	flag.StringVar(&o.dir, "dir", ".", "where the files go: the disk that is measured")
	flag.IntVar(&o.frontRounds, "front-rounds", 7, "turns of the NBD servers by themselves")
	flag.StringVar(&o.frontMatch, "match", "", "front, volume, mirror, times and port: only what is like this `REGEXP`, matched with LOAD/TRANSPORT/SERVER, LOAD/SERVER or LOAD")
	flag.DurationVar(&o.frontTime, "front-time", time.Second, "length of each of their runs")
	flag.IntVar(&o.volumeRounds, "volume-rounds", 5, "turns of log and volume")
	flag.DurationVar(&o.volumeTime, "volume-time", 3*time.Second, "length of each of their runs")
	flag.StringVar(&o.journalDir, "journal-dir", "", "where the log of log and volume goes the second time, on another disk than -dir (default: another filesystem, else one in a file)")
	flag.IntVar(&o.portRounds, "port-rounds", 5, "turns of the data port")
	flag.DurationVar(&o.portTime, "port-time", time.Second, "length of each of its runs over loopback; the others take longer")
	flag.StringVar(&o.readme, "readme", "", "a `FILE` whose sections are written anew")
	serve := flag.String("serve", "", "internal: be one of the servers that are measured")
	flag.Parse()
	if !slices.Contains([]string{"", "front", "volume", "mirror", "times", "port"}, o.only) {
		fmt.Fprintf(os.Stderr, "bench: -only %s: say front, volume, mirror, times or port\n", o.only)
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
			case "echo-target":
				return runEchoTarget(ctx, flag.Arg(0))
			case "echo-source":
				return runEchoSource(ctx, flag.Arg(0))
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
	}{{"front", b.front}, {"volume", b.volume}, {"mirror", b.mirrored}, {"times", b.times}, {"port", b.port}} {
		if o.only == "" || o.only == section.name {
			if err := section.run(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
