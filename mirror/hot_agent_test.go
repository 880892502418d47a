package mirror

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// hotMirror is a source with a target and hot backups, all in sync.
func hotMirror(t *testing.T, backups int, set func(*Config)) (source *agentNode, followers []*agentNode) {
	t.Helper()
	for range 1 + backups {
		followers = append(followers, newAgentNode(t, RoleSecondary).start())
	}
	source = newAgentNode(t, RolePrimary, followers...)
	source.c.HotBackups = slices.Repeat([]bool{true}, backups)
	if set != nil {
		set(&source.c)
	}
	source.start()
	source.awaitAll("in sync")
	return source, followers
}

// awaitAll waits until every follower is streaming.
func (n *agentNode) awaitAll(state string) {
	n.t.Helper()
	n.awaitWithin(20*time.Second, "all followers streaming, "+state, func(s Status) bool {
		return s.State == state && !slices.ContainsFunc(s.Followers, func(f FollowerStatus) bool { return f.State != string(FollowerStreaming) })
	})
}

// resyncs counts those of followers that were not empty.
func (n *agentNode) resyncs() (all, partial int) {
	n.t.Helper()
	es, _ := n.a.Events(0)
	for _, e := range es {
		if e.Kind == "follower-resync" && !strings.Contains(e.Text, "is empty") {
			all++
			if strings.Contains(e.Text, "what changed since is copied") {
				partial++
			}
		}
	}
	return all, partial
}

func order(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHotBackups: all followers are fed at once; the flow moves among them without any copy; who was active is fed on; a path
// of each can be reset, and the status tells of each.
func TestHotBackups(t *testing.T) {
	source, fs := hotMirror(t, 2, func(c *Config) { c.OnLoss = OnLossFreeze }) // who does not count hangs the writes
	for i := range 6 {
		to := (i + 1) % 3
		where := fs[to].c.Listen[0]
		if to == 0 {
			where = "primary"
		}
		order(t, source.a.Switch(t.Context(), where))
		if s := source.a.Status(); s.State != "in sync" || s.ActiveTarget != fs[to].c.Listen[0] || !s.Followers[to].Active {
			t.Fatalf("round %d: state %s (%s), active %s", i, s.State, s.Reason, s.ActiveTarget)
		}
		p := source.write(byte(10 + i))
		fs[to].holds(p) // it counts
		for k, f := range fs {
			source.await("everybody has it", func(s Status) bool { return s.Followers[k].LagBytes == 0 })
			f.holds(p)
		}
	}
	if all, _ := source.resyncs(); all != 0 {
		t.Errorf("%d resyncs", all)
	}
	s := source.a.Status()
	for i, f := range s.Followers {
		if !f.Hot || len(f.Paths) == 0 || f.Active != (i == 0) {
			t.Errorf("follower %d: hot %v, active %v, %d paths", i, f.Hot, f.Active, len(f.Paths))
		}
		order(t, source.a.ResetPath(t.Context(), f.Target, f.Paths[0].ID))
		source.awaitAll("in sync")
	}
	if len(s.Alarms) > 0 {
		t.Errorf("alarms: %+v", s.Alarms)
	}
	for i, f := range fs {
		f.await("told of all members", func(s Status) bool {
			return s.Source != nil && s.Source.Active == (i == 0) && len(s.Source.Members) == 3
		})
	}
	for _, to := range []string{"primary", fs[0].c.Listen[0]} {
		if err := source.a.Switch(t.Context(), to); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("switch to the active one: %v", err)
		}
	}
	// All are sent off at the clean end.
	head := source.a.v.log.Head()
	source.end()
	for i, f := range fs {
		if got := f.a.v.Committed(); got < head {
			t.Errorf("follower %d has committed up to %d, the source ended at %d", i, got, head)
		}
	}
}

// TestHotBackupTakesOver: the target dies, and the backup counts at once, with everything that was answered; the target comes
// back, catches up from the log, and is not active; the flow does not go back by itself, nor by a restart.
func TestHotBackupTakesOver(t *testing.T) {
	source, fs := hotMirror(t, 1, func(c *Config) { c.Switch = SwitchAuto })
	source.write(1)
	fs[0].kill()
	p := source.write(2) // a FLUSH waits for the target until it is out of reach, then for the backup
	fs[1].holds(p)
	active := func(i int) func(s Status) bool {
		return func(s Status) bool { return s.State == "in sync" && s.Followers[i].Active }
	}
	source.await("the backup active", active(1))
	source.await("the target missed", func(s Status) bool {
		return slices.ContainsFunc(s.Alarms, func(x Alarm) bool {
			return x.Name == "redundancy-reduced" && strings.Contains(x.Reason, fs[0].c.Listen[0])
		})
	})
	source.write(3)
	fs[0].start()
	source.awaitAll("in sync")
	if !active(1)(source.a.Status()) {
		t.Fatal("the flow went back by itself")
	}
	source.await("no alarm", func(s Status) bool { return len(s.Alarms) == 0 })
	source.kill()
	source.start()
	source.awaitAll("in sync")
	if !active(1)(source.a.Status()) {
		t.Fatal("the flow went back by a restart")
	}
	p = source.write(4)
	fs[1].holds(p)
	if all, _ := source.resyncs(); all != 0 {
		t.Errorf("%d resyncs", all)
	}
	fs[1].kill() // the last of the list: it is the operator's turn
	source.awaitState("degraded")
	if s := source.a.Status(); !s.Followers[1].Active || !strings.Contains(s.NextStep, "switch primary, which is in sync") {
		t.Fatalf("active %s, next: %s", s.ActiveTarget, s.NextStep)
	}
	order(t, source.a.Switch(t.Context(), "primary"))
	source.await("the target active", active(0))
	fs[0].holds(source.write(5))
}

