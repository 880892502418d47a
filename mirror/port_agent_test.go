package mirror

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-agent/journal"
)

// TestPortRefusesTheOldSource: a promoted target refuses its old source at the
// port already, after a restart too, and that one says why.
func TestPortRefusesTheOldSource(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	source.write(1)
	source.end()
	if _, err := target.a.Promote(t.Context(), PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	target.end()
	target.start()
	target.awaitServing()
	source.start()
	source.awaitState("streaming") // it has nothing of its own
	said, _ := source.a.Events(0)
	if want := target.c.NodeName + " has seen generation 2.0, this is 1.0"; !slices.ContainsFunc(said, func(e Event) bool {
		return e.Kind == "fenced" && strings.HasPrefix(e.Text, want)
	}) {
		t.Errorf("events %v, none says %q", said, want)
	}
	kinds := eventKinds(source.a)
	// It is let in once it knows of the higher generation, to ask what that has.
	fenced, up := slices.Index(kinds, "port-fenced"), slices.Index(kinds, string(portPathUp))
	if fenced < 0 || up >= 0 && up < fenced {
		t.Errorf("the port let it in: %v", kinds)
	}
	if source.front.served() != nil {
		t.Error("the old source serves")
	}
}

// TestPortKnowsAnOldSourceOfAnotherMirror: generations of another mirror of
// the same name fence nobody; it is told apart in words.
func TestPortKnowsAnOldSourceOfAnotherMirror(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	theirs := newAgentNode(t, RolePrimary, target).start()
	theirs.awaitState("in sync")
	theirs.end()
	if _, err := target.a.Promote(t.Context(), PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	source := newAgentNode(t, RolePrimary, target).start()
	source.await("refused", func(s Status) bool { return s.State == "degraded" && strings.Contains(s.Reason, "holds mirror") })
	source.write(1)
	if kinds := eventKinds(source.a); slices.Contains(kinds, "port-fenced") {
		t.Errorf("events %v", kinds)
	}
}

func eventKinds(a *Agent) (kinds []string) {
	l, _ := a.Events(0)
	for _, e := range l {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// TestPortRank: every generation goes through the port and back, in order.
func TestPortRank(t *testing.T) {
	last := uint64(0)
	for _, g := range []journal.Generation{{Minor: 1}, {Major: 1}, {Major: 1, Minor: 7}, {Major: 2}, {Major: 1<<32 - 1, Minor: 1<<32 - 1}} {
		n := portNumber(g)
		if n <= last || compareRank(portRank(n), g) != 0 {
			t.Errorf("%s is %d, back %s, the one before is %d", rankString(g), n, rankString(portRank(n)), last)
		}
		last = n
	}
}

// TestListenWhileRunning: addresses of a target are added and removed while
// the source feeds it; the source's paths follow.
func TestListenWhileRunning(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	seed := target.a.Status().Listen[0]
	if err := target.a.Unlisten(t.Context(), seed); err == nil || !strings.Contains(err.Error(), "the only address") {
		t.Errorf("the only address was removed: %v", err)
	}
	added, err := target.a.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	remotes := func(n int) func(Status) bool {
		return func(s Status) bool {
			return len(s.Followers[0].Paths) == n && s.Followers[0].Paths[n-1].State == "active"
		}
	}
	source.await("on two paths", remotes(2))
	if p := source.a.Status().Followers[0].Paths[1]; p.Remote != added || !p.Announced || p.Unproven {
		t.Errorf("path %+v", p)
	}
	if got, want := target.a.Status().Announced, []string{seed, added}; !slices.Equal(got, want) {
		t.Errorf("announced %v, want %v", got, want)
	}
	target.holds(source.write(1))
	if err := target.a.Unlisten(t.Context(), added); err != nil {
		t.Fatal(err)
	}
	source.await("on one path", remotes(1))
	target.holds(source.write(2))
	if err := target.a.Unlisten(t.Context(), added); err == nil || !strings.Contains(err.Error(), "no "+added+" among the addresses") {
		t.Errorf("removed twice: %v", err)
	}
}

// TestPathAlarms: an announced address that was never reached is no loss.
func TestPathAlarms(t *testing.T) {
	a := newAgentNode(t, RolePrimary).start().a
	s := Status{Followers: []FollowerStatus{{Active: true, State: string(FollowerStreaming), Paths: []PathStatus{
		{ID: 1, State: "active"},
		{ID: 2, State: "backoff", Announced: true, Unproven: true},
		{ID: 3, State: "backoff", Announced: true},
	}}}}
	a.mu.Lock()
	a.alarmsLocked(&s, time.Now())
	a.mu.Unlock()
	if len(s.Alarms) != 1 || s.Alarms[0].Name != "path-down" || !strings.Contains(s.Alarms[0].Reason, "path 3") {
		t.Errorf("alarms %+v", s.Alarms)
	}
}

// TestNotAnnounced: with --announced=false there are the paths that were
// configured and no others.
func TestNotAnnounced(t *testing.T) {
	target := newAgentNode(t, RoleSecondary)
	target.c.Listen = append(target.c.Listen, "127.0.0.1:0")
	target.start()
	source := newAgentNode(t, RolePrimary, target)
	source.c.Target = source.c.Target[:1]
	source.c.Announced = false
	source.start()
	source.awaitState("in sync")
	source.await("told of two addresses", func(Status) bool {
		l, _ := source.a.transport.session(0)
		s, ok := l.(sessionLink)
		return ok && len(s.PeerAddrs()) == 2
	})
	target.holds(source.write(1))
	target.holds(source.write(2))
	if p := source.a.Status().Followers[0].Paths; len(p) != 1 {
		t.Errorf("paths %+v", p)
	}
}

// TestMembersNotAnnounced: who leads after a source dials its other follower where that said it listens, but with --announced=false
// only those that were configured.
func TestMembersNotAnnounced(t *testing.T) {
	for _, announced := range []bool{true, false} {
		target := newAgentNode(t, RoleSecondary)
		target.c.Announced = announced
		target.start()
		backup := newAgentNode(t, RoleSecondary).start()
		source := newAgentNode(t, RolePrimary, target, backup)
		source.c.HotBackups = []bool{true}
		source.start()
		source.awaitAll("in sync")
		target.knowsMember(backup)
		target.plan()
		if announced {
			target.await("fed by the one who leads", func(s Status) bool { return len(s.Followers) == 2 })
		}
		target.a.mu.Lock()
		if n := len(target.a.candidates); (n > 0) != announced {
			t.Errorf("announced %t: %d members are dialled", announced, n)
		}
		target.a.mu.Unlock()
		source.end()
		target.end()
		backup.end()
	}
}
