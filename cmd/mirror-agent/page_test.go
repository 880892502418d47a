package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev/nbd/certtest"
)

// pageFiles are a token and certificates, as "T", "C", "K" and "A" in arguments.
func pageFiles(t *testing.T) *strings.Replacer {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key := certtest.New(t, "authority").Issue(certtest.Server, time.Hour)
	return strings.NewReplacer("=T", "="+write("token", "0123456789abcdefghij\n", 0o600), "=S", "="+write("short", "abc\n", 0o600),
		"=O", "="+write("open", "0123456789abcdefghij\n", 0o644), "=C", "="+write("cert", string(cert), 0o644), "=K", "="+write("key", string(key), 0o600))
}

// TestPageIsRefused: whatever would let everybody in, or sends a secret in the clear, before anything is touched.
func TestPageIsRefused(t *testing.T) {
	files := pageFiles(t)
	for _, tt := range []struct{ name, args, want string }{
		{"off loopback, open", "--http 192.0.2.1:80", "everybody who reaches it could look on: add --http-token"},
		{"every address, open", "--http 0.0.0.0:0", "everybody who reaches it could look on"},
		{"off loopback, the token in the clear", "--http 192.0.2.1:80 --http-token=T", "the token would go there in the clear: add --http-tls-cert"},
		{"off loopback, encrypted and open", "--http 192.0.2.1:80 --http-tls-cert=C --http-tls-key=K", "everybody who reaches it could look on"},
		{"orders from everybody", "--http 127.0.0.1:0 --http-control", "everybody who reaches the page could give orders: add --http-token"},
		{"no address", "--http-token=T", "add --http HOST:PORT"},
		{"no token there", "--http 127.0.0.1:0 --http-token=/nowhere", "http-token /nowhere: no such file"},
		{"a short token", "--http 127.0.0.1:0 --http-token=S", "openssl rand -hex 16"},
		{"a token for everybody", "--http 127.0.0.1:0 --http-token=O", "chmod o-rwx"},
		{"half of a certificate", "--http 127.0.0.1:0 --http-tls-cert=C", "--http-tls-key FILE"},
		{"another key", "--http 127.0.0.1:0 --http-tls-cert=K --http-tls-key=K", "http-tls-cert"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, dir := newTestApp(t), t.TempDir()
			args := "source --name vol0 --size 16MiB --device " + dir + "/dev --nbd unix:" + dir + "/nbd " + files.Replace(tt.args)
			code, _, said := a.exec(t, strings.Fields(args)...)
			if code != exitFailed || !strings.Contains(said, tt.want) {
				t.Errorf("code %d: %s\nwant %q", code, said, tt.want)
			}
			oneErrorLine(t, said)
			if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
