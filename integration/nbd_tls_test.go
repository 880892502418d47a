package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev/nbd/certtest"
)

// nbdPKI is an authority, and a directory for each who uses its certificates.
type nbdPKI struct {
	ca             *certtest.Authority
	server, client string
}

func newNBDPKI(t testing.TB) *nbdPKI {
	t.Helper()
	dir := shortDir(t)
	p := &nbdPKI{ca: certtest.New(t, "authority"), server: filepath.Join(dir, "server"), client: filepath.Join(dir, "client")}
	p.ca.Write(makeDir(t, p.server), certtest.Server)
	p.ca.Write(makeDir(t, p.client), certtest.Client)
	return p
}

func makeDir(t testing.TB, path string) string {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// args are the settings of an agent.
func (p *nbdPKI) args() []string {
	return []string{
		"--nbd-tls-cert", filepath.Join(p.server, "server-cert.pem"), "--nbd-tls-key", filepath.Join(p.server, "server-key.pem"),
		"--nbd-tls-ca", filepath.Join(p.server, "ca-cert.pem"),
	}
}

// tlsURI is a TCP address for libnbd's tools, with the client's files in dir.
func tlsURI(addr, dir string) string {
	return "nbds://" + addr + "/" + mirrorName + "?tls-certificates=" + dir
}

// qemuTLS are the arguments of qemu's tools for the same.
func qemuTLS(t testing.TB, addr, dir string) (object []string, image string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + dir},
		fmt.Sprintf("driver=nbd,host=%s,port=%s,export=%s,tls-creds=tls0", host, port, mirrorName)
}

// replyTLSRequired is how the harness's client shows NBD_REP_ERR_TLS_REQD.
const replyTLSRequired = "0x80000005"

// newTLSMirror prepares a source that serves by TLS at a TCP address, and a
// target that will; the target has all its settings from a file.
func newTLSMirror(t testing.TB, p *nbdPKI) *testMirror {
	t.Helper()
	m := newMirror(t, layout{})
	for _, a := range []*agent{m.source, m.target} {
		a.nbd = freePort(t, "127.0.0.1")
		a.args = append(append(a.args, "--nbd", a.nbd), p.args()...)
	}
	m.target.args = asConfig(t, m.target.args, m.path("target", "yaml"))
	return m
}

// asConfig writes a command line with only flags that have values to a file.
func asConfig(t testing.TB, args []string, path string) []string {
	t.Helper()
	values := map[string]string{"role": args[0]}
	for i := 1; i+1 < len(args); i += 2 {
		values[strings.TrimPrefix(args[i], "--")] = args[i+1] // the last counts, as on the command line
	}
	var b strings.Builder
	for k, v := range values {
		fmt.Fprintf(&b, "%s: %q\n", k, v)
	}
	writeFile(t, path, b.String())
	return []string{"run", "--config", path}
}

// pythonPath has nbdsh take the python3 that the package of its module is for.
func pythonPath() string { return "PATH=/usr/bin:" + os.Getenv("PATH") }

// connected is a script of nbdsh that begins with a connection to a URI.
func connected(uri, script string) []string {
	return []string{pythonPath(), "nbdsh", "-c", fmt.Sprintf("h.set_uri_allow_local_file(True)\nh.connect_uri(%q)\n%s", uri, script)}
}

// nbdPython runs one to its end; needNBDPython skips where it cannot.
func nbdPython(t testing.TB, uri, script string) {
	t.Helper()
	tool(t, "env", connected(uri, script)...)
}

func needNBDPython(t testing.TB) {
	t.Helper()
	needTools(t, "nbdsh")
	if out, err := tryTool(toolTimeout, "env", pythonPath(), "nbdsh", "-c", "pass"); err != nil {
		t.Skipf("nbdsh does not work, run scripts/deps.sh: %s", out)
	}
}

// mustRefuse runs a client that has to fail, for a reason that contains one of
// the words. None: by TLS 1.3 a client believes that it is in before its
// certificate was looked at, and what it then says depends on the moment; the
// agent's log has the reason.
func mustRefuse(t testing.TB, why []string, name string, args ...string) {
	t.Helper()
	out, err := tryTool(toolTimeout, name, args...)
	if err == nil {
		t.Errorf("%s %s was let in:\n%s", name, strings.Join(args, " "), out)
		return
	}
	if len(why) == 0 || slices.ContainsFunc(why, func(w string) bool { return strings.Contains(out, w) }) {
		return
	}
	t.Errorf("%s %s: %v, and it says nothing of %q:\n%s", name, strings.Join(args, " "), err, why, out)
}

