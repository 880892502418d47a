package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
	"golang.org/x/sys/unix"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd"
)

// frontServer is one of the NBD servers, with an address of each kind.
type frontServer struct {
	peer
	unix, tcp string
}

// transports of the front, with the address that a server has there.
var transports = []struct {
	name string
	of   func(*frontServer) string
}{
	{"unix", func(s *frontServer) string { return s.unix }},
	{"tcp", func(s *frontServer) string { return s.tcp }},
}

func (b *bench) frontJobs() []job {
	size := int64(b.o.sizeMiB) << 20
	return []job{
		{name: "4 KiB random write, depth 1", write: true, random: true, block: 4 << 10, depth: 1, deviceSize: size},
		{name: "4 KiB random read, depth 1", random: true, block: 4 << 10, depth: 1, deviceSize: size},
		{name: "4 KiB random write, depth 32", write: true, random: true, block: 4 << 10, depth: 32, deviceSize: size},
		{name: "4 KiB random read, depth 32", random: true, block: 4 << 10, depth: 32, deviceSize: size},
		{name: "1 MiB sequential write, depth 8", write: true, block: 1 << 20, depth: 8, deviceSize: size},
		{name: "1 MiB sequential read, depth 8", block: 1 << 20, depth: 8, deviceSize: size},
	}
}

// frontAim is how many times as fast as that server ours is to be; 0: nothing is aimed at.
func frontAim(j job, server string) float64 {
	deep := j.block == 4<<10 && j.depth == 32
	switch {
	case server == "go-nbd" && deep:
		return 2
	case server == "nbdkit" && deep:
		return 1.2
	case server == "nbdkit":
		return 1
	}
	return 0
}

// front measures the NBD servers by themselves, all on the same file. Nothing is flushed by the clients; between two runs
// the file is, outside the measured time.
func (b *bench) front(ctx context.Context) error {
	servers, err := b.startFront(ctx)
	if err != nil {
		return err
	}
	wanted, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	type key struct{ load, transport, server string }
	results := map[key][]result{}
	for round := range b.o.frontRounds + 1 { // the first one warms up
		progress("NBD servers: turn %d of %d", round, b.o.frontRounds)
		for _, j := range b.frontJobs() {
			for _, tr := range transports {
				for k := range servers {
					s := servers[(k+round)%len(servers)] // nobody is always the one after the same other
					if !wanted.MatchString(j.name + "/" + tr.name + "/" + s.name) {
						continue
					}
					r, err := b.measureFront(ctx, s, tr.name, tr.of(s), j)
					if err != nil {
						return fmt.Errorf("%s by %s, %s: %w", s.name, tr.name, j.name, err)
					}
					if round > 0 {
						at := key{j.name, tr.name, s.name}
						results[at] = append(results[at], r)
					}
				}
			}
		}
	}
	rate := func(r result) float64 { return r.iops }
	t := table{
		section: "front", head: []string{"load", "by", "mirror-agent, requests/s", "CPU µs each"},
		caption: fmt.Sprintf("NBD servers on one file of %d MiB, nothing mirrored, nothing flushed; %d turns of %v; medians of requests/s, and in brackets of mirror-agent's "+
			"divided by them turn by turn (least–greatest).", b.o.sizeMiB, b.o.frontRounds, b.o.frontTime),
	}
	for _, s := range servers[1:] {
		t.head = append(t.head, s.name)
	}
	t.head = append(t.head, "aim")
	for _, j := range b.frontJobs() {
		for _, tr := range transports {
			ours := results[key{j.name, tr.name, servers[0].name}]
			if len(ours) == 0 {
				continue
			}
			aims := ""
			row := []string{j.name, tr.name, fmt.Sprintf("%.0f", median(ours, rate)), fmt.Sprintf("%.1f", median(ours, func(r result) float64 { return r.cpu * 1000 }))}
			for _, s := range servers[1:] {
				rs := results[key{j.name, tr.name, s.name}]
				row = append(row, fmt.Sprintf("%.0f [%s]", median(rs, rate), ratio(ours, rs)))
				if aim := frontAim(j, s.name); aim > 0 {
					aims += "; " + aimed(aim, s.name, middleRatio(ours, rs))
				}
			}
			t.rows = append(t.rows, append(row, strings.TrimPrefix(aims, "; ")))
			t.plot = append(t.plot, plotted{j.name + ", " + tr.name, middleRatio(ours, results[key{j.name, tr.name, "nbdkit"}])})
		}
	}
	for _, s := range servers {
		t.notes = append(t.notes, s.commands...)
	}
	b.end()
	b.started = nil
	return b.show(t)
}

