package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// The TLS of the NBD front, and of the page: a certificate with its key, and whose clients may
// come, from PEM files that are read again when they have changed.

const maxPEMBytes = 1 << 20

// The settings, as messages name them.
const (
	certSetting = "nbd-tls-cert"
	keySetting  = "nbd-tls-key"
	caSetting   = "nbd-tls-ca"
)

// nbdTLSFiles are paths, empty where not given.
type nbdTLSFiles struct {
	cert, key, ca string
	page          bool // of the page, whose settings have other names
}

func (f *nbdTLSFiles) none() bool { return f.cert == "" && f.key == "" && f.ca == "" }

// setting is what this file's setting is called.
func (f *nbdTLSFiles) setting(name string) string {
	if f.page {
		return "http" + strings.TrimPrefix(name, "nbd")
	}
	return name
}

// validate: a certificate and its key, both or neither; nothing else without.
func (f *nbdTLSFiles) validate() error {
	switch {
	case f.cert != "" && f.key == "":
		return fmt.Errorf("%s %s: the certificate needs its private key too, --%s FILE", f.setting(certSetting), f.cert, f.setting(keySetting))
	case f.cert == "" && f.key != "":
		return fmt.Errorf("%s %s: the key needs its certificate too, --%s FILE", f.setting(keySetting), f.key, f.setting(certSetting))
	case f.cert == "" && f.ca != "":
		return fmt.Errorf("%s %s: clients show certificates by TLS only, which needs --%s FILE and --%s FILE", f.setting(caSetting), f.ca, f.setting(certSetting), f.setting(keySetting))
	}
	return nil
}

// stamp tells one version of the files from another: a file that is written
// anew, replaced or reached by another link differs in one of these.
type stamp [3]os.FileInfo

func (s stamp) same(t stamp) bool {
	for i := range s {
		a, b := s[i], t[i]
		if (a == nil) != (b == nil) {
			return false
		}
		if a != nil && (!os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime())) {
			return false
		}
	}
	return true
}

// nbdTLS is what the files say.
type nbdTLS struct {
	files nbdTLSFiles
	now   func() time.Time

	mu       sync.Mutex // guards all below; held while files are read
	config   *tls.Config
	read     stamp     // of the files that config is from
	warnings []string  // about config
	refused  string    // why the files as they are now are not used; "" when they are
	notAfter time.Time // when config's certificate expires
}

// loadNBDTLS reads the files; nil when none are given. Nothing of it may be wrong
// then; an expired certificate is not wrong, see warnings.
func loadNBDTLS(files nbdTLSFiles, now func() time.Time) (*nbdTLS, error) {
	if files.none() {
		return nil, nil
	}
	if err := files.validate(); err != nil {
		return nil, err
	}
	t := &nbdTLS{files: files, now: now}
	return t, t.load()
}

// load reads the files and takes them over, or changes nothing. The stamp is
// taken before they are read: what changes meanwhile is read again. mu is held,
// or nobody else has t yet.
func (t *nbdTLS) load() error {
	read, err := t.stat()
	if err != nil {
		return err
	}
	cert, err := readPEM(t.files.setting(certSetting), t.files.cert)
	if err != nil {
		return err
	}
	key, err := readPEM(t.files.setting(keySetting), t.files.key)
	if err != nil {
		return err
	}
	chain, err := certificates(t.files.setting(certSetting), t.files.cert, cert)
	if err != nil {
		return err
	}
	if err := checkKey(t.files.setting(keySetting), t.files.key, key); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s %s: %w; give the key that belongs to the certificate in %s", t.files.setting(keySetting), t.files.key, err, t.files.cert)
	}
	warnings := validity(t.now(), t.files.setting(certSetting), t.files.cert, chain[:1], "clients will refuse it")
	config := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		// A resumed session would skip the look at the client's certificate: the keys of tickets outlive this configuration.
		SessionTicketsDisabled: true,
		// As nbd.Options says it: this is the configuration that a connection really has.
		DynamicRecordSizingDisabled: true,
	}
	if t.files.ca != "" {
		text, err := readPEM(t.files.setting(caSetting), t.files.ca)
		if err != nil {
			return err
		}
		authorities, err := certificates(t.files.setting(caSetting), t.files.ca, text)
		if err != nil {
			return err
		}
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		for _, c := range authorities {
			config.ClientCAs.AddCert(c)
		}
		warnings = append(warnings, validity(t.now(), t.files.setting(caSetting), t.files.ca, authorities, "its clients will be refused")...)
	}
	t.config, t.read, t.warnings, t.notAfter, t.refused = config, read, warnings, chain[0].NotAfter, ""
	return nil
}

