package main

import (
	"context"
	"net"
	"strings"
	"sync"

	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd"
	"mirror-agent/mirror"
)

const preferredBlockBytes = 4096

// front serves the volume by NBD whenever the agent says so; it may be opened
// and closed again and again. It is a mirror.Front.
type front struct {
	log zerolog.Logger

	mu      sync.Mutex // guards all below
	server  *nbd.Server
	address string
	cancel  context.CancelFunc
	served  chan struct{} // closed when Serve has returned
	past    nbd.Stats     // what earlier servers did
}

var _ mirror.Front = (*front)(nil)

func newFront(log zerolog.Logger) *front { return &front{log: log} }

// Open implements mirror.Front.
func (f *front) Open(dev blockdev.Device, export, address string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server != nil {
		return f.address, nil
	}
	l, err := nbd.Listen(address)
	if err != nil {
		return "", err
	}
	server := nbd.NewServer(nbd.Options{Log: f.log}, nbd.Export{
		Name: export, Description: "mirror " + export, Device: dev,
		MultiConn: true, BlockMin: 1, BlockPreferred: preferredBlockBytes,
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(ctx, l); err != nil && ctx.Err() == nil {
			f.log.Error().Err(err).Str("address", address).Msg("NBD server ended")
		}
	}()
	f.server, f.cancel, f.served = server, cancel, served
	f.address = servedAt(l, address)
	return f.address, nil
}

// servedAt is the address as clients write it; a port of 0 has become a real
// one.
func servedAt(l net.Listener, asked string) string {
	if strings.HasPrefix(asked, "unix:") {
		return asked
	}
	return l.Addr().String()
}

// Close implements mirror.Front.
func (f *front) Close(ctx context.Context) error {
	return f.end(func(s *nbd.Server) error { return s.Shutdown(ctx) })
}

// Abort implements mirror.Front.
func (f *front) Abort() {
	if err := f.end((*nbd.Server).Close); err != nil {
		f.log.Debug().Err(err).Msg("NBD server aborted")
	}
}

func (f *front) end(how func(*nbd.Server) error) error {
	f.mu.Lock()
	server, cancel, served := f.server, f.cancel, f.served
	f.mu.Unlock()
	if server == nil {
		return nil
	}
	err := how(server)
	if err != nil {
		server.Close() // drained or not: the address has to be free
	}
	cancel()
	<-served
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server == server { // not already ended by another
		f.past = sum(f.past, server.Stats())
		f.server, f.address = nil, ""
	}
	return err
}

// Stats implements mirror.Front.
func (f *front) Stats() mirror.FrontStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.past
	connections := 0
	if f.server != nil {
		now := f.server.Stats()
		all, connections = sum(all, now), now.Connections
	}
	return mirror.FrontStats{
		Address: f.address, Connections: connections,
		Reads: all.Reads, Writes: all.Writes, Flushes: all.Flushes,
		ReadBytes: all.ReadBytes, WrittenBytes: all.WrittenBytes,
	}
}

func sum(a, b nbd.Stats) nbd.Stats {
	return nbd.Stats{
		Reads: a.Reads + b.Reads, Writes: a.Writes + b.Writes, Flushes: a.Flushes + b.Flushes,
		Trims: a.Trims + b.Trims, ReadBytes: a.ReadBytes + b.ReadBytes, WrittenBytes: a.WrittenBytes + b.WrittenBytes,
	}
}
