package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
)

const (
	demoMirror      = "demo"
	demoSize        = 256 << 20
	demoLeastSize   = 32 << 20
	demoTimeout     = 2 * time.Minute
	demoSyncTimeout = time.Minute
)

const demoHelp = `Starts a source, a target and a backup target as three processes on this
machine, connected over two loopback addresses with TLS and keys made on the
spot, waits until the mirror is in sync, shows how to use it, and follows its
state until Ctrl-C. Then it ends what it started and removes its data. Nothing
else on the machine is touched and no privilege is needed.

With --drill it plays the story of a bad day by itself and judges the outcome:
a network path is cut while an application writes, the target is killed, then
the source; the backup takes over, and every block is read back and compared
with what the application had been promised. Exit status 0 when all of it
holds, else 1.`

// demoOptions are the flags of the demo.
type demoOptions struct {
	dir     string
	keep    bool
	size    int64
	mode    string
	drill   bool
	asJSON  bool
	timeout time.Duration
}

func newDemo(a *app) *cobra.Command {
	o := demoOptions{size: demoSize}
	size := &value{word: "256MiB", kind: "size", check: func(w string) (err error) {
		o.size, err = parseSize(w)
		return err
	}}
	mode := &value{word: string(mirror.ModeFlush), kind: "mode", check: func(w string) error { _, err := mirror.ParseMode(w); return err }}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Try it: a source, a target and a backup on this machine",
		Long:  demoHelp,
		Example: examples(
			"mirror-agent demo",
			"mirror-agent demo --drill",
			"mirror-agent demo --drill --json > report.json",
		),
		Args: arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			o.mode = mode.word
			if o.size < demoLeastSize || o.size%(1<<20) != 0 {
				return usagef("--size %s: give a multiple of 1MiB, at least %s", formatSize(o.size), formatSize(int64(demoLeastSize)))
			}
			if o.asJSON && !o.drill {
				return usagef("--json: only the report of --drill is printed as JSON")
			}
			return a.demo(c.Context(), o)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.drill, "drill", false, "play cuts, crashes and a promotion, and judge the outcome")
	f.BoolVar(&o.asJSON, "json", false, "print the drill's report as JSON")
	f.BoolVar(&o.keep, "keep", false, "keep the data and the logs at the end")
	f.StringVar(&o.dir, "dir", "", "`DIR` for the data, created if missing (default a temporary one)")
	f.Var(size, "size", "`SIZE` of the device")
	f.Var(mode, "mode", "async, flush, receive or durable")
	f.DurationVar(&o.timeout, "timeout", demoTimeout, "`TIME` that the drill may take as a whole")
	return c
}

// demo is the three agents and what belongs to them.
type demo struct {
	app     *app
	options demoOptions
	exe     string
	dir     string
	made    []string // what to remove at the end
	spawn   *spawner
	proxy   *cutter // before the target's second address
	source  *node
	target  *node
	backup  *node
}

