package nbd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The sockets that systemd passes: the test starts itself the way that systemd starts a service.
func TestActivation(t *testing.T) {
	if os.Getenv("NBD_ACTIVATED") != "" {
		activatedChild(t)
		return
	}
	if _, err := Listen("systemd:"); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error("without systemd:", err)
	}
	var files []*os.File
	for _, name := range []string{"a", "b"} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.UnixListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	for _, c := range []struct {
		name, names string
		sockets     []*os.File
	}{{"several", "a:b", files}, {"one", "", files[:1]}} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "-test.run=^TestActivation$", "-test.v")
			cmd.Env = append(os.Environ(), "NBD_ACTIVATED="+c.name, "LISTEN_FDS="+string('0'+rune(len(c.sockets))), "LISTEN_FDNAMES="+c.names)
			cmd.ExtraFiles = c.sockets
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "all is well") {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

func activatedChild(t *testing.T) {
	name := "b"
	if os.Getenv("NBD_ACTIVATED") == "one" {
		name = ""
	} else {
		for name, want := range map[string]string{"": "name one of a, b", "c": "but a, b"} {
			if _, err := Listen("systemd:" + name); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	for range 2 { // a listener that was closed can be had again
		l, err := Listen("systemd:" + name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Addr().Network() != "unix" || name == "b" && filepath.Base(l.Addr().String()) != "b" {
			t.Error(l.Addr())
		}
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("the environment is left for children of this process")
	}
	t.Log("all is well")
}
