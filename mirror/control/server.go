package control

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/mirror"
)

// Agent is what the server needs of a running agent; *mirror.Agent is one.
// All methods may be called from any goroutine.
type Agent interface {
	Status() mirror.Status
	// Events returns the kept events with a sequence above after, and a
	// channel that is closed when a newer one arrives.
	Events(after uint64) ([]mirror.Event, <-chan struct{})
	SetMode(ctx context.Context, m mirror.Mode) error
	Switch(ctx context.Context, to string) error
	Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error)
	Demote(ctx context.Context, o mirror.DemoteOptions) (mirror.DemoteResult, error)
	Failback(ctx context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error)
	Suspend(ctx context.Context) error
	Resume(ctx context.Context) error
	ResetPath(ctx context.Context, target string, id int) error
	RemovePath(ctx context.Context, target string, id int) error
	Listen(ctx context.Context, address string) (string, error)
	Unlisten(ctx context.Context, address string) error
	SetBandwidth(ctx context.Context, spec string) error
	Resize(ctx context.Context, size int64) (int64, error)
	CreateCheckpoint(ctx context.Context, name string) (mirror.Checkpoint, error)
	Checkpoints(ctx context.Context) ([]mirror.Checkpoint, error)
	ResizeLog(ctx context.Context, bytes int64) error
	RemoveMember(ctx context.Context, who string) error
	Verify(ctx context.Context, o mirror.VerifyOptions) (mirror.VerifyReport, error)
	StopVerify(ctx context.Context) (mirror.VerifyReport, error)
	VerifyReport(ctx context.Context) (mirror.VerifyReport, error)
	Scrub(ctx context.Context) error
	Window() (mirror.Window, error)
	StartDrill(ctx context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error)
	// StopDrill ends a drill, 0 is the one that runs, and returns how it ended.
	StopDrill(ctx context.Context, id uint64, why string) (mirror.DrillStatus, error)
	// Drill returns the drill that runs, or the last one, and a channel that
	// is closed when it has ended.
	Drill() (mirror.DrillStatus, <-chan struct{}, bool)
}

// Options of a Server; start from DefaultOptions.
type Options struct {
	// CommandTimeout bounds a command, from the request to its answer.
	CommandTimeout time.Duration
	// PromoteTimeout is the same for a promotion, which may have a log to
	// apply first, and for a resize of the log, which writes it anew.
	PromoteTimeout time.Duration
	// WriteTimeout is how long a client may leave an answer, or one line of a
	// stream, unread.
	WriteTimeout time.Duration
	// MaxConnections is how many clients are served at once; further ones
	// wait in the kernel's queue.
	MaxConnections int
	Log            zerolog.Logger
}

// DefaultOptions returns the defaults.
func DefaultOptions() Options {
	return Options{
		CommandTimeout: time.Minute, PromoteTimeout: 10 * time.Minute, WriteTimeout: 10 * time.Second,
		MaxConnections: 64, Log: zerolog.Nop(),
	}
}

const (
	maxBodyBytes   = 64 << 10
	maxHeaderBytes = 16 << 10
	headerTimeout  = 5 * time.Second
	bodyTimeout    = 10 * time.Second
	idleTimeout    = time.Minute
)

// Server answers the control API for one agent.
type Server struct {
	agent   Agent
	options Options
	http    *http.Server

	stop     chan struct{} // closed by end: event streams leave
	stopOnce sync.Once
}

// NewServer returns a server for a; Serve sets it to work.
func NewServer(a Agent, o Options) *Server {
	s := &Server{agent: a, options: o, stop: make(chan struct{})}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(o.Log, "", 0),
	}
	return s
}

// Serve answers on l until Shutdown or Close, and then returns nil. It closes
// l.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(&cappedListener{Listener: l, slots: make(chan struct{}, s.options.MaxConnections), stop: s.stop})
	select {
	case <-s.stop:
		return nil
	default:
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown takes no new request, ends event streams, lets the commands in
// progress finish for as long as ctx lives, and closes. It may be called more
// than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end()
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
		return err
	}
	return nil
}

// Close ends everything at once.
func (s *Server) Close() error {
	s.end()
	return s.http.Close()
}

func (s *Server) end() { s.stopOnce.Do(func() { close(s.stop) }) }

// cappedListener accepts no more connections at once than it has slots.
type cappedListener struct {
	net.Listener
	slots chan struct{}
	stop  <-chan struct{}
}

func (l *cappedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.stop:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &cappedConn{Conn: c, slots: l.slots}, nil
}

type cappedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *cappedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}
