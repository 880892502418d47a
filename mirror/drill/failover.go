package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/mirror"
)

// failover takes the lead to this host, a target, from a source that lives, and gives it back. All goes by handovers: one host
// serves at any time, or none for a moment, and nothing is lost.
type failover struct{}

func (f *failover) ready(ctx context.Context, n *Runner, c *Config) (m Moved, err error) {
	st, err := n.status(ctx)
	if err != nil {
		return m, err
	}
	var in obstacles
	m.To = st.Node
	if st.Role != mirror.RoleSecondary.String() {
		in.add("%s leads already: a failover is tried on the target that is to take the lead", st.Node)
		if !st.Home {
			in.add("the lead is not at home: mirror-agent drill run --kind failback")
		}
		return m, in.err()
	}
	in.alarms(&st)
	if st.Drill != nil {
		in.add("drill %d shows a view of this host, which would end with the failover: mirror-agent drill stop", st.Drill.ID)
	}
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := n.Mirror.Promote(ask, mirror.PromoteOptions{Planned: true, DryRun: true})
	if err != nil {
		in.add("%v", err)
		return m, in.err()
	}
	if r.Lead == nil {
		in.add("the agent of the source does not say whether clients use it: bring it up to date (mirror-agent version)")
		return m, in.err()
	}
	m.From, m.Clients = r.Lead.Node, r.Lead.Clients
	if !r.Lead.Home {
		in.add("%s leads and is not home, so the lead could not be brought back there: mirror-agent drill run --kind failback first", r.Lead.Node)
	}
	if !r.Lead.Active { // its own word: what a follower was told last may be a second old
		in.add("the data of %s flows to another target: try the failover there, or move the flow here first (mirror-agent switch on %[1]s)", r.Lead.Node)
	}
	for _, a := range r.Lead.Alarms {
		in.add("alarm on %s: %s", r.Lead.Node, a)
	}
	if m.Clients > 0 && !c.WithClients {
		in.add("%s has clients (%d NBD connections), which would lose their device for the time of the drill: unmount and detach there, or say --with-clients", r.Lead.Node, m.Clients)
	}
	if m.Clients > 0 && (c.Mount != "" || c.Device != None) {
		in.add("clients of %s may have a filesystem on it: nothing is mounted here at the same time; detach there, or leave device and mount out", r.Lead.Node)
	}
	return m, in.err()
}

func (f *failover) plan(c *Config, m *Moved) []string {
	first := fmt.Sprintf("%s, the source, closes its front", m.From)
	if m.Clients > 0 {
		first += fmt.Sprintf(": its clients (%d connections) lose their device until the end of the drill. What is mounted there stays as it is in memory: nothing may write here meanwhile", m.Clients)
	}
	use := c.checkNames() + ". What they write is written to the mirror, for good"
	if c.Mount != "" {
		use = "the device is mounted at " + c.Mount + "; " + use
	}
	return []string{
		first, fmt.Sprintf("%s has everything, leads and serves; the first read is timed", m.To), fmt.Sprintf("%s follows; a record, a checkpoint, is timed on its way there", m.From),
		use, fmt.Sprintf("%s hands over again: %s leads, as before", m.To, m.From),
	}
}

func (f *failover) stranded(m *Moved) string {
	return fmt.Sprintf("mirror-agent failback, on %s or %s (status there says who leads)", m.To, m.From)
}

