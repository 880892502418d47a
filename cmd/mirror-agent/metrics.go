package main

import (
	"context"
	"net"
	"strings"

	"github.com/rs/zerolog"

	"mirror-agent/mirror/control"
)

// parseMetrics takes HOST:PORT; without a host it is at loopback.
func parseMetrics(w string) (string, error) {
	if strings.HasPrefix(w, ":") {
		w = "127.0.0.1" + w
	}
	return w, hostPort(w)
}

// listenMetrics returns nil when nobody asked for metrics.
func listenMetrics(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // there is nothing to listen at
	}
	return control.ListenMetrics(address)
}

// serveMetrics answers on l, when there is one; what it returns ends that.
func serveMetrics(l net.Listener, m control.Measured, log zerolog.Logger) (end func(context.Context)) {
	if l == nil {
		return func(context.Context) {}
	}
	s := control.NewMetricsServer(m, readVersion().Version, log)
	log.Info().Str("address", l.Addr().String()).Msg("metrics")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); err != nil {
			log.Error().Err(err).Msg("metrics are not served any more; the mirror goes on")
		}
	}()
	return func(ctx context.Context) {
		if err := s.Shutdown(ctx); err != nil {
			log.Debug().Err(err).Msg("metrics clients were cut off")
		}
		<-done
	}
}
