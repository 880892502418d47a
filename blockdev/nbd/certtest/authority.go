package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// TB is what is needed of a test.
type TB interface {
	Helper()
	Fatal(args ...any)
}

// Role is what a certificate is good for; it is the beginning of its files' names.
type Role string

// The roles.
const (
	Server Role = "server"
	Client Role = "client"
	Both   Role = "both" // of a server that calls itself, as etcd's gateway does
)

// Authority signs certificates. It is for one goroutine.
type Authority struct {
	t      TB
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
	// PEM is its own certificate.
	PEM []byte
}

// New makes an authority.
func New(t TB, name string) *Authority {
	t.Helper()
	a := &Authority{t: t, serial: 1}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.PEM = encode("CERTIFICATE", der)
	return a
}

// Issue returns a new certificate that expires after the given time, which may be negative, and its key, both in PEM.
// Serial numbers count up from 2.
func (a *Authority) Issue(role Role, expires time.Duration) (cert, key []byte) {
	a.t.Helper()
	a.serial++
	usage := map[Role][]x509.ExtKeyUsage{
		Server: {x509.ExtKeyUsageServerAuth}, Client: {x509.ExtKeyUsageClientAuth}, Both: {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: string(role)}, SerialNumber: big.NewInt(a.serial), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usage[role], DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:   time.Now().Add(-12 * time.Hour), NotAfter: time.Now().Add(expires),
	}
	private := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8)
}

// Write puts a new certificate of the role, good for a day, its key and the authority's certificate into dir: ROLE-cert.pem,
// ROLE-key.pem, ca-cert.pem.
func (a *Authority) Write(dir string, role Role) {
	a.t.Helper()
	cert, key := a.Issue(role, 24*time.Hour)
	Replace(a.t, filepath.Join(dir, string(role)+"-cert.pem"), cert)
	Replace(a.t, filepath.Join(dir, string(role)+"-key.pem"), key)
	Replace(a.t, filepath.Join(dir, "ca-cert.pem"), a.PEM)
}

// Replace puts a new file in an old one's place as a careful program does, mode 0600.
func Replace(t TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func newKey(t TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