func (a *app) demo(ctx context.Context, o demoOptions) (err error) {
	d := &demo{app: a, options: o, spawn: newSpawner()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.prepare(); err != nil {
		return err
	}
	if o.drill {
		return d.drill(ctx)
	}
	return d.show(ctx)
}

func (d *demo) nodes() []*node { return []*node{d.source, d.target, d.backup} }

// prepare makes the directories and finds this program.
func (d *demo) prepare() (err error) {
	if d.exe, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if d.options.dir == "" {
		if d.dir, err = os.MkdirTemp("", "mirror-agent-demo-"); err != nil {
			return err
		}
		d.made = append(d.made, d.dir)
	} else if err := d.useDir(); err != nil {
		return err
	}
	for _, n := range []struct {
		at   **node
		name string
	}{{&d.source, "source"}, {&d.target, "target"}, {&d.backup, "backup"}} {
		if *n.at, err = newNode(d.dir, n.name); err != nil {
			return fmt.Errorf("demo's directory: %w; choose an empty --dir", err)
		}
		d.made = append(d.made, (*n.at).dir, (*n.at).log)
	}
	return nil
}

func (d *demo) useDir() (err error) {
	if d.dir, err = filepath.Abs(d.options.dir); err != nil {
		return err
	}
	switch err := os.Mkdir(d.dir, 0o700); {
	case err == nil:
		d.made = append(d.made, d.dir)
	case !errors.Is(err, os.ErrExist):
		return fmt.Errorf("--dir: %w", err)
	}
	return nil
}

// start starts the three agents: the followers first, so that the source
// finds them at once.
func (d *demo) start(ctx context.Context) error {
	ports, err := freePorts("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2")
	if err != nil {
		return err
	}
	targetAddrs, backupAddrs := ports[:2], ports[2:]
	if d.proxy, err = newCutter("127.0.0.2:0", targetAddrs[1]); err != nil {
		return err
	}
	keys := map[*node]string{}
	for _, n := range d.nodes() {
		if keys[n], err = n.makeKey(); err != nil {
			return err
		}
	}
	peers := func(n *node) (args []string) {
		for _, other := range d.nodes() {
			if other != n {
				args = append(args, "--peer-key", keys[other])
			}
		}
		return args
	}
	follower := func(n *node, addrs []string) error {
		args := append(d.args("target", n), "--listen", strings.Join(addrs, ","))
		return n.start(d.spawn, d.exe, append(args, peers(n)...))
	}
	if err := errors.Join(follower(d.target, targetAddrs), follower(d.backup, backupAddrs)); err != nil {
		return err
	}
	args := append(d.args("source", d.source), "--target", targetAddrs[0]+","+d.proxy.addr(),
		"--backup", strings.Join(backupAddrs, ","), "--switch", "auto", "--announced=false") // one path leads through a proxy that can be cut
	if err := d.source.start(d.spawn, d.exe, append(args, peers(d.source)...)); err != nil {
		return err
	}
	for _, n := range d.nodes() {
		if _, err := n.until(ctx, "start", func(*mirror.Status) bool { return true }); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) args(command string, n *node) []string {
	return []string{
		command, "--name", demoMirror, "--node", n.name, "--device", filepath.Join(n.dir, "device.img"), "--size", strconv.FormatInt(d.options.size, 10),
		"--nbd", n.nbd, "--control", n.control, "--key", n.keyFile(), "--mode", d.options.mode,
	}
}

func (n *node) keyFile() string { return filepath.Join(n.dir, "node.key") }

// makeKey creates the node's key and returns its public one.
func (n *node) makeKey() (string, error) {
	key, err := dataport.GenerateKey()
	if err != nil {
		return "", err
	}
	if err := dataport.SaveKey(n.keyFile(), key); err != nil {
		return "", err
	}
	return dataport.FormatPublicKey(key.Public().(ed25519.PublicKey)), nil
}

// freePorts finds a free port at each of the addresses. Another program could
// take one before the agent does; the agent then says so.
func freePorts(hosts ...string) ([]string, error) {
	var addrs []string
	for _, h := range hosts {
		l, err := net.Listen("tcp", net.JoinHostPort(h, "0"))
		if err != nil {
			return nil, fmt.Errorf("loopback address %s: %w", h, err)
		}
		defer l.Close() // all at the end, so that no port is found twice
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// close ends what was started, the source first, and removes what was made.
func (d *demo) close() error {
	var errs []error
	for _, n := range d.nodes() {
		if n == nil {
			continue
		}
		errs = append(errs, n.end())
		n.client.Close()
	}
	d.spawn.close()
	if d.proxy != nil {
		d.proxy.Close()
	}
	if d.options.keep {
		fmt.Fprintf(d.app.stderr, "data and logs are kept in %s\n", d.dir)
		return errors.Join(errs...)
	}
	for i := len(d.made) - 1; i >= 0; i-- {
		errs = append(errs, os.RemoveAll(d.made[i]))
	}
	return errors.Join(errs...)
}

// show brings the mirror up, says how to use it, and follows its state.
func (d *demo) show(ctx context.Context) error {
	began := time.Now()
	d.app.printf("starting a source, a target and a backup of %s …\n", formatSize(d.options.size))
	up, cancel := context.WithTimeout(ctx, demoSyncTimeout)
	defer cancel()
	if err := d.start(up); err != nil {
		return quietly(ctx, err)
	}
	if _, err := d.source.until(up, "wait for the mirror to be in sync", inSync("target")); err != nil {
		return quietly(ctx, err)
	}
	hints := d.hints(time.Since(began))
	if !d.app.redraw {
		d.app.printf("%s\n", hints)
	}
	return d.follow(ctx, hints)
}

// quietly forgets an error that is only the end that was asked for.
func quietly(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (d *demo) hints(took time.Duration) string {
	uri := nbdURI(d.source.nbd, false)
	kept := "removed at the end; --keep keeps it"
	if d.options.keep {
		kept = "kept at the end"
	}
	agent := d.exe
	if _, err := exec.LookPath("mirror-agent"); err == nil {
		agent = "mirror-agent"
	}
	return fmt.Sprintf(`in sync after %s; everything is in %s (%s)

  look     nbdinfo '%s'
  write    qemu-io -f raw -c 'write -P 0xab 0 1M' -c flush '%[4]s'
  mount    D=$(mktemp -d); nbdfuse $D/nbd '%[4]s' &
           then as root: losetup --direct-io=on -f --show $D/nbd, mkfs.ext4 and mount it
           or by the kernel, as root: nbd-client -unix %[5]s /dev/nbd0
  state    %[6]s status --control %[7]s
           %[6]s explain --control %[7]s
  break    kill -9 %[8]d     the target: the data flow moves to the backup by itself
           kill -9 %[9]d     the source, and then: %[6]s promote --force --control %[10]s
`, formatSeconds(took.Seconds()), d.dir, kept, uri, strings.TrimPrefix(d.source.nbd, "unix:"), agent, d.source.control,
		d.target.cmd.Process.Pid, d.source.cmd.Process.Pid, d.backup.control)
}

// follow shows the state until Ctrl-C: of the source, or of who took over.
func (d *demo) follow(ctx context.Context, hints string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before *mirror.Status
	var beforeTime time.Time
	if d.app.redraw {
		d.app.printf("\x1b[2J")
	}
	for {
		st, from := d.look(ctx)
		if ctx.Err() != nil {
			d.app.printf("\nending …\n")
			return nil
		}
		if before != nil && (st == nil || st.UUID != before.UUID || st.Role != before.Role || st.Node != before.Node) {
			before = nil
		}
		now := d.app.now()
		v := view{paint: paint(d.app.colour), now: now, before: before, beforeTime: beforeTime}
		var screen strings.Builder
		switch {
		case d.app.redraw && st != nil:
			fmt.Fprintf(&screen, "%s\n%s:\n", hints, from)
			v.status(&screen, st)
			d.app.draw(screen.String() + "\nCtrl-C ends the demo.\n")
		case d.app.redraw:
			d.app.draw(hints + "\n" + from + "\n\nCtrl-C ends the demo.\n")
		case st != nil:
			d.app.printf("%s\n", v.line(st))
		default:
			d.app.printf("%s  %s\n", now.Format(time.TimeOnly), from)
		}
		before, beforeTime = st, now
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// look asks the first agent that is a primary, else the first that lives.
func (d *demo) look(ctx context.Context) (*mirror.Status, string) {
	var best *mirror.Status
	from := "all three agents have ended"
	for _, n := range d.nodes() {
		st, err := n.status(ctx)
		if err != nil {
			continue
		}
		if best == nil || best.Role != mirror.RolePrimary.String() && st.Role == mirror.RolePrimary.String() {
			best, from = &st, "the "+n.name+" says"
		}
	}
	return best, from
}
