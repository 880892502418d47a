package main

import (
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

var testNow = time.Date(2026, 11, 22, 14, 3, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return testNow.Add(-d) }

func healthy() *mirror.Status {
	return &mirror.Status{
		Name: "vol0", UUID: "9c1e", Role: "primary", State: "in sync", Reason: "10.1.0.9:7400 is streaming", Since: ago(53 * time.Hour),
		Mode: "flush", OnLoss: "continue", Switch: "manual", Generation: "3.0", ActiveTarget: "10.1.0.9:7400",
		Listen: []string{"10.1.0.5:7400"}, Announced: []string{"10.1.0.5:7400"},
		Device: mirror.DeviceStatus{Path: "/srv/vol0.img", SizeBytes: 64 << 30},
		Log:    mirror.LogStatus{Head: 5 << 30, Durable: 5 << 30, Committed: 5 << 30, Applied: 4 << 30, Tail: 5<<30 - 1460<<20, SizeBytes: 4 << 30},
		NBD:    mirror.FrontStats{Address: "unix:/run/mirror-agent/vol0.nbd", Connections: 2, Reads: 3411, Writes: 120431, Flushes: 88, ReadBytes: 12 << 20, WrittenBytes: 1200 << 20},
		Followers: []mirror.FollowerStatus{
			{
				Target: "10.1.0.9:7400", Kind: "target", State: "streaming", Active: true, Received: 5 << 30, Durable: 5 << 30, Since: ago(time.Hour),
				Paths: []mirror.PathStatus{
					{ID: 1, Local: "10.1.0.5:50000", Remote: "10.1.0.9:7400", State: "active", RTTMicros: 310, BytesSent: 610 << 20},
					{ID: 2, Local: "10.2.0.5:50001", Remote: "10.2.0.9:7400", Announced: true, State: "active", RTTMicros: 840, BytesSent: 390 << 20},
				},
			},
			{Target: "10.3.0.9:7400", Kind: "backup", State: "idle"},
		},
		Alarms: []mirror.Alarm{},
	}
}

func degraded() *mirror.Status {
	st := healthy()
	st.State, st.Since = "degraded", ago(47*time.Second)
	st.Reason = "10.1.0.9:7400 is down: no frame for 3.0 s; writes continue on this host only (on-loss: continue)"
	st.NextStep = "it is retried by itself; or mirror-agent switch backup"
	f := &st.Followers[0]
	f.State, f.Reason, f.Since = "down", "no frame for 3.0 s", ago(47*time.Second)
	f.LagBytes, f.RPOSeconds = 212<<20, 47.04
	f.Paths[0].State, f.Paths[0].Reason = "backoff", "connection reset"
	f.Paths = f.Paths[:1]
	b := &st.Followers[1]
	b.State, b.Durable, b.LagBytes, b.RPOSeconds = "streaming", 4<<30, 1900<<10, 0.4
	st.Alarms = []mirror.Alarm{{Name: "degraded", Since: st.Since, Reason: st.Reason, NextStep: st.NextStep}}
	return st
}

func resyncing() *mirror.Status {
	st := healthy()
	st.State, st.Reason = "resync", "10.1.0.9:7400 is being copied: changed blocks"
	f := &st.Followers[0]
	f.State, f.Reason, f.Durable, f.DirtyBytes, f.Paths = "resync", "changed blocks", 0, 6451<<20, nil
	f.Resync = &mirror.Progress{DoneBytes: 3174 << 20, TotalBytes: 9625 << 20, Started: ago(8 * time.Second), YieldsTo: 400 << 20}
	st.Followers = st.Followers[:1]
	return st
}

// standingBy has a path of each kind that is up and carries no data, and one whose place is kept.
func standingBy() *mirror.Status {
	st := healthy()
	f := &st.Followers[0]
	f.Paths[1].State, f.Paths[1].BytesSent, f.Paths[1].Reason = "standby", 2<<20, "reset"
	f.Paths = append(
		f.Paths,
		mirror.PathStatus{ID: 3, Local: "10.3.0.5:50002", Remote: "10.3.0.9:7400", State: "reserved", RTTMicros: 700, BytesSent: 50 << 20, Reason: "silent for 1s"},
		mirror.PathStatus{ID: 4, Local: "10.4.0.5:50003", Remote: "10.4.0.9:7400", State: "draining", RTTMicros: 900, BytesSent: 90 << 20, Reason: "removed"},
	)
	st.Alarms = []mirror.Alarm{{Name: "path-down", Since: ago(time.Second), Reason: "path 3 to 10.3.0.9:7400 is reserved: silent for 1s; the other paths carry the data", NextStep: "it is dialled again by itself; mend the link, or mirror-agent path reset; path remove when it is not wanted any more"}}
	return st
}

func secondary() *mirror.Status {
	return &mirror.Status{
		Name: "vol0", Role: "secondary", State: "waiting", Reason: "no source is connected", Since: ago(3 * time.Minute),
		Mode: "flush", Generation: "3.0", NextStep: "start the source; or, when it is lost, mirror-agent promote",
		Device: mirror.DeviceStatus{Path: "/srv/vol0.img", SizeBytes: 64 << 30}, Log: mirror.LogStatus{Head: 4096, Tail: 0, SizeBytes: 4 << 30},
		Source: &mirror.SourceStatus{Peer: "nyc1", LastSeen: ago(3 * time.Minute), Durable: 4096, SourceHead: 4096 + 12<<10},
	}
}

// afterVerify has a verify under way that has found something, and a scrub that has mended something.
func afterVerify() *mirror.Status {
	st := healthy()
	r := verified()
	left := 71.0
	r.State, r.DoneBytes, r.Ended, r.LeftSeconds, r.Yields, r.RateBytes, r.RepairedBytes = mirror.VerifyRunning, 21<<30, time.Time{}, &left, true, 48<<20, 0
	st.Verify = r
	st.Scrub = &mirror.ScrubStatus{Ended: ago(3 * time.Hour), Next: testNow.Add(21 * time.Hour), DoneBytes: 1400 << 20, TotalBytes: 1400 << 20, Found: 1, Mended: 1}
	st.Alarms = []mirror.Alarm{{Name: "verify-differs", Since: r.Started, Reason: "verify of 10.1.0.9:7400: " + r.Found(), NextStep: "wait for its end (mirror-agent verify --follow)"}}
	st.Followers = st.Followers[:1]
	return st
}

func TestRenderVerified(t *testing.T) {
	var b strings.Builder
	r := verified()
	r.Differences[1].Repaired, r.Differences[1].Why = "", "the source's disk does not give it"
	r.RepairedBytes = 8192
	r.Extents = 7
	view{now: testNow}.verified(&b, "vol0", r)
	b.WriteString("--- in the status\n")
	st := healthy()
	st.Verify = r
	view{now: testNow}.checks(&b, st)
	r.State, r.Reason = mirror.VerifyWaiting, "the target is not in sync"
	view{now: testNow}.checks(&b, st)
	r.State, r.Reason = mirror.VerifyInterrupted, "the agent ended"
	view{now: testNow}.checks(&b, st)
	golden(t, "verified.txt", b.String())
}

func TestRender(t *testing.T) {
	for name, st := range map[string]*mirror.Status{"healthy": healthy(), "degraded": degraded(), "resync": resyncing(), "standby": standingBy(), "secondary": secondary(), "checked": afterVerify()} {
		t.Run(name, func(t *testing.T) {
			v := view{now: testNow}
			var b strings.Builder
			v.status(&b, st)
			b.WriteString("--- explain\n")
			v.explain(&b, st)
			b.WriteString("--- path list\n")
			pathTable(&b, pathRows(st), false)
			b.WriteString("--- one line\n" + v.line(st) + "\n")
			golden(t, "status-"+name+".txt", b.String())
		})
	}
}

func TestRenderRates(t *testing.T) {
	before := healthy()
	st := healthy()
	st.Log.Head += 20 << 20
	soon := 41.3
	st.Log.FullInSeconds, st.Log.PinnedBytes = &soon, 3<<30
	st.NBD.Writes += 2408
	st.NBD.WrittenBytes += 9400 << 10
	var b strings.Builder
	view{now: testNow, before: before, beforeTime: ago(2 * time.Second)}.status(&b, st)
	golden(t, "status-rates.txt", b.String())
}

// Colours must not change a word, and none may appear when they are off.
func TestRenderColours(t *testing.T) {
	for _, st := range []*mirror.Status{healthy(), degraded()} {
		var plain, coloured strings.Builder
		view{now: testNow}.status(&plain, st)
		view{now: testNow, paint: true}.status(&coloured, st)
		if strings.Contains(plain.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b[") {
			t.Error("colours on and off are confused")
		}
		bare := coloured.String()
		for _, code := range []string{"0", "1", "2", "31", "32", "33", "39"} {
			bare = strings.ReplaceAll(bare, "\x1b["+code+"m", "")
		}
		if bare != plain.String() {
			t.Errorf("coloured:\n%s\nplain:\n%s", bare, plain.String())
		}
	}
}
