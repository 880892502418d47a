package mirror

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPlanned_idle: a source that is used says so beforehand, and does not hand over to who wants it idle, nor does it close its
// front for that.
func TestPlanned_idle(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	story(t, source, target)
	source.awaitState("in sync")
	target.awaitWithin(plannedWait, "streaming", func(s Status) bool { return s.State == "streaming" })
	source.front.setClients(2)
	r, err := target.a.Promote(t.Context(), PromoteOptions{Planned: true, DryRun: true})
	if err != nil || r.Lead == nil || r.Lead.Clients != 2 || !r.Lead.Home || r.Lead.Node != source.c.NodeName || r.Lead.State != "in sync" || len(r.Lead.Alarms) > 0 {
		t.Fatalf("%+v, %+v: %v", r, r.Lead, err)
	}
	for _, o := range []PromoteOptions{{Planned: true, Idle: true, DryRun: true}, {Planned: true, Idle: true}} {
		if r, err := target.a.Promote(t.Context(), o); err == nil || !strings.Contains(err.Error(), "has clients: 2 NBD connections") {
			t.Fatalf("%+v: %v", r, err)
		}
	}
	if source.front.served() == nil || source.a.Status().Role != "primary" {
		t.Fatal("it was disturbed")
	}
	source.front.setClients(0)
	r, err = target.a.Promote(t.Context(), PromoteOptions{Planned: true, Idle: true})
	if err != nil || r.HandedLSN == 0 || r.LSN != r.HandedLSN {
		t.Fatalf("%+v: %v", r, err)
	}
	target.awaitWithin(plannedWait, "in sync", func(s Status) bool { return s.State == "in sync" })
	if f := target.a.Status().Followers[0]; !f.Home || target.a.Status().Home || !source.a.Status().Home {
		t.Errorf("who is home: %+v", f)
	}
	// The way home, with a client of the one that leads now, from either side; then to where the lead was, by its name.
	target.front.setClients(1)
	for _, n := range []*agentNode{source, target} {
		n.awaitWithin(plannedWait, "level", func(s Status) bool { return s.State == "streaming" || s.State == "in sync" })
		if r, err := n.a.Failback(t.Context(), FailbackOptions{Idle: true}); err == nil || !strings.Contains(err.Error(), "has clients: 1 NBD") {
			t.Fatalf("%+v: %v", r, err)
		}
	}
	back, err := target.a.Failback(t.Context(), FailbackOptions{})
	if err != nil || back.HandedLSN == 0 || back.LSN != back.HandedLSN || back.Generation != "3.0" {
		t.Fatalf("%+v: %v", back, err)
	}
	source.awaitWithin(plannedWait, "in sync", func(s Status) bool { return s.State == "in sync" })
	if r, err := source.a.Failback(t.Context(), FailbackOptions{To: "nobody"}); err == nil || !strings.Contains(err.Error(), `no host of the name "nobody"`) {
		t.Fatalf("%+v: %v", r, err)
	}
	back, err = source.a.Failback(t.Context(), FailbackOptions{To: target.c.NodeName})
	if err != nil || back.Generation != "4.0" || back.LSN != back.HandedLSN || target.a.Status().Role != "primary" {
		t.Fatalf("%+v: %v", back, err)
	}
	source.noResync()
	target.noResync()
	source.equals(target)
}

// TestFollow_taking: who hands over and calls in before the lead is taken in full is not met as one more follower.
func TestFollow_taking(t *testing.T) {
	n := newAgentNode(t, RolePrimary).start()
	n.awaitServing()
	m := follow{Mirror: n.a.mirrorID(), Name: n.c.Name, Node: "nyc1", ID: [16]byte{1}, Home: true}
	ask := func(step handoverStep) (r followReply) {
		t.Helper()
		n.a.mu.Lock()
		n.a.handing = &handing{step: step}
		n.a.mu.Unlock()
		b, err := n.a.onFollow(nil, 1, encodeJSON(0, m)[1:])
		if err != nil || json.Unmarshal(b, &r) != nil {
			t.Fatalf("%q: %v", b, err)
		}
		n.a.mu.Lock()
		n.a.handing = nil
		n.a.mu.Unlock()
		return r
	}
	if r := ask(handTake); r.Refused == "" || r.Primary || n.a.count() != 0 {
		t.Fatalf("%+v, %d followers", r, n.a.count())
	}
}
