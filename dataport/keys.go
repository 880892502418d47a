package dataport

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"
)

const keyPrefix = "ed25519:"

// GenerateKey makes a new node identity.
func GenerateKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// MarshalKey returns the key as PKCS #8 in PEM.
func MarshalKey(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads what MarshalKey wrote.
func ParseKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("parse key: no PEM block PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w", err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("parse key: it is a %T, want Ed25519", k)
	}
	return key, nil
}

// SaveKey writes a new key file of mode 0600; an existing file is never overwritten.
func SaveKey(path string, key ed25519.PrivateKey) error {
	text, err := MarshalKey(key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	return nil
}

// LoadKey reads a key file. A file that others than its owner may read is refused.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("load key: %s has mode %04o, others may read it: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if st.Size() > 64<<10 {
		return nil, fmt.Errorf("load key: %s has %d bytes, that is no key", path, st.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// FormatPublicKey returns "ed25519:BASE64" (unpadded), the form used in configuration, logs and errors.
func FormatPublicKey(k ed25519.PublicKey) string {
	return keyPrefix + base64.RawStdEncoding.EncodeToString(k)
}

// ParsePublicKey reads what FormatPublicKey wrote; padding is allowed.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), keyPrefix)
	if !ok {
		return nil, fmt.Errorf("public key %q: want ed25519:BASE64", s)
	}
	k, err := base64.RawStdEncoding.Strict().DecodeString(strings.TrimRight(body, "="))
	if err != nil {
		return nil, fmt.Errorf("public key %q: %w", s, err)
	}
	if len(k) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("public key %q: has %d bytes, want %d", s, len(k), ed25519.PublicKeySize)
	}
	return k, nil
}

// certificateOf returns a certificate that carries nothing but the key: names, dates and issuers mean nothing here.
func certificateOf(key ed25519.PrivateKey) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mirror-agent"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func presentedKey(cs tls.ConnectionState) (ed25519.PublicKey, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, fmt.Errorf("%w: none presented", ErrWrongKey)
	}
	k, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: presented a %T", ErrWrongKey, cs.PeerCertificates[0].PublicKey)
	}
	return k, nil
}

func pinnedKey(cs tls.ConnectionState, pinned []ed25519.PublicKey) (ed25519.PublicKey, error) {
	k, err := presentedKey(cs)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(pinned))
	for _, p := range pinned {
		if bytes.Equal(p, k) {
			return k, nil
		}
		names = append(names, FormatPublicKey(p))
	}
	return nil, fmt.Errorf("%w: presented key %s, expected one of %s", ErrWrongKey, FormatPublicKey(k), strings.Join(names, ", "))
}
