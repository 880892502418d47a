package mirror

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// dieAt has the node stand still when a handover on it comes to a step; reached is closed then. It does nothing more after that
// but be killed.
func (n *agentNode) dieAt(step handoverStep) (reached chan struct{}) {
	reached = make(chan struct{})
	var once sync.Once
	a := n.a
	a.stepped = func(s handoverStep) {
		if s != step {
			return
		}
		once.Do(func() { close(reached) })
		<-a.tasks.Done()
		runtime.Goexit()
	}
	return reached
}

// startDying opens and runs the agent, to die at a step of the next handover.
func (n *agentNode) startDying(step handoverStep) (reached chan struct{}) {
	n.t.Helper()
	n.opened = func() { reached = n.dieAt(step) }
	n.start()
	n.opened = nil
	return reached
}

// serving are the nodes that serve.
func serving(nodes ...*agentNode) (ns []*agentNode) {
	for _, n := range nodes {
		if n.front.served() != nil {
			ns = append(ns, n)
		}
	}
	return ns
}

// TestPlannedKilled: either side is killed at each step of a handover, and started again as it was. One side leads or none does,
// never both; where none does, promote without force works on either, and nothing that was answered is lost or copied.
func TestPlannedKilled(t *testing.T) {
	const source, target, nobody = "source", "target", ""
	for _, c := range []struct {
		name    string
		kill    string
		at      handoverStep
		leads   string // by itself, after that
		promote string // who is promoted when nobody leads
	}{
		{"source, draining", source, handDrain, source, ""},
		{"source, making level", source, handLevel, source, ""},
		{"source, before its disk says secondary", source, handDemote, source, ""},
		{"source, before it says so", source, handHanded, target, ""},
		{"target, asking", target, handAsk, source, ""},
		{"target, told, and promoted", target, handTake, nobody, target},
		{"target, told, and the source is promoted", target, handTake, nobody, source},
		{"target, leading", target, handLead, target, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tn := newAgentNode(t, RoleSecondary)
			var reached chan struct{}
			if c.kill == target {
				reached = tn.startDying(c.at)
			} else {
				tn.start()
			}
			sn := newAgentNode(t, RolePrimary, tn)
			if c.kill == source {
				reached = sn.startDying(c.at)
			} else {
				sn.start()
			}
			story(t, sn, tn)
			sn.awaitState("in sync")
			w := &writer{model: make([]byte, sn.c.Size)}
			w.round(t, sn, 80)
			ordered := make(chan struct{})
			ta := tn.a
			go func() {
				defer close(ordered)
				_, _ = ta.Promote(t.Context(), PromoteOptions{Planned: true, LimitSeconds: 20})
			}()
			select {
			case <-reached:
			case <-time.After(plannedWait):
				t.Fatal("the step was not reached")
			}
			victim := map[string]*agentNode{source: sn, target: tn}[c.kill]
			victim.kill()
			if n := serving(sn, tn); len(n) > 1 {
				t.Fatal("both serve")
			}
			victim.start()
			<-ordered
			leader := map[string]*agentNode{source: sn, target: tn}[c.leads]
			if leader == nil {
				sn.await("handed over", func(s Status) bool { return s.Role == "secondary" && s.State == "handed over" && s.NextStep != "" })
				tn.await("told of it", func(s Status) bool { return s.Role == "secondary" && s.State == "waiting" })
				if len(serving(sn, tn)) > 0 {
					t.Fatal("somebody serves")
				}
				leader = map[string]*agentNode{source: sn, target: tn}[c.promote]
				if _, err := leader.a.Promote(t.Context(), PromoteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			leader.awaitServing()
			leader.awaitWithin(plannedWait, "in sync", func(s Status) bool { return s.State == "in sync" })
			if n := serving(sn, tn); len(n) != 1 || n[0] != leader {
				t.Fatalf("%d serve", len(n))
			}
			w.check(t, leader)
			w.round(t, leader, 30)
			w.check(t, sn)
			w.check(t, tn)
			sn.noResync()
			tn.noResync()
		})
	}
}

// TestPlannedLate: a target that cannot get level in time does not get the lead: the source serves again, and both say why.
func TestPlannedLate(t *testing.T) {
	tn := newAgentNode(t, RoleSecondary).start()
	sn := newAgentNode(t, RolePrimary, tn).start()
	story(t, sn, tn)
	sn.awaitState("in sync")
	p := sn.write(1)
	sn.front.setEnding(func() { // between the last answer and the end of the drain: the target takes nothing any more
		tn.a.feedMu.Lock()
		sn.front.setEnding(nil)
		if _, err := sn.a.v.WriteAt([]byte("late"), 0); err != nil {
			t.Error(err)
		}
	})
	ended := make(chan error, 1)
	go func() {
		_, err := tn.a.Promote(t.Context(), PromoteOptions{Planned: true, LimitSeconds: 0.5})
		ended <- err
	}()
	sn.awaitWithin(plannedWait, "handing over", func(s Status) bool { return s.State == stateHandingOver })
	sn.awaitWithin(plannedWait, "serving again", func(s Status) bool { return sn.front.served() != nil && s.State != stateHandingOver })
	tn.a.feedMu.Unlock()
	if err := <-ended; err == nil {
		t.Fatal("the target leads")
	} else {
		t.Log(err)
	}
	if tn.a.v.Role() != RoleSecondary || sn.a.v.Generation().Major != 1 {
		t.Fatalf("the target is %s, the source of generation %s", tn.a.v.Role(), rankString(sn.a.v.Generation()))
	}
	if tn.front.served() != nil {
		t.Fatal("the target serves")
	}
	sn.awaitWithin(plannedWait, "in sync", func(s Status) bool { return s.State == "in sync" })
	sn.write(2)
	tn.holds(sn.write(3))
	_ = p
}
