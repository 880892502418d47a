package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"time"
)

// portRun is one line of the port's table: an order to the source, and what its result is compared with.
type portRun struct {
	name  string
	order portOrder
	of    string  // run it is divided by; "": a link of so many bytes per second
	link  float64 // its speed
	aim   float64 // 0: shown beside
}

// child is an end of the measurements as a process.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startChild runs this program as one of its servers, in a namespace or in "".
func startChild(ctx context.Context, ns string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := append([]string{self}, args...)
	if ns != "" {
		argv = append([]string{"ip", "netns", "exec", ns}, argv...)
	}
	c := &child{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<20)
	return c, c.cmd.Start()
}

func (c *child) read(v any) error {
	if !c.out.Scan() {
		return errors.Join(errors.New("a process of the measurement has ended"), c.out.Err())
	}
	return json.Unmarshal(c.out.Bytes(), v)
}

func (c *child) run(o portOrder) (r portResult, err error) {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return r, err
	}
	if err = c.read(&r); err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	return r, err
}

func (c *child) end() {
	_ = c.in.Close() // its standard input ends, and it with that
	_ = c.cmd.Wait()
}

// pair is a target and a source.
type pair struct {
	target, source *child
	at             portTarget
}

func startPair(ctx context.Context, targetNS, sourceNS string, ips ...string) (*pair, error) {
	p := &pair{}
	var err error
	if p.target, err = startChild(ctx, targetNS, append([]string{"-serve", "port-target"}, ips...)...); err != nil {
		return nil, err
	}
	if err = p.target.read(&p.at); err == nil {
		p.source, err = startChild(ctx, sourceNS, "-serve", "port-source")
	}
	if err != nil {
		p.target.end()
		return nil, err
	}
	return p, nil
}

func (p *pair) end() {
	p.source.end()
	p.target.end()
}

const mbit = 1e6 / 8

// port measures the data port: over loopback beside plain TCP and plain TLS, and between namespaces whose links are
// slow, slow and delayed, or lost.
func (b *bench) port(ctx context.Context) error {
	only, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	loop, err := startPair(ctx, "", "", "127.0.0.1")
	if err != nil {
		return err
	}
	defer loop.end()
	var far *portLab
	if b.o.frontMatch != "" {
		progress("port: with -match only what goes over loopback")
	} else if os.Geteuid() == 0 {
		if far, err = b.newPortLab(ctx); err != nil {
			return err
		}
		defer far.end()
	} else {
		progress("port: links of a certain speed need network namespaces, and these need root: NOT MEASURED")
	}
	long := max(3*b.o.portTime, 2*time.Second)
	quick := func(o portOrder) portOrder { o.Warm, o.For = 200*time.Millisecond, b.o.portTime; return o }
	slow := func(o portOrder) portOrder { o.Warm, o.For = 1500*time.Millisecond, long; return o }
	plain, secure, key := loop.at.Plain, loop.at.Secure, loop.at.Key
	runs := []portRun{
		{name: "TCP: io.Copy", order: quick(portOrder{Kind: "tcp", To: loop.at.TCP, Size: 1 << 20})},
		{name: "1 MiB messages, 1 path", order: quick(portOrder{Kind: "port", To: plain, Paths: 1, Size: 1 << 20}), of: "TCP: io.Copy", aim: 0.8},
		{name: "1 MiB messages, 2 paths", order: quick(portOrder{Kind: "port", To: plain, Paths: 2, Size: 1 << 20}), of: "TCP: io.Copy", aim: 0.8},
		{name: "1 MiB messages, 4 paths", order: quick(portOrder{Kind: "port", To: plain, Paths: 4, Size: 1 << 20}), of: "TCP: io.Copy", aim: 0.8},
		{name: "4 KiB messages in batches of 256, 2 paths", order: quick(portOrder{Kind: "port", To: plain, Paths: 2, Size: 4 << 10, Batch: 256}), of: "TCP: io.Copy", aim: 0.5},
		{name: "4 KiB messages one by one, 2 paths", order: quick(portOrder{Kind: "port", To: plain, Paths: 2, Size: 4 << 10, Batch: 256, Single: true}), of: "TCP: io.Copy"},
		{name: "crypto/tls", order: quick(portOrder{Kind: "tls", To: loop.at.TLS, Size: 1 << 20})},
		{name: "TLS: 1 MiB messages, 1 path", order: quick(portOrder{Kind: "port", To: secure, Key: key, Paths: 1, Size: 1 << 20}), of: "crypto/tls", aim: 0.8},
		{name: "TLS: 1 MiB messages, 2 paths", order: quick(portOrder{Kind: "port", To: secure, Key: key, Paths: 2, Size: 1 << 20}), of: "crypto/tls", aim: 0.8},
	}
	if b.o.frontMatch != "" {
		beside := map[string]bool{}
		for _, r := range runs {
			beside[r.of] = beside[r.of] || only.MatchString(r.name)
		}
		runs = slices.DeleteFunc(runs, func(r portRun) bool { return !only.MatchString(r.name) && !beside[r.name] })
	}
	sources := map[string]*child{}
	if far != nil {
		two, delayed := far.plain(1, 2), far.plain(6)
		shaped := []portRun{
			{name: "100 + 20 Mbit/s: TCP on the faster", order: slow(portOrder{Kind: "tcp", To: far.tcp(1), Size: 256 << 10}), link: 120 * mbit},
			{name: "100 + 20 Mbit/s: least-completion", order: slow(portOrder{Kind: "port", To: two, Size: 256 << 10}), link: 120 * mbit, aim: 0.9},
			{name: "100 + 20 Mbit/s: round-robin", order: slow(portOrder{Kind: "port", To: two, Size: 256 << 10, Scheduler: "round-robin"}), link: 120 * mbit},
			{name: "500 Mbit/s, round trip of 30 ms: TCP", order: slow(portOrder{Kind: "tcp", To: far.tcp(6), Size: 1 << 20}), link: 500 * mbit},
			{name: "500 Mbit/s, round trip of 30 ms: 1 path", order: slow(portOrder{Kind: "port", To: delayed, Size: 1 << 20}), link: 500 * mbit, aim: 0.9},
			{name: "500 Mbit/s, round trip of 60 ms: TCP", order: slow(portOrder{Kind: "tcp", To: far.tcp(7), Size: 1 << 20}), link: 500 * mbit},
			// One connection may have no more under way than net.ipv4.tcp_wmem allows; that is what several paths are for.
			{name: "500 Mbit/s, round trip of 60 ms: 2 paths", order: slow(portOrder{Kind: "port", To: far.plain(7), Paths: 2, Size: 1 << 20}), link: 500 * mbit, aim: 0.9},
		}
		for _, r := range shaped {
			sources[r.name] = far.source
		}
		runs = append(runs, shaped...)
	}
	results := map[string][]result{}
	var around [][3]float64
	for round := range b.o.portRounds + 1 { // the first one warms up
		for _, r := range runs {
			from := sources[r.name]
			if from == nil {
				from = loop.source
			}
			if round == 0 && from != loop.source {
				continue
			}
			got, err := from.run(r.order)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			progress("port: turn %d of %d: %-44s %7.1f MB/s", round, b.o.portRounds, r.name, got.Bytes/1e6)
			if round > 0 {
				results[r.name] = append(results[r.name], result{iops: got.Bytes})
			}
		}
		if far != nil && round > 0 {
			a, err := far.losePath(ctx)
			if err != nil {
				return err
			}
			around = append(around, a)
			progress("port: turn %d of %d: one of three paths lost: %.1f MB/s, in the second after %.1f, then %.1f", round, b.o.portRounds, a[0]/1e6, a[1]/1e6, a[2]/1e6)
		}
	}
	return b.show(portTable(b.o, runs, results, around))
}

