package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"mirror-agent/blockdev"
	"mirror-agent/blockdev/nbd/certtest"
)

// tlsFiles are a server's files in a new directory, by a new authority.
func tlsFiles(t *testing.T) (nbdTLSFiles, *certtest.Authority) {
	t.Helper()
	dir, ca := t.TempDir(), certtest.New(t, "authority")
	ca.Write(dir, certtest.Server)
	return nbdTLSFiles{filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"), filepath.Join(dir, "ca-cert.pem"), false}, ca
}

func TestNBDTLSMistakes(t *testing.T) {
	put := func(path string, text []byte) func(*testing.T) {
		return func(t *testing.T) { certtest.Replace(t, path, text) }
	}
	good, ca := tlsFiles(t)
	cert, key := ca.Issue(certtest.Server, time.Hour)
	other := filepath.Join(t.TempDir(), "other.pem")
	der, _ := pem.Decode(cert)
	for _, tt := range []struct {
		name  string
		files nbdTLSFiles
		spoil func(*testing.T) // makes other
		want  string
	}{
		{"cert alone", nbdTLSFiles{cert: good.cert}, nil, "nbd-tls-cert " + good.cert + ": the certificate needs its private key too, --nbd-tls-key FILE"},
		{"key alone", nbdTLSFiles{key: good.key}, nil, "nbd-tls-key " + good.key + ": the key needs its certificate too, --nbd-tls-cert FILE"},
		{"authority alone", nbdTLSFiles{ca: good.ca}, nil, "needs --nbd-tls-cert FILE and --nbd-tls-key FILE"},
		{"no cert", nbdTLSFiles{"/no/cert", good.key, "", false}, nil, "nbd-tls-cert /no/cert: no such file; put it there or correct --nbd-tls-cert"},
		{"no key", nbdTLSFiles{good.cert, "/no/key", "", false}, nil, "nbd-tls-key /no/key: no such file"},
		{"no authority", nbdTLSFiles{good.cert, good.key, "/no/ca", false}, nil, "nbd-tls-ca /no/ca: no such file"},
		{"directory", nbdTLSFiles{filepath.Dir(good.cert), good.key, "", false}, nil, "not a regular file"},
		{"below a file", nbdTLSFiles{good.cert + "/x", good.key, "", false}, nil, "not a directory; name another file with --nbd-tls-cert"},
		{"device", nbdTLSFiles{good.cert, good.key, "/dev/zero", false}, nil, "not a regular file"},
		{"empty", nbdTLSFiles{good.cert, good.key, other, false}, put(other, nil), "nothing in it is PEM"},
		{"DER cert", nbdTLSFiles{other, good.key, "", false}, put(other, der.Bytes), "nothing in it is PEM (-----BEGIN …); convert it, for DER: openssl x509 -inform der -in " + other},
		{"no PEM key", nbdTLSFiles{good.cert, other, "", false}, put(other, []byte("secret")), "openssl pkey -inform der"},
		{"swapped", nbdTLSFiles{good.key, good.cert, "", false}, func(t *testing.T) { chmod(t, good.cert, 0o600) }, `no certificate in it, but "PRIVATE KEY"`},
		{"two certs", nbdTLSFiles{good.cert, good.cert, "", false}, nil, `no private key in it, but "CERTIFICATE"`},
		{"another key", nbdTLSFiles{good.cert, other, "", false}, put(other, key), "private key does not match public key; give the key that belongs to the certificate in " + good.cert},
		{"damaged cert", nbdTLSFiles{other, good.key, "", false}, put(other, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der.Bytes[:100]})), "certificate 1 of it: "},
		{"damaged key", nbdTLSFiles{good.cert, other, "", false}, put(other, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2, 3}})), "failed to parse private key"},
		{"encrypted key", nbdTLSFiles{good.cert, other, "", false}, put(other, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})), "the key is encrypted"},
		{"public key", nbdTLSFiles{good.cert, good.key, other, false}, put(other, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}})), `no certificate in it, but "PUBLIC KEY"`},
		{"huge", nbdTLSFiles{other, good.key, "", false}, put(other, make([]byte, maxPEMBytes+1)), "is it the right file?"},
		{"key for everybody", nbdTLSFiles{good.cert, other, "", false}, func(t *testing.T) { put(other, key)(t); chmod(t, other, 0o644) }, "mode 0644, everybody may use this private key: chmod o-rwx " + other},
	} {
		if tt.spoil != nil {
			tt.spoil(t)
		}
		_, err := loadNBDTLS(tt.files, time.Now)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\nwant …%s…", tt.name, err, tt.want)
		}
	}
	if tl, err := loadNBDTLS(nbdTLSFiles{}, time.Now); tl != nil || err != nil {
		t.Errorf("no files: %v, %v", tl, err)
	}
	if tl, err := loadNBDTLS(good, time.Now); err != nil || len(tl.warnings) > 0 {
		t.Errorf("good files: %v, %v", tl, err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestNBDTLSExpired: an expired certificate is no reason not to serve, but it is said, by config check too.
func TestNBDTLSExpired(t *testing.T) {
	files, ca := tlsFiles(t)
	cert, key := ca.Issue(certtest.Server, -time.Hour)
	certtest.Replace(t, files.cert, cert)
	certtest.Replace(t, files.key, key)
	a := newTestApp(t)
	a.now = time.Now
	config := writeFile(t, "c.yaml", "role: source\nname: v\ndevice: d\nnbd: 127.0.0.1:1\nnbd-tls-cert: "+files.cert+"\nnbd-tls-key: "+files.key+"\nnbd-tls-ca: "+files.ca)
	code, out, stderr := a.exec(t, "config", "check", config)
	if code != 0 || !strings.Contains(out, "warning: nbd-tls-cert "+files.cert+`: "CN=server" has expired at `) || strings.Count(out, "warning") != 1 {
		t.Errorf("%d %q %q", code, out, stderr)
	}
	a.now = func() time.Time { return time.Now().Add(-30 * 24 * time.Hour) }
	if _, out, _ = a.exec(t, "config", "check", config); strings.Count(out, "is the clock right?") != 2 {
		t.Errorf("a clock that is late: %q", out)
	}
	a.now = func() time.Time { return time.Now().Add(30 * 24 * time.Hour) }
	if _, out, _ = a.exec(t, "config", "check", config); !strings.Contains(out, `"CN=authority" has expired`) {
		t.Errorf("an authority that has expired: %q", out)
	}
}

// shaken does a handshake with what the files say now; it returns the serial number of the server's certificate.
func shaken(t *testing.T, config *tls.Config, client *tls.Config) (serial int64, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	ended := make(chan error, 1)
	go func() {
		defer far.Close()
		c := tls.Server(far, config)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte{1}) // by TLS 1.3 the client is done before its certificate was looked at
		}
		ended <- err
	}()
	c := tls.Client(near, client)
	if err = c.Handshake(); err == nil {
		serial = c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed: nobody looked at the client's certificate")
		}
		_, err = c.Read(make([]byte, 1))
	}
	near.Close()
	if serverErr := <-ended; err == nil {
		err = serverErr
	}
	return serial, err
}

