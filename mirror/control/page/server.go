package page

import (
	"context"
	"crypto/tls"
	"embed"
	"errors"
	"io/fs"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"mirror-agent/mirror"
)

// Agent is what the page needs of a running agent; *mirror.Agent is one.
type Agent interface {
	Status() mirror.Status
	// Events returns the kept events with a sequence above after, and a channel that is closed when a newer one arrives.
	Events(after uint64) ([]mirror.Event, <-chan struct{})
	Checkpoints(ctx context.Context) ([]mirror.Checkpoint, error)
	Switch(ctx context.Context, to string) error
	Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error)
	Verify(ctx context.Context, o mirror.VerifyOptions) (mirror.VerifyReport, error)
	StopVerify(ctx context.Context) (mirror.VerifyReport, error)
	StartDrill(ctx context.Context, o mirror.DrillOptions) (mirror.DrillStatus, error)
	StopDrill(ctx context.Context, id uint64, why string) (mirror.DrillStatus, error)
	Suspend(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Options of a Server; start from DefaultOptions.
type Options struct {
	// Control lets the page give orders. It needs Token or Certificates.
	Control bool
	// Token returns the word that lets a browser in; nil asks for none. It is called for every request that shows one.
	Token func() (string, error)
	// Certificates: the listener's TLS asks clients for certificates and checks them.
	Certificates bool
	// MaxStreams is how many look on at once; one more is told to come again later.
	MaxStreams int
	// WriteTimeout is how long a client may leave what it was sent unread.
	WriteTimeout time.Duration
	Log          zerolog.Logger
}

// DefaultOptions returns the defaults: to look on, for everybody who reaches the listener.
func DefaultOptions() Options {
	return Options{MaxStreams: 32, WriteTimeout: 5 * time.Second, Log: zerolog.Nop()}
}

// ErrOpenControl means that anybody could give orders.
var ErrOpenControl = errors.New("orders from the page need to know from whom")

// Validate checks the options as a whole.
func (o *Options) Validate() error {
	if o.Control && o.Token == nil && !o.Certificates {
		return ErrOpenControl
	}
	return nil
}

const (
	maxConnections = 128
	maxBodyBytes   = 16 << 10
	maxHeaderBytes = 16 << 10
	headerTimeout  = 5 * time.Second
	bodyTimeout    = 10 * time.Second
	idleTimeout    = time.Minute
	commandTimeout = time.Minute
	promoteTimeout = 10 * time.Minute // as the control socket's

	policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

//go:embed assets
var embedded embed.FS

// Server serves the page for one agent.
type Server struct {
	agent   Agent
	options Options
	door    *door
	hub     *hub
	streams chan struct{} // a slot for each that looks on
	marks   checkpointCache
	http    *http.Server

	stop     chan struct{} // closed by Shutdown and Close: streams and the hub end
	stopOnce sync.Once
	running  sync.WaitGroup
}

// NewServer returns a server for a; the options have to be valid.
func NewServer(a Agent, o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Server{agent: a, options: o, door: newDoor(&o), hub: newHub(a), streams: make(chan struct{}, o.MaxStreams), stop: make(chan struct{})}
	s.http = &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: log.New(o.Log, "", 0),
	}
	// HTTP/1 alone: what bounds a connection there bounds a client.
	s.http.Protocols = new(http.Protocols)
	s.http.Protocols.SetHTTP1(true)
	return s, nil
}

// Serve answers on l, by TLS when config is given, until Shutdown or Close, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener, config *tls.Config) error {
	s.running.Go(func() { s.hub.run(s.stop) })
	l = netutil.LimitListener(l, maxConnections)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown ends the streams, lets orders in progress finish for as long as ctx lives, and closes. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	s.running.Wait()
	return err
}

// Close ends everything at once.
func (s *Server) Close() error {
	s.end()
	err := s.http.Close()
	s.running.Wait()
	return err
}

func (s *Server) end() { s.stopOnce.Do(func() { close(s.stop) }) }

func (s *Server) routes() http.Handler {
	assets, err := fs.Sub(embedded, "assets")
	if err != nil {
		panic(err) // the folder is in this program
	}
	files := http.FileServerFS(assets)
	mux := http.NewServeMux()
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", files))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if !s.door.knows(r) {
			http.ServeFileFS(w, r, assets, "login.html")
			return
		}
		http.ServeFileFS(w, r, assets, "page.html")
	})
	mux.HandleFunc("POST /login", s.login)
	inside := func(pattern string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if !s.door.knows(r) {
				s.refuse(w, http.StatusUnauthorized, "sign in first: open / in a browser, or send Authorization: Bearer TOKEN")
				return
			}
			h(w, r)
		})
	}
	inside("GET /v1/stream", s.stream)
	inside("GET /v1/checkpoints", s.checkpoints)
	inside("POST /v1/order/{name}", s.order)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer a form would come from the origin null
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.options.WriteTimeout + commandTimeout))
		if !nameIsOurs(r) {
			s.refuse(w, http.StatusMisdirectedRequest, "this name is not the agent's: use an IP address, localhost, or TLS")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		mux.ServeHTTP(w, r)
	})
}
