package control

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"mirror-agent/mirror"
)

// Measured is what the metrics are taken from; *mirror.Agent is one.
type Measured interface{ Measures() mirror.Measures }

// Hooked is a Measured that runs hooks, too.
type Hooked interface{ HookRuns() []HookRuns }

// HookRuns counts the runs of one hook since the agent's start, by how they ended, and the events that it did not get.
type HookRuns struct {
	Events                       string
	Done, Failed, Killed, Missed uint64
}

// ListenMetrics listens where Prometheus is to scrape. An address without a host is at loopback: what the metrics tell, names
// of hosts and devices among it, is not for everybody.
func ListenMetrics(address string) (net.Listener, error) {
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("metrics %s: the address is in use by another process; stop that, or choose another --metrics HOST:PORT", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("metrics %s: this host has no such address; choose another --metrics HOST:PORT", address)
	}
	return nil, fmt.Errorf("metrics %s: %w; choose another --metrics HOST:PORT", address, err)
}

// MetricsServer answers Prometheus at /metrics.
type MetricsServer struct{ http *http.Server }

// NewMetricsServer returns a server of m's metrics; version is the product's.
func NewMetricsServer(m Measured, version string, l zerolog.Logger) *MetricsServer {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(NewRegistry(m, version), promhttp.HandlerOpts{
		ErrorLog: log.New(l, "", 0), MaxRequestsInFlight: 4, EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "mirror-agent: the metrics are at /metrics", http.StatusNotFound)
	})
	return &MetricsServer{&http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, WriteTimeout: 2 * bodyTimeout, IdleTimeout: 2 * idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: log.New(l, "", 0),
	}}
}

// Serve answers on l, which it closes, until Shutdown, and then returns nil.
func (s *MetricsServer) Serve(l net.Listener) error {
	err := s.http.Serve(&cappedListener{Listener: l, slots: make(chan struct{}, 16), stop: make(chan struct{})})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown lets the scrapes under way end while ctx lives, and closes.
func (s *MetricsServer) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
		return err
	}
	return nil
}

// NewRegistry returns what is scraped: m's metrics, those of the process and of the Go runtime.
func NewRegistry(m Measured, version string) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(&collector{m, version}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// collector takes all metrics from one look at the agent, so that what is scraped together belongs together.
type collector struct {
	agent   Measured
	version string
}

// Describe implements prometheus.Collector. The metrics are described at once, from descriptors.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	m := c.agent.Measures()
	g := &gathering{ch: ch, mirror: m.Status.Name, now: time.Now()}
	g.gauge(buildInfo, 1, c.version, runtime.Version())
	g.status(&m.Status)
	g.log(&m.Status.Log, &m.Volume)
	g.clients(&m.Status.NBD)
	g.followers(&m.Status)
	g.checks(&m.Status)
	if h, ok := c.agent.(Hooked); ok {
		g.hooks(h.HookRuns())
	}
}
