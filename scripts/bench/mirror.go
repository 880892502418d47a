package main

import (
	"context"
	"fmt"
	"regexp"
	"time"
)

// mirrorServer is a peer, or the mirror in one of its modes.
type mirrorServer struct {
	*peer
	name  string
	mode  string // of the mirror; "": it has none
	flush string // what is durable when a flush returns
}

// mirrorLoad with what is aimed at: of a server by name, × nbdkit or × qemu.
type mirrorLoad struct {
	volumeLoad
	kit, qemu map[string]float64
}

func (b *bench) mirrorLoads() []mirrorLoad {
	random := job{write: true, random: true, block: 4 << 10, deviceSize: int64(b.o.sizeMiB) << 20}
	one, many, flushed := random, random, random
	one.name, one.depth = "4 KiB random write, depth 1", 1
	many.name, many.depth = "4 KiB random write, depth 32", 32
	flushed.name, flushed.depth, flushed.flushEvery = "4 KiB random write, depth 32, a flush every 32", 32, 32
	sequential := job{name: "1 MiB sequential write, depth 8", write: true, block: 1 << 20, depth: 8, deviceSize: random.deviceSize}
	return []mirrorLoad{
		{volumeLoad{job: one, clients: 1}, nil, nil},
		{volumeLoad{job: many, clients: 1}, nil, map[string]float64{"receive": 3}},
		{volumeLoad{job: flushed, clients: 1}, map[string]float64{"flush": 1}, nil},
		{volumeLoad{job: sequential, clients: 1}, nil, nil},
	}
}

// mirrored measures the mirror in its four modes beside what is not mirrored and beside qemu's.
func (b *bench) mirrored(ctx context.Context) error {
	only, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	kit, pair, qemu := &peer{name: "nbdkit"}, &peer{name: "mirror-agent"}, &peer{name: "qemu"}
	progress("starting nbdkit, the mirror, qemu")
	if err := b.startNbdkit(ctx, kit); err != nil {
		return err
	}
	m, err := b.startMirror(ctx, pair, mirrorPlan{prefill: true, journal: b.o.journal})
	if err != nil {
		return err
	}
	if err := b.startQemu(ctx, qemu); err != nil {
		return err
	}
	servers := []*mirrorServer{{kit, "nbdkit, not mirrored", "", "this disk"}}
	for _, mode := range []struct{ name, flush string }{{"async", "this disk"}, {"flush", "both disks"}, {"receive", "both disks"}, {"durable", "both disks, as after every write"}} {
		servers = append(servers, &mirrorServer{&peer{name: mode.name, socket: pair.socket, procs: pair.procs}, "mirror-agent, " + mode.name, mode.name, mode.flush})
	}
	servers = append(servers, &mirrorServer{qemu, "qemu-storage-daemon to qemu-nbd", "", "this disk; the other has it in memory"})
	last := servers[len(servers)-1]
	for round := range b.o.rounds + 1 { // the first one warms up
		for _, l := range b.mirrorLoads() {
			if !only.MatchString(l.name) {
				continue
			}
			for k := range servers {
				s := servers[(k+round)%len(servers)]
				if s.mode != "" {
					if err := m.order(ctx, "mode", s.mode, "--control", m.source.control); err != nil {
						return err
					}
				}
				r, err := b.measureVolume(ctx, s.peer, l.volumeLoad, b.o.runTime, 0)
				if err != nil {
					return fmt.Errorf("%s, %s: %w\n%s", s.name, l.name, err, b.logs(pair))
				}
				progress("mirror: turn %d of %d: %-46s %-32s %8.0f/s", round, b.o.rounds, l.name, s.name, r.iops)
				if round > 0 {
					s.keep(l.name, r)
				}
			}
		}
	}
	t := table{
		section: "mirror", head: []string{"load", "server", "requests/s", "÷ nbdkit", "÷ qemu", "aim", "CPU µs each", "durable when a flush returns"},
		caption: fmt.Sprintf("A mirror on one machine: source and target with a disk file each on one disk, loopback with TLS; device of %d MiB, logs of %s; beside nbdkit's file plugin, "+
			"which mirrors nothing, and qemu's mirror (plain TCP); %d turns of %v; medians, ratios turn by turn (least–greatest).", b.o.sizeMiB, b.o.journal, b.o.rounds, b.o.runTime),
	}
	for _, l := range b.mirrorLoads() {
		for _, s := range servers {
			rs := s.results[l.name]
			if len(rs) == 0 {
				continue
			}
			aim := "-"
			if v, ok := l.kit[s.mode]; ok {
				aim = aimed(v, "nbdkit", middleRatio(rs, kit.results[l.name]))
			}
			if v, ok := l.qemu[s.mode]; ok {
				aim = aimed(v, "qemu", middleRatio(rs, last.results[l.name]))
			}
			t.rows = append(t.rows, []string{
				l.name, s.name, fmt.Sprintf("%.0f", median(rs, func(r result) float64 { return r.iops })), ratio(rs, kit.results[l.name]), ratio(rs, last.results[l.name]), aim,
				fmt.Sprintf("%.1f", median(rs, func(r result) float64 { return r.cpu * 1000 })), s.flush,
			})
			if s.peer != kit {
				t.plot = append(t.plot, plotted{l.name + ": " + s.name, middleRatio(rs, kit.results[l.name])})
			}
		}
	}
	for _, p := range []*peer{kit, pair, qemu} {
		t.notes = append(t.notes, p.commands...)
	}
	b.end()
	b.started = nil
	return b.show(t)
}

// runFor is long enough for what is measured once.
const runFor = time.Minute
