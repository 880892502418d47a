package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"mirror-agent/blockdev/nbd"
	"mirror-agent/mirror/control"
)

// attachFlags are what attach was asked for.
type attachFlags struct {
	nbd, export, logFormat   string
	connections, blockSize   int
	timeout, deadConnTimeout time.Duration
	once                     bool
}

func newAttach(a *app) *cobra.Command {
	var f attachFlags
	var index int
	c := &cobra.Command{
		Use:   "attach DEV",
		Short: "Show the mirror as a block device of the kernel",
		Long: `Attaches the mirror that is served here to a device of the kernel's NBD client,
/dev/nbdN, for filesystems that are mounted on this host. Needs root and the
kernel's module nbd.

It stays in the foreground and watches the links. When the agent ends or dies
and is started again, it gives the device new links as soon as the agent serves:
a mounted filesystem sees a pause, not an error, as long as that takes no longer
than --dead-conn-timeout. Requests that were under way go out again --timeout after
they were made, so a small one (5s) makes the pause short; one below what a full
journal may hold up writes makes the kernel change links for nothing.

When the agent stays away for longer, what waits fails with an I/O error, and so
does all that comes later, until the agent is back. A filesystem that saw it wants
to be unmounted, checked and mounted again: choose --dead-conn-timeout above the
longest maintenance.

Ctrl-C or SIGTERM ends the watch and leaves the device attached; the same
command again takes it over.

The agent is found by --control or --name, as everywhere, or by its NBD
address. Several connections are used when the server promises that a flush on
one covers all of them, as an agent does.

The kernel's NBD client has no TLS: an agent with --nbd-tls-cert is attached to
at a unix socket only, on its own host. nbdfuse does TLS.`,
		Example: examples(
			"modprobe nbd",
			"mirror-agent attach /dev/nbd0",
			"mirror-agent attach /dev/nbd0 --name vol0 --dead-conn-timeout 1h",
			"mirror-agent attach /dev/nbd1 --nbd 127.0.0.1:10809 --once",
			"mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /srv/data",
			"umount /srv/data && mirror-agent detach /dev/nbd0",
		),
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("DEV")(c, args); err != nil {
				return err
			}
			var err error
			if index, err = parseKernelDevice(args[0]); err != nil {
				return err
			}
			return f.check(c)
		},
		RunE: func(c *cobra.Command, _ []string) error { return a.attach(c, index, &f) },
	}
	addControlFlags(c)
	c.Flags().StringVar(&f.nbd, "nbd", "", "NBD `ADDR` to attach, HOST:PORT or unix:PATH (default: what the running agent says)")
	c.Flags().StringVar(&f.export, "export", "", "`NAME` of the export (default the mirror's; with --nbd the server's default)")
	c.Flags().IntVar(&f.connections, "connections", 4, "how many `N` connections at once")
	c.Flags().DurationVar(&f.deadConnTimeout, "dead-conn-timeout", 10*time.Minute, "`TIME` that requests wait for the agent before they fail")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "`TIME` after which a request without an answer is sent again, whole seconds (0: the kernel's 30s)")
	c.Flags().IntVar(&f.blockSize, "block-size", 512, "`BYTES` of a sector: 512, 1024, 2048 or 4096")
	c.Flags().BoolVar(&f.once, "once", false, "attach and leave, without watching the links")
	c.Flags().StringVar(&f.logFormat, "log-format", logConsole, "`FORMAT` of what the watch tells: console or json")
	return c
}

// parseKernelDevice reads /dev/nbd3 or nbd3.
func parseKernelDevice(word string) (index int, err error) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(word, "/dev/"), "nbd")
	n, err := strconv.ParseUint(digits, 10, 15)
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, usagef("device %q: give a whole device of the kernel's NBD client, like /dev/nbd0", word)
	}
	return int(n), nil
}

func (f *attachFlags) check(c *cobra.Command) error {
	if f.nbd != "" {
		if c.Flags().Changed("control") || c.Flags().Changed("name") {
			return usagef("--nbd names the server itself; leave out --control and --name")
		}
		if _, err := parseNBD(f.nbd); err != nil {
			return usagef("--nbd: %w", err)
		}
	}
	if f.connections < 1 || f.connections > nbd.MaxAttachConnections {
		return usagef("--connections %d: choose 1 to %d", f.connections, nbd.MaxAttachConnections)
	}
	if _, err := parseLogFormat(f.logFormat); err != nil {
		return usagef("--log-format: %w", err)
	}
	o := f.options()
	o.Identifier, o.Dial = "-", func(context.Context) (net.Conn, error) { return nil, nil }
	if err := o.Validate(); err != nil {
		return &usageError{err}
	}
	return nil
}

