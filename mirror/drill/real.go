package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mirror-agent/mirror"
)

// Drills that do the true thing. Each is a sequence with the way back beside it:
//
//	Prepare ── refused: nothing was begun
//	   │ the plan, in words, which the operator is asked about
//	  Run
//	   │ preconditions, once more
//	   │ the move ───────┐          what leads back is noted before the order is given
//	   │ measured        │ failed, late, interrupted
//	   │ checks ─────────┤
//	   ▼                 ▼
//	  back: cleanup, unmount, detach, and lead or flow where they were
//
// What leads back looks at what is (status) and not at what was done, so it also ends what nobody saw the end of. Of a Run
// that is killed nothing is left but the move, which status shows; `drill run --kind failback` or failback, or switch, ends it.

// Mirror is what takes the orders; *control.Client is one.
type Mirror interface {
	Switch(ctx context.Context, to string) (mirror.Status, error)
	Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error)
	Failback(ctx context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error)
	CreateCheckpoint(ctx context.Context, name string) (mirror.Checkpoint, error)
}

// move is one kind.
type move interface {
	// ready says what is in the way, and what the move is from and to. It changes nothing.
	ready(ctx context.Context, n *Runner, c *Config) (Moved, error)
	// plan is what will happen, a line for each step.
	plan(c *Config, m *Moved) []string
	// stranded is what to do when the way back was cut short.
	stranded(m *Moved) string
	forward(ctx context.Context, d *drill)
}

// Plan is a drill that could begin.
type Plan struct {
	Kind   Kind
	Mirror string
	Node   string
	// Lines say what will happen, in order. Back says what an abort does, Killed what is to be done if this process is killed.
	Lines        []string
	Back, Killed string

	n  *Runner
	c  *Config
	of move
}

const (
	// orderGrace is how much longer than the agent's own limit an order is waited for.
	orderGrace  = 30 * time.Second
	askLimit    = 10 * time.Second
	lookEvery   = 5 * time.Millisecond
	settleEvery = 50 * time.Millisecond
	tryEvery    = 200 * time.Millisecond
)

// Prepare says what a drill would do, or everything that is in its way. Nothing is changed.
func (n *Runner) Prepare(ctx context.Context, c *Config) (*Plan, error) {
	p := &Plan{Kind: c.Kind, n: n, c: c}
	switch c.Kind {
	case SwitchOver:
		p.of = &switchOver{}
	case Failover:
		p.of = &failover{}
	case Failback:
		p.of = &failback{}
	case View:
		return nil, errors.New("a view moves nothing")
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
	p.Mirror, p.Node = st.Name, st.Node
	m, err := p.of.ready(ctx, n, c)
	if err != nil {
		return nil, err
	}
	p.Lines = p.of.plan(c, &m)
	p.Killed = p.of.stranded(&m)
	p.Back = fmt.Sprintf("a check that fails, Ctrl-C, or more than %v of all this lead back at once", c.Timeout)
	return p, nil
}

// Run does it and leads back, also when ctx ends. The report is there whatever happened but for an error, which says that
// nothing was begun.
func (p *Plan) Run(ctx context.Context) (*Report, error) {
	means, err := choose(p.c.Device, p.c.Mount != "")
	if err != nil {
		return nil, err
	}
	st, err := p.n.Agent.Status(ctx)
	if err != nil {
		return nil, err
	}
	d := p.n.newDrill(p.c, &st, means)
	d.r.SizeBytes = st.Device.SizeBytes
	if d.under, err = newUndertaker(); err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	d.env = []string{
		"MIRROR_AGENT_DRILL_KIND=" + string(p.Kind), "MIRROR_AGENT_DRILL_LABEL=" + p.c.Label, "MIRROR_AGENT_DRILL_MIRROR=" + st.Name,
		"MIRROR_AGENT_DRILL_EXPORT=" + st.Name,
	}
	m := startMeter(d)
	inner, end := context.WithTimeoutCause(ctx, p.c.Timeout, fmt.Errorf("not done after %v (timeout)", p.c.Timeout))
	defer end()
	d.step(inner, "preconditions", func(ctx context.Context) (string, error) {
		moved, err := p.of.ready(ctx, p.n, p.c)
		d.r.Moved = &moved
		return "", err
	})
	if !d.failed {
		p.of.forward(inner, d)
	}
	d.result(inner, ctx)
	d.back()
	m.stop()
	d.r.Seconds = time.Since(d.began).Seconds()
	return d.r, nil
}

// wayBack notes how lead or flow come back where they were: do is tried until it is done, or the time for it is over.
func (d *drill) wayBack(name, next string, spare bool, do func(context.Context) (done bool, err error)) {
	d.undo = append(d.undo, undo{name: name, limit: d.c.Back, spare: spare, do: func(ctx context.Context) error {
		began := time.Now()
		err := until(ctx, tryEvery, do)
		if err != nil {
			d.r.Moved.Stranded, d.r.Moved.NextStep = true, next
			err = fmt.Errorf("%w: %s", err, next)
			if d.failed {
				d.r.Reason += "; " + name + ": " + err.Error()
			}
			return err
		}
		back := time.Since(began).Seconds()
		d.r.Moved.BackSeconds = &back
		return nil
	}})
}

// until asks again and again until it is done. An error is no end: it may pass, and is told when it did not.
func until(ctx context.Context, pause time.Duration, do func(context.Context) (done bool, err error)) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var last error
	for {
		done, err := do(ctx)
		if done {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if last == nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w; at last: %w", context.Cause(ctx), last)
		}
	}
}

