package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control/page"
)

const (
	minPageToken     = 20
	maxPageToken     = 4 << 10
	pageShutdownTime = time.Second
)

// pageSettings are those of the page for browsers, off unless there is an address.
type pageSettings struct {
	address string
	token   string // a file
	tls     nbdTLSFiles
	control bool

	loaded *nbdTLS // by complete; nil without TLS
}

func parseHTTP(w string) (string, error) { return w, hostPort(w) }

// complete checks the settings as a whole and reads the files.
func (p *pageSettings) complete(now func() time.Time) (err error) {
	if p.address == "" {
		if p.token != "" || !p.tls.none() || p.control {
			return errors.New("http: settings of the page are given, but not where it is: add --http HOST:PORT")
		}
		return nil
	}
	p.tls.page = true
	if p.loaded, err = loadNBDTLS(p.tls, now); err != nil {
		return err
	}
	if p.token != "" {
		if _, err := p.readToken(); err != nil {
			return err
		}
	}
	if p.control && p.token == "" && p.tls.ca == "" {
		return errors.New("http-control: everybody who reaches the page could give orders: add --http-token FILE (openssl rand -hex 16 makes one), or --http-tls-ca FILE for certificates")
	}
	return p.check(p.address)
}

// check refuses an address off loopback that is open, or sends the token in the clear.
func (p *pageSettings) check(address string) error {
	secret, private := p.token != "" || p.tls.ca != "", p.loaded != nil
	if secret && private {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	ips, _ := net.DefaultResolver.LookupIPAddr(ctx, host)
	for _, ip := range ips {
		switch {
		case ip.IP.IsLoopback():
		case !secret:
			return fmt.Errorf("http: %s is off loopback and everybody who reaches it could look on: add --http-token FILE, or --http-tls-ca FILE for certificates, with --http-tls-cert and --http-tls-key; or show the page at 127.0.0.1 and reach it by ssh -L", address)
		default:
			return fmt.Errorf("http: %s is off loopback, the token would go there in the clear: add --http-tls-cert FILE and --http-tls-key FILE, or show the page at 127.0.0.1 and reach it by ssh -L", address)
		}
	}
	return nil
}

// readToken reads the token as it is now: who changes the file ends all sessions.
func (p *pageSettings) readToken() (string, error) {
	f, err := os.Open(p.token)
	if err != nil {
		return "", fileError("http-token", p.token, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fileError("http-token", p.token, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("http-token %s: mode %04o, everybody may read it: chmod o-rwx %[1]s", p.token, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPageToken))
	if err != nil {
		return "", fileError("http-token", p.token, err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minPageToken || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("http-token %s: one line of %d characters or more is expected: openssl rand -hex 16 > %[1]s", p.token, minPageToken)
	}
	return token, nil
}

// listen opens the page's address before the volume is touched; nil when there is no page.
func (p *pageSettings) listen(log zerolog.Logger) (net.Listener, error) {
	if p.address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		return nil, fmt.Errorf("http: %w; choose another --http", err)
	}
	if err := p.check(l.Addr().String()); err != nil { // whatever check had been told of the name
		l.Close()
		return nil, err
	}
	if p.loaded != nil {
		p.loaded.warn(log)
	}
	return l, nil
}

// serve shows the page until what it returns is called.
func (p *pageSettings) serve(log zerolog.Logger, agent *mirror.Agent, l net.Listener) (end func()) {
	if l == nil {
		return func() {}
	}
	o := page.DefaultOptions()
	o.Log, o.Control, o.Certificates = log, p.control, p.tls.ca != ""
	if p.token != "" {
		o.Token = p.readToken
	}
	server, err := page.NewServer(agent, o)
	if err != nil { // complete has looked
		log.Error().Err(err).Msg("no page")
		l.Close()
		return func() {}
	}
	var config *tls.Config
	scheme := "http"
	if p.loaded != nil {
		config, scheme = p.loaded.server(log), "https"
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(l, config); err != nil {
			log.Error().Err(err).Msg("the page is not served any more")
		}
	})
	log.Info().Str("url", scheme+"://"+l.Addr().String()+"/").Bool("control", p.control).Msg("the page is shown")
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), pageShutdownTime)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.Debug().Err(err).Msg("browsers were cut off")
		}
		served.Wait()
	}
}
