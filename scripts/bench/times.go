package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mirror-agent/blockdev"
)

// timed is something that is done once per turn and takes a time.
type timed struct {
	name   string
	beside string // what the time is compared with, in words
	aim    string
	run    func(context.Context) (took, other time.Duration, err error)
	low    bool          // the ratio is to stay below the aim
	most   time.Duration // that it may take; 0: only the ratio counts
	bar    float64       // aim of the ratio; 0: only the time counts
}

// judged is the aim, marked when the medians miss it.
func (w *timed) judged(took time.Duration, ratio float64) string {
	missed := w.most > 0 && took > w.most
	if w.bar > 0 && ratio > 0 {
		missed = missed || ratio < w.bar != w.low && ratio != w.bar
	}
	if missed {
		return w.aim + belowAim
	}
	return w.aim
}

// fullLogMiB is the size of the log where it is to be full, and of the device.
const fullLogMiB = 1024

// times measures what an operator waits for: each with agents of its own, started anew in every turn.
func (b *bench) times(ctx context.Context) error {
	only, err := regexp.Compile(b.o.frontMatch)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	all := []timed{
		{name: "restart after SIGKILL with a full log of 1 GiB, to the first read", aim: "< 3 s", most: 3 * time.Second, run: b.timeRestart},
		{name: "promote with a full log of 1 GiB, to the first read", aim: "< 1 s", most: time.Second, run: b.timePromote},
		{name: "SIGKILL of the target to the first flush that a hot backup has", beside: "threshold of 3 s", aim: "≤ threshold + 100 ms", most: 3100 * time.Millisecond, run: b.timeHot},
		{name: fmt.Sprintf("full resync of %d MiB of data", b.o.sizeMiB), beside: "nbdcopy of the same image to an nbdkit", aim: "speed ≥ 0.70 ×", bar: 0.7, run: b.timeResync},
		{name: "4 KiB write, mode receive less mode async, 5 ms each way", beside: "round trip of 4 KiB by plain TCP on that link", aim: "≤ 1.15 ×", bar: 1.15, run: b.timeReceive, low: true},
	}
	t := table{
		section: "times", head: []string{"what", "takes", "beside", "that takes", "ratio", "aim"},
		caption: fmt.Sprintf("What an operator waits for; %d turns, medians (least–greatest); the agents of each are started anew.", b.o.rounds),
	}
	show := func(d float64) string { return time.Duration(d).Round(10 * time.Microsecond).String() }
	for _, w := range all {
		if !only.MatchString(w.name) {
			continue
		}
		var took, other, quotients []float64
		for round := range b.o.rounds {
			a, o, err := w.run(ctx)
			b.end()
			b.started = nil
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			progress("times: turn %d of %d: %s: %s, %s", round+1, b.o.rounds, w.name, a.Round(10*time.Microsecond), o.Round(10*time.Microsecond))
			took = append(took, float64(a))
			if o > 0 {
				other = append(other, float64(o))
				q := float64(o) / float64(a) // of speeds
				if w.low {
					q = float64(a) / float64(o)
				}
				quotients = append(quotients, q)
			}
		}
		if u := middleOf(b.unapplied); u != nil {
			t.caption += fmt.Sprintf(" At the %s %s were unapplied (median).", w.name, u)
			b.unapplied = nil
		}
		m := middle(took) // sorts
		row := []string{w.name, fmt.Sprintf("%s (%s–%s)", show(m), show(took[0]), show(took[len(took)-1])), w.beside, "", "", w.judged(time.Duration(m), 0)}
		if len(other) > 0 {
			q := middle(quotients)
			row[3], row[4] = show(middle(other)), fmt.Sprintf("%.2f (%.2f–%.2f)", q, quotients[0], quotients[len(quotients)-1])
			row[5] = w.judged(time.Duration(m), q)
		}
		t.rows = append(t.rows, row)
	}
	return b.show(t)
}

// middleOf is the median of what several turns found; nil of none.
func middleOf(us []unappliedLog) *unappliedLog {
	if len(us) == 0 {
		return nil
	}
	slices.SortFunc(us, func(a, b unappliedLog) int { return cmp.Compare(a.bytes, b.bytes) })
	return &us[len(us)/2]
}

