package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"mirror-agent/mirror"
)

// Agent is what a drill needs of the daemon.
type Agent interface {
	Status(ctx context.Context) (mirror.Status, error)
	// Hold starts a drill that ends when the hold is closed or this process is gone.
	Hold(ctx context.Context, o mirror.DrillOptions) (Hold, error)
}

// Hold is a drill that runs.
type Hold interface {
	Started() mirror.DrillStatus
	// Wait returns how it ended, once it has.
	Wait() (mirror.DrillStatus, error)
	// Stop ends the drill; Close lets go of it, which ends it too.
	Stop(ctx context.Context) error
	Close() error
}

// Runner runs drills.
type Runner struct {
	Agent Agent
	// Mirror takes the orders of a drill that moves the lead or the flow; nil where there is none.
	Mirror Mirror
	// FirstRead reads the first block of the export at an address.
	FirstRead func(ctx context.Context, address, export string) error
	// Self is the path of this program.
	Self string
	// URI is an NBD address as libnbd's tools want it.
	URI func(address string, tls bool) string
	// Tell is called with every step when it has ended; may be nil.
	Tell func(Step)
}

// errEnded: the daemon has ended the view.
var errEnded = errors.New("the drill ended")

// undoLimit is how long one thing may take to be taken back.
const undoLimit = time.Minute

// drill is one run.
type drill struct {
	*Runner
	c      *Config
	r      *Report
	began  time.Time
	order  time.Time // of which RTO counts: when it began, or the lead was ordered to move
	hold   Hold
	under  *undertaker
	device *device
	undo   []undo
	env    []string
	groups []*command // of commands that were run, which may have left something
	failed bool

	over  chan struct{}      // closed when the view has ended
	ended mirror.DrillStatus // how it did; of who has seen that
}

// undo is a step back.
type undo struct {
	name string
	do   func(context.Context) error
	// limit is undoLimit, unless it is the way back of the lead, or of the flow.
	limit time.Duration
	// spare: it is left out when all has gone well.
	spare bool
}

// Run runs a drill and takes everything back, also when ctx ends. The report is there whatever happened but for an error, which
// says that nothing was begun.
func (n *Runner) Run(ctx context.Context, c *Config, o mirror.DrillOptions) (*Report, error) {
	means, err := choose(c.Device, c.Mount != "")
	if err != nil {
		return nil, err
	}
	if c.Mount != "" {
		if err := mountable(c.Mount); err != nil {
			return nil, err
		}
	}
	st, err := n.Agent.Status(ctx)
	if err != nil {
		return nil, err
	}
	d := n.newDrill(c, &st, means)
	d.r.Asked = o.At
	if d.under, err = newUndertaker(); err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	if d.hold, err = n.Agent.Hold(context.WithoutCancel(ctx), o); err != nil {
		return nil, errors.Join(err, d.under.dismiss())
	}
	d.opened()
	// From here on everything is taken back.
	m := startMeter(d)
	inner, end := context.WithCancelCause(ctx)
	d.watch(end)
	d.forward(inner, means)
	d.result(inner, ctx)
	d.back()
	m.stop()
	d.r.Seconds = time.Since(d.began).Seconds()
	return d.r, nil
}

func (n *Runner) newDrill(c *Config, st *mirror.Status, means Means) *drill {
	d := &drill{Runner: n, c: c, began: time.Now(), over: make(chan struct{})}
	d.order = d.began
	d.r = &Report{
		Version: reportVersion, Mirror: st.Name, UUID: st.UUID, Node: st.Node, Role: st.Role, Kind: c.Kind, Label: c.Label, Started: d.began,
		Device: means, Steps: []Step{}, Samples: []Sample{},
	}
	return d
}

