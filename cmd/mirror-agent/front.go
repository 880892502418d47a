package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd"
	"mirror-agent/mirror"
)

const (
	preferredBlockBytes = 4096
	lookupTimeout       = 5 * time.Second // for the name of an NBD address
)

// frontSecurity says who may reach the front how.
type frontSecurity struct {
	tls *nbdTLS // nil without TLS
	// insecure lets it serve without TLS off loopback.
	insecure bool
}

// front serves the volume by NBD whenever the agent says so; it may be opened
// and closed again and again. It is a mirror.Front.
type front struct {
	log      zerolog.Logger
	security frontSecurity

	mu      sync.Mutex // guards all below
	server  *nbd.Server
	address string
	cancel  context.CancelFunc
	tls     bool          // required of the server's clients
	served  chan struct{} // closed when Serve has returned
	past    nbd.Stats     // what earlier servers did
}

var _ mirror.Front = (*front)(nil)

func newFront(log zerolog.Logger, s frontSecurity) *front { return &front{log: log, security: s} }

// Check implements mirror.Front.
func (f *front) Check(address string) error { return f.security.check(address) }

// check refuses an address off loopback without TLS. One that no name server
// knows passes: to listen there fails anyway; what a socket of systemd's is, Open sees.
func (s *frontSecurity) check(address string) error {
	if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "systemd:") || s.tls != nil || s.insecure {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: give unix:PATH or HOST:PORT", address)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	ips, _ := net.DefaultResolver.LookupIPAddr(ctx, host)
	for _, ip := range ips {
		if !ip.IP.IsLoopback() {
			return errPlainNBD(address)
		}
	}
	return nil
}

func errPlainNBD(address string) error {
	return fmt.Errorf("%s is off loopback and has no TLS, whoever reaches it could read and write the device: "+
		"give --%s and --%s (and --%s), serve at unix:PATH or 127.0.0.1, or say --insecure (lab only)", address, certSetting, keySetting, caSetting)
}

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
	o, err := f.options(l.Addr())
	if err != nil {
		return "", errors.Join(err, l.Close())
	}
	server := nbd.NewServer(o, nbd.Export{
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
	f.server, f.cancel, f.served, f.tls = server, cancel, served, o.TLSRequired
	f.address = servedAt(l, address)
	return f.address, nil
}

// options are those of a server at an address that is listened at. Over TCP
// there is TLS or nothing. At a unix socket, which its mode protects, TLS is for
// who wants it: the kernel's client has none.
func (f *front) options(at net.Addr) (nbd.Options, error) {
	o := nbd.Options{Log: f.log}
	tcp, isTCP := at.(*net.TCPAddr)
	if f.security.tls != nil {
		o.TLS, o.TLSRequired = f.security.tls.server(f.log), isTCP
	} else if isTCP && !tcp.IP.IsLoopback() && !f.security.insecure { // whatever check had been told of the name
		return o, errPlainNBD(at.String())
	}
	if isTCP && !tcp.IP.IsLoopback() && f.security.tls != nil && f.security.tls.files.ca == "" {
		f.log.Warn().Str("address", at.String()).Msg("any client that reaches the NBD address may read and write: --" + caSetting + " asks for certificates")
	}
	return o, nil
}

// servedAt is the address as clients write it; a port of 0 has become a real
// one.
func servedAt(l net.Listener, asked string) string {
	if strings.HasPrefix(asked, "unix:") {
		return asked
	}
	if l.Addr().Network() == "unix" { // of systemd
		return "unix:" + l.Addr().String()
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
		f.server, f.address, f.tls = nil, "", false
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
		Address: f.address, TLS: f.tls, Connections: connections,
		Reads: all.Reads, Writes: all.Writes, Flushes: all.Flushes,
		ReadBytes: all.ReadBytes, WrittenBytes: all.WrittenBytes, Trims: all.Trims, Zeroes: all.Zeroes, Errors: all.Errors,
		Times: requestTimes(all.Times),
	}
}

func sum(a, b nbd.Stats) nbd.Stats {
	times := b.Times
	if len(a.Times) > 0 {
		times = make([]nbd.CommandTime, len(b.Times))
		for i := range times {
			times[i] = nbd.CommandTime{Command: b.Times[i].Command, Time: a.Times[i].Time.Plus(&b.Times[i].Time)}
		}
	}
	return nbd.Stats{
		Times: times, Zeroes: a.Zeroes + b.Zeroes, Errors: a.Errors + b.Errors,
		Reads: a.Reads + b.Reads, Writes: a.Writes + b.Writes, Flushes: a.Flushes + b.Flushes,
		Trims: a.Trims + b.Trims, ReadBytes: a.ReadBytes + b.ReadBytes, WrittenBytes: a.WrittenBytes + b.WrittenBytes,
	}
}

func requestTimes(of []nbd.CommandTime) []mirror.RequestTimes {
	times := make([]mirror.RequestTimes, len(of))
	for i := range of {
		times[i] = mirror.RequestTimes(of[i])
	}
	return times
}