// loadUntil runs a load over and over until stop is set.
func (b *bench) loadUntil(socket string, j job, stop *atomic.Bool) (done chan error) {
	done = make(chan error, 1)
	go func() {
		c, err := dialNBD("unix", socket)
		if err != nil {
			done <- err
			return
		}
		defer c.close()
		for !stop.Load() {
			if _, _, err := c.run(j, 100*time.Millisecond); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// firstRead is when the first read from a socket is answered.
func firstRead(ctx context.Context, socket string, since time.Time) (time.Duration, error) {
	j := job{block: 4 << 10, depth: 1, deviceSize: 4 << 10, once: true}
	for {
		c, err := dialNBD("unix", socket)
		if err == nil {
			_, _, err = c.run(j, 0)
			took := time.Since(since)
			_ = c.close()
			if err == nil {
				return took, nil
			}
		}
		if time.Since(since) > runFor {
			return 0, fmt.Errorf("no read is answered: %w", err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// unappliedLog is what a restart had to go through, and how large its records are.
type unappliedLog struct{ bytes, record int64 }

func (u unappliedLog) String() string {
	return fmt.Sprintf("%d records of %d bytes, %d MiB", u.bytes/u.record, u.record, u.bytes>>20)
}

// timeRestart fills the log beyond its size with small writes in no order, kills the agent under load and starts it again.
// The applier is held back as far as the agent lets, half the log, which is then gone through at the start.
func (b *bench) timeRestart(ctx context.Context) (took, other time.Duration, err error) {
	m := &agents{b: b, p: &peer{name: "alone"}}
	if m.source, err = b.newHost("alone", "", ""); err != nil {
		return 0, 0, err
	}
	if err := m.run(ctx, m.source, "source", "--size", fmt.Sprintf("%dMiB", fullLogMiB), "--journal-size", fmt.Sprintf("%dMiB", fullLogMiB),
		"--retain-size", fmt.Sprintf("%dMiB", fullLogMiB/2)); err != nil {
		return 0, 0, err
	}
	if _, err := firstRead(ctx, m.source.nbd, time.Now()); err != nil {
		return 0, 0, err
	}
	small := job{write: true, random: true, block: 4 << 10, depth: 32, deviceSize: fullLogMiB << 20}
	if err := b.write(ctx, &peer{socket: m.source.nbd}, small, fullLogMiB<<20*5/4); err != nil {
		return 0, 0, err
	}
	var stop atomic.Bool
	done := b.loadUntil(m.source.nbd, small, &stop)
	time.Sleep(time.Second)
	s, err := m.status(m.source)
	if err != nil {
		return 0, 0, err
	}
	b.unapplied = append(b.unapplied, unappliedLog{s.Log.Head - s.Log.Applied, 64 + 4<<10})
	if err := m.kill(m.source); err != nil {
		return 0, 0, err
	}
	stop.Store(true)
	if err := <-done; err == nil {
		return 0, 0, errors.New("the load did not notice the kill")
	}
	_ = exec.Command("rm", "-f", m.source.nbd).Run()
	began := time.Now()
	if err := m.run(ctx, m.source); err != nil {
		return 0, 0, err
	}
	took, err = firstRead(ctx, m.source.nbd, began)
	return took, 0, err
}

// timePromote holds the target's log full of what is not applied, kills the source and promotes.
func (b *bench) timePromote(ctx context.Context) (took, other time.Duration, err error) {
	m, err := b.startMirror(ctx, &peer{name: "promote"}, mirrorPlan{
		journal: fmt.Sprintf("%dMiB", fullLogMiB), sizeMiB: fullLogMiB, target: []string{"--retain-size", fmt.Sprintf("%dMiB", fullLogMiB/2)},
	})
	if err != nil {
		return 0, 0, err
	}
	if err := b.wrap(ctx, &peer{socket: m.source.nbd}, fullLogMiB<<20, fullLogMiB<<20*5/4); err != nil {
		return 0, 0, err
	}
	if err := m.kill(m.source); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := m.order(ctx, "promote", "--force", "--control", m.target.control); err != nil {
		return 0, 0, err
	}
	took, err = firstRead(ctx, m.target.nbd, began)
	return took, 0, err
}

// timeHot kills the target under a load of flushed writes: the longest time without an answer.
func (b *bench) timeHot(ctx context.Context) (took, other time.Duration, err error) {
	m, err := b.startMirror(ctx, &peer{name: "hot"}, mirrorPlan{journal: b.o.journal, backup: true, source: []string{"--switch", "auto", "--on-loss", "freeze"}})
	if err != nil {
		return 0, 0, err
	}
	c, err := dialNBD("unix", m.source.nbd)
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	j := job{write: true, random: true, block: 4 << 10, depth: 1, fua: true, deviceSize: int64(b.o.sizeMiB) << 20}
	if _, _, err := c.run(j, time.Second); err != nil {
		return 0, 0, err
	}
	killed := make(chan time.Time, 1)
	failed := make(chan error, 1)
	go func() {
		time.Sleep(500 * time.Millisecond)
		killed <- time.Now()
		failed <- m.kill(m.target)
	}()
	for deadline := time.Now().Add(runFor); time.Now().Before(deadline); {
		began := time.Now()
		if _, _, err := c.run(j, 0); err != nil { // one request at a time
			return 0, 0, err
		}
		if d := time.Since(began); d > took && d > 500*time.Millisecond {
			at := <-killed
			return time.Since(at), 3 * time.Second, <-failed
		}
	}
	return 0, 0, errors.New("the kill of the target held up no flush")
}

// dropCached has a file read from the disk by who reads it next.
func dropCached(path string) error {
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{})
	if err != nil {
		return err
	}
	return errors.Join(f.DropCache(0, 0), f.Close())
}

// timeResync copies a full image by the first resync, and by nbdcopy from one nbdkit to another; both read it from the disk.
func (b *bench) timeResync(ctx context.Context) (took, other time.Duration, err error) {
	p := &peer{name: "resync"}
	m, err := b.prepareMirror(ctx, p, mirrorPlan{journal: b.o.journal, prefill: true})
	if err != nil {
		return 0, 0, err
	}
	if err := m.untilInSync(ctx, 1); err != nil {
		return 0, 0, err
	}
	s, err := m.status(m.source)
	if err != nil {
		return 0, 0, err
	}
	took = s.Followers[0].Resynced.Ended.Sub(s.Followers[0].Resynced.Started) // the logs are made before
	if took <= 0 {
		return 0, 0, errors.New("the source does not say how long the resync took")
	}
	b.end()
	b.started = nil
	if err := b.copies("nbdkit.img", "nbdkit-target.img"); err != nil {
		return 0, 0, err
	}
	if err := exec.Command("truncate", "-s", "0", b.file("nbdkit-target.img")).Run(); err != nil {
		return 0, 0, err
	}
	if err := exec.Command("truncate", "-s", fmt.Sprintf("%dM", b.o.sizeMiB), b.file("nbdkit-target.img")).Run(); err != nil {
		return 0, 0, err
	}
	if err := dropCached(b.file("nbdkit.img")); err != nil { // as the agent has of its own device
		return 0, 0, err
	}
	kit := &peer{name: "copy"}
	from, to := b.socket("copy-from"), ""
	if to, err = freePort(); err != nil {
		return 0, 0, err
	}
	host, port, _ := strings.Cut(to, ":")
	_ = exec.Command("rm", "-f", from).Run()
	if err := b.start(kit, "nbdkit", "-f", "-U", from, "file", b.file("nbdkit.img")); err != nil {
		return 0, 0, err
	}
	if err := b.start(kit, "nbdkit", "-f", "-i", host, "-p", port, "file", b.file("nbdkit-target.img")); err != nil {
		return 0, 0, err
	}
	for _, up := range []func() bool{listening(from), listeningAt("tcp", to)} {
		if err := b.until(ctx, kit, 10*time.Second, up); err != nil {
			return 0, 0, err
		}
	}
	began := time.Now()
	out, err := exec.CommandContext(ctx, "nbdcopy", "--flush", "nbd+unix:///?socket="+from, "nbd://"+to).CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("nbdcopy: %w: %s", err, out)
	}
	return took, time.Since(began), nil
}

// timeReceive compares the time of one write in mode receive with that in mode async, the target behind a link with delay.
func (b *bench) timeReceive(ctx context.Context) (took, other time.Duration, err error) {
	const delay = 5 * time.Millisecond
	lab, err := b.newDelayLab(ctx, delay)
	if err != nil {
		return 0, 0, err
	}
	defer lab.end()
	trip, err := lab.roundTrip(ctx)
	if err != nil {
		return 0, 0, err
	}
	m, err := b.startMirror(ctx, &peer{name: "delay"}, mirrorPlan{
		journal: b.o.journal, sizeMiB: 64, sourceNS: lab.a, targetNS: lab.b, targetAddress: labIP(1, 2) + ":7400", source: []string{"--mode", "async"},
	})
	if err != nil {
		return 0, 0, err
	}
	one := func(mode string) (time.Duration, error) {
		if err := m.order(ctx, "mode", mode, "--control", m.source.control); err != nil {
			return 0, err
		}
		c, err := dialNBD("unix", m.source.nbd)
		if err != nil {
			return 0, err
		}
		defer c.close()
		var each []float64
		for range 200 {
			_, d, err := c.run(job{write: true, random: true, block: 4 << 10, depth: 1, deviceSize: 64 << 20}, 0)
			if err != nil {
				return 0, err
			}
			each = append(each, float64(d))
		}
		return time.Duration(middle(each)), nil
	}
	slow, err := one("receive")
	if err != nil {
		return 0, 0, err
	}
	quick, err := one("async")
	if err != nil {
		return 0, 0, err
	}
	return slow - quick, trip, nil
}