// opened takes over what the daemon says of the view.
func (d *drill) opened() {
	s := d.hold.Started()
	d.r.Point, d.r.Newest, d.r.RPOSeconds, d.r.RPOBytes, d.r.SizeBytes = s.Point, s.Newest, s.RPOSeconds, s.RPOBytes, s.SizeBytes
	uri := d.URI(s.NBD, s.NBDTLS)
	d.env = []string{
		"MIRROR_AGENT_DRILL_URI=" + uri, "MIRROR_AGENT_DRILL_EXPORT=" + s.Export, fmt.Sprintf("MIRROR_AGENT_DRILL_LSN=%d", s.Point.LSN),
		"MIRROR_AGENT_DRILL_TIME=" + s.Point.Time.UTC().Format(time.RFC3339Nano), "MIRROR_AGENT_DRILL_LABEL=" + d.c.Label,
		"MIRROR_AGENT_DRILL_MIRROR=" + d.r.Mirror,
	}
	d.add(Step{Name: "open a writable view", At: 0, Seconds: time.Since(d.began).Seconds()}, nil)
	d.undo = append(d.undo, undo{name: "end the view", do: d.endView})
}

// watch ends the steps when the daemon ends the view.
func (d *drill) watch(end context.CancelCauseFunc) {
	go func() {
		defer close(d.over)
		var err error
		if d.ended, err = d.hold.Wait(); err == nil {
			err = fmt.Errorf("%w: %s", errEnded, d.ended.Reason)
		}
		end(err)
	}()
}

// endView ends the view, unless the daemon has.
func (d *drill) endView(ctx context.Context) (err error) {
	select {
	case <-d.over:
	default:
		err = d.hold.Stop(ctx)
	}
	if err == nil {
		select {
		case <-d.over:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	err = errors.Join(err, d.hold.Close())
	<-d.over // the hold is closed: it is at its end
	d.r.ScratchBytes = d.ended.ScratchBytes
	return err
}

// forward does the steps until one fails.
func (d *drill) forward(ctx context.Context, means Means) {
	s := d.hold.Started()
	d.use(ctx, means, s.NBD, s.Export, s.NBDTLS)
}

// use attaches what is served at an address, mounts it, and runs the checks, as far as all this is wanted.
func (d *drill) use(ctx context.Context, means Means, address, export string, tls bool) {
	if means != None {
		d.step(ctx, "attach a device by "+string(means), func(ctx context.Context) (string, error) {
			var err error
			d.device, err = attach(ctx, means, d.under, d.Self, address, export, d.URI(address, tls))
			if d.device == nil {
				return "", err
			}
			d.undo = append(d.undo, undo{name: "detach the device", do: d.device.free})
			d.env = append(d.env, "MIRROR_AGENT_DRILL_DEVICE="+d.device.path)
			return d.device.path, err
		})
	}
	d.checks(ctx, d.c.Checks, true)
	if d.c.Mount != "" {
		d.step(ctx, "mount at "+d.c.Mount, func(ctx context.Context) (string, error) {
			unmount, err := mountAt(ctx, d.under, d.device.path, d.c.Mount, d.c.MountOptions)
			if unmount != nil {
				d.undo = append(d.undo, undo{name: "unmount", do: unmount})
				d.env = append(d.env, "MIRROR_AGENT_DRILL_MOUNT="+d.c.Mount)
			}
			return "", err
		})
	}
	d.checks(ctx, d.c.Checks, false)
}

// checks runs those that belong before the mount, or the others.
func (d *drill) checks(ctx context.Context, list []Check, before bool) {
	for _, k := range list {
		if k.BeforeMount != before || d.failed && !d.c.KeepGoing || ctx.Err() != nil {
			continue
		}
		d.check(ctx, k)
	}
}

func (d *drill) check(ctx context.Context, k Check) {
	began := time.Now()
	out, err := d.command(ctx, k)
	if err == nil && d.r.RTOSeconds == nil && d.c.Kind != SwitchOver {
		d.recovered()
	}
	d.add(Step{Name: k.Name, Check: true, At: began.Sub(d.began).Seconds(), Seconds: time.Since(began).Seconds(), Output: out}, err)
}

// recovered: from here on the copy is known to serve.
func (d *drill) recovered() {
	rto := time.Since(d.order).Seconds()
	d.r.RTOSeconds = &rto
}

// command runs one of the operator's. What it leaves running, a database for the next one, is ended with the drill.
func (d *drill) command(ctx context.Context, k Check) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, k.Timeout, fmt.Errorf("no end after %v (timeout)", k.Timeout))
	defer cancel()
	c, err := newCommand("/bin/sh", "-c", k.Run)
	if err != nil {
		return "", err
	}
	c.cmd.Env = append(os.Environ(), d.env...)
	if err := c.start(); err != nil {
		return "", err
	}
	d.groups = append(d.groups, c)
	told := d.under.tell("kill", "-9", "--", fmt.Sprint(-c.cmd.Process.Pid))
	out, err := c.wait(ctx)
	return out, errors.Join(err, told)
}

