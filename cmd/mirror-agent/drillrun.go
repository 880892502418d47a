package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
	drilling "mirror-agent/mirror/drill"
)

// drillFlags are those of `drill run`.
type drillFlags struct {
	file, key                     string
	kind, to                      string
	cold, clients, yes, dry, json bool
}

func newDrillRun(a *app) *cobra.Command {
	var f drillFlags
	c := &cobra.Command{
		Use:   "run [--kind KIND] [--config FILE]",
		Short: "Open a view, or move the lead or the flow, check it, take it back, write a signed report",
		Long: `Runs a drill as FILE describes it. Of the kind view, the default, it opens a view of this host's copy, makes a block
device of it where that is possible (the kernel's NBD client, else nbdfuse and a loop
device; as root), mounts it, runs the checks, and takes everything back. The checks
find in their environment

  MIRROR_AGENT_DRILL_URI      the view, as libnbd's tools want it
  MIRROR_AGENT_DRILL_DEVICE   its block device
  MIRROR_AGENT_DRILL_MOUNT    where that is mounted
  MIRROR_AGENT_DRILL_LSN      the point (and _TIME, _LABEL, _MIRROR, _EXPORT)

The report says what was lost (RPO) and how long it took until the first check was
good (RTO). It is a JSON file, signed with this host's key, and a page to look at.

However it ends, also by Ctrl-C or a kill, nothing of the drill is left and the mirror
is as it was. Exit status 1 when a check failed.

  label: nightly
  at: checkpoint:nightly      # default: the newest
  device: auto                # or kernel, fuse, none
  mount: /mnt/drill
  report: /var/lib/mirror-agent/drills
  checks:
    - name: fsck
      run: fsck.ext4 -fn "$MIRROR_AGENT_DRILL_DEVICE"
      before-mount: true
    - name: database
      run: sqlite3 "$MIRROR_AGENT_DRILL_MOUNT/app.db" 'pragma integrity_check' | grep -qx ok
      timeout: 5m
  cleanup: []                 # commands that always run before the mount goes

` + moveHelp,
		Example: examples(
			"mirror-agent drill run --config nightly.yaml",
			"mirror-agent drill run --kind switch-over --dry-run",
			"mirror-agent drill run --kind failover --config quarterly.yaml",
			"mirror-agent drill run --kind failback --yes",
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error { return a.drillRun(c, &f) },
	}
	addControlFlags(c)
	c.Flags().StringVar(&f.file, "config", "", "`FILE` that describes the drill")
	c.Flags().StringVar(&f.key, "key", "", "private key `FILE` that signs the report (default where keygen puts it)")
	c.Flags().BoolVar(&f.json, "json", false, "print the report as JSON")
	addMoveFlags(c, &f)
	return c
}

func (a *app) drillRun(c *cobra.Command, f *drillFlags) error {
	dc, err := f.config(c)
	if err != nil {
		return err
	}
	file, keyFile, asJSON := f.file, f.key, f.json
	o := mirror.DrillOptions{At: dc.At, NBD: dc.NBD, Label: dc.Label, ScratchDir: dc.ScratchDir}
	if err := checkDrill(&o, dc.ScratchSize); err != nil {
		return fmt.Errorf("config %s: %w", file, err)
	}
	key, err := a.signingKey(keyFile)
	if err != nil {
		return err
	}
	if st, err := os.Stat(dc.Report); err != nil || !st.IsDir() {
		return fmt.Errorf("config %s: report: %s is no directory: make it first", file, dc.Report)
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	n := &drilling.Runner{Agent: drillAgent{cl}, Mirror: cl, FirstRead: firstRead, Self: self, URI: nbdURI}
	if !asJSON {
		n.Tell = a.tellStep
	}
	var r *drilling.Report
	if dc.Kind == drilling.View {
		r, err = n.Run(c.Context(), &dc, o)
	} else {
		r, err = a.drillMove(c.Context(), n, &dc, f)
	}
	if r == nil {
		return err
	}
	path, err := writeReport(r, key, dc.Report)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(r)
	} else {
		a.printf("%s\n  report %s, and .html to look at, signed by %s\n", r.Summary(), path, dataport.FormatPublicKey(key.Public().(ed25519.PublicKey)))
	}
	if err == nil && r.Result != drilling.Passed {
		return fmt.Errorf("the drill %s: %s", r.Result, r.Reason)
	}
	return err
}

// signingKey is the node's.
func (a *app) signingKey(path string) (ed25519.PrivateKey, error) {
	if path == "" {
		path = a.env(envName("key"))
	}
	if path == "" {
		path = a.defaultKeyFile()
	}
	key, err := dataport.LoadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key %s: no such file; reports are signed with this host's key: name it with --key, or create it with `mirror-agent keygen --key %[1]s`", path)
	}
	return key, err
}

