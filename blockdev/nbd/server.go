package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/dataport/socket"
)

// Options of a server. The zero value of a field is its default.
type Options struct {
	// MaxConnections at once; one more is closed as soon as it is accepted. Default 128.
	MaxConnections int
	// HandshakeTimeout is how long a client may take until it has chosen an export, and how long the payload of one large
	// write may take to arrive. Default 10 s.
	HandshakeTimeout time.Duration
	// MaxPayloadBytes of one read or write. Default and largest 32 MiB, smallest 4 KiB.
	MaxPayloadBytes uint32
	// MaxMemoryBytes is for the buffers of all connections. Default 512 MiB. It is raised to what MaxConnections and
	// MaxPayloadBytes need at least.
	MaxMemoryBytes int64
	// TLS, when set, is what clients may have by STARTTLS. ClientAuth and ClientCAs in it say whom to let in.
	TLS *tls.Config
	// TLSRequired refuses everything before STARTTLS. It needs TLS.
	TLSRequired bool
	// Log tells of connections at debug level, and of refused ones at warn.
	Log zerolog.Logger
}

func (o Options) withDefaults() Options {
	if o.MaxConnections <= 0 {
		o.MaxConnections = 128
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.MaxPayloadBytes == 0 || o.MaxPayloadBytes > defaultPayload {
		o.MaxPayloadBytes = defaultPayload
	}
	o.MaxPayloadBytes = max(o.MaxPayloadBytes, preferredBlock)
	if o.MaxMemoryBytes <= 0 {
		o.MaxMemoryBytes = 512 << 20
	}
	return o
}

// Stats are counted since the server was made; Connections is now. What was refused or failed is in Errors only.
type Stats struct {
	Connections                            int
	Reads, Writes, Flushes, Trims, Zeroes  uint64
	ReadBytes, WrittenBytes, FUAs, Refused uint64 // Refused: connections beyond MaxConnections
	Errors                                 uint64 // requests answered with an error

	Times []CommandTime // in the order of the protocol, always all of them
}

type counters struct {
	reads, writes, flushes, trims, zeroes     atomic.Uint64
	readBytes, writtenBytes, fuas, refusedCon atomic.Uint64
	errors                                    atomic.Uint64
}

// Server serves exports on any number of listeners.
type Server struct {
	options Options
	exports []Export
	count   counters
	times   times
	memory  *memory

	draining atomic.Bool   // later requests get ESHUTDOWN or nothing, see drain.go; set once
	watching atomic.Bool   // the monitor runs
	crowd    *socket.Crowd // of the clients
	pulse    *pulse

	mu        sync.Mutex // guards what follows; never held while a conn's mutex is wanted, except by the monitor
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	still     chan struct{} // closed with the last connection; ends the pulse
	closed    bool
	idle      chan struct{} // closed when the last connection of a server that drains has gone

	running sync.WaitGroup // every goroutine of the server
}

// NewServer returns a server of the exports; the first one is also what a client gets that asks for "".
// Nothing runs before Serve.
func NewServer(o Options, exports ...Export) *Server {
	for i := range exports {
		exports[i].check()
	}
	o = o.withDefaults().withTLS()
	return &Server{
		options: o, exports: append([]Export(nil), exports...), memory: newMemory(o),
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, idle: make(chan struct{}),
		pulse: newPulse(), crowd: socket.NewCrowd(max(4, 2*runtime.NumCPU()), max(1, runtime.NumCPU()/2)),
	}
}

// Serve accepts connections until the listener fails, the server is shut down or closed (nil), or ctx is done (its error).
// It closes the listener. Connections that it accepted live on after ctx; Shutdown and Close end them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !s.track(l) {
		return nil
	}
	defer s.untrack(l)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	wait := time.Duration(0)
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.accept(c)
			continue
		case s.draining.Load():
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		}
		// Out of descriptors, most likely: it passes when a connection ends.
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		s.options.Log.Warn().Err(err).Dur("wait", wait).Msg("accept an NBD connection")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (s *Server) track(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) untrack(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// accept starts a connection, or closes it when there is no room.
func (s *Server) accept(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
	if unix, ok := nc.(*net.UnixConn); ok {
		_ = unix.SetWriteBuffer(socketBuffer) // as much of it as the system allows
	}
	if s.admit(nc) {
		return
	}
	if !s.draining.Load() {
		s.count.refusedCon.Add(1)
		s.options.Log.Warn().Str("client", nc.RemoteAddr().String()).Int("limit", s.options.MaxConnections).
			Msg("NBD connection refused: too many")
	}
	nc.Close()
}

// admit starts a connection if it may.
func (s *Server) admit(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() || len(s.conns) >= s.options.MaxConnections {
		return false
	}
	c := newConn(s, nc)
	if len(s.conns) == 0 {
		stop := make(chan struct{})
		s.still = stop
		s.pulse.begin()
		s.running.Go(func() { s.pulse.run(stop) })
	}
	s.conns[c] = struct{}{}
	s.running.Go(c.serve)
	return true
}

// remove is the last thing that a connection does.
func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 {
		close(s.still)
	}
	if s.draining.Load() && len(s.conns) == 0 {
		s.finishIdle()
	}
}

func (s *Server) finishIdle() {
	select {
	case <-s.idle:
	default:
		close(s.idle)
	}
}

// Shutdown stops accepting, lets the requests run that the device has, answers later ones with ESHUTDOWN, or to simple
// replies not at all, and closes each connection when it has nothing more to do. When ctx is done first it ends like Close
// and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.kick()
	}
	if len(s.conns) == 0 {
		s.finishIdle()
	}
	s.mu.Unlock()
	select {
	case <-s.idle:
		s.Close()
		s.Wait()
		return nil
	case <-ctx.Done():
		s.Close()
		return ctx.Err()
	}
}

// Close closes all listeners and connections at once. Requests that the device is working on are not waited for, and
// their clients get no answer; requests that it has not got yet never reach it. Wait waits for the former.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining.Store(true)
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.kill()
	}
	if len(s.conns) == 0 {
		s.finishIdle()
	}
	return nil
}

// Wait returns when nothing of a server that was closed runs any more, the device's work for it included.
func (s *Server) Wait() { s.running.Wait() }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	k := &s.count
	return Stats{
		Connections: n,
		Reads:       k.reads.Load(), Writes: k.writes.Load(), Flushes: k.flushes.Load(), Trims: k.trims.Load(), Zeroes: k.zeroes.Load(),
		ReadBytes: k.readBytes.Load(), WrittenBytes: k.writtenBytes.Load(), FUAs: k.fuas.Load(), Refused: k.refusedCon.Load(),
		Errors: k.errors.Load(), Times: s.times.snapshot(),
	}
}
