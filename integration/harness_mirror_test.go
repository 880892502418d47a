package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport/dataporttest"
)

const mirrorName = "vol0"

// layout says what newMirror makes.
type layout struct {
	size       int64    // of the device; default 16 MiB
	journal    string   // --journal-size; default 64MiB
	paths      int      // between source and each target, default 1; each through a proxy of its own
	backup     bool     // a backup target too
	insecure   bool     // no keys, no TLS
	sourceArgs []string // further flags of the source
	targetArgs []string // further flags of target and backup
}

// testMirror is a source with its target and perhaps a backup, all on this
// machine: 127.0.0.1, 127.0.0.2 … are the addresses of different paths.
type testMirror struct {
	t                      testing.TB
	dir                    string
	size                   int64
	source, target, backup *agent
	// The cables: one proxy for each path, in the order of the addresses.
	toTarget, toBackup []*dataporttest.Proxy
}

// newMirror prepares everything and starts nothing.
func newMirror(t testing.TB, lay layout) *testMirror {
	t.Helper()
	lay.size = max(lay.size, 16<<20)
	lay.paths = max(lay.paths, 1)
	if lay.journal == "" {
		lay.journal = "64MiB"
	}
	m := &testMirror{t: t, dir: shortDir(t), size: lay.size}
	names := []string{"source", "target"}
	if lay.backup {
		names = append(names, "backup")
	}
	keys := map[string]string{}
	for _, n := range names {
		if !lay.insecure {
			keys[n] = makeKey(t, filepath.Join(m.dir, n+".key"))
		}
	}
	args := func(command, name string) []string {
		a := []string{
			command, "--name", mirrorName, "--device", m.path(name, "img"), "--size", fmt.Sprint(lay.size),
			"--journal", m.path(name, "journal"), "--journal-size", lay.journal, "--nbd", "unix:" + m.path(name, "nbd"),
		}
		if lay.insecure {
			return append(a, "--insecure")
		}
		a = append(a, "--key", m.path(name, "key"))
		for _, other := range names {
			if other != name {
				a = append(a, "--peer-key", keys[other])
			}
		}
		return a
	}
	follower := func(name string) (*agent, []*dataporttest.Proxy) {
		var listen []string
		var cables []*dataporttest.Proxy
		for i := range lay.paths {
			addr := freePort(t, fmt.Sprintf("127.0.0.%d", i+1))
			listen = append(listen, addr)
			p := dataporttest.NewProxy(addr)
			t.Cleanup(p.Close)
			cables = append(cables, p)
		}
		a := m.agent(name, append(append(args("target", name), "--listen", strings.Join(listen, ",")), lay.targetArgs...)...)
		a.listen = listen
		return a, cables
	}
	src := args("source", "source")
	m.target, m.toTarget = follower("target")
	src = append(src, "--target", addrs(m.toTarget), "--announced=false") // not past the proxies
	if lay.backup {
		m.backup, m.toBackup = follower("backup")
		src = append(src, "--backup", addrs(m.toBackup))
	}
	m.source = m.agent("source", append(src, lay.sourceArgs...)...)
	return m
}

func (m *testMirror) path(name, ext string) string { return filepath.Join(m.dir, name+"."+ext) }

func (m *testMirror) agent(name string, args ...string) *agent {
	m.t.Helper()
	a := newAgent(m.t, m.dir, name, args...)
	a.device, a.nbd = m.path(name, "img"), "unix:"+m.path(name, "nbd")
	return a
}

func addrs(cables []*dataporttest.Proxy) string {
	var a []string
	for _, p := range cables {
		a = append(a, p.Addr())
	}
	return strings.Join(a, ",")
}

// makeKey creates a private key and returns the public one.
func makeKey(t testing.TB, file string) string {
	t.Helper()
	r := runAgent(t, "keygen", "--key", file)
	if r.code != 0 {
		t.Fatalf("keygen: %s", r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// start starts the followers, then the source, and waits until the target is in
// sync.
func (m *testMirror) start() {
	m.t.Helper()
	m.target.start()
	if m.backup != nil {
		m.backup.start()
		m.backup.untilUp()
	}
	m.target.untilUp()
	m.source.start()
	m.source.untilStreaming("target")
}

// dial connects to an agent's NBD address as soon as it is served.
func (a *agent) dial(within time.Duration) *nbdClient {
	a.t.Helper()
	var c *nbdClient
	eventually(a.t, within, a.name+" serves NBD", func() (bool, string) {
		if a.hasEnded() {
			a.t.Fatalf("%s has ended before it served NBD", a.name)
		}
		var err error
		if c, err = dialNBD(a.nbd, mirrorName); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return c
}

// stopLevel waits until a follower has everything, ends source and follower
// cleanly and compares their devices.
func (m *testMirror) stopLevel(kind string) {
	m.t.Helper()
	m.source.untilLevel(kind)
	f := m.target
	if kind == "backup" {
		f = m.backup
	}
	m.source.stop()
	f.stop()
	sameFile(m.t, m.source.device, f.device)
}

// sameFile fails the test at the first byte in which two files differ.
func sameFile(t testing.TB, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close()
	const chunk = 1 << 20
	pa, pb := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); ; off += chunk {
		na, errA := io.ReadFull(fa, pa)
		nb, errB := io.ReadFull(fb, pb)
		if na != nb {
			t.Fatalf("%s and %s have different lengths", a, b)
		}
		if !bytes.Equal(pa[:na], pb[:nb]) {
			i := 0
			for pa[i] == pb[i] {
				i++
			}
			at, differ := off+int64(i), 0
			for j := 0; j+512 <= na; j += 512 {
				if !bytes.Equal(pa[j:j+512], pb[j:j+512]) {
					differ++
				}
			}
			t.Fatalf("%s and %s differ at byte %d (%d sectors of this MiB)", filepath.Base(a), filepath.Base(b), at, differ)
		}
		if errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF) {
			return
		}
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
	}
}

// fileHash is the SHA-256 of a file, "none" when there is no such file.
func fileHash(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12])
}