func (t *nbdTLS) stat() (s stamp, err error) {
	for i, f := range []struct{ setting, path string }{{t.files.setting(certSetting), t.files.cert}, {t.files.setting(keySetting), t.files.key}, {t.files.setting(caSetting), t.files.ca}} {
		if f.path == "" {
			continue
		}
		if s[i], err = os.Stat(f.path); err != nil {
			return s, fileError(f.setting, f.path, err)
		}
	}
	return s, nil
}

// server is the configuration for a server. Each handshake gets what the files
// say then. Files that cannot be used are told to log, once, and the handshake
// gets what they said before: a renewal replaces one file after the other.
func (t *nbdTLS) server(log zerolog.Logger) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current(log), nil },
	}
}

func (t *nbdTLS) current(log zerolog.Logger) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now, err := t.stat(); err == nil && now.same(t.read) {
		t.refused = ""
		return t.config
	}
	if err := t.load(); err != nil {
		if t.refused != err.Error() {
			t.refused = err.Error()
			log.Warn().Err(err).Msg("changed TLS files are not used, the ones before are")
		}
		return t.config
	}
	log.Info().Str("path", t.files.cert).Time("expires", t.notAfter).Msg("TLS files were read again")
	t.warn(log)
	return t.config
}

// warn tells log what is odd about the files. mu is held, or nobody else has t.
func (t *nbdTLS) warn(log zerolog.Logger) {
	for _, w := range t.warnings {
		log.Warn().Msg(w)
	}
}

// readPEM reads a file that has to be there again for the next handshake: no
// pipe, no directory.
func readPEM(setting, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError(setting, path, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s %s: not a regular file; name a PEM file", setting, path)
	case info.Size() > maxPEMBytes:
		return nil, fmt.Errorf("%s %s: %s long, no PEM file is; is it the right file?", setting, path, formatSize(info.Size()))
	case isKey(setting) && info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s %s: mode %04o, everybody may use this private key: chmod o-rwx %[2]s", setting, path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError(setting, path, err)
	}
	if block, _ := pem.Decode(text); block == nil {
		return nil, fmt.Errorf("%s %s: nothing in it is PEM (-----BEGIN …); convert it, for DER: openssl %s -inform der -in %[2]s -out FILE", setting, path, pemCommand(setting))
	}
	return text, nil
}

func isKey(setting string) bool { return strings.HasSuffix(setting, "-tls-key") }

func pemCommand(setting string) string {
	if isKey(setting) {
		return "pkey"
	}
	return "x509"
}

func fileError(setting, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: no such file; put it there or correct --%[1]s", setting, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s %s: permission denied; let the agent's user read it", setting, path)
	}
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err
	}
	return fmt.Errorf("%s %s: %w; name another file with --%[1]s", setting, path, err)
}

// certificates returns those in a PEM text, at least one.
func certificates(setting, path string, text []byte) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	kinds := ""
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			kinds = block.Type
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s %s: certificate %d of it: %w; it is damaged, put a good one there", setting, path, len(found)+1, err)
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s %s: no certificate in it, but %q; name the file with the certificate", setting, path, kinds)
	}
	return found, nil
}

// checkKey explains what tls.X509KeyPair says of a key in general terms only.
func checkKey(setting, path string, text []byte) error {
	kinds := ""
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return fmt.Errorf("%s %s: no private key in it, but %q; name the file with the key", setting, path, kinds)
		}
		kinds = block.Type
		switch {
		case !strings.HasSuffix(kinds, "PRIVATE KEY"):
		case kinds == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return fmt.Errorf("%s %s: the key is encrypted and nobody is there to be asked for the password; decrypt it: openssl pkey -in %[2]s -out FILE", setting, path)
		default:
			return nil
		}
	}
}

// validity says which certificates are outside their time.
func validity(now time.Time, setting, path string, certs []*x509.Certificate, consequence string) (warnings []string) {
	const day = "2006-01-02 15:04 MST"
	for _, c := range certs {
		switch {
		case now.After(c.NotAfter):
			warnings = append(warnings, fmt.Sprintf("%s %s: %q has expired at %s, %s; renew it, no restart is needed", setting, path, c.Subject, c.NotAfter.UTC().Format(day), consequence))
		case now.Before(c.NotBefore):
			warnings = append(warnings, fmt.Sprintf("%s %s: %q is valid from %s only, %s until then; is the clock right?", setting, path, c.Subject, c.NotBefore.UTC().Format(day), consequence))
		}
	}
	return warnings
}