// TestNBDTLS: clients that users have, by TLS with certificates and without.
func TestNBDTLS(t *testing.T) {
	needTools(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "qemu-nbd")
	needNBDPython(t)
	p := newNBDPKI(t)
	m := newTLSMirror(t, p)
	m.source.args = append(m.source.args, "--log-level", "debug")
	m.start()
	uri := tlsURI(m.source.nbd, p.client)
	object, image := qemuTLS(t, m.source.nbd, p.client)
	host, port, _ := net.SplitHostPort(m.source.nbd)
	list := []string{"--list", "-b", host, "-p", port}

	if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") || !strings.Contains(out, fmt.Sprint(m.size)) {
		t.Errorf("nbdinfo:\n%s", out)
	}
	nbdPython(t, uri, `
assert h.get_tls_negotiated()
for i in range(64):
    h.pwrite(bytes([i+1]) * 65536, i*65536, nbd.CMD_FLAG_FUA if i % 8 == 0 else 0)
h.flush()
for i in range(64):
    assert h.pread(65536, i*65536) == bytes([i+1]) * 65536
`)
	if out := tool(t, "qemu-nbd", append(append(list, "--tls-creds", "tls0"), object...)...); !strings.Contains(out, mirrorName) {
		t.Errorf("qemu-nbd --list:\n%s", out)
	}
	if out := tool(t, "qemu-img", append(append([]string{"info"}, object...), "--image-opts", image)...); !strings.Contains(out, fmt.Sprintf("(%d bytes)", m.size)) {
		t.Errorf("qemu-img info:\n%s", out)
	}
	out := tool(t, "qemu-io", append(object, "--image-opts", image,
		"-c", "read -P 64 4128768 64k", "-c", "write -P 0x5a 8M 2M", "-c", "flush", "-c", "read -P 0x5a 8M 2M")...)
	if strings.Contains(out, "failed") || strings.Count(out, "read 2097152/2097152") != 1 {
		t.Errorf("qemu-io:\n%s", out)
	}
	tool(t, "nbdcopy", "--connections=4", uri, m.path("copy", "img"))

	t.Run("refused", func(t *testing.T) {
		if c, err := dialNBD(m.source.nbd, mirrorName); err == nil || !strings.Contains(err.Error(), replyTLSRequired) {
			t.Errorf("GO in the clear: %v %v, want %s", c, err, replyTLSRequired)
		}
		mustRefuse(t, []string{"TLS"}, "nbdinfo", nbdURI(m.source.nbd))
		mustRefuse(t, []string{"Operation not supported"}, "nbdinfo", "--list", nbdURI(m.source.nbd)) // how libnbd says it here
		mustRefuse(t, []string{"TLS"}, "qemu-nbd", list...)
		mustRefuse(t, []string{"TLS"}, "qemu-img", "info", nbdURI(m.source.nbd))

		bare := makeDir(t, filepath.Join(p.client, "bare"))
		writeFile(t, filepath.Join(bare, "ca-cert.pem"), string(p.ca.PEM))
		mustRefuse(t, nil, "nbdinfo", tlsURI(m.source.nbd, bare))

		// Of another authority. It has the name of ours: else GnuTLS would not show the certificate at all.
		wrong := makeDir(t, filepath.Join(p.client, "wrong"))
		certtest.New(t, "authority").Write(wrong, certtest.Client)
		certtest.Replace(t, filepath.Join(wrong, "ca-cert.pem"), p.ca.PEM)
		mustRefuse(t, nil, "nbdinfo", tlsURI(m.source.nbd, wrong))

		// A client's certificate that is only good for servers.
		role := makeDir(t, filepath.Join(p.client, "role"))
		cert, key := p.ca.Issue(certtest.Server, time.Hour)
		certtest.Replace(t, filepath.Join(role, "client-cert.pem"), cert)
		certtest.Replace(t, filepath.Join(role, "client-key.pem"), key)
		certtest.Replace(t, filepath.Join(role, "ca-cert.pem"), p.ca.PEM)
		mustRefuse(t, nil, "nbdinfo", tlsURI(m.source.nbd, role))

		for _, why := range []string{"client didn't provide a certificate", "signed by unknown authority", "incompatible key usage"} {
			eventually(t, startLimit, "the agent says "+why, func() (bool, string) {
				log := tail(m.source.log, 1<<20)
				return strings.Contains(log, why), log
			})
		}
	})
	if s := m.source.mustStatus(); s.NBD.Address != m.source.nbd || !strings.Contains(m.source.mustCommand("status"), m.source.nbd+", TLS") {
		t.Errorf("status: %+v\n%s", s.NBD, m.source.mustCommand("status"))
	}
	m.stopLevel("target")
	sameFile(t, m.source.device, m.path("copy", "img"))
}