func portTable(o options, runs []portRun, results map[string][]result, around [][3]float64) table {
	t := table{
		section: "port", one: "1.00", head: []string{"load", "MB/s", "beside", "ratio", "aim"},
		caption: fmt.Sprintf("The data port, source and target as processes of their own; %d turns; medians of what the target's client has consumed, ratios turn by turn "+
			"(least–greatest). Above, over loopback for %v each; below, between network namespaces, divided by the nominal speed of the links.", o.portRounds, o.portTime),
		notes: []string{"no commands: bench runs itself as source and target; scripts/netns/wire is the delay, tbf the speed, nft the loss"},
	}
	add := func(name, beside string, speed float64, v []float64, aim float64) {
		row := []string{name, fmt.Sprintf("%.1f", speed/1e6), beside, "-", "-"}
		if len(v) > 0 {
			m := middle(v) // sorts
			row[3] = fmt.Sprintf("%.2f (%.2f–%.2f)", m, v[0], v[len(v)-1])
			t.plot = append(t.plot, plotted{name, m})
		}
		row[4] = aimed(aim, "", middle(v))
		t.rows = append(t.rows, row)
	}
	for _, r := range runs {
		rs := results[r.name]
		speed := median(rs, func(r result) float64 { return r.iops })
		var v []float64
		beside := "-"
		switch {
		case r.of != "":
			v, beside = ratios(rs, results[r.of]), r.of
		case r.link > 0:
			beside = fmt.Sprintf("%.0f Mbit/s", r.link/mbit)
			for _, one := range rs {
				v = append(v, one.iops/r.link)
			}
		}
		add(r.name, beside, speed, v, r.aim)
	}
	for i, name := range []string{"one of three paths of 100 Mbit/s falls silent: the second before", "… the second after", "… the second after that"} {
		var v, all []float64
		for _, a := range around {
			all = append(all, a[i])
			if i > 0 {
				v = append(v, a[i]/a[0])
			}
		}
		if len(all) > 0 {
			aim := 0.0
			if i > 0 {
				aim = 0.9 * 2 / 3 // two of three links are left
			}
			add(name, []string{"-", "the second before"}[min(i, 1)], middle(all), v, aim)
		}
	}
	return t
}