func (f *attachFlags) options() nbd.AttachOptions {
	return nbd.AttachOptions{
		Export: f.export, Connections: f.connections, BlockSize: uint32(max(f.blockSize, 1)), Timeout: f.timeout, DeadConnTimeout: f.deadConnTimeout,
	}
}

func (a *app) attach(c *cobra.Command, index int, f *attachFlags) error {
	kernel, err := a.openKernel()
	if err != nil {
		return err
	}
	defer kernel.Close()
	o := f.options()
	o.Index, o.Log = index, newLogger(a, &settings{logFormat: f.logFormat, logLevel: zerolog.InfoLevel})
	from := f.nbd
	if f.nbd != "" {
		o.Identifier = "mirror-agent:" + f.nbd + "/" + f.export
		o.Dial = func(ctx context.Context) (net.Conn, error) { return dialServed(ctx, f.nbd) }
	} else {
		cl, err := a.client(c)
		if err != nil {
			return err
		}
		defer cl.Close()
		if from, err = fromAgent(c.Context(), cl, &o); err != nil {
			return err
		}
	}
	at, err := nbd.Attach(c.Context(), kernel, o)
	if err != nil {
		return attachError(index, err)
	}
	defer at.Close()
	got := at.Attached()
	if f.once && got.Waiting != nil {
		return attachError(index, got.Waiting)
	}
	a.printf("%s\n", attachedLine(&got, from))
	if f.once {
		return nil
	}
	switch err := at.Watch(c.Context()); {
	case errors.Is(err, nbd.ErrDetached):
		a.printf("%s: detached\n", got.Device)
	case err != nil:
		return attachError(index, err)
	default:
		a.printf("%s: stays attached; without a watch the end of the agent stops it: `mirror-agent attach` again takes it over, `mirror-agent detach` ends it\n", got.Device)
	}
	return nil
}

func attachedLine(got *nbd.Attached, from string) string {
	links := fmt.Sprintf("%d connections", got.Connections)
	if got.Connections == 1 {
		links = "1 connection"
	}
	switch {
	case got.Waiting != nil:
		return fmt.Sprintf("%s: taken over, and waits for its server: %v", got.Device, oneLine(got.Waiting.Error()))
	case got.Adopted:
		return fmt.Sprintf("%s: taken over, %s at %s, %s", got.Device, formatSize(got.SizeBytes), from, links)
	}
	return fmt.Sprintf("%s: attached to %s at %s, %s, %s", got.Device, got.Export, from, formatSize(got.SizeBytes), links)
}

// fromAgent fills in what only the running agent knows. The agent is asked again before every dial: it may serve at
// another address after a restart.
func fromAgent(ctx context.Context, cl *control.Client, o *nbd.AttachOptions) (address string, err error) {
	st, err := askStatus(ctx, cl)
	if err != nil {
		return "", err
	}
	if st.NBD.Address == "" {
		return "", fmt.Errorf("%s is %s here and serves no NBD; attach where it is primary, or promote it", st.Name, st.Role)
	}
	uuid := st.UUID
	o.Identifier = "mirror-agent:" + uuid
	if o.Export == "" {
		o.Export = st.Name
	}
	o.Dial = func(ctx context.Context) (net.Conn, error) {
		now, err := askStatus(ctx, cl)
		switch {
		case err != nil:
			return nil, err
		case now.UUID != uuid:
			return nil, fmt.Errorf("the agent here has another mirror now (%s)", now.Name)
		case now.NBD.Address == "":
			return nil, fmt.Errorf("%s serves no NBD now: %s", now.Name, now.State)
		}
		return dialServed(ctx, now.NBD.Address)
	}
	return st.NBD.Address, nil
}

func dialServed(ctx context.Context, address string) (net.Conn, error) {
	c, err := nbd.Dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("no NBD server answers at %s: %w; start the agent, or name its address with --nbd", address, err)
	}
	return c, nil
}

// openKernel explains what to do where the kernel has no driver.
func (a *app) openKernel() (*nbd.Kernel, error) {
	open := a.kernel
	if open == nil {
		open = nbd.OpenKernel
	}
	k, err := open()
	if errors.Is(err, nbd.ErrNoDriver) {
		return nil, fmt.Errorf("%w (its module is not loaded, or this is a container): `modprobe nbd` as root loads it; "+
			"where there is no such module, nbdfuse shows the mirror as a file: nbdfuse -C 4 DIR/vol0 'nbd+unix:///?socket=PATH'", err)
	}
	return k, err
}

// attachError adds the device and the way out.
func attachError(index int, err error) error {
	way := ""
	switch {
	case errors.Is(err, nbd.ErrNoPermission):
		way = "; run it as root"
	case errors.Is(err, nbd.ErrDeviceInUse):
		way = fmt.Sprintf("; choose another device, or end that with `mirror-agent detach /dev/nbd%d`", index)
	}
	return fmt.Errorf("/dev/nbd%d: %w%s", index, err, way)
}