func (a *app) tellStep(s drilling.Step) {
	how := view{paint: paint(a.colour)}.good("ok")
	if s.Error != "" {
		how = view{paint: paint(a.colour)}.bad("failed") + "   " + s.Error
	}
	a.printf("  %-32s %9s   %s\n", s.Name, formatSeconds(s.Seconds), how)
}

// writeReport writes both files of a report, each whole or not at all.
func writeReport(r *drilling.Report, key ed25519.PrivateKey, dir string) (string, error) {
	file, err := drilling.Encode(r, key)
	if err != nil {
		return "", err
	}
	var page bytes.Buffer
	if err := drilling.WritePage(&page, r, file); err != nil {
		return "", err
	}
	path := filepath.Join(dir, r.FileName())
	for _, f := range []struct {
		name    string
		content []byte
	}{{path + ".json", file}, {path + ".html", page.Bytes()}} {
		if err := writeWhole(f.name, f.content); err != nil {
			return "", fmt.Errorf("report: %w", err)
		}
	}
	return path + ".json", nil
}

func writeWhole(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".drill-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// drillAgent is the daemon as package drill sees it.
type drillAgent struct{ *control.Client }

func (d drillAgent) Hold(ctx context.Context, o mirror.DrillOptions) (drilling.Hold, error) {
	h, err := d.HoldDrill(ctx, o)
	if err != nil {
		return nil, err
	}
	return drillHold{h, d.Client}, nil
}

type drillHold struct {
	*control.HeldDrill
	client *control.Client
}

func (h drillHold) Started() mirror.DrillStatus { return h.Status }

func (h drillHold) Stop(ctx context.Context) error {
	_, err := h.client.StopDrill(ctx, h.Status.ID)
	return err
}

func newDrillReport(a *app) *cobra.Command {
	var verify, asJSON bool
	var words []string
	c := &cobra.Command{
		Use:   "report [FILE]",
		Short: "Show a drill's report, or make sure that it is genuine",
		Long: `Shows the report of a drill; without FILE the newest one in this directory. --verify
makes sure that a known host has signed it and that no byte was changed since:
--peer-key gives the public keys that count, once for each.`,
		Example: examples(
			"mirror-agent drill report drill-vol0-nightly-20261122T030000Z.json",
			"mirror-agent drill report --verify drill-vol0-nightly-20261122T030000Z.json --peer-key ed25519:12GM7NTS472EGtkaU6PGa28qLOd7y7UwowLbrDdW8G0",
		),
		Args: arguments("[FILE]"),
		RunE: func(_ *cobra.Command, args []string) error {
			if verify != (len(words) > 0) {
				return usagef("drill report: --verify and --peer-key go together")
			}
			var keys []ed25519.PublicKey
			for _, w := range words {
				k, err := dataport.ParsePublicKey(w)
				if err != nil {
					return usagef("--peer-key: %w", err)
				}
				keys = append(keys, k)
			}
			path, err := reportPath(args)
			if err != nil {
				return err
			}
			return a.drillReport(path, keys, asJSON)
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "make sure that it is as one of the keys has signed it")
	c.Flags().StringArrayVar(&words, "peer-key", nil, "public `KEY` that may have signed it; give it again for each")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// reportPath is the newest report here unless one is named.
func reportPath(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	all, err := filepath.Glob("drill-*.json")
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", errors.New("no drill-….json in this directory: name the report's file")
	}
	// By their time, which ends the name.
	return slices.MaxFunc(all, func(x, y string) int { return strings.Compare(reportTime(x), reportTime(y)) }), nil
}

func reportTime(name string) string { return name[strings.LastIndex(name, "-")+1:] }

func (a *app) drillReport(path string, keys []ed25519.PublicKey, asJSON bool) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	r, key, err := drilling.Decode(file)
	if err == nil && keys != nil {
		r, err = drilling.Verify(file, keys)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if asJSON {
		return a.printJSON(r)
	}
	if r.Moved != nil {
		a.printf("drill of %s on %s: %s from %s to %s\n", r.Mirror, r.Node, r.Kind, r.Moved.From, r.Moved.To)
	} else {
		a.printf("drill of %s on %s at %s\n", r.Mirror, r.Node, r.Point)
	}
	for _, s := range r.Steps {
		a.tellStep(s)
	}
	signed := "names " + key + ", not verified"
	if keys != nil {
		signed = "genuine, signed by " + key
	}
	a.printf("%s\n  %s\n", r.Summary(), signed)
	return nil
}
