package mirror

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/journal"
)

// electorTrio is a mirror of three members: a source, its target and a hot backup, which know each other.
type electorTrio struct{ source, target, backup *agentNode }

func newElectorTrio(t *testing.T, listens bool) *electorTrio {
	t.Helper()
	return newElectorTrioWith(t, listens, func(*Config) {})
}

func newElectorTrioWith(t *testing.T, listens bool, set func(follower *Config)) *electorTrio {
	t.Helper()
	target, backup := newAgentNode(t, RoleSecondary), newAgentNode(t, RoleSecondary)
	target.c.NodeName, backup.c.NodeName = "fra2", "ams1"
	set(&target.c)
	set(&backup.c)
	target.start()
	backup.start()
	source := newAgentNode(t, RolePrimary, target, backup)
	source.c.HotBackups = []bool{true}
	if listens {
		source.c.Listen = []string{"127.0.0.1:0"}
	}
	source.c.NodeName = "nyc1"
	x := &electorTrio{source, target, backup}
	source.start()
	source.awaitState("in sync")
	x.awaitMembers(3)
	return x
}

// awaitMembers waits until everybody who runs knows of n members.
func (x *electorTrio) awaitMembers(n int) {
	for _, m := range []*agentNode{x.source, x.target, x.backup} {
		m.awaitWithin(20*time.Second, "members", func(s Status) bool { return s.Electorate != nil && len(s.Electorate.Members) == n })
	}
}

func (n *agentNode) refusedAs(words ...string) {
	n.t.Helper()
	_, err := n.a.Promote(n.t.Context(), PromoteOptions{})
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			n.t.Fatalf("promotion of %s: %v, want a refusal with %q", n.c.NodeName, err, w)
		}
	}
}

