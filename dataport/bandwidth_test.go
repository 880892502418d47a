package dataport_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // the zones below, on a machine that has none

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

func bandwidth(t testing.TB, s string) dataport.Bandwidth {
	t.Helper()
	b, err := dataport.ParseBandwidth(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBandwidthAt(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const office = "Mon-Fri 08:00-18:00=20MB/s,Sat+Sun=none,*=100MB/s"
	const night = "Fri 22:00-06:00=1kB/s,22:00-06:00=2kB/s,*=3kB/s"
	const gap = "02:00-03:00=1kB/s,*=9kB/s"
	for _, row := range []struct {
		spec, at string
		want     float64
	}{
		{"50MB/s", "2026-11-23 12:00", 50e6},
		{"none", "2026-11-23 12:00", 0},
		{"", "2026-11-23 12:00", 0},
		{"08:00-18:00=20MB/s", "2026-11-23 07:59", 0}, // no rule fits: no limit
		{"08:00-18:00=20MB/s", "2026-11-23 08:00", 20e6},
		{"08:00-18:00=20MB/s,*=100MB/s", "2026-11-23 17:59", 20e6},
		{"08:00-18:00=20MB/s,*=100MB/s", "2026-11-23 18:00", 100e6},
		{"*=100MB/s,08:00-18:00=20MB/s", "2026-11-23 12:00", 100e6}, // the first that fits
		{"18:00-24:00=1MB/s,*=2MB/s", "2026-11-23 23:59", 1e6},
		{"18:00-24:00=1MB/s,*=2MB/s", "2026-11-24 00:00", 2e6},
		{office, "2026-11-23 09:00", 20e6}, // a Monday
		{office, "2026-11-27 17:59", 20e6}, // Friday
		{office, "2026-11-27 18:00", 100e6},
		{office, "2026-11-28 09:00", 0}, // Saturday
		{office, "2026-11-29 23:59", 0},
		{office, "2026-11-30 00:00", 100e6},
		{night, "2026-11-27 21:59", 3000},
		{night, "2026-11-27 22:00", 1000}, // Friday
		{night, "2026-11-28 05:59", 1000}, // Saturday morning is Friday's night
		{night, "2026-11-28 06:00", 3000},
		{night, "2026-11-28 22:00", 2000},
		{night, "2026-11-27 05:59", 2000}, // Thursday's night
		{"sat-MON=1kB/s,*=2kB/s", "2026-11-29 12:00", 1000},
		{"sat-MON=1kB/s,*=2kB/s", "2026-11-30 12:00", 1000},
		{"sat-MON=1kB/s,*=2kB/s", "2026-12-01 12:00", 2000},
		{"160Mbit/s", "2026-11-23 12:00", 20e6},
		{"1.5 GiB/s", "2026-11-23 12:00", 1.5 * (1 << 30)},
		{"300B/s", "2026-11-23 12:00", 300},
		// The night of 29 March the hour from two to three does not exist, that of 25 October it comes twice.
		{gap, "2026-03-29 01:59", 9000},
		{gap, "2026-03-29 03:00", 9000},
		{gap, "2026-10-25 01:59", 9000},
		{gap, "2026-10-25 03:00", 9000},
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", row.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		b := bandwidth(t, row.spec)
		if got := b.At(at); got != row.want {
			t.Errorf("%q at %s: %g, want %g", row.spec, row.at, got, row.want)
		}
		if again := bandwidth(t, b.String()); again.At(at) != row.want {
			t.Errorf("%q written as %q is another", row.spec, b.String())
		}
	}
	minutes := func(spec, day string) (n int) {
		b, at := bandwidth(t, spec), must(time.ParseInLocation("2006-01-02", day, berlin))
		for end := at.AddDate(0, 0, 1); at.Before(end); at = at.Add(time.Minute) {
			if b.At(at) == 1000 {
				n++
			}
		}
		return n
	}
	for day, want := range map[string]int{"2026-11-23": 60, "2026-03-29": 0, "2026-10-25": 120} {
		if got := minutes(gap, day); got != want {
			t.Errorf("on %s the window from two to three has %d minutes, want %d", day, got, want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBandwidthRefuses(t *testing.T) {
	for spec, want := range map[string]string{
		"50":                                     "no rate",
		"50MB":                                   "no rate",
		"50 apples/s":                            "no rate",
		"MB/s":                                   "no number",
		"-5MB/s":                                 "suspend it",
		"0MB/s":                                  "suspend it",
		"NaNMB/s":                                "no number",
		"InfMB/s":                                "no number",
		"1e30GB/s":                               "none is no limit",
		"*=":                                     "no rate",
		"=5MB/s":                                 "no time",
		"08:00-18:00":                            "no rate",
		"08:00=5MB/s":                            "no span",
		"08:00-08:00=5MB/s":                      "is empty",
		"24:00-08:00=5MB/s":                      "no span",
		"08:00-24:01=5MB/s":                      "no span",
		"08:60-09:00=5MB/s":                      "no span",
		"8-18=5MB/s":                             "names no days",
		"Mo-Fr=5MB/s":                            "names no days",
		"Mon-Fri-Sun=5MB/s":                      "names no days",
		"08:00-09:00 Mon=5MB/s":                  "no time of day",
		"Mon Tue=5MB/s":                          "no time of day",
		"Mon 08:00 09:00=5MB/s":                  "no time",
		"5MB/s,,6MB/s":                           "no rate",
		"08:00-18:00=*":                          "no rate",
		strings.Repeat("*=1MB/s,", 64) + "1MB/s": "more than 64",
	} {
		if b, err := dataport.ParseBandwidth(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v %v, want %q", spec, b, err, want)
		}
	}
}

// limited is a port in a bubble of simulated time, whose links take no time at all: what limits it is the limit alone.
type limited struct {
	*memWorld
	t     *testing.T
	count func() int // messages that arrived
}

const smallBytes = 896 // with its frame's header: 1000 on the wire

// inBubble runs f with a port that is given small messages as fast as it takes them.
func inBubble(t *testing.T, paths int, f func(l limited)) {
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t, paths)
		defer time.Sleep(time.Second) // for the pump to see the end
		defer w.close()
		synctest.Wait()
		if w.port.Session() == nil {
			t.Fatal("no session")
		}
		l := limited{w, t, func() int {
			synctest.Wait()
			w.target.mu.Lock()
			defer w.target.mu.Unlock()
			return len(w.target.got[w.port.Session().ID()])
		}}
		f(l)
		if bad := slices.DeleteFunc(w.source.kinds(), func(k string) bool { return k == "PathUp" || k == "SessionUp" }); len(bad) > 0 {
			t.Errorf("a limit is no fault: %v", bad)
		}
	})
}

// pump sends small messages without end, at most ten in a millisecond: or without a limit time would stand still.
func (l limited) pump() {
	s := l.port.Session()
	go func() {
		for i := 0; ; i++ {
			if _, err := s.Send(context.Background(), pattern(i, smallBytes)); err != nil {
				return
			}
			if i%10 == 9 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
}

func (l limited) set(spec string) {
	l.t.Helper()
	if err := l.port.SetBandwidth(bandwidth(l.t, spec)); err != nil {
		l.t.Fatal(err)
	}
}

// within checks how many small messages came in a time; more is what may be saved up before.
func (l limited) within(d time.Duration, want, more int) {
	l.t.Helper()
	before := l.count()
	time.Sleep(d)
	if n := l.count() - before; n < want || n > want+more {
		l.t.Errorf("%d messages in %v, want %d (and at most %d more)", n, d, want, more)
	}
}

func TestLimitIsExact(t *testing.T) {
	for paths := 1; paths <= 3; paths++ {
		t.Run(fmt.Sprint(paths), func(t *testing.T) {
			inBubble(t, paths, func(l limited) {
				l.set("100kB/s")
				l.pump()
				l.within(10*time.Second, 1000, 17) // and the burst of 16 KiB once
				l.within(10*time.Second, 1000, 0)
				l.within(100*time.Millisecond, 10, 0)
				l.set("2MB/s")
				l.within(5*time.Second, 10_000, 50) // and the larger burst of 25 ms
				l.set("1kB/s")
				time.Sleep(30 * time.Second) // what had gone out ahead is paid off
				l.within(60*time.Second, 60, 0)
				if got := l.port.Stats().Bandwidth; got.BytesPerSecond != 1000 || got.Limit.String() != "1kB/s" {
					t.Errorf("stats say %+v", got)
				}
				l.set("none")
				before := l.count()
				time.Sleep(time.Second)
				if n := l.count() - before; n < 9900 {
					t.Errorf("without a limit %d messages in a second, 10000 were sent", n)
				}
			})
		})
	}
}

// A limit far below one frame a second moves all the same, and nobody takes the silence of bulk for a fault.
func TestLimitBelowOneFrame(t *testing.T) {
	inBubble(t, 2, func(l limited) {
		l.set("2kB/s")
		big := pattern(0, 600_000)
		began := time.Now()
		r, err := l.port.Send(context.Background(), big)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		// Frames of up to 16 KiB, each with its header; the first one is free, the last one's debt is not waited for.
		frames := (600_000 + 16<<10 - 1) / (16 << 10)
		least := time.Duration(600_000-2*(16<<10)) * time.Second / 2000
		most := time.Duration(600_000+frames*104) * time.Second / 2000
		if took := time.Since(began); took < least || took > most {
			t.Errorf("it took %v, want %v to %v", took, least, most)
		}
	})
}

func TestLimitFollowsTheClock(t *testing.T) {
	inBubble(t, 2, func(l limited) {
		at := func(minutes int) string { return time.Now().Add(time.Duration(minutes) * time.Minute).Format("15:04") }
		if s := time.Now().Second(); s != 0 {
			time.Sleep(time.Duration(60-s) * time.Second)
		}
		l.set(fmt.Sprintf("%s-%s=10kB/s,%s-%s=none,*=100kB/s", at(2), at(4), at(5), at(6)))
		l.pump()
		l.within(2*time.Minute, 12_000, 18)
		l.within(time.Minute, 600, 1)
		l.within(time.Minute, 600, 1)
		l.within(59*time.Second, 5900, 1)
		time.Sleep(time.Second)
		before := l.count()
		time.Sleep(time.Second)
		if n := l.count() - before; n < 9900 {
			t.Errorf("in the window without a limit %d messages in a second", n)
		}
	})
}

// A debt under a low limit is not waited for when the limit goes.
func TestLimitIsLifted(t *testing.T) {
	inBubble(t, 1, func(l limited) {
		l.set("300B/s")
		l.pump()
		time.Sleep(2 * time.Second)
		before := l.count()
		l.set("100kB/s")
		l.within(time.Second, 100, 17)
		l.set("none")
		time.Sleep(time.Second)
		if n := l.count() - before; n < 9900 {
			t.Errorf("%d messages", n)
		}
	})
}

// Frames that go out again use up the limit as the first ones did; replies do too.
func TestResentFramesAndRepliesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t, 2)
		defer w.close()
		synctest.Wait()
		if err := w.port.SetBandwidth(bandwidth(t, "100kB/s")); err != nil {
			t.Fatal(err)
		}
		l := limited{memWorld: w, t: t}
		began := time.Now()
		w.net.Blackhole(w.addrs[0], dataporttest.Both)
		const n = 100
		for i := range n {
			if _, err := l.port.Send(context.Background(), pattern(i, smallBytes)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.port.Call(context.Background(), pattern(n, smallBytes)); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		var resent uint64
		for _, p := range l.port.Stats().Paths {
			resent += p.ResentFrames
		}
		// All but the burst of 16 KiB at the start, and the last one, whose debt nobody waits for.
		want := time.Duration(n+1+int(resent)-18) * 10 * time.Millisecond
		if resent == 0 || took < want {
			t.Errorf("%d messages and %d frames again took %v, want at least %v", n, resent, took, want)
		}
	})
}

// Replies go out under the limit of the port that sends them.
func TestRepliesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t, 1)
		defer w.close()
		synctest.Wait()
		if err := w.port.SetBandwidth(bandwidth(t, "1kB/s")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.port.Call(context.Background(), pattern(0, 8)); err != nil {
			t.Fatal(err)
		}
		w.target.mu.Lock()
		peer := w.target.last
		w.target.mu.Unlock()
		began := time.Now()
		for i := range 230 { // each reply is one frame of 105 to 107 bytes; the burst is 16 KiB
			if _, err := peer.Call(context.Background(), pattern(i, 8)); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("230 replies under 1 kB/s took %v", took)
		}
	})
}

func FuzzBandwidth(f *testing.F) {
	f.Add("Mon-Fri 08:00-18:00=20MB/s,Sat+Sun=none,*=100MB/s")
	f.Add("50MB/s")
	f.Fuzz(func(t *testing.T, spec string) {
		b, err := dataport.ParseBandwidth(spec)
		if err != nil {
			return
		}
		again, err := dataport.ParseBandwidth(b.String())
		if err != nil {
			t.Fatalf("%q is written as %q: %v", spec, b, err)
		}
		for m := range 8 * 24 {
			at := time.Date(2026, 11, 23, m, 7, 0, 0, time.UTC)
			if r := b.At(at); r != again.At(at) || r != 0 && r < 1 {
				t.Fatalf("%q at %v: %g, %g", spec, at, r, again.At(at))
			}
		}
		if bytes.ContainsRune([]byte(b.String()), 0) {
			t.Fatalf("%q", b)
		}
	})
}
