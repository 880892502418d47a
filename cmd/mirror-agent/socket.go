package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror/control"
)

const (
	rootSocketDir = "/run/mirror-agent"
	socketSuffix  = ".sock"
	probeTimeout  = time.Second
)

// socketDir is where the control sockets of this user's mirrors are.
func (a *app) socketDir() string {
	if a.uid == 0 {
		return rootSocketDir
	}
	if dir := a.env("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "mirror-agent")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("mirror-agent-%d", a.uid))
}

func (a *app) socketOf(name string) string {
	return filepath.Join(a.socketDir(), name+socketSuffix)
}

// makeSocketDir creates the directory of a socket at its default place.
func (a *app) makeSocketDir(socket string) error {
	dir := filepath.Dir(socket)
	if dir != a.socketDir() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control socket's directory: %w; choose another with --control", err)
	}
	return nil
}

// addControlFlags lets a command say which agent it means.
func addControlFlags(c *cobra.Command) {
	c.Flags().String("control", "", "control socket's `PATH` of the agent")
	c.Flags().String("name", "", "`NAME` of the mirror, when several run here")
}

// client connects to the agent that the command means: --control, else
// --name, else the only one here.
func (a *app) client(c *cobra.Command) (*control.Client, error) {
	pick := func(flag string) string {
		if v, _ := c.Flags().GetString(flag); v != "" {
			return v
		}
		return a.env(envName(flag))
	}
	// A flag comes before the environment, also when it is the other flag.
	if name, _ := c.Flags().GetString("name"); name != "" && !c.Flags().Changed("control") {
		return control.NewClient(a.socketOf(name)), nil
	}
	if path := pick("control"); path != "" {
		return control.NewClient(path), nil
	}
	if name := pick("name"); name != "" {
		return control.NewClient(a.socketOf(name)), nil
	}
	path, err := a.onlySocket(c.Context())
	if err != nil {
		return nil, err
	}
	return control.NewClient(path), nil
}

// onlySocket returns the socket of the only agent here. Sockets of dead
// agents do not count, unless there is no other.
func (a *app) onlySocket(ctx context.Context) (string, error) {
	all, err := filepath.Glob(filepath.Join(a.socketDir(), "*"+socketSuffix))
	if err != nil {
		return "", err
	}
	if len(all) == 1 {
		return all[0], nil
	}
	if len(all) == 0 {
		return "", fmt.Errorf("no agent runs here (no socket in %s): start one, or name its socket with --control", a.socketDir())
	}
	live := slices.DeleteFunc(slices.Clone(all), func(path string) bool { return !answers(ctx, path) })
	switch len(live) {
	case 1:
		return live[0], nil
	case 0:
		return "", fmt.Errorf("no agent answers here (%s): start one, or name its socket with --control", mirrorNames(all))
	}
	return "", fmt.Errorf("several mirrors run here: %s; choose one with --name", mirrorNames(live))
}

func answers(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c := control.NewClient(path)
	defer c.Close()
	_, err := c.Status(ctx)
	return err == nil
}

func mirrorNames(sockets []string) string {
	names := make([]string, len(sockets))
	for i, path := range sockets {
		names[i] = strings.TrimSuffix(filepath.Base(path), socketSuffix)
	}
	return strings.Join(names, ", ")
}