// TestNBDTLSRenewal: certificates change under a running agent. Who is
// connected stays so, who comes meets the new ones.
func TestNBDTLSRenewal(t *testing.T) {
	needTools(t, "nbdinfo")
	needNBDPython(t)
	p := newNBDPKI(t)
	m := newTLSMirror(t, p)
	m.start()
	next := newNBDPKI(t)
	go_, went := m.path("go", "flag"), m.path("went", "flag")
	background(t, "env", connected(tlsURI(m.source.nbd, p.client), fmt.Sprintf(`
import os, time
h.pwrite(b"a" * 4096, 0)
open(%q, "w").close()
while not os.path.exists(%q):
    time.sleep(0.02)
h.pwrite(b"b" * 4096, 0)
h.flush()
open(%[1]q + ".2", "w").close()
`, went, go_))...)
	exists := func(path string) func() (bool, string) {
		return func() (bool, string) { _, err := os.Stat(path); return err == nil, fmt.Sprint(err) }
	}
	eventually(t, startLimit, "the client has written", exists(went))
	// All of it is replaced, one file after the other.
	for _, f := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		text, err := os.ReadFile(filepath.Join(next.server, f))
		if err != nil {
			t.Fatal(err)
		}
		certtest.Replace(t, filepath.Join(p.server, f), text)
	}
	tool(t, "nbdinfo", tlsURI(m.source.nbd, next.client))
	mustRefuse(t, []string{"ertificate"}, "nbdinfo", tlsURI(m.source.nbd, p.client))
	writeFile(t, go_, "")
	eventually(t, startLimit, "the old client has written again", exists(went+".2"))
	if !strings.Contains(tail(m.source.log, 1<<20), "TLS files were read again") {
		t.Error("the agent said nothing of the new files")
	}
	m.stopLevel("target")
}

// TestNBDTLSPromote: a target that becomes the primary serves by the TLS of
// its own settings; one without does not become it at an address for others.
func TestNBDTLSPromote(t *testing.T) {
	needNBDPython(t)
	p := newNBDPKI(t)
	m := newTLSMirror(t, p)
	m.start()
	nbdPython(t, tlsURI(m.source.nbd, p.client), `h.pwrite(b"x" * 65536, 4096); h.flush()`)
	m.source.kill()
	m.target.until(startLimit, "misses its source", func(s *status) bool { return s.State == "waiting" })
	if out := m.target.mustCommand("promote"); !strings.Contains(out, "nbdinfo 'nbds://"+m.target.nbd+"'") {
		t.Errorf("promote:\n%s", out)
	}
	read := `assert h.pread(65536, 4096) == b"x" * 65536`
	nbdPython(t, tlsURI(m.target.nbd, p.client), read)
	mustRefuse(t, []string{"TLS"}, "env", connected(nbdURI(m.target.nbd), read)...)
	m.target.stop()

	// The same at a unix socket: TLS for who wants it.
	socket := "unix:" + m.path("target", "nbd")
	m.target.args = append(m.target.args, "--nbd", socket)
	m.target.start()
	m.target.nbd = socket
	m.target.dial(startLimit).close()
	nbdPython(t, nbdURI(socket), read)
	nbdPython(t, "nbds+unix:///"+mirrorName+"?socket="+m.path("target", "nbd")+"&tls-certificates="+p.client+"&tls-hostname=localhost", "assert h.get_tls_negotiated()\n"+read)
	m.target.stop()
}