// TestAutoSkipsTheDead: with switch auto the flow goes to the first backup that can be reached; when none can, to the one that
// comes back first.
func TestAutoSkipsTheDead(t *testing.T) {
	source, fs := hotMirror(t, 2, func(c *Config) { c.Switch = SwitchAuto })
	fs[1].kill()
	source.await("the first backup down", func(s Status) bool { return s.Followers[1].State == string(FollowerDown) })
	fs[2].kill()
	source.await("the second backup down", func(s Status) bool { return s.Followers[2].State == string(FollowerDown) })
	fs[0].kill()
	source.awaitState("degraded")
	source.write(1) // alone
	if s := source.a.Status(); !s.Followers[0].Active {
		t.Fatalf("moved to %s, which is dead", s.ActiveTarget)
	}
	fs[2].start()
	source.await("the second backup active", func(s Status) bool { return s.State == "in sync" && s.Followers[2].Active })
	fs[2].holds(source.write(2))
	fs[0].start()
	fs[1].start()
	source.awaitAll("in sync")
	if s := source.a.Status(); !s.Followers[2].Active {
		t.Fatalf("moved back to %s", s.ActiveTarget)
	}
}

// TestHotAndCold: in one list, by their places; the cold one has no connection but when it is the active one.
func TestHotAndCold(t *testing.T) {
	var fs []*agentNode
	for range 3 {
		fs = append(fs, newAgentNode(t, RoleSecondary).start())
	}
	source := newAgentNode(t, RolePrimary, fs...)
	source.c.HotBackups = []bool{false, true}
	source.start()
	states := func(want ...FollowerState) {
		t.Helper()
		source.await("as wanted", func(s Status) bool {
			for i, f := range s.Followers {
				if f.State != string(want[i]) {
					return false
				}
			}
			return s.State == "in sync"
		})
		cold := 0
		fs[1].a.mu.Lock()
		cold = len(fs[1].a.receivers)
		fs[1].a.mu.Unlock()
		if (cold > 0) != (want[1] == FollowerStreaming) {
			t.Fatalf("the cold backup has %d sources", cold)
		}
	}
	states(FollowerStreaming, FollowerIdle, FollowerStreaming)
	source.write(1)
	order(t, source.a.Switch(t.Context(), "backup"))
	states(FollowerStreaming, FollowerStreaming, FollowerStreaming)
	fs[1].holds(source.write(2))
	order(t, source.a.Suspend(t.Context()))
	source.awaitState("suspended")
	if s := source.a.Status(); s.Followers[0].State != string(FollowerSuspended) || s.Followers[2].State != string(FollowerSuspended) {
		t.Fatalf("%+v", s.Followers)
	}
	order(t, source.a.Switch(t.Context(), "backup"))
	source.awaitState("suspended")
	order(t, source.a.Resume(t.Context()))
	source.await("the cold one is let go of", func(Status) bool {
		fs[1].a.mu.Lock()
		defer fs[1].a.mu.Unlock()
		return len(fs[1].a.receivers) == 0
	})
	states(FollowerStreaming, FollowerIdle, FollowerStreaming)
	fs[2].holds(source.write(3))
	if err := source.a.Switch(t.Context(), "backup"); err == nil || !strings.Contains(err.Error(), "last of the backups") {
		t.Fatalf("a switch beyond the list: %v", err)
	}
	// One that was active when everything was suspended, and is left in that time.
	order(t, source.a.Switch(t.Context(), fs[1].c.Listen[0]))
	states(FollowerStreaming, FollowerStreaming, FollowerStreaming)
	if _, err := fs[2].a.Promote(t.Context(), PromoteOptions{}); err == nil || !strings.Contains(err.Error(), "alive") {
		t.Fatalf("a hot follower is promoted beside its source: %v", err)
	}
	order(t, source.a.Switch(t.Context(), "primary"))
	states(FollowerStreaming, FollowerIdle, FollowerStreaming)
	if _, err := fs[1].a.Promote(t.Context(), PromoteOptions{}); err == nil || !strings.Contains(err.Error(), "moved its data flow") {
		t.Fatalf("a cold follower that was left is promoted: %v", err)
	}
}

