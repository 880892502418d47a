package mirror

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inDefaultStateDir makes dir the default for the test.
func inDefaultStateDir(t *testing.T, dir string) {
	t.Helper()
	old := defaultStateDir
	t.Cleanup(func() { defaultStateDir = old })
	defaultStateDir = dir
}

// TestBeside: what lies beside the log is where a file is, and never in /dev.
func TestBeside(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, journal, device, given, standard, want string }{
		{"both are files", file, filepath.Join(dir, "d"), "", dir, file + ".x"},
		{"the device is a file", "/dev/null", file, "", dir, file + ".x"},
		{"none is", "/dev/null", "/dev/zero", "", dir, dir + "/vol.x"},
		{"none is, and there is no directory", "/dev/null", "/dev/zero", "", dir + "/none", ""},
		{"none is, and the default is a file", "/dev/null", "/dev/zero", "", file, ""},
		{"a directory is given", file, file, "/given", dir, "/given/vol.x"},
		{"and none is a file", "/dev/null", "/dev/zero", "/given", dir, "/given/vol.x"},
	} {
		inDefaultStateDir(t, tt.standard)
		c := DefaultConfig()
		c.Name, c.Journal, c.Device, c.StateDir = "vol", tt.journal, tt.device, tt.given
		if got := c.beside(".x"); got != tt.want {
			t.Errorf("%s: %q, not %q", tt.name, got, tt.want)
		}
	}
}

// TestStateDir: an agent keeps its files there, and nobody else of that name.
func TestStateDir(t *testing.T) {
	dir := t.TempDir()
	conf := func() Config {
		c := DefaultConfig()
		c.Name, c.Role, c.Insecure, c.NBD, c.StateDir = "vol", RolePrimary, true, "unix:/nowhere", dir
		c.Device, c.Size, c.JournalSize = filepath.Join(t.TempDir(), "d"), 32<<20, 64<<20
		return c
	}
	first := conf()
	a := reopenSole(t, &first)
	if got, want := a.c.stagingPath(), filepath.Join(dir, "vol.staging"); got != want {
		t.Errorf("a copy would be built in %s", got)
	}
	if _, err := Open(t.Context(), conf(), nullFront{}); err == nil || !strings.Contains(err.Error(), "another agent for a mirror called \"vol\"") {
		t.Errorf("a second agent: %v", err)
	}
	other := conf()
	other.Name = "other"
	if err := reopenSole(t, &other).Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	second := conf()
	if err := reopenSole(t, &second).Close(); err != nil {
		t.Fatal(err)
	}
	lost := conf()
	lost.StateDir = filepath.Join(dir, "none")
	if _, err := Open(t.Context(), lost, nullFront{}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("a directory that is not there: %v", err)
	}
	reopenSole(t, &first) // what failed has left no lock on the volume
}

// TestNoPlaceForCopy: without a place a consistent volume is not resynced, and a copy that was being taken over is asked for.
func TestNoPlaceForCopy(t *testing.T) {
	h := newHost(t, RoleSecondary)
	v := h.mustOpen(t)
	defer v.Close()
	if st, err := openStaging(v, "", testDevice); err != nil || st.file != nil {
		t.Errorf("a blank volume needs no place: %v", err)
	}
	if err := v.setFlags(stateMerging, stateBlank); err != nil {
		t.Fatal(err)
	}
	_, err := openStaging(v, "", testDevice)
	if s := (*stageError)(nil); !errors.As(err, &s) || !errors.Is(err, errNoPlace) {
		t.Errorf("staged nowhere: %v", err)
	}
	if err := resumeMerge(v, ""); !errors.Is(err, errNoPlace) || !strings.Contains(err.Error(), "part of the volume") {
		t.Errorf("taken over from nowhere: %v", err)
	}
}

// TestPromotionForgetsCopy: what a resync had built that a promotion ended takes no space any more.
func TestPromotionForgetsCopy(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	p := source.write(1)
	target.holds(p)
	source.kill()
	path := target.a.c.stagingPath()
	if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	target.takesOver()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	target.holds(p)
}