func asClient(t *testing.T, trusts, signs *certtest.Authority) *tls.Config {
	t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	c.RootCAs.AppendCertsFromPEM(trusts.PEM)
	if signs != nil {
		pair, err := tls.X509KeyPair(signs.Issue(certtest.Client, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		// Not chosen by the authorities that the server names: a client may show what it likes.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c
}

// TestNBDTLSRenewal: files that change are used from the next handshake on; while they do not fit or cannot be read, what
// was there before is, and that is said once.
func TestNBDTLSRenewal(t *testing.T) {
	files, ca := tlsFiles(t)
	tl, err := loadNBDTLS(files, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	config := tl.server(zerolog.New(&said))
	client, age := asClient(t, ca, ca), 0
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	expect := func(what string, want int64, told string) {
		t.Helper()
		said.Reset()
		for range 3 {
			if got, err := shaken(t, config, client); err != nil || got != want {
				t.Fatalf("%s: serial %d, %v; want %d", what, got, err, want)
			}
		}
		if told == "" && said.Len() > 0 || strings.Count(said.String(), "\n") > 1 || !strings.Contains(said.String(), told) {
			t.Errorf("%s: it said\n%swant …%s…, once", what, &said, told)
		}
	}
	put := func(path string, text []byte) {
		certtest.Replace(t, path, text)
		age++ // whatever the clock of the filesystem counts in
		later := time.Now().Add(time.Duration(age) * time.Second)
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	expect("at first", 2, "")
	newCert, newKey := ca.Issue(certtest.Server, time.Hour) // 4: the client has 3
	put(files.cert, newCert)
	expect("half renewed", 2, "private key does not match")
	expect("half renewed still", 2, "")
	put(files.key, newKey)
	expect("renewed", 4, "TLS files were read again")
	expect("renewed still", 4, "")
	put(files.key, []byte("nothing"))
	expect("spoilt", 4, "nothing in it is PEM")
	os.Remove(files.key)
	expect("removed", 4, "no such file")
	late, lateKey := ca.Issue(certtest.Server, -time.Minute)
	put(files.cert, late)
	put(files.key, lateKey)
	said.Reset()
	if _, err := shaken(t, config, client); err == nil || !strings.Contains(said.String(), `has expired`) {
		t.Errorf("expired: %v, it said %s", err, &said)
	}
	put(files.cert, newCert)
	put(files.key, newKey)
	expect("back", 4, "TLS files were read again")

	second := certtest.New(t, "second")
	if _, err := shaken(t, config, asClient(t, ca, second)); err == nil {
		t.Error("a client of another authority was let in")
	}
	if _, err := shaken(t, config, asClient(t, ca, nil)); err == nil {
		t.Error("a client without a certificate was let in")
	}
	put(files.ca, second.PEM)
	if _, err := shaken(t, config, client); err == nil {
		t.Error("a client of the old authority was let in")
	}
	if _, err := shaken(t, config, asClient(t, ca, second)); err != nil {
		t.Errorf("a client of the new authority: %v", err)
	}
}

// TestFrontExposure: off loopback there is TLS, or --insecure was said. A unix socket is always as it is.
func TestFrontExposure(t *testing.T) {
	files, _ := tlsFiles(t)
	tl, err := loadNBDTLS(files, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	anybody, err := loadNBDTLS(nbdTLSFiles{cert: files.cert, key: files.key}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	socket := "unix:" + filepath.Join(t.TempDir(), "n")
	for _, tt := range []struct {
		address  string
		security frontSecurity
		ok, tls  bool
	}{
		{"127.0.0.1:0", frontSecurity{}, true, false},
		{"127.9.9.9:0", frontSecurity{}, true, false},
		{"localhost:0", frontSecurity{}, true, false},
		{"0.0.0.0:0", frontSecurity{}, false, false},
		{"[::]:0", frontSecurity{}, false, false},
		{"[::ffff:0.0.0.0]:0", frontSecurity{}, false, false},
		{socket, frontSecurity{}, true, false},
		{"0.0.0.0:0", frontSecurity{insecure: true}, true, false},
		{"0.0.0.0:0", frontSecurity{tls: tl}, true, true},
		{"0.0.0.0:0", frontSecurity{tls: anybody}, true, true},
		{"127.0.0.1:0", frontSecurity{tls: anybody}, true, true},
		{"127.0.0.1:0", frontSecurity{tls: tl, insecure: true}, true, true},
		{socket, frontSecurity{tls: tl}, true, false},
	} {
		var said strings.Builder
		f := newFront(zerolog.New(&said), tt.security)
		says := f.Check(tt.address)
		_, opened := f.Open(blockdev.NewMemory(1<<20, nil), "vol0", tt.address)
		if opened == nil && f.Stats().TLS != tt.tls {
			t.Errorf("%s %+v: TLS %t", tt.address, tt.security, f.Stats().TLS)
		}
		f.Abort()
		if warned := strings.Contains(said.String(), "--nbd-tls-ca asks"); warned != (tt.security.tls == anybody && tt.address == "0.0.0.0:0") {
			t.Errorf("%s %+v: it said %q", tt.address, tt.security, &said)
		}
		for _, err := range []error{says, opened} {
			if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "is off loopback and has no TLS") {
				t.Errorf("%s %+v: %v", tt.address, tt.security, err)
			}
		}
	}
	if err := (&frontSecurity{}).check("not a name:1"); err != nil {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestExposedStart: the daemon and config check say it before they touch anything; keys between the hosts, or that there
// are no other hosts, is no permission.
func TestExposedStart(t *testing.T) {
	a, dir := newTestApp(t), t.TempDir()
	device := filepath.Join(dir, "d")
	const want = "nbd: 192.0.2.1:10809 is off loopback and has no TLS"
	for _, args := range [][]string{
		{"source", "--name", "v", "--device", device, "--size", "16MiB", "--nbd", "192.0.2.1:10809"},
		{"target", "--name", "v", "--device", device, "--size", "16MiB", "--nbd", "192.0.2.1:10809", "--listen", "127.0.0.1:0"},
		{"config", "check", writeFile(t, "c.yaml", "role: source\nname: v\ndevice: "+device+"\nnbd: 192.0.2.1:10809\n")},
	} {
		code, _, stderr := a.exec(t, args...)
		if code != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("%q: %d %q", args, code, stderr)
		}
		oneErrorLine(t, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestAttachTLS: the kernel's client has no TLS, and attach says so and the way out. At a unix socket it attaches.
func TestAttachTLS(t *testing.T) {
	files, _ := tlsFiles(t)
	tl, err := loadNBDTLS(files, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	a, agent := newTestApp(t), &fakeAgent{state: healthy()}
	fake := withKernel(t, a)
	agentAt(t, a, "vol0", agent)
	open := func(address string) string {
		f := newFront(zerolog.Nop(), frontSecurity{tls: tl})
		t.Cleanup(f.Abort)
		at, err := f.Open(blockdev.NewMemory(1<<20, nil), "vol0", address)
		if err != nil {
			t.Fatal(err)
		}
		agent.state.NBD = f.Stats()
		return at
	}
	tcp := open("127.0.0.1:0")
	for _, args := range []string{"attach nbd0", "attach nbd0 --once", "attach nbd0 --nbd " + tcp} {
		code, _, stderr := a.exec(t, strings.Fields(args)...)
		if code != exitFailed || !strings.Contains(stderr, "the kernel's NBD client has no TLS: have it serve at a unix socket and attach that on the same host, or use nbdfuse with an nbds:// URI") {
			t.Errorf("%s: %d %q", args, code, stderr)
		}
		oneErrorLine(t, stderr)
		if fake.Connected(0) {
			t.Errorf("%s: the device is attached", args)
		}
	}
	open("unix:" + filepath.Join(t.TempDir(), "n"))
	if code, _, stderr := a.exec(t, "attach", "nbd0", "--once"); code != 0 || !fake.Connected(0) {
		t.Errorf("a unix socket: %d %q", code, stderr)
	}
}

// TestTLSIsShown: in status, and in the address that promote tells to use.
func TestTLSIsShown(t *testing.T) {
	st := healthy()
	st.NBD.Address, st.NBD.TLS = "10.1.0.5:10809", true
	var b strings.Builder
	view{now: testNow}.status(&b, st)
	if !strings.Contains(b.String(), "clients   2 (10.1.0.5:10809, TLS) ") {
		t.Error(b.String())
	}
	for want, got := range map[string]string{
		"nbds://10.1.0.5:10809": nbdURI("10.1.0.5:10809", true),
		"nbd://10.1.0.5:10809":  nbdURI("10.1.0.5:10809", false),
		"nbd+unix:///?socket=x": nbdURI("unix:x", false),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
