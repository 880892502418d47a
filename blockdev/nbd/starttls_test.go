package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// pki is an authority with a certificate for a server at localhost and one for a client.
type pki struct {
	pool           *x509.CertPool
	server, client tls.Certificate
	dir            string // as libnbd and qemu want the client's side
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	fatal := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &pki{pool: x509.NewCertPool(), dir: t.TempDir()}
	write := func(name, kind string, der []byte) []byte {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		fatal(os.WriteFile(filepath.Join(p.dir, name), text, 0o600))
		return text
	}
	serial := int64(0)
	sign := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		fatal(err)
		if signer == nil {
			signer = key
		}
		serial++
		template.SerialNumber = big.NewInt(serial)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		fatal(err)
		return der, key
	}
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, caKey := sign(ca, ca, nil)
	p.pool.AppendCertsFromPEM(write("ca-cert.pem", "CERTIFICATE", der))
	leaf := func(name string, usage x509.ExtKeyUsage) tls.Certificate {
		der, key := sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		}, ca, caKey)
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		fatal(err)
		c, err := tls.X509KeyPair(write(name+"-cert.pem", "CERTIFICATE", der), write(name+"-key.pem", "PRIVATE KEY", pkcs8))
		fatal(err)
		return c
	}
	p.server, p.client = leaf("server", x509.ExtKeyUsageServerAuth), leaf("client", x509.ExtKeyUsageClientAuth)
	return p
}

func (p *pki) options(required bool) Options {
	return Options{TLSRequired: required, TLS: &tls.Config{
		Certificates: []tls.Certificate{p.server}, ClientCAs: p.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}
}

// secure does STARTTLS and goes on by TLS.
func (c *raw) secure(p *pki) *raw {
	c.t.Helper()
	c.option(optionStartTLS)
	c.acknowledged(optionStartTLS)
	s := tls.Client(c.Conn, &tls.Config{RootCAs: p.pool, Certificates: []tls.Certificate{p.client}, ServerName: "localhost"})
	if err := s.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	return &raw{c.t, s}
}

func TestStartTLS(t *testing.T) {
	p := newPKI(t)
	d := blockdev.NewMemory(4*mib, nil)
	s, path := start(t, p.options(true), Export{Device: d})
	plain := dial(t, path)
	plain.greeting(clientFixedNewstyle | clientNoZeroes)
	for id := uint32(2); id < 20; id++ {
		if id == optAbort || id == optionStartTLS {
			continue
		}
		for _, n := range []int{0, 10, maxOptionSize + 1} {
			plain.option(id, make([]byte, n))
			if kind, _ := plain.answer(id); kind != replyErrTLS {
				t.Fatalf("option %d with %d bytes in the clear: %x", id, n, kind)
			}
		}
	}
	plain.option(optionStartTLS, "surplus")
	if kind, _ := plain.answer(optionStartTLS); kind != replyErrInvalid {
		t.Fatalf("%x", kind)
	}
	c := plain.secure(p)
	c.option(optionStartTLS)
	if kind, _ := c.answer(optionStartTLS); kind != replyErrInvalid {
		t.Fatalf("TLS in TLS: %x", kind)
	}
	c.option(optGo, goData("")...)
	for kind, _ := c.answer(optGo); kind != repAck; kind, _ = c.answer(optGo) {
	}
	for i, n := range []int{1, 4096, 100_000, mib, 3 * mib} {
		data := pattern(n, byte(i))
		go c.Write(request(cmdWrite, cmdFlagFUA, 1, uint64(i), uint32(n), data))
		c.expect(0, 1)
		c.put(request(cmdRead, 0, 2, uint64(i), uint32(n)))
		c.expect(0, 2)
		if !bytes.Equal(c.get(n), data) {
			t.Fatalf("%d bytes read back differ", n)
		}
	}
	c.put(request(cmdDisc, 0, 0, 0, 0))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF { // and not an unexpected one
		t.Error("after DISC:", n, err)
	}
	// A connection that is drained is told too.
	c = dial(t, path)
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c = c.secure(p)
	c.option(optionExportName)
	c.get(10)
	c.alive()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Error("after Shutdown:", n, err)
	}
}

func TestNoWayAroundTLS(t *testing.T) {
	p := newPKI(t)
	_, path := start(t, p.options(true), Export{Device: blockdev.NewMemory(mib, nil)})
	for name, say := range map[string]func(c *raw){
		"EXPORT_NAME":              func(c *raw) { c.greeting(clientFixedNewstyle); c.option(optionExportName) },
		"a client without options": func(c *raw) { c.greeting(0) },
		"no TLS after the acknowledgement": func(c *raw) {
			c.greeting(clientFixedNewstyle)
			c.option(optionStartTLS)
			c.acknowledged(optionStartTLS)
			c.option(optGo, goData("")...)
			// What is said now, if anything, is TLS's alert.
			said, _ := io.ReadAll(c)
			if bytes.Contains(said, encode(protocol.NEGOTIATION_MAGIC_REPLY)) {
				t.Errorf("answered in the clear: %x", said)
			}
		},
		"an injected option": func(c *raw) { // behind STARTTLS in one packet: it must not count as said by TLS
			c.greeting(clientFixedNewstyle)
			option := func(id uint32, data ...any) []byte {
				p := encode(data...)
				return encode(protocol.NEGOTIATION_MAGIC_OPTION, id, uint32(len(p)), p)
			}
			c.put(append(option(optionStartTLS), option(optGo, goData("")...)...))
			c.acknowledged(optionStartTLS)
			said, _ := io.ReadAll(c)
			if bytes.Contains(said, encode(protocol.NEGOTIATION_MAGIC_REPLY)) {
				t.Errorf("answered: %x", said)
			}
		},
		"a client without a certificate": func(c *raw) {
			c.greeting(clientFixedNewstyle)
			c.option(optionStartTLS)
			c.acknowledged(optionStartTLS)
			s := tls.Client(c.Conn, &tls.Config{RootCAs: p.pool, ServerName: "localhost"})
			if err := s.Handshake(); err == nil {
				_, err = s.Read(make([]byte, 1))
				if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("it was let in:", err)
				}
			}
			io.Copy(io.Discard, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path)
			say(c)
			c.ended()
		})
	}
}