// TestHotEach: grown, checkpointed and slow: what concerns all followers.
func TestHotEach(t *testing.T) {
	source, fs := hotMirror(t, 1, nil)
	order(t, func() error { _, err := source.a.CreateCheckpoint(t.Context(), "here"); return err }())
	grown, err := source.a.Resize(t.Context(), 2<<20)
	order(t, err)
	for i, f := range fs {
		source.await("all there", func(s Status) bool { return s.Followers[i].LagBytes == 0 })
		marks, err := f.a.Checkpoints(t.Context())
		if size, _ := f.a.v.Size(); err != nil || size != grown || len(marks) != 1 || marks[0].Name != "here" {
			t.Errorf("follower %d: %d bytes, checkpoints %v (%v)", i, size, marks, err)
		}
	}
	// A backup that cannot grow keeps all from it.
	v := fs[1].a.v
	fs[1].a.feedMu.Lock() // whoever takes messages looks at the device, and whoever applies
	v.applyMu.Lock()
	v.dev = plain{v.dev}
	v.applyMu.Unlock()
	fs[1].a.feedMu.Unlock()
	if _, err := source.a.Resize(t.Context(), 4<<20); err == nil || !strings.Contains(err.Error(), ErrTooSmall.Error()) {
		t.Errorf("resized although a backup cannot: %v", err)
	}
	if size, _ := source.a.v.Size(); size != grown {
		t.Errorf("the source has %d bytes", size)
	}
}

// TestSlowHotBackup: a hot backup that takes nothing is left behind after push-back, which is all that it holds writers up;
// the target goes on and counts all the time; the backup is resynced by bitmap when it takes something again.
func TestSlowHotBackup(t *testing.T) {
	source, fs := hotMirror(t, 1, func(c *Config) { c.PushBack = 300 * time.Millisecond })
	source.write(1)
	source.await("level", func(s Status) bool { return s.Followers[1].LagBytes == 0 })
	fs[1].a.feedMu.Lock() // it hangs
	dev := source.awaitServing()
	chunk := make([]byte, 256<<10)
	for i := range 3 * minJournalSize / len(chunk) {
		chunk[0] = byte(i)
		if _, err := dev.WriteAt(chunk, int64(i%2)*int64(len(chunk))); err != nil {
			t.Fatal(err)
		}
		if i%8 == 0 {
			order(t, dev.Sync())
			if s := source.a.Status(); s.Followers[0].State != string(FollowerStreaming) || s.State != "in sync" {
				t.Fatalf("the target is %s, the mirror %s", s.Followers[0].State, s.State)
			}
		}
	}
	fs[1].a.feedMu.Unlock()
	es, _ := source.a.Events(0)
	if !slices.ContainsFunc(es, func(e Event) bool {
		return e.Target == fs[1].c.Listen[0] && strings.Contains(e.Text, "writers outran it")
	}) {
		t.Error("the backup was not left behind")
	}
	if slices.ContainsFunc(es, func(e Event) bool {
		return e.Target == fs[0].c.Listen[0] && strings.Contains(e.Text, "writers outran it")
	}) {
		t.Error("the target was left behind too")
	}
	source.awaitAll("in sync")
	if all, partial := source.resyncs(); all == 0 || all != partial {
		t.Errorf("%d resyncs, %d of them by bitmap", all, partial)
	}
	p := source.write(9)
	source.await("the backup has it", func(s Status) bool { return s.Followers[1].LagBytes == 0 })
	fs[1].holds(p)
}

// TestNotAloneInBetween: with switch auto and a hot backup in sync no FLUSH is answered alone while the flow moves. One that
// waited for the target waits for the backup, which hangs here until it may go on.
func TestNotAloneInBetween(t *testing.T) {
	source, fs := hotMirror(t, 1, func(c *Config) { c.Switch, c.UnreachableAfter = SwitchAuto, 2*time.Second })
	dev, backup := source.awaitServing(), fs[1].a
	fs[0].kill()
	backup.feedMu.Lock()
	if _, err := dev.WriteAt([]byte{1, 2, 3}, 0); err != nil {
		t.Fatal(err)
	}
	lsn, done := source.a.v.log.Head(), make(chan error, 1)
	go func() { done <- dev.Sync() }()
	source.await("the backup is active", func(s Status) bool { return s.Followers[1].Active })
	select {
	case err := <-done:
		t.Errorf("a FLUSH was answered when nobody had it (%v)", err)
		done <- err
	default:
	}
	backup.feedMu.Unlock()
	order(t, <-done)
	if durable := backup.v.log.Durable(); durable < lsn {
		t.Errorf("a FLUSH was answered up to %d, the backup is durable up to %d", lsn, durable)
	}
}
