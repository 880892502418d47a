package control

import (
	"context"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"

	"mirror-agent/blockdev/histogram"
	"mirror-agent/mirror"
)

type measured mirror.Measures

func (m measured) Measures() mirror.Measures { return mirror.Measures(m) }

// Two hooks on the same events are two.
func (m measured) HookRuns() []HookRuns {
	return []HookRuns{{Events: "alarm", Done: 5, Failed: 4, Killed: 3, Missed: 2}, {Events: "alarm", Done: 1}}
}

// everything is a state in which every metric has a value: of a source, and with what a target has, which never come together.
func everything() measured {
	var h histogram.Recorder
	for _, v := range []uint64{3000, 5000, 5000, 70_000_000} {
		h.Observe(v)
	}
	at := time.Unix(1_800_000_000, 500_000_000)
	m := measured{Status: mirror.Status{
		Name: "vol0", Role: "primary", State: "in sync", Since: at, Mode: "flush", Generation: "3.1",
		Device: mirror.DeviceStatus{SizeBytes: 1 << 30},
		Log:    mirror.LogStatus{SizeBytes: 1 << 26, Head: 500, Durable: 400, Committed: 300, Applied: 200, Tail: 100},
		NBD: mirror.FrontStats{
			Connections: 2, Reads: 5, Writes: 4, Flushes: 3, Trims: 2, Zeroes: 1, Errors: 6, ReadBytes: 50, WrittenBytes: 40,
			Times: []mirror.RequestTimes{{Command: "write", Time: h.Snapshot()}},
		},
		Network: &mirror.NetworkStatus{SentBytes: 10, SentPacked: 5, BandwidthNow: 1e6},
		Followers: []mirror.FollowerStatus{
			{
				Target: "10.1.0.9:7400", Kind: "target", State: "streaming", Active: true, Received: 450, Durable: 440, LagBytes: 60, RPOSeconds: 0.25,
				Resync: &mirror.Progress{DoneBytes: 1, TotalBytes: 2, YieldsTo: 1 << 20, SentBytes: 1},
				Paths:  []mirror.PathStatus{{ID: 1, Remote: "10.1.0.9:7400", State: "active", RTTMicros: 1500, BytesSent: 7, BytesReceived: 8, ResentFrames: 9, Rate: 100, UnackedBytes: 11}},
			},
			{Target: "10.3.0.9:7400", Kind: "backup", State: "down", LagBytes: 500, DirtyBytes: 4096},
		},
		Source: &mirror.SourceStatus{Peer: "nyc1", Connected: true, SourceHead: 600, Durable: 400},
		Alarms: []mirror.Alarm{{Name: "path-down"}, {Name: "path-down"}, {Name: "of-tomorrow"}},
		Verify: &mirror.VerifyReport{State: mirror.VerifyDone, Ended: at, DoneBytes: 1, TotalBytes: 1, DifferentBytes: 2, RepairedBytes: 1},
		Scrub:  &mirror.ScrubStatus{Ended: at, DoneBytes: 5, Found: 2, Mended: 1},
	}}
	m.Volume = mirror.VolumeStats{FullIn: -1, UnappliedBytes: 300, UnappliedAge: time.Second, WritersWaiting: 3}
	m.Volume.Log.AppendTime, m.Volume.Log.SyncTime = h.Snapshot(), h.Snapshot()
	return m
}

func gathered(t *testing.T, m Measured) map[string]*dto.MetricFamily {
	t.Helper()
	list, err := NewRegistry(m, "v1").Gather()
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]*dto.MetricFamily{}
	for _, f := range list {
		families[f.GetName()] = f
	}
	return families
}

// one is the metric of a family that has these labels (name, value, …).
func one(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) *dto.Metric {
	t.Helper()
	var found []*dto.Metric
	for _, m := range families[name].GetMetric() {
		ok := true
		for i := 0; i < len(labels); i += 2 {
			ok = ok && slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool {
				return l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			})
		}
		if ok {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s %v: %d metrics, want one", name, labels, len(found))
	}
	return found[0]
}