// Where TLS is on offer only, it can be left, and what was negotiated before it is forgotten.
func TestTLSOnOffer(t *testing.T) {
	p := newPKI(t)
	_, path := start(t, p.options(false), twoExports()...)
	connect(t, path).alive()
	c := dial(t, path)
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.option(optionStructuredReply)
	c.acknowledged(optionStructuredReply)
	c.option(optionSetMetaContext, metaData("", allocationName)...)
	c.answer(optionSetMetaContext)
	c.acknowledged(optionSetMetaContext)
	c = c.secure(p)
	c.option(optionSetMetaContext, metaData("", allocationName)...)
	if kind, _ := c.answer(optionSetMetaContext); kind != replyErrInvalid {
		t.Fatalf("structured replies are still on: %x", kind)
	}
	c.option(optionStructuredReply)
	c.acknowledged(optionStructuredReply)
	c.option(optionExportName)
	c.get(10)
	c.put(request(cmdBlockStatus, 0, 1, 0, 512))
	if said, _ := c.structured(); said != "error 22" {
		t.Fatal("the context is still set:", said)
	}
	old := dial(t, path)
	old.greeting(0)
	old.option(optionStartTLS)
	if kind, _ := old.answer(optionStartTLS); kind != replyErrPolicy {
		t.Fatalf("TLS for a client that is not of the fixed newstyle: %x", kind)
	}
}

func TestTLSWithoutConfigPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewServer(Options{TLSRequired: true}, twoExports()...)
}

// secureServer serves by TCP with TLS required, and returns the port.
func secureServer(t *testing.T, p *pki, e Export) string {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(p.options(true), e)
	done := make(chan error)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		s.Wait()
		<-done
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestTLSClients(t *testing.T) {
	info, copies := tool(t, "nbdinfo", "libnbd-bin"), tool(t, "nbdcopy", "libnbd-bin")
	p := newPKI(t)
	d := blockdev.NewMemory(8*mib, nil)
	port := secureServer(t, p, Export{Name: "disk", Device: d, MultiConn: true})
	uri := "nbds://localhost:" + port + "/disk?tls-certificates=" + p.dir
	if out := info("--json", uri); !strings.Contains(out, `"TLS": true`) || !strings.Contains(out, `"structured"`) {
		t.Error(out)
	}
	source, back := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "back")
	data := append(pattern(5*mib, 3), make([]byte, 3*mib)...)
	if err := os.WriteFile(source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	copies("--connections=4", "--flush", source, uri)
	copies("--connections=4", uri, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Error("what was copied back differs", err)
	}
	t.Run("qemu-img", func(t *testing.T) {
		compare := tool(t, "qemu-img", "qemu-utils")
		out := compare("compare", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+p.dir, "--image-opts",
			"driver=raw,file.driver=file,file.filename="+source,
			"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port="+port+
				",file.export=disk,file.tls-creds=tls")
		if !strings.Contains(out, "identical") {
			t.Error(out)
		}
	})
}

// libnbd with TLS that it must have, may have or does not want, and a server that insists on it, offers it or has none.
func TestNbdshTLS(t *testing.T) {
	run := tool(t, "nbdsh", "python3-libnbd")
	p := newPKI(t)
	for _, c := range []struct {
		name   string
		server Options
		want   string // of REQUIRE, ALLOW, DISABLE: by TLS, in the clear, or not at all
	}{
		{"required", p.options(true), "tls tls none"},
		{"on offer", p.options(false), "tls tls clear"},
		{"no TLS", Options{}, "none clear clear"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path := start(t, c.server, Export{Name: "disk", Device: blockdev.NewMemory(4*mib, nil)})
			run("-c", `
got = []
for mode in [nbd.TLS_REQUIRE, nbd.TLS_ALLOW, nbd.TLS_DISABLE]:
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.set_tls(mode)
    h.set_tls_certificates("`+p.dir+`")
    h.set_tls_verify_peer(False)  # a unix socket has no name that a certificate could be for
    h.set_export_name("disk")
    h.set_opt_mode(True)
    try:
        h.connect_unix("`+path+`")
        assert h.opt_list(lambda name, text: 0) == 1
        h.opt_info()
        h.opt_go()
    except nbd.Error:
        got.append("none")
        continue
    got.append("tls" if h.get_tls_negotiated() else "clear")
    assert h.get_structured_replies_negotiated() and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    data = bytes(range(256)) * 4096
    h.pwrite(data, 1 << 20, nbd.CMD_FLAG_FUA)
    assert h.pread(len(data), 1 << 20) == data
    h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
    h.trim(1 << 20, 2 << 20)
    h.flush()
    said = []
    h.block_status(4 << 20, 0, lambda c, o, e, err: said.extend(e) and 0)
    assert sum(said[::2]) == 4 << 20, said
    h.shutdown()
assert " ".join(got) == "`+c.want+`", got
`)
		})
	}
}
