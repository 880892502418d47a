package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const monitoringDir = "../scripts/monitoring"

// scrape is what Prometheus gets.
type scrape struct {
	text     []byte
	families map[string]*dto.MetricFamily
}

func scrapeFrom(address string) (*scrape, error) {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get("http://" + address + "/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d, %w: %.200s", r.StatusCode, err, b)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(b))
	return &scrape{b, families}, err
}

func mustScrape(t *testing.T, address string) *scrape {
	t.Helper()
	s, err := scrapeFrom(address)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// value of the metric of the mirror that has these labels (name, value, …); there has to be exactly one.
func (s *scrape) value(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	var found []float64
	for _, m := range s.families["mirror_agent_"+name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		ok := have["mirror"] == mirrorName
		for i := 0; i < len(labels); i += 2 {
			ok = ok && have[labels[i]] == labels[i+1]
		}
		if ok {
			found = append(found, m.GetGauge().GetValue()+m.GetCounter().GetValue()+float64(m.GetHistogram().GetSampleCount()))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s %v: %d metrics, one is wanted", name, labels, len(found))
	}
	return found[0]
}

// pairs are values of a scrape beside those of a status; all of them only grow while the source writes.
func pairs(t *testing.T, s *scrape, st *status) map[string][2]float64 {
	t.Helper()
	f := st.follower("target")
	all := map[string][2]float64{
		"head":     {s.value(t, "log_position_bytes", "point", "head"), float64(st.Log.Head)},
		"durable":  {s.value(t, "log_position_bytes", "point", "durable"), float64(st.Log.Durable)},
		"applied":  {s.value(t, "log_position_bytes", "point", "applied"), float64(st.Log.Applied)},
		"writes":   {s.value(t, "nbd_requests_total", "command", "write"), float64(st.NBD.Writes)},
		"flushes":  {s.value(t, "nbd_requests_total", "command", "flush"), float64(st.NBD.Flushes)},
		"written":  {s.value(t, "nbd_written_bytes_total"), float64(st.NBD.WrittenBytes)},
		"received": {s.value(t, "follower_received_position_bytes", "kind", "target"), float64(f.Received)},
		"there":    {s.value(t, "follower_durable_position_bytes", "kind", "target"), float64(f.Durable)},
	}
	for _, p := range f.Paths {
		id := fmt.Sprint(p.ID)
		all["sent by path "+id] = [2]float64{s.value(t, "path_sent_bytes_total", "path", id), float64(p.BytesSent)}
		all["received by path "+id] = [2]float64{s.value(t, "path_received_bytes_total", "path", id), float64(p.BytesReceived)}
		all["resent by path "+id] = [2]float64{s.value(t, "path_resent_frames_total", "path", id), float64(p.ResentFrames)}
	}
	return all
}

// What is scraped is what status says, under load and at rest; and the rules and the dashboard name nothing that there is not.
func TestMonitoring(t *testing.T) {
	needTools(t, "promtool")
	m := newMirror(t, layout{size: 16 << 20, paths: 2})
	at, atTarget := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")
	m.source.args = append(m.source.args, "--metrics", at, "--bandwidth", "4MB/s", "--hook", "serving=exit 3")
	m.target.args = append(m.target.args, "--metrics", atTarget)
	seen := map[string]bool{}
	note := func(s *scrape) {
		for name := range s.families {
			seen[name] = true
		}
	}

	// A source that has written before its target is there: that one is resynced, slowly.
	m.source.start()
	c := m.source.dial(20 * time.Second)
	defer c.close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for off := int64(0); off < m.size; off += int64(len(data)) {
		if err := c.write(off, data, false); err != nil {
			t.Fatal(err)
		}
	}
	m.target.start()
	for _, end := range []string{at, atTarget} {
		eventually(t, 40*time.Second, "a resync is scraped at "+end, func() (bool, string) {
			s, err := scrapeFrom(end)
			if err != nil {
				return false, err.Error()
			}
			note(s)
			return s.families["mirror_agent_resync_done_bytes"] != nil, "none yet"
		})
	}
	if r := m.source.command("bandwidth", "none"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m.source.untilLevel("target")
	for _, order := range [][]string{{"verify"}, {"scrub"}} {
		if r := m.source.command(order...); r.code != 0 {
			t.Fatalf("%v: %s", order, r.stderr)
		}
	}
	if s := mustScrape(t, at); s.value(t, "hook_runs_total", "hook", "1", "events", "serving", "result", "failed") != 1 || s.value(t, "hook_runs_total", "result", "done") != 0 {
		t.Error("a hook that fails is not counted")
	}
	eventually(t, 40*time.Second, "the scrub is scraped", func() (bool, string) {
		s := mustScrape(t, at)
		return s.families["mirror_agent_scrub_end_timestamp_seconds"] != nil && s.value(t, "scrub_running") == 0, "it runs"
	})

	t.Run("under load", func(t *testing.T) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.write(i%64*4096, data[:4096], i%8 == 0); err != nil {
					t.Error(err)
					return
				}
				if i%16 == 0 {
					if err := c.flush(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
		defer func() { close(stop); wg.Wait() }()
		grew := false
		for range 10 {
			before := m.source.mustStatus()
			s := mustScrape(t, at)
			after := m.source.mustStatus()
			low, high := pairs(t, s, &before), pairs(t, s, &after)
			for name, v := range low {
				if v[0] < v[1] || high[name][0] > high[name][1] {
					t.Errorf("%s: scraped %.0f, status said %.0f before and %.0f after", name, v[0], v[1], high[name][1])
				}
			}
			grew = grew || after.NBD.Writes > before.NBD.Writes
		}
		if !grew {
			t.Error("nothing was written meanwhile")
		}
	})

	t.Run("at rest", func(t *testing.T) {
		m.source.untilLevel("target")
		// Paths say that they live all the time; all else stands still once the log is applied.
		m.source.until(40*time.Second, "all is applied", func(s *status) bool { return s.Log.Applied == s.Log.Head })
		st := m.source.mustStatus()
		s := mustScrape(t, at)
		note(s)
		for name, v := range pairs(t, s, &st) {
			if v[0] != v[1] && !strings.Contains(name, "path") {
				t.Errorf("%s: scraped %.0f, status says %.0f", name, v[0], v[1])
			}
		}
		for name, want := range map[string]float64{
			"rpo_seconds": 0, "alarms": 0, "generation_major": 1, "nbd_connections": 1, "applier_lag_bytes": 0, "device_size_bytes": float64(m.size),
		} {
			checkEqual(t, name, s.value(t, name), want)
		}
		checkEqual(t, "in sync", s.value(t, "state", "state", "in sync"), 1)
		checkEqual(t, "degraded", s.value(t, "state", "state", "degraded"), 0)
		// Every write that was answered was timed, those with FUA apart.
		writes := s.value(t, "nbd_request_seconds", "command", "write") + s.value(t, "nbd_request_seconds", "command", "fua")
		checkEqual(t, "timed writes", writes, float64(st.NBD.Writes))
		checkEqual(t, "timed flushes", s.value(t, "nbd_request_seconds", "command", "flush"), float64(st.NBD.Flushes))
		other := mustScrape(t, atTarget)
		note(other)
		checkEqual(t, "the target's role", other.value(t, "role", "role", "secondary"), 1)
		checkEqual(t, "the target's lag", other.value(t, "source_lag_bytes"), 0)
	})

	t.Run("promtool check metrics", func(t *testing.T) {
		for _, end := range []string{at, atTarget} {
			cmd := exec.Command("promtool", "check", "metrics")
			cmd.Stdin = bytes.NewReader(mustScrape(t, end).text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", end, err, out)
			}
		}
	})

	t.Run("names", func(t *testing.T) {
		named := namedMetrics(t)
		if len(named) < 30 {
			t.Errorf("only %d metrics are named: %q", len(named), named)
		}
		for _, name := range named {
			if !seen[name] {
				t.Errorf("%s is named in %s and was never scraped", name, monitoringDir)
			}
		}
	})
}

var metricWord = regexp.MustCompile(`\b(?:mirror_agent|process|go)_[a-z0-9_]+\b`)

// namedMetrics are those in the expressions of the alert rules and the dashboard.
func namedMetrics(t *testing.T) []string {
	t.Helper()
	names := map[string]bool{}
	for _, file := range []string{"alerts.yml", "grafana.json"} {
		b, err := os.ReadFile(filepath.Join(monitoringDir, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, "expr") && !strings.Contains(line, "label_values") {
				continue
			}
			for _, w := range metricWord.FindAllString(line, -1) {
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					w = strings.TrimSuffix(w, suffix)
				}
				names[w] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// The alert rules are well formed, each has a unit test, and these pass.
func TestMonitoring_rules(t *testing.T) {
	needTools(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", monitoringDir + "/alerts.yml"},
		{"check", "config", monitoringDir + "/prometheus.yml"},
		{"test", "rules", monitoringDir + "/alerts_test.yml"},
	} {
		if out, err := tryTool(toolTimeout, "promtool", args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	rules, err := os.ReadFile(filepath.Join(monitoringDir, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(filepath.Join(monitoringDir, "alerts_test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	if len(found) == 0 {
		t.Fatal("no alerts were found")
	}
	for _, alert := range found {
		if n := strings.Count(string(tests), "alertname: "+alert[1]+"\n") + strings.Count(string(tests), "alertname: "+alert[1]+","); n < 2 {
			t.Errorf("%s: %d tests, one that it is quiet and one that it fires are wanted", alert[1], n)
		}
	}
}

// The dashboard is what Grafana can read: panels with queries, none on another.
func TestMonitoring_dashboard(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(monitoringDir, "grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
			GridPos struct{ X, Y, W, H int }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || len(d.Panels) < 10 {
		t.Errorf("%q has %d panels", d.UID, len(d.Panels))
	}
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if len(p.Targets) == 0 || p.Targets[0].Expr == "" || ids[p.ID] {
			t.Errorf("panel %q has no query, or another one's id", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Errorf("panel %q lies over %q, or beyond the screen", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}