func (f *failover) forward(ctx context.Context, d *drill) {
	m := d.r.Moved
	d.env = append(d.env, "MIRROR_AGENT_DRILL_FROM="+m.From, "MIRROR_AGENT_DRILL_TO="+m.To)
	var r mirror.PromoteResult
	var before mirror.FrontStats
	d.step(ctx, "take the lead from "+m.From, func(ctx context.Context) (string, error) {
		st, err := d.status(ctx)
		if err != nil {
			return "", err
		}
		before = st.NBD
		d.wayBack(m.From+" leads again", f.stranded(m), false, func(ctx context.Context) (bool, error) { return f.home(ctx, d) })
		d.undo = append(d.undo, undo{name: "what was written meanwhile", do: func(ctx context.Context) error { return d.written(ctx, &before) }})
		limit := d.handoverLimit()
		order, cancel := uncut(ctx, limit+orderGrace)
		defer cancel()
		d.order = time.Now()
		r, err = d.Mirror.Promote(order, mirror.PromoteOptions{Planned: true, Idle: !d.c.WithClients, LimitSeconds: limit.Seconds()})
		if err != nil {
			return "", err
		}
		m.HandoverSeconds = r.Seconds
		return fmt.Sprintf("generation %s; the log of %s ended at LSN %d, here it goes on from LSN %d", r.Generation, m.From, r.HandedLSN, r.LSN), d.missing(r.HandedLSN, r.LSN)
	})
	d.firstRead(ctx, r.NBD, r.NBDTLS)
	d.settles(ctx, m.From+" follows, in sync", func(st *mirror.Status) error { return inSync(st, "") })
	d.replicates(ctx, m.From)
	if d.failed || ctx.Err() != nil {
		return
	}
	d.env = append(d.env, "MIRROR_AGENT_DRILL_URI="+d.URI(r.NBD, r.NBDTLS))
	d.use(ctx, d.r.Device, r.NBD, d.r.Mirror, r.NBDTLS)
}

// missing is the RPO, measured: where the old lead's log ended beside where the new one's begins.
func (d *drill) missing(ended, begins uint64) error {
	if ended == 0 {
		return errors.New("the agent does not say where the log of the old lead ended")
	}
	d.r.Point, d.r.Newest = mirror.Point{LSN: begins}, mirror.Point{LSN: ended}
	d.r.RPOBytes = int64(ended - min(ended, begins))
	if d.r.RPOBytes > 0 {
		return fmt.Errorf("%d bytes of the log of %s are missing", d.r.RPOBytes, d.r.Moved.From)
	}
	return nil
}

// firstRead takes the time until the new front has answered. With TLS it cannot: the first good check takes its place.
func (d *drill) firstRead(ctx context.Context, address string, tls bool) {
	d.step(ctx, "first read", func(ctx context.Context) (string, error) {
		if tls {
			return "not done: the front asks for TLS and a certificate; the first good check counts", nil
		}
		ctx, cancel := context.WithTimeoutCause(ctx, d.c.Wait, fmt.Errorf("no answer after %v", d.c.Wait))
		defer cancel()
		if err := d.FirstRead(ctx, address, d.r.Mirror); err != nil {
			return "", err
		}
		d.recovered()
		return address, nil
	})
}

// written counts what was written while the lead was here. With clients of the source, who know nothing of it, that is a failure.
func (d *drill) written(ctx context.Context, before *mirror.FrontStats) error {
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	since := func(now, then uint64) uint64 {
		if now < then { // another agent
			return now
		}
		return now - then
	}
	m := d.r.Moved
	m.Written = since(st.NBD.Writes, before.Writes) + since(st.NBD.Trims, before.Trims) + since(st.NBD.Zeroes, before.Zeroes)
	if m.Written > 0 && m.Clients > 0 {
		return fmt.Errorf("%d writes, which a filesystem that is mounted on %s does not know of: unmount it there and check it", m.Written, m.From)
	}
	return nil
}

// home is one try to have the lead where it was.
func (f *failover) home(ctx context.Context, d *drill) (done bool, err error) {
	st, err := d.status(ctx)
	if err != nil {
		return false, err
	}
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if st.Role == mirror.RolePrimary.String() {
		r, err := d.Mirror.Failback(ask, mirror.FailbackOptions{DryRun: true})
		if err != nil || !r.Ready {
			return false, errors.Join(err, waits(r.Waiting))
		}
		limit := d.handoverLimit()
		order, cancel := uncut(ctx, limit+orderGrace)
		defer cancel()
		_, err = d.Mirror.Failback(order, mirror.FailbackOptions{LimitSeconds: limit.Seconds()})
		return false, err
	}
	if st.State != stateStreaming {
		return false, fmt.Errorf("%s is %s: %s", st.Node, st.State, st.Reason)
	}
	// It feeds this host; and it serves, or it would refuse.
	r, err := d.Mirror.Promote(ask, mirror.PromoteOptions{Planned: true, DryRun: true})
	if err == nil && (r.Lead == nil || !r.Lead.Home) {
		err = errors.New("another host leads")
	}
	return err == nil, err
}

func waits(what string) error {
	if what == "" {
		return nil
	}
	return errors.New(what)
}