// measureFront runs one load with a connection of its own.
func (b *bench) measureFront(ctx context.Context, s *frontServer, network, address string, j job) (r result, err error) {
	if err := ctx.Err(); err != nil {
		return r, err
	}
	c, err := dialNBD(network, address)
	if err != nil {
		return r, fmt.Errorf("%w\n%s", err, b.logs(&s.peer))
	}
	defer c.close()
	before, err := s.cpuTicks()
	if err != nil {
		return r, err
	}
	n, took, err := c.run(j, b.o.frontTime)
	if err != nil {
		return r, err
	}
	after, err := s.cpuTicks()
	if err != nil {
		return r, err
	}
	r = result{iops: float64(n) / took.Seconds(), cpu: float64(after-before) / ticksPerSecond / float64(n) * 1000}
	syncAll()
	return r, nil
}

// syncAll has the disks idle before the next run.
func syncAll() { unix.Sync() }

// startFront starts every server, all on the same file.
func (b *bench) startFront(ctx context.Context) ([]*frontServer, error) {
	file := b.file("noise")
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	names := []string{"mirror-agent", "nbdkit", "qemu-nbd", "go-nbd"}
	var servers []*frontServer
	for _, name := range names {
		s := &frontServer{peer: peer{name: name}, unix: b.socket("front-" + name)}
		if s.tcp, err = freePort(); err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(s.tcp)
		if err != nil {
			return nil, err
		}
		var commands [][]string
		switch name {
		case "nbdkit":
			commands = [][]string{
				{"nbdkit", "-f", "-U", s.unix, "file", file},
				{"nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "file", file},
			}
		case "qemu-nbd":
			image := "driver=raw,file.driver=file,file.locking=off,file.filename=" + file
			commands = [][]string{
				{"qemu-nbd", "--image-opts", "--persistent", "--shared=8", "-k", s.unix, image},
				{"qemu-nbd", "--image-opts", "--persistent", "--shared=8", "-b", "127.0.0.1", "-p", port, image},
			}
		default:
			commands = [][]string{{self, "-serve", name, file, s.unix, s.tcp}}
		}
		for _, c := range commands {
			if err := b.start(&s.peer, c[0], c[1:]...); err != nil {
				return nil, err
			}
		}
		for _, at := range [][2]string{{"unix", s.unix}, {"tcp", s.tcp}} {
			if err := b.until(ctx, &s.peer, 10*time.Second, func() bool {
				c, err := dialNBD(at[0], at[1])
				if err == nil {
					c.close()
				}
				return err == nil
			}); err != nil {
				return nil, fmt.Errorf("%s by %s: %w", name, at[0], err)
			}
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// runServer serves a file by our server or by go-nbd's; args: file, unix socket, TCP address.
func runServer(ctx context.Context, kind string, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("-serve %s: FILE SOCKET ADDRESS are needed", kind)
	}
	var listeners []net.Listener
	for i, network := range []string{"unix", "tcp"} {
		l, err := net.Listen(network, args[i+1])
		if err != nil {
			return err
		}
		defer l.Close()
		listeners = append(listeners, l)
	}
	serve, closer, err := frontHandler(ctx, kind, args[0])
	if err != nil {
		return err
	}
	defer closer.Close()
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- serve(l) }()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

func frontHandler(ctx context.Context, kind, file string) (func(net.Listener) error, io.Closer, error) {
	if kind == "mirror-agent" {
		f, err := blockdev.OpenFile(file, blockdev.FileOptions{NoLock: true})
		if err != nil {
			return nil, nil, err
		}
		s := nbd.NewServer(nbd.Options{}, nbd.Export{Device: f, MultiConn: true})
		return func(l net.Listener) error { return s.Serve(ctx, l) }, s, nil
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	exports := []*server.Export{{Backend: backend.NewFileBackend(f)}}
	return func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				_ = server.Handle(c, exports, &server.Options{MaximumBlockSize: 32 << 20}) // ends with the client
			}()
		}
	}, f, nil
}