func TestMetrics_values(t *testing.T) {
	families := gathered(t, everything())
	for _, tt := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"mirror_agent_build_info", []string{"version", "v1", "mirror", "vol0"}, 1},
		{"mirror_agent_role", []string{"role", "primary"}, 1},
		{"mirror_agent_role", []string{"role", "secondary"}, 0},
		{"mirror_agent_state", []string{"state", "in sync"}, 1},
		{"mirror_agent_state", []string{"state", "degraded"}, 0},
		{"mirror_agent_state_since_timestamp_seconds", nil, 1_800_000_000.5},
		{"mirror_agent_generation_major", nil, 3},
		{"mirror_agent_generation_minor", nil, 1},
		{"mirror_agent_hook_runs_total", []string{"hook", "1", "events", "alarm", "result", "killed"}, 3},
		{"mirror_agent_hook_runs_total", []string{"hook", "1", "result", "failed"}, 4},
		{"mirror_agent_hook_runs_total", []string{"hook", "2", "result", "done"}, 1},
		{"mirror_agent_hook_missed_events_total", []string{"hook", "1"}, 2},
		{"mirror_agent_alarms", nil, 3},
		{"mirror_agent_alarm", []string{"alarm", "path-down"}, 2},
		{"mirror_agent_alarm", []string{"alarm", "degraded"}, 0},
		{"mirror_agent_alarm", []string{"alarm", "of-tomorrow"}, 1},
		{"mirror_agent_log_until_full_seconds", nil, math.Inf(1)},
		{"mirror_agent_log_position_bytes", []string{"point", "tail"}, 100},
		{"mirror_agent_applier_lag_bytes", nil, 300},
		{"mirror_agent_applier_lag_seconds", nil, 1},
		{"mirror_agent_writers_waiting", nil, 3},
		{"mirror_agent_nbd_requests_total", []string{"command", "write_zeroes"}, 1},
		{"mirror_agent_nbd_request_errors_total", nil, 6},
		{"mirror_agent_rpo_seconds", nil, 0.25},
		{"mirror_agent_follower_rpo_seconds", []string{"kind", "target"}, 0.25},
		{"mirror_agent_follower_state", []string{"follower", "10.3.0.9:7400", "state", "down"}, 1},
		{"mirror_agent_follower_dirty_bytes", []string{"kind", "backup"}, 4096},
		{"mirror_agent_path_rtt_seconds", nil, 0.0015},
		{"mirror_agent_path_resent_frames_total", nil, 9},
		{"mirror_agent_path_state", []string{"state", "active"}, 1},
		{"mirror_agent_source_lag_bytes", []string{"peer", "nyc1"}, 200},
		{"mirror_agent_verify_state", []string{"state", "done"}, 1},
		{"mirror_agent_scrub_end_timestamp_seconds", nil, 1_800_000_000.5},
	} {
		m := one(t, families, tt.name, tt.labels...)
		if got := m.GetGauge().GetValue() + m.GetCounter().GetValue(); got != tt.want {
			t.Errorf("%s%v = %v, want %v", tt.name, tt.labels, got, tt.want)
		}
	}
	if n := len(families["mirror_agent_follower_rpo_seconds"].GetMetric()); n != 1 {
		t.Errorf("%d followers have an RPO, one of them has nothing yet", n)
	}
	h := one(t, families, "mirror_agent_nbd_request_seconds", "command", "write").GetHistogram()
	if h.GetSampleCount() != 4 || math.Abs(h.GetSampleSum()-0.070013) > 1e-12 {
		t.Errorf("%d requests in %v s", h.GetSampleCount(), h.GetSampleSum())
	}
	for _, b := range h.GetBucket() {
		want := uint64(0)
		for _, v := range []float64{3e-6, 5e-6, 5e-6, 0.07} {
			if v <= b.GetUpperBound() {
				want++
			}
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("up to %v s: %d requests, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
}

// Every name that there is can have a value, or nobody would ever see it, and all keep the conventions.
func TestMetrics_names(t *testing.T) {
	families := gathered(t, everything())
	for _, name := range MetricNames() {
		if families[name] == nil {
			t.Errorf("%s is never scraped", name)
		}
	}
	problems, err := testutil.GatherAndLint(NewRegistry(everything(), "v1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// Nothing at all is no reason to fail: the registry is pedantic.
	gathered(t, measured{})
}

func TestListenMetrics(t *testing.T) {
	l, err := ListenMetrics(":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
		t.Errorf("without a host it listens at %s", l.Addr())
	}
	if _, err := ListenMetrics(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), "--metrics") {
		t.Errorf("an address that is taken: %v", err)
	}
	if _, err := ListenMetrics("192.0.2.1:1"); err == nil || !strings.Contains(err.Error(), "no such address") {
		t.Errorf("an address of elsewhere: %v", err)
	}
}

func TestMetricsServer(t *testing.T) {
	l, err := ListenMetrics(":0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewMetricsServer(everything(), "v1", zerolog.Nop())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	get := func(path string) (int, string) {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
		r, err := c.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, `mirror_agent_rpo_seconds{mirror="vol0"} 0.25`) || !strings.Contains(body, "process_open_fds") {
		t.Errorf("%d: %.400s", code, body)
	}
	if code, body := get("/"); code != 404 || !strings.Contains(body, "/metrics") {
		t.Errorf("%d: %s", code, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever a path, the front or a resync counts is a metric.
func TestMetrics_coverStatus(t *testing.T) {
	for _, x := range []any{mirror.PathStatus{}, mirror.FrontStats{}, mirror.Progress{}} {
		typ := reflect.TypeOf(x)
		for i := range typ.NumField() {
			f := typ.Field(i)
			switch f.Type.Kind() {
			case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
			default:
				continue
			}
			before, after := everything(), everything()
			set := func(m *measured) reflect.Value {
				switch x.(type) {
				case mirror.PathStatus:
					return reflect.ValueOf(&m.Status.Followers[0].Paths[0]).Elem()
				case mirror.FrontStats:
					return reflect.ValueOf(&m.Status.NBD).Elem()
				}
				return reflect.ValueOf(m.Status.Followers[0].Resync).Elem()
			}
			v := set(&after).Field(i)
			if v.CanInt() {
				v.SetInt(777)
			} else if v.CanUint() {
				v.SetUint(777)
			} else {
				v.SetFloat(777)
			}
			if text(t, before) == text(t, after) {
				t.Errorf("%s.%s is no metric", typ.Name(), f.Name)
			}
		}
	}
}

func text(t *testing.T, m Measured) string {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{m, "v1"})
	list, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range list {
		b.WriteString(f.String())
	}
	return b.String()
}

// The README lists every metric with its labels, and no other: on a difference its table is to be mended.
func TestMetrics_readme(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), "<!-- metrics -->")
	table, _, end := strings.Cut(table, "<!-- end of metrics -->")
	if !ok || !end {
		t.Fatal("README.md has no table of metrics between its two comments")
	}
	told := map[string]string{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") && len(cells) == 5 {
			told["mirror_agent_"+strings.Split(cells[1], "`")[1]] = strings.NewReplacer("`", "", " ", "").Replace(cells[2])
		}
	}
	for _, m := range metrics {
		if labels, ok := told[m.name]; !ok || labels != strings.Join(m.labels[1:], ",") {
			t.Errorf("%s: README.md says labels %q (%v), it has %q", m.name, labels, ok, m.labels[1:])
		}
		delete(told, m.name)
	}
	for name := range told {
		t.Errorf("%s is in README.md and nowhere else", name)
	}
}