func (n *agentNode) promote() PromoteResult {
	n.t.Helper()
	r, err := n.a.Promote(n.t.Context(), PromoteOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// TestMajority: the source dies. Who is behind is refused with the name of who is ahead, who is ahead is promoted by the word of
// the other one, and that word alone, over a restart, fences the old source.
func TestMajority(t *testing.T) {
	x := newElectorTrio(t, true)
	x.backup.end()
	p := x.source.write(1)
	x.source.kill()
	x.target.awaitState("waiting")
	x.target.refusedAs("1 of the 3 members", "2 are needed", "ams1 cannot be asked", "nyc1", "member remove", "--force")
	x.backup.start()
	x.backup.refusedAs("fra2 is ahead", "promote it instead")
	if g := x.target.a.v.Seen(); g.Major != 1 {
		t.Fatalf("a refused order has bound the target to %s", rankString(g))
	}
	dry, err := x.target.a.Promote(t.Context(), PromoteOptions{DryRun: true})
	if err != nil || !dry.DryRun || x.backup.a.v.Seen().Major != 1 {
		t.Fatalf("%+v %v, the backup has seen %s", dry, err, rankString(x.backup.a.v.Seen()))
	}
	if r := x.target.promote(); r.Generation != "2.0" {
		t.Fatalf("generation %s", r.Generation)
	}
	x.target.holds(p)
	if got, want := x.backup.a.v.Seen(), x.target.a.v.Generation(); got.ID != want.ID || got.Major != 2 {
		t.Fatalf("the backup is bound to %s, the target is primary of %s", rankString(got), rankString(want))
	}
	x.backup.refusedAs("fra2") // which is primary of generation 2.0; as its source, when it is fed by then
	x.target.kill()
	x.backup.kill()
	x.backup.start()
	x.source.c.StartWait = 20 * time.Second
	x.source.start()
	// Where the backup can show the history that this volume is a part of it has nothing of its own, and waits for the new primary.
	x.source.awaitWithin(20*time.Second, "fenced by the word alone", func(s Status) bool { return s.State == "fenced" || s.State == "rejoining" })
	x.source.kill()
	x.target.start()
	x.target.awaitServing()
	x.target.holds(p)
}

// TestMajorityOfOld: the members that are left may be promoted with the old source's word, as long as it has no more than they.
func TestMajorityOfOld(t *testing.T) {
	x := newElectorTrio(t, true)
	p := x.source.write(1)
	x.source.await("all are level", func(s Status) bool {
		return s.Followers[0].Durable == s.Log.Head && s.Followers[1].Durable == s.Log.Head
	})
	for _, n := range []*agentNode{x.target, x.backup} {
		n.refusedAs("is alive")
	}
	x.target.kill()
	x.source.a.fence("a test", journal.Generation{})
	x.source.awaitState("fenced")
	x.source.a.stopSenders()
	_ = x.source.a.transport.(*portTransport).port(1).Close()
	x.backup.awaitState("waiting")
	x.backup.promote()
	x.backup.holds(p)
	if g := x.source.a.v.Seen(); g.Major != 2 {
		t.Fatalf("the old source is bound to %s", rankString(g))
	}
}

// TestLiveSource: who has lost the source and is ahead of nobody is refused while another member sees it.
func TestLiveSource(t *testing.T) {
	x := newElectorTrio(t, false)
	x.source.write(1)
	x.target.a.closeInbound() // it does not hear the source any more, until that shakes hands again
	if err := x.source.a.transport.suspend(false); err != nil {
		t.Fatal(err)
	}
	if _, err := x.target.a.mandate(t.Context(), &PromoteOptions{}); err == nil || !strings.Contains(err.Error(), "ams1 is fed by nyc1, which is alive") {
		t.Fatal(err)
	}
	if g := x.backup.a.v.Seen(); g.Major != 1 {
		t.Fatalf("bound to %s", rankString(g))
	}
}

// TestTwoAtOnce: two orders at one moment; one is carried out, the other is refused since there is a primary.
func TestTwoAtOnce(t *testing.T) {
	x := newElectorTrio(t, true)
	p := x.source.write(1)
	x.source.await("all are level", func(s Status) bool {
		return s.Followers[0].Durable == s.Log.Head && s.Followers[1].Durable == s.Log.Head
	})
	x.source.kill()
	x.target.awaitState("waiting")
	x.backup.awaitState("waiting")
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, n := range []*agentNode{x.target, x.backup} {
		wg.Go(func() { _, errs[i] = n.a.Promote(t.Context(), PromoteOptions{}) })
	}
	wg.Wait()
	won, lost := x.target, x.backup
	if errs[0] != nil {
		won, lost = lost, won
	}
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("%v", errs)
	}
	// The one that lost was asked while the other took over, or is fed by it already.
	if refusal := errors.Join(errs...).Error(); !strings.Contains(refusal, "is primary of generation") && !strings.Contains(refusal, ", the source, is alive") {
		t.Fatal(refusal)
	}
	won.holds(p)
	if s := lost.a.Status(); s.Role != "secondary" {
		t.Fatalf("the other one is %s", s.Role)
	}
	t.Logf("generation %s", won.a.Status().Generation)
}

// TestRemoveMember: a member that is gone for good does not count any more; one that is in sync cannot be removed, and one that
// returns comes in again.
func TestRemoveMember(t *testing.T) {
	x := newElectorTrio(t, true)
	remove := func(n *agentNode, who, want string) {
		t.Helper()
		err := n.a.RemoveMember(t.Context(), who)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Fatalf("remove %s on %s: %v, want %q", who, n.c.NodeName, err, want)
		}
	}
	remove(x.source, "ams1", "in sync right now")
	remove(x.source, "nyc1", "the host itself")
	remove(x.source, "nobody", "no member")
	remove(x.target, "ams1", "give the order there")
	p := x.source.write(1)
	x.backup.kill()
	x.source.await("it is away", func(s Status) bool { return s.Followers[1].State != string(FollowerStreaming) })
	remove(x.source, "ams1", "")
	x.target.await("told", func(s Status) bool { return len(s.Electorate.Members) == 2 && s.Electorate.Needed == 0 })
	x.backup.start()
	x.awaitMembers(3)
	x.backup.kill()
	x.source.kill()
	x.target.awaitState("waiting")
	x.target.refusedAs("1 of the 3 members")
	remove(x.target, "ams1", "")
	x.backup.start()
	x.backup.refusedAs("is not among the members any more") // it has adopted the newer list
	x.target.promote()                                      // two members: the order is the operator's word
	x.target.holds(p)
}