// step does one thing of the way forward, unless one before it has failed.
func (d *drill) step(ctx context.Context, name string, do func(context.Context) (string, error)) {
	if d.failed || ctx.Err() != nil {
		return
	}
	began := time.Now()
	out, err := do(ctx)
	d.add(Step{Name: name, At: began.Sub(d.began).Seconds(), Seconds: time.Since(began).Seconds(), Output: out}, err)
}

func (d *drill) add(s Step, err error) {
	if err != nil {
		s.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		if !d.failed {
			d.failed = true
			d.r.Reason = s.Name + ": " + s.Error
		}
	}
	s.Output = strings.TrimRight(s.Output, "\n")
	d.r.Steps = append(d.r.Steps, s)
	if d.Tell != nil {
		d.Tell(s)
	}
}

// result says how the way forward ended.
func (d *drill) result(inner, outer context.Context) {
	switch {
	case outer.Err() != nil:
		d.r.Result, d.r.Reason, d.failed = Interrupted, context.Cause(outer).Error(), true
	case inner.Err() != nil:
		d.r.Result, d.r.Reason, d.failed = Failed, context.Cause(inner).Error(), true
	case d.failed:
		d.r.Result = Failed
	default:
		d.r.Result = Passed
	}
}

// back takes everything back, the last first. A drill that could not be taken back has failed.
func (d *drill) back() {
	ctx := context.Background()
	for _, k := range d.c.Cleanup {
		d.tidy(ctx, k)
	}
	d.endGroups()
	for len(d.undo) > 0 {
		u := d.undo[len(d.undo)-1]
		d.undo = d.undo[:len(d.undo)-1]
		if u.spare && !d.failed && d.r.Result == Passed {
			continue
		}
		began := time.Now()
		limited, cancel := context.WithTimeoutCause(ctx, cmp.Or(u.limit, undoLimit), errors.New("it takes too long"))
		err := u.do(limited)
		cancel()
		d.add(Step{Name: u.name, At: began.Sub(d.began).Seconds(), Seconds: time.Since(began).Seconds()}, err)
	}
	if err := d.under.dismiss(); err != nil {
		d.add(Step{Name: "take everything back", At: time.Since(d.began).Seconds()}, err)
	}
	if d.failed && d.r.Result == Passed {
		d.r.Result = Failed
	}
}

// tidy runs a command of the cleanup: that it went well is no recovery.
func (d *drill) tidy(ctx context.Context, k Check) {
	began := time.Now()
	out, err := d.command(ctx, k)
	d.add(Step{Name: k.Name, At: began.Sub(d.began).Seconds(), Seconds: time.Since(began).Seconds(), Output: out}, err)
}

// endGroups ends what commands have left running, in time for it to end well.
func (d *drill) endGroups() {
	alive := func() (n int) {
		for _, c := range d.groups {
			if syscall.Kill(-c.cmd.Process.Pid, 0) == nil {
				n++
			}
		}
		return n
	}
	for _, c := range d.groups {
		c.signal(syscall.SIGTERM)
	}
	for end := time.Now().Add(killAfter); alive() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	for _, c := range d.groups {
		c.signal(syscall.SIGKILL)
	}
}
