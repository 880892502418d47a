package drill

import (
	"context"
	"fmt"

	"mirror-agent/mirror"
)

// switchOver moves the flow to a backup and back. Clients go on meanwhile.
type switchOver struct {
	cold  bool // the backup is not in sync yet
	fresh bool // the target that is left is fed on
	waits bool // writes wait while nobody is in sync
}

func (s *switchOver) ready(ctx context.Context, n *Runner, c *Config) (m Moved, err error) {
	st, err := n.status(ctx)
	if err != nil {
		return m, err
	}
	var in obstacles
	if st.Role != mirror.RolePrimary.String() {
		in.add("%s is %s: the flow is moved on the host that leads, run it there", st.Node, st.Role)
		return m, in.err()
	}
	if st.State != stateInSync {
		in.add("%s is %s, not in sync: %s", st.Node, st.State, st.Reason)
	}
	in.alarms(&st)
	m.From, m.Clients = st.ActiveTarget, st.NBD.Connections
	to := backupOf(&st, c.To)
	if to == nil {
		in.add("there is no backup to move the flow to: mirror-agent status shows all; start the source with --backup, or name one with --to")
		return m, in.err()
	}
	m.To = to.Target
	s.cold, s.waits = to.State != string(mirror.FollowerStreaming), st.OnLoss == string(mirror.OnLossFreeze)
	if f := activeOf(&st); f != nil {
		s.fresh = f.Hot
	}
	switch {
	case to.Active:
		in.add("data flows to %s already: name another one with --to", to.Target)
	case to.State == string(mirror.FollowerIdle) && !c.Cold:
		in.add("%s is cold: it gets what it lacks first, and until then a loss of this host loses what only it has; make it hot (--backups hot), or say --cold", to.Target)
	case s.cold && to.State != string(mirror.FollowerIdle):
		in.add("%s is %s: %s", to.Target, to.State, to.Reason)
	}
	return m, in.err()
}

// backupOf is the follower that is meant: by its address, or the first behind the active one, if there is one that is in sync.
func backupOf(st *mirror.Status, to string) *mirror.FollowerStatus {
	var next *mirror.FollowerStatus
	seen := false
	for i := range st.Followers {
		f := &st.Followers[i]
		switch {
		case to == f.Target:
			return f
		case f.Active:
			seen = true
		case (to == "" || to == "backup") && seen && (next == nil || next.State != string(mirror.FollowerStreaming) && f.State == string(mirror.FollowerStreaming)):
			next = f
		}
	}
	return next
}

func (s *switchOver) plan(c *Config, m *Moved) []string {
	first := fmt.Sprintf("the flow moves from %s to %s; clients (%d) go on", m.From, m.To, m.Clients)
	second := fmt.Sprintf("%s is in sync: it is hot, nothing is copied", m.To)
	if s.cold {
		second = fmt.Sprintf("%s gets what it lacks, which may take %v; until it has, nobody is in sync", m.To, c.Wait)
		if s.waits {
			second += ", and writes wait (on-loss: freeze)"
		}
	}
	last := fmt.Sprintf("the flow moves back to %s", m.From)
	if !s.fresh {
		last += ", which gets what was written meanwhile"
	}
	return []string{first, second, "a record, a checkpoint, is timed on its way there", c.checkNames(), last}
}

func (s *switchOver) stranded(m *Moved) string { return "mirror-agent switch " + m.From }

func (s *switchOver) forward(ctx context.Context, d *drill) {
	m := d.r.Moved
	if st, err := d.status(ctx); err == nil && st.NBD.Address != "" {
		d.env = append(d.env, "MIRROR_AGENT_DRILL_URI="+d.URI(st.NBD.Address, st.NBD.TLS))
	}
	d.env = append(d.env, "MIRROR_AGENT_DRILL_FROM="+m.From, "MIRROR_AGENT_DRILL_TO="+m.To)
	d.step(ctx, "move the flow to "+m.To, func(ctx context.Context) (string, error) {
		d.wayBack("the flow back to "+m.From, s.stranded(m), false, func(ctx context.Context) (bool, error) { return s.home(ctx, d) })
		ctx, cancel := uncut(ctx, orderGrace)
		defer cancel()
		_, err := d.Mirror.Switch(ctx, m.To)
		return "", err
	})
	d.settles(ctx, m.To+" is in sync", func(st *mirror.Status) error { return inSync(st, m.To) })
	d.replicates(ctx, m.To)
	d.checks(ctx, d.c.Checks, false)
}

// home is one try to have the flow where it was.
func (s *switchOver) home(ctx context.Context, d *drill) (done bool, err error) {
	st, err := d.status(ctx)
	if err != nil {
		return false, err
	}
	if st.Role == mirror.RolePrimary.String() && st.ActiveTarget != d.r.Moved.From {
		order, cancel := uncut(ctx, orderGrace)
		defer cancel()
		if _, err := d.Mirror.Switch(order, d.r.Moved.From); err != nil {
			return false, err
		}
		return false, nil
	}
	err = inSync(&st, d.r.Moved.From)
	return err == nil, err
}