// settles waits until the mirror is as it is wanted after a move.
func (d *drill) settles(ctx context.Context, name string, good func(*mirror.Status) error) {
	d.step(ctx, name, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, d.c.Wait, fmt.Errorf("not so after %v", d.c.Wait))
		defer cancel()
		return "", until(ctx, settleEvery, func(ctx context.Context) (bool, error) {
			st, err := d.status(ctx)
			if err == nil {
				err = good(&st)
			}
			return err == nil, err
		})
	})
}

func (d *drill) status(ctx context.Context) (mirror.Status, error) { return d.Runner.status(ctx) }

func (n *Runner) status(ctx context.Context) (mirror.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return n.Agent.Status(ctx)
}

// uncut is a context for an order that has to be seen to its end, whatever the operator does meanwhile.
func uncut(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

func (d *drill) handoverLimit() time.Duration {
	if d.c.Limit > 0 {
		return d.c.Limit
	}
	return mirror.DefaultHandoverLimit
}

// replicates enters a record, a checkpoint, and takes the time until it is durable at the active follower. On the host that leads.
func (d *drill) replicates(ctx context.Context, to string) {
	d.step(ctx, "a record reaches "+to, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, d.c.Wait, fmt.Errorf("not there after %v", d.c.Wait))
		defer cancel()
		began := time.Now()
		mark, err := d.Mirror.CreateCheckpoint(ctx, "drill-"+string(d.c.Kind)+"-"+began.UTC().Format("20060102T150405Z"))
		if err != nil {
			return "", err
		}
		err = until(ctx, lookEvery, func(ctx context.Context) (bool, error) {
			st, err := d.status(ctx)
			if err != nil {
				return false, err
			}
			f := activeOf(&st)
			return f != nil && f.Durable > mark.LSN, nil
		})
		if err == nil {
			took := time.Since(began).Seconds()
			d.r.Moved.ReplicationSeconds = &took
		}
		return fmt.Sprintf("checkpoint %s at LSN %d", mark.Name, mark.LSN), err
	})
}

func activeOf(st *mirror.Status) *mirror.FollowerStatus {
	for i := range st.Followers {
		if st.Followers[i].Active {
			return &st.Followers[i]
		}
	}
	return nil
}

// inSync says why a host that leads is not in sync with the follower that it is to be in sync with ("": whichever is active).
func inSync(st *mirror.Status, with string) error {
	f := activeOf(st)
	switch {
	case st.Role != mirror.RolePrimary.String():
		return fmt.Errorf("%s does not lead, it is %s: %s", st.Node, st.State, st.Reason)
	case f == nil || with != "" && f.Target != with:
		return fmt.Errorf("data flows to %q", st.ActiveTarget)
	case st.State != stateInSync || f.State != string(mirror.FollowerStreaming):
		return fmt.Errorf("%s is %s: %s", f.Target, f.State, f.Reason)
	}
	return nil
}

const stateInSync, stateStreaming = "in sync", "streaming"

// obstacles are all reasons at once why a drill cannot begin.
type obstacles []string

func (o *obstacles) add(format string, args ...any) {
	*o = append(*o, strings.TrimPrefix(fmt.Sprintf(format, args...), "refused: "))
}

func (o *obstacles) alarms(st *mirror.Status) {
	for _, a := range st.Alarms {
		o.add("alarm %s on %s: %s", a.Name, st.Node, a.Reason)
	}
}

func (o obstacles) err() error {
	if len(o) == 0 {
		return nil
	}
	return errors.New("refused: " + strings.Join(o, "; "))
}

// checkNames are the checks in a line of the plan.
func (c *Config) checkNames() string {
	var names []string
	for _, k := range c.Checks {
		names = append(names, k.Name)
	}
	if len(names) == 0 {
		return "no checks of your own"
	}
	return "checks: " + strings.Join(names, ", ")
}
