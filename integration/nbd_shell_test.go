package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nbdsh runs scripts of testdata/nbdsh, one after the other in one libnbd shell, against a server.
func nbdsh(t *testing.T, addr string, size int64, scripts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var args []string
	for _, s := range append([]string{"prelude"}, scripts...) {
		b, err := os.ReadFile(filepath.Join("testdata", "nbdsh", s+".py"))
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "-c", string(b))
	}
	cmd := exec.CommandContext(ctx, "nbdsh", args...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// It takes the first python3, which has to be the one that the Debian package of its module is for.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"), "NBD_ADDRESS="+addr,
		"NBD_NAME="+mirrorName, fmt.Sprint("NBD_SIZE=", size))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(scripts, ", "), err, out)
	}
}

// TestNBDShell: every command, flag, option and error value that libnbd can say, over a unix socket and over TCP, while a target
// follows. In the end the target has the same bytes.
func TestNBDShell(t *testing.T) {
	needTools(t, "nbdsh")
	t.Run("unix", func(t *testing.T) { shellSuite(t, layout{size: 64 << 20}, "") })
	t.Run("TCP", func(t *testing.T) {
		addr := freePort(t, "127.0.0.1")
		shellSuite(t, layout{size: 64 << 20, sourceArgs: []string{"--nbd", addr}}, addr)
	})
}

func shellSuite(t *testing.T, lay layout, addr string) {
	m := newMirror(t, lay)
	if addr != "" {
		m.source.nbd = addr
	}
	m.start()
	for _, script := range []string{"sparse", "negotiation", "transfer", "refusals", "connections"} {
		t.Run(script, func(t *testing.T) { nbdsh(t, m.source.nbd, m.size, script) })
	}
	s := m.source.mustStatus()
	checkEqual(t, "address", s.NBD.Address, m.source.nbd)
	m.stopLevel("target")
}
