package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
	"mirror-agent/mirror/hook"
)

const controlShutdownTimeout = 3 * time.Second

// daemonCommand runs a mirror with the settings for role until it is told to
// end; needed are the settings without which the command makes no sense.
func (a *app) daemonCommand(role mirror.Role, needed ...string) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		l, err := newLoader(a, c.Flags())
		if err != nil {
			return err
		}
		if role == 0 && l.file == nil {
			return usagef("%s: missing --config FILE; see %[1]s --help", c.CommandPath())
		}
		for _, k := range needed {
			if words, _, err := l.words(k); err == nil && words == nil {
				return usagef("%s: missing --%s; see %[1]s --help", c.CommandPath(), k)
			}
		}
		s, err := l.load(role)
		if err != nil {
			return err
		}
		if err := a.complete(&s, l); err != nil {
			return err
		}
		return a.serve(c.Context(), s, func() (settings, error) {
			l, err := newLoader(a, c.Flags())
			if err != nil {
				return settings{}, err
			}
			s, err := l.load(role)
			if err != nil {
				return s, err
			}
			return s, a.loadKeys(&s)
		})
	}
}

// complete checks the settings as a whole and fills in what follows from them:
// the keys, the front's TLS and the control socket.
func (a *app) complete(s *settings, l *loader) error {
	if err := s.config.Validate(); err != nil {
		if l.file != nil {
			return fmt.Errorf("config %s: %w", l.file.path, err)
		}
		return err
	}
	if s.control == "" {
		s.control = a.socketOf(s.config.Name)
	}
	if err := a.secureFront(s); err != nil {
		return err
	}
	if err := s.page.complete(a.now); err != nil {
		return err
	}
	return a.loadKeys(s)
}

// secureFront reads the front's TLS files and checks that the configured
// address may be served at.
func (a *app) secureFront(s *settings) (err error) {
	s.front.insecure = s.config.Insecure // as it was said: loadKeys may set it for the data port
	if s.front.tls, err = loadNBDTLS(s.nbdTLS, a.now); err != nil || s.config.NBD == "" {
		return err
	}
	if err := s.front.check(s.config.NBD); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	return nil
}

func (a *app) loadKeys(s *settings) error {
	for _, word := range s.peerKeys {
		k, err := dataport.ParsePublicKey(word)
		if err != nil {
			return fmt.Errorf("peer-key: %w; copy it from `mirror-agent keygen --show` on that host", err)
		}
		s.config.Peers = append(s.config.Peers, k)
	}
	alone := len(s.config.Target) == 0 && len(s.config.Listen) == 0
	if alone && len(s.config.Peers) == 0 {
		// It neither listens nor dials: there is no connection to protect, and
		// the data port would ask for keys in vain.
		s.config.Insecure = true
	}
	if s.config.Insecure && s.keyFile == "" {
		return nil
	}
	path := s.keyFile
	if path == "" {
		path = a.defaultKeyFile()
	}
	key, err := dataport.LoadKey(path)
	switch {
	case err == nil:
		s.config.Key = key
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("key %s: no such file; create it with `mirror-agent keygen%s` and give its public key to the other hosts (--peer-key)", path, keyFlag(s.keyFile))
	default:
		return err
	}
	if len(s.config.Peers) == 0 && !s.config.Insecure {
		return errors.New("peer-key: no other host's key is given, so none could connect; add --peer-key for each (`mirror-agent keygen --show` there prints it)")
	}
	return nil
}

func keyFlag(file string) string {
	if file == "" {
		return ""
	}
	return " --key " + file
}

// defaultKeyFile is where keygen puts the key of this host.
func (a *app) defaultKeyFile() string {
	if a.uid == 0 {
		return "/etc/mirror-agent/node.key"
	}
	if dir := a.env("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "mirror-agent", "node.key")
	}
	return filepath.Join(a.env("HOME"), ".config", "mirror-agent", "node.key")
}

// serve runs the agent and its control server until ctx is cancelled (a clean
// end, nil) or the mirror fails. again loads the settings anew.
func (a *app) serve(ctx context.Context, s settings, again func() (settings, error)) error {
	if err := a.makeSocketDir(s.control); err != nil {
		return err
	}
	log := newLogger(a, &s)
	s.config.Version = readVersion().Version
	s.config.Log = log // the agent adds the mirror's name by itself
	log = log.With().Str("mirror", s.config.Name).Logger()
	// The socket comes first: it tells a second agent of the same name apart
	// before anything is touched.
	socket, err := control.Listen(s.control)
	if err != nil {
		return err
	}
	metrics, err := listenMetrics(s.metrics)
	if err != nil {
		socket.Close()
		return err
	}
	if t := s.front.tls; t != nil {
		t.warn(log)
	}
	pageSocket, err := s.page.listen(log)
	if err != nil {
		socket.Close()
		if metrics != nil {
			metrics.Close()
		}
		return err
	}
	front := newFront(log, s.front)
	agent, err := mirror.Open(ctx, s.config, front)
	if err != nil {
		socket.Close()
		if pageSocket != nil {
			pageSocket.Close()
		}
		if metrics != nil {
			metrics.Close()
		}
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			log.Info().Msg("ended while the journal was being made; nothing was left behind")
			return nil
		}
		return err
	}
	agent.UseDrillFront(newFront(log.With().Str("front", "drill").Logger(), s.front))
	o := control.DefaultOptions()
	o.Log = log
	server := control.NewServer(agent, o)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		err := server.Serve(socket)
		if err != nil {
			cancel() // an agent that takes no orders is no agent
		}
		served <- err
	}()
	ended := takeKeysAgain(log, agent, again)
	defer ended()
	defer supervised(ctx, log, agent.Pulse)()
	closePage := s.page.serve(log, agent, pageSocket)
	defer closePage()
	hooks := hook.New(agent, s.hooks, s.control, log)
	endMetrics := serveMetrics(metrics, measuredAgent{agent, hooks}, log)
	endHooks := runHooks(hooks)
	log.Info().Str("role", s.config.Role.String()).Str("device", s.config.Device).Str("control", s.control).Int("pid", os.Getpid()).Msg("started")
	runErr := agent.Run(ctx)
	endHooks()
	front.Abort() // closed by the agent already, unless it failed

	end, stop := context.WithTimeout(context.WithoutCancel(ctx), controlShutdownTimeout)
	defer stop()
	endMetrics(end)
	if err := server.Shutdown(end); err != nil {
		log.Debug().Err(err).Msg("control clients were cut off")
	}
	serveErr := <-served
	if runErr == nil && serveErr == nil {
		log.Info().Msg("ended cleanly")
	}
	if serveErr != nil {
		serveErr = fmt.Errorf("control socket %s: %w", s.control, serveErr)
	}
	return errors.Join(runErr, serveErr)
}

// takeKeysAgain has the agent take its keys, and those of the other hosts,
// anew at every SIGHUP. What it returns ends that.
func takeKeysAgain(log zerolog.Logger, agent *mirror.Agent, again func() (settings, error)) (end func()) {
	hangups, stop, done := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-hangups:
			}
			s, err := again()
			if err == nil {
				err = agent.SetKeys(s.config.Key, s.config.Peers)
			}
			if err != nil {
				log.Error().Err(err).Msg("SIGHUP: the keys stay as they were")
				continue
			}
			log.Info().Int("peers", len(s.config.Peers)).Msg("SIGHUP: keys taken anew")
		}
	}()
	return func() { signal.Stop(hangups); close(stop); <-done }
}