func TestNBDExposedPromote(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	m.source.stop()
	before := m.target.mustStatus()
	r := m.target.command("promote", "--force", "--nbd", "0.0.0.0:0")
	if r.code != 1 {
		t.Errorf("exit status %d", r.code)
	}
	checkOneLine(t, r.stderr, "refused", "0.0.0.0:0", "--nbd-tls-cert", "--insecure")
	if s := m.target.mustStatus(); s.Role != before.Role || s.Generation != before.Generation || s.Role != "secondary" {
		t.Errorf("refused, and it is %s of generation %s now", s.Role, s.Generation)
	}
	m.target.stop()
}

// TestNBDFastZero: a mirrored device always zeroes fast, whatever is below it.
func TestNBDFastZero(t *testing.T) {
	needNBDPython(t)
	m := newMirror(t, layout{})
	m.start()
	nbdPython(t, nbdURI(m.source.nbd), `
assert h.can_fast_zero()
h.pwrite(b"x" * 1048576, 0)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.zero(4097, 65537, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.zero(h.get_size() - 2097152, 2097152, nbd.CMD_FLAG_FAST_ZERO)
want = bytearray(b"x" * 1048576)
for at, n in (4096, 4096), (16384, 4096), (65537, 4097):
    want[at:at+n] = bytes(n)
assert h.pread(1048576, 0) == want
assert h.pread(1048576, 2097152) == bytes(1048576)
h.flush()
`)
	m.stopLevel("target")
}

// badTLS are the rows of TestBadInput that are about certificates: source makes
// a command line that is good but for them.
func badTLS(source func(dir string, more ...string) []string) []badCase {
	type spoil func(t *testing.T, dir string, ca *certtest.Authority)
	with := func(spoil spoil, flags ...string) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string {
			ca := certtest.New(t, "authority")
			ca.Write(dir, certtest.Server)
			if spoil != nil {
				spoil(t, dir, ca)
			}
			return source(dir, append([]string{"--size", "16MiB"}, fill(flags, "DIR", dir)...)...)
		}
	}
	const cert, key = "DIR/server-cert.pem", "DIR/server-key.pem"
	both := []string{"--nbd-tls-cert", cert, "--nbd-tls-key", key}
	return []badCase{
		{"NBD certificate without its key", with(nil, "--nbd-tls-cert", cert), nil, []string{cert, "--nbd-tls-key"}},
		{"NBD key without its certificate", with(nil, "--nbd-tls-key", key), nil, []string{key, "--nbd-tls-cert"}},
		{"NBD authority alone", with(nil, "--nbd-tls-ca", "DIR/ca-cert.pem"), nil, []string{"DIR/ca-cert.pem", "--nbd-tls-cert", "--nbd-tls-key"}},
		{"NBD certificate missing", with(func(_ *testing.T, dir string, _ *certtest.Authority) {
			os.Remove(filepath.Join(dir, "server-cert.pem"))
		}, both...), nil, []string{cert, "no such file", "--nbd-tls-cert"}},
		{"NBD certificate unreadable", with(nil, "--nbd-tls-cert", "DIR", "--nbd-tls-key", key), nil, []string{"nbd-tls-cert DIR", "not a regular file"}},
		{"NBD certificate is not PEM", with(func(t *testing.T, dir string, _ *certtest.Authority) {
			certtest.Replace(t, filepath.Join(dir, "server-cert.pem"), []byte{0x30, 0x82, 1, 2})
		}, both...), nil, []string{cert, "PEM", "openssl"}},
		{"NBD key of another certificate", with(func(t *testing.T, dir string, ca *certtest.Authority) {
			_, other := ca.Issue(certtest.Server, time.Hour)
			certtest.Replace(t, filepath.Join(dir, "server-key.pem"), other)
		}, both...), nil, []string{key, cert, "does not match"}},
		{"NBD key for everybody", with(func(t *testing.T, dir string, _ *certtest.Authority) {
			if err := os.Chmod(filepath.Join(dir, "server-key.pem"), 0o604); err != nil {
				t.Fatal(err)
			}
		}, both...), nil, []string{key, "0604", "chmod"}},
		{"NBD authority without a certificate", with(nil, append(both, "--nbd-tls-ca", key)...), nil, []string{"nbd-tls-ca " + key, "no certificate"}},
		{"NBD off loopback without TLS", func(_ *testing.T, dir string) []string {
			return []string{"source", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--size", "16MiB", "--nbd", "0.0.0.0:0"}
		}, nil, []string{"0.0.0.0:0", "--nbd-tls-cert", "unix:PATH", "--insecure"}},
	}
}
