package drill

import (
	"context"
	"fmt"
	"time"

	"mirror-agent/mirror"
)

// failback brings the lead home, after a real failover or a drill that was killed, and leaves it there. Aborted, it goes back.
type failback struct {
	athome bool // this host is home
}

func (f *failback) ready(ctx context.Context, n *Runner, c *Config) (m Moved, err error) {
	st, err := n.status(ctx)
	if err != nil {
		return m, err
	}
	var in obstacles
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := n.Mirror.Failback(ask, mirror.FailbackOptions{DryRun: true})
	if err != nil {
		in.add("%v", err)
		return m, in.err()
	}
	m.From, m.To, f.athome = r.Primary, r.Home, st.Home
	if !r.Ready {
		in.add("%s is not in sync yet: %s; it comes by itself, mirror-agent failback --dry-run says how far it is", r.Home, r.Waiting)
	}
	in.alarms(&st)
	m.Clients = st.NBD.Connections
	if f.athome && r.Ready {
		p, err := n.Mirror.Promote(ask, mirror.PromoteOptions{Planned: true, DryRun: true})
		switch {
		case err != nil:
			in.add("%v", err)
		case p.Lead == nil:
			in.add("the agent of %s does not say whether clients use it: bring it up to date (mirror-agent version)", r.Primary)
		default:
			m.Clients = p.Lead.Clients
			for _, a := range p.Lead.Alarms {
				in.add("alarm on %s: %s", r.Primary, a)
			}
		}
	}
	if m.Clients > 0 && !c.WithClients {
		in.add("%s has clients (%d NBD connections), which would lose their device: unmount and detach there, or say --with-clients", r.Primary, m.Clients)
	}
	return m, in.err()
}

func (f *failback) plan(c *Config, m *Moved) []string {
	first := fmt.Sprintf("%s, which leads, closes its front", m.From)
	if m.Clients > 0 {
		first += fmt.Sprintf(": its clients (%d connections) lose their device, and find it on %s", m.Clients, m.To)
	}
	return []string{
		first, fmt.Sprintf("%s, home, has everything, leads and serves", m.To), fmt.Sprintf("%s follows, in sync", m.From),
		c.checkNames(), fmt.Sprintf("%s leads from then on. Only an abort gives the lead back to %s", m.To, m.From),
	}
}

func (f *failback) stranded(m *Moved) string {
	return fmt.Sprintf("status on %s and %s says who leads; mirror-agent failback brings the lead home, promote --planned on %[2]s there", m.To, m.From)
}

func (f *failback) forward(ctx context.Context, d *drill) {
	m := d.r.Moved
	d.env = append(d.env, "MIRROR_AGENT_DRILL_FROM="+m.From, "MIRROR_AGENT_DRILL_TO="+m.To)
	var r mirror.FailbackResult
	d.step(ctx, "bring the lead to "+m.To, func(ctx context.Context) (string, error) {
		d.wayBack(m.From+" leads again", f.stranded(m), true, func(ctx context.Context) (bool, error) { return f.away(ctx, d) })
		limit := d.handoverLimit()
		order, cancel := uncut(ctx, limit+orderGrace)
		defer cancel()
		d.order = time.Now()
		var err error
		r, err = d.Mirror.Failback(order, mirror.FailbackOptions{LimitSeconds: limit.Seconds(), Idle: !d.c.WithClients})
		if err != nil {
			return "", err
		}
		m.HandoverSeconds = r.Seconds
		return fmt.Sprintf("generation %s; the log of %s ended at LSN %d, it goes on from LSN %d", r.Generation, m.From, r.HandedLSN, r.LSN), d.missing(r.HandedLSN, r.LSN)
	})
	if !f.athome {
		d.settles(ctx, "this host follows, in sync", func(st *mirror.Status) error {
			if st.Role != mirror.RoleSecondary.String() || st.State != stateStreaming {
				return fmt.Errorf("%s is %s: %s", st.Node, st.State, st.Reason)
			}
			return nil
		})
		d.checks(ctx, d.c.Checks, false)
		return
	}
	d.firstRead(ctx, r.NBD, r.NBDTLS)
	d.settles(ctx, m.From+" follows, in sync", func(st *mirror.Status) error { return inSync(st, "") })
	d.replicates(ctx, m.From)
	d.env = append(d.env, "MIRROR_AGENT_DRILL_URI="+d.URI(r.NBD, r.NBDTLS))
	d.checks(ctx, d.c.Checks, false)
}

// away is one try to have the lead where it was before.
func (f *failback) away(ctx context.Context, d *drill) (done bool, err error) {
	st, err := d.status(ctx)
	if err != nil {
		return false, err
	}
	leads := st.Role == mirror.RolePrimary.String()
	switch {
	case leads != f.athome && leads:
		err = inSync(&st, "")
		return err == nil, err
	case leads != f.athome:
		if st.State == stateStreaming {
			return true, nil
		}
		return false, fmt.Errorf("%s is %s: %s", st.Node, st.State, st.Reason)
	}
	limit := d.handoverLimit()
	order, cancel := uncut(ctx, limit+orderGrace)
	defer cancel()
	if f.athome {
		_, err = d.Mirror.Failback(order, mirror.FailbackOptions{To: d.r.Moved.From, LimitSeconds: limit.Seconds()})
	} else {
		_, err = d.Mirror.Promote(order, mirror.PromoteOptions{Planned: true, LimitSeconds: limit.Seconds()})
	}
	return false, err
}
