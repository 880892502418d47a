package mirror

import (
	"context"
	"go/ast"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func watched() Config {
	c := DefaultConfig()
	c.Watchdog = time.Minute
	return c
}

// What moves in which state: each row changes a quiet status and names the alarm that is possible then.
func TestMotionsOf(t *testing.T) {
	follower := func(s FollowerState) *FollowerStatus { return &FollowerStatus{Target: "t:1", State: string(s)} }
	for _, tt := range []struct {
		name string
		make func(*Status, *Config)
		want string // alarm subject limit, "" for none
	}{
		{"quiet", func(*Status, *Config) {}, ""},
		{"switched off", func(s *Status, c *Config) { s.State, c.Watchdog = "starting", 0 }, ""},
		{"starting", func(s *Status, _ *Config) { s.State = "starting" }, "handover-stuck starting 1m20s"},
		{"streaming", func(s *Status, _ *Config) { s.Followers = append(s.Followers, *follower(FollowerStreaming)) }, ""},
		{"down", func(s *Status, _ *Config) { s.Followers = append(s.Followers, *follower(FollowerDown)) }, ""},
		{"connecting", func(s *Status, _ *Config) { s.Followers = append(s.Followers, *follower(FollowerConnecting)) }, "connecting-long t:1 1m9s"},
		{"a handshake", func(s *Status, _ *Config) { s.Followers = append(s.Followers, *follower(FollowerHandshake)) }, "connecting-long t:1 1m9s"},
		{"catch-up", func(s *Status, _ *Config) { s.Followers = append(s.Followers, *follower(FollowerCatchUp)) }, "catch-up-stuck t:1 2m0s"},
		{"resync", func(s *Status, _ *Config) {
			f := follower(FollowerResync)
			f.Resync = &Progress{TotalBytes: 5}
			s.Followers = append(s.Followers, *f)
		}, "resync-stuck of t:1 1m0s"},
		{"resync of a target", func(s *Status, _ *Config) {
			s.Source = &SourceStatus{Peer: "nyc1", Resync: &Progress{TotalBytes: 5}}
			s.Log.Committed = 5 // not applied: the staged copy takes its place
		}, "resync-stuck from nyc1 1m0s"},
		{"applier", func(s *Status, _ *Config) { s.Log.Committed, s.Log.Applied = 5, 4 }, "applier-stuck  1m0s"},
		{"applier that retains for a time", func(s *Status, c *Config) { s.Log.Committed, c.RetainTime = 5, time.Hour }, "applier-stuck  2h1m0s"},
		{"applier that retains some bytes", func(s *Status, c *Config) { s.Log.Committed, c.RetainBytes = 5, 5 }, ""},
		{"applier that retains more than that", func(s *Status, c *Config) { s.Log.Committed, c.RetainBytes = 6, 5 }, "applier-stuck  1m0s"},
		{"applier of a full device", func(s *Status, _ *Config) { s.Log.Committed, s.State = 5, stateDeviceFull }, ""},
		{"a writer", func(s *Status, _ *Config) { s.Log.WritersWaiting = 1 }, "writers-wait  25s"},
		{"a verify", func(s *Status, _ *Config) { s.Verify = &VerifyReport{State: VerifyRunning, Target: "t:1"} }, "verify-stuck t:1 2m0s"},
		{"a verify that waits", func(s *Status, _ *Config) { s.Verify = &VerifyReport{State: VerifyWaiting} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := watched()
			st := Status{State: "in sync"}
			tt.make(&st, &c)
			var got []string
			for _, m := range motionsOf(&st, &c) {
				got = append(got, m.alarm+" "+m.subject+" "+m.limit.String())
				if m.reason == "" || m.next == "" && st.State != "starting" { // whose next step the state has
					t.Errorf("%s says not why, or not what to do: %+v", m.alarm, m)
				}
				if !slices.Contains(AlarmNames(), m.alarm) {
					t.Errorf("%s is not among the names of alarms", m.alarm)
				}
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("%q, want %q", s, tt.want)
			}
		})
	}
}

func TestWriterMotion(t *testing.T) {
	for _, tt := range []struct {
		st        Status
		why, next string
	}{
		{Status{}, "2 writers wait", "status"},
		{Status{Log: LogStatus{SizeBytes: 100, PinnedBytes: 99}}, "99 % of the log are held", "suspend"},
		{Status{State: "degraded", OnLoss: "freeze"}, "on-loss: freeze", "switch backup"},
		{Status{Mode: "durable"}, "mode durable", "mode flush"},
	} {
		if m := writerMotion(&tt.st, 2, time.Second); !strings.Contains(m.reason, tt.why) || !strings.Contains(m.next, tt.next) {
			t.Errorf("%q, %q; want %q, %q", m.reason, m.next, tt.why, tt.next)
		}
	}
}

// What counts as moving, and when an alarm begins and ends. One step a second, limit 3 s.
func TestWatchdog_look(t *testing.T) {
	const gone = ^uint64(0)
	for _, tt := range []struct {
		name   string
		way    way
		values []uint64
		want   string // x: an alarm
	}{
		{"stands still", wayChanges, []uint64{5, 5, 5, 5, 5}, "...xx"},
		{"moves at last", wayChanges, []uint64{5, 5, 5, 5, 6, 6, 6, 6}, "...x...x"},
		{"is not asked for any more", wayChanges, []uint64{5, 5, 5, 5, gone, 5, 5, 5, 5}, "...x....x"},
		{"rises", wayRises, []uint64{1, 2, 3, 4, 5}, "....."},
		{"falls where it should rise", wayRises, []uint64{9, 8, 7, 6, 5}, "...xx"},
		{"begins anew and rises", wayRises, []uint64{9, 9, 0, 1, 2, 3}, "......"},
		{"begins anew and stands", wayRises, []uint64{9, 9, 0, 0, 0}, "...xx"},
		{"comes nearer", wayFalls, []uint64{9, 8, 7, 6, 5}, "....."},
		{"goes to and fro", wayFalls, []uint64{9, 12, 9, 12, 9}, "...xx"},
		{"goes to and fro and comes nearer", wayFalls, []uint64{9, 12, 8, 12, 7, 12}, "......"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w watchdog
			now, got := time.Unix(1000, 0), ""
			for _, v := range tt.values {
				var ms []motion
				if v != gone {
					ms = []motion{{alarm: "a", subject: "s", value: v, way: tt.way, limit: 3 * time.Second, reason: "it stands", next: "push"}}
				}
				alarms := w.look(now, ms)
				switch {
				case len(alarms) == 0:
					got += "."
				case alarms[0].Reason == "" || alarms[0].NextStep != "push" || now.Sub(alarms[0].Since) < 3*time.Second:
					t.Errorf("%+v", alarms[0])
				default:
					got += "x"
				}
				now = now.Add(time.Second)
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// Two things of one kind are watched apart.
func TestWatchdog_subjects(t *testing.T) {
	var w watchdog
	now := time.Unix(1000, 0)
	for i := range uint64(4) {
		alarms := w.look(now, []motion{
			{alarm: "a", subject: "moves", value: i, limit: 2 * time.Second, reason: "moves"},
			{alarm: "a", subject: "stands", limit: 2 * time.Second, reason: "stands"},
		})
		if want := i >= 2; (len(alarms) == 1) != want || want && alarms[0].Reason != "stands, for "+(time.Duration(i)*time.Second).String() {
			t.Errorf("after %d s: %+v", i, alarms)
		}
		now = now.Add(time.Second)
	}
}

// A resync that stands still becomes an alarm after the limit and none any more when it goes on; events tell both.
func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		c := watched()
		var stuck []Alarm
		var told []string
		w := watcher{
			config: &c,
			status: func() Status {
				done := int64(100)
				if since := time.Since(began); since < 10*time.Second || since > 100*time.Second {
					done = int64(since) // it moves
				}
				return Status{State: "resync", Alarms: stuck, Followers: []FollowerStatus{{
					Target: "t:1", State: string(FollowerResync), Resync: &Progress{DoneBytes: done, TotalBytes: 1 << 60},
				}}}
			},
			stuck: func(a []Alarm) { stuck = a },
			event: func(kind, _, _ string, args ...any) {
				told = append(told, kind+" "+args[0].(string)+" "+time.Since(began).String())
			},
		}
		done := make(chan struct{})
		go func() { defer close(done); w.run(ctx) }()
		time.Sleep(3 * time.Minute)
		cancel()
		<-done
		// It stands from the tenth second on, for a minute; what there is now is told with the next look.
		want := []string{"alarm-raised resync-stuck 1m10s", "alarm-cleared resync-stuck 1m42s"}
		if !slices.Equal(told, want) {
			t.Errorf("%q, want %q", told, want)
		}
	})
}

// Names of alarms in the source are all known, and nothing else is.
func TestAlarmNames(t *testing.T) {
	files, constants := parsePackage(t)
	found := map[string]bool{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			typ, ok := c.Type.(*ast.Ident)
			if !ok || typ.Name != "Alarm" && typ.Name != "motion" {
				return true
			}
			for _, e := range c.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				if k := kv.Key.(*ast.Ident).Name; k != "Name" && k != "alarm" {
					continue
				}
				if s, ok := stringOf(kv.Value, constants); ok {
					found[s] = true
				}
			}
			return true
		})
	}
	for name := range found {
		if !slices.Contains(AlarmNames(), name) {
			t.Errorf("alarm %q is not among AlarmNames (mirror/words.go)", name)
		}
	}
	// Those that are states, and those that are put together, have no literal.
	for _, name := range AlarmNames() {
		_, isState := WordsFor(SubjectMirror, name)
		if !found[name] && !isState && !strings.HasPrefix(name, "target-") {
			t.Errorf("no alarm is ever called %q", name)
		}
	}
}
