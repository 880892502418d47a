package mirror

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer keeps writing to whichever node serves, until stop; what was answered is in model.
type writer struct {
	mu    sync.Mutex // guards all below
	model []byte
	n     int
}

const writerBlock = 4096

// round writes n blocks to the node that serves and flushes.
func (w *writer) round(t *testing.T, n *agentNode, blocks int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	dev := n.awaitServing()
	for range blocks {
		w.n++
		p := bytes.Repeat([]byte{byte(w.n), byte(w.n >> 8)}, writerBlock/2)
		off := int64(w.n*7919%(len(w.model)/writerBlock)) * writerBlock
		if _, err := dev.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(w.model[off:], p)
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
}

func (w *writer) check(t *testing.T, n *agentNode) {
	t.Helper()
	got, err := content(n.a.v)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, w.model) {
		t.Fatalf("%s does not hold what was answered: differs at %d", n.c.NodeName, firstDifference(got, w.model))
	}
}

const plannedWait = 30 * time.Second

// plan promotes the node while its source lives.
func (n *agentNode) plan() PromoteResult {
	n.t.Helper()
	n.awaitWithin(plannedWait, "streaming", func(s Status) bool { return s.State == "streaming" })
	r, err := n.a.Promote(n.t.Context(), PromoteOptions{Planned: true})
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// story logs the events of the nodes when the test has failed.
func story(t *testing.T, nodes ...*agentNode) {
	t.Cleanup(func() {
		for _, n := range nodes {
			if n.a == nil || !t.Failed() {
				continue
			}
			es, _ := n.a.Events(0)
			for _, e := range es {
				t.Logf("%s %s %s %s %s", n.c.NodeName, e.Time.Format("05.000"), e.Kind, e.Target, e.Text)
			}
		}
	})
}

func (n *agentNode) noResync() {
	n.t.Helper()
	es, _ := n.a.Events(0)
	for _, e := range es {
		if e.Kind == "follower-resync" && !strings.Contains(e.Text, "is empty") || e.Kind == "fenced" || e.Kind == "failed" {
			n.t.Errorf("%s: %s %s", n.c.NodeName, e.Kind, e.Text)
		}
	}
}

// TestPlannedSwaps: the lead goes to and fro ten times under load; every answered write is on both sides, and nothing is copied:
// the log alone goes over.
func TestPlannedSwaps(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	story(t, source, target)
	source.awaitState("in sync")
	w := &writer{model: make([]byte, source.c.Size)}
	nodes := [2]*agentNode{source, target}
	for i := range 10 {
		lead, next := nodes[i%2], nodes[(i+1)%2]
		w.round(t, lead, 50)
		lead.awaitWithin(plannedWait, "in sync", func(s Status) bool { return s.State == "in sync" }) // or a fast disk writes more than the log keeps
		stop, ended := make(chan struct{}), make(chan struct{})
		dev := lead.front.served()
		go func() { // writes until it is let in no more
			defer close(ended)
			w.mu.Lock()
			defer w.mu.Unlock()
			for {
				select {
				case <-stop:
					return
				default:
				}
				w.n++
				p := bytes.Repeat([]byte{byte(w.n), byte(w.n >> 8)}, writerBlock/2)
				off := int64(w.n*7919%(len(w.model)/writerBlock)) * writerBlock
				if _, err := dev.WriteAt(p, off); err != nil {
					return // not answered, and the front is closed: it must not be there
				}
				copy(w.model[off:], p)
			}
		}()
		var once sync.Once
		lead.front.setEnding(func() { once.Do(func() { close(stop); <-ended }) }) // as a server drains
		r := next.plan()
		lead.front.setEnding(nil)
		if want := fmt.Sprintf("%d.0", i+2); r.Generation != want {
			t.Fatalf("swap %d: generation %s, want %s", i, r.Generation, want)
		}
		if lead.front.served() != nil || lead.a.v.Role() != RoleSecondary {
			t.Fatalf("swap %d: the old one serves, or is %s", i, lead.a.v.Role())
		}
		w.check(t, next)
	}
	source.awaitState("in sync")
	w.round(t, source, 50)
	w.check(t, target)
	source.equals(target)
	source.noResync()
	target.noResync()
}

// TestPlannedWithBackup: a hot backup follows whoever leads; nobody told the target where it is.
func TestPlannedWithBackup(t *testing.T) {
	source, fs := hotMirror(t, 1, nil)
	target, backup := fs[0], fs[1]
	story(t, source, target, backup)
	w := &writer{model: make([]byte, source.c.Size)}
	w.round(t, source, 50)
	target.knowsMember(backup)
	backup.knowsMember(target)
	for i, next := range []*agentNode{target, backup, source, target, source} {
		next.plan()
		w.round(t, next, 50)
		next.awaitWithin(plannedWait, "feeding both others", func(s Status) bool {
			return len(s.Followers) == 2 && !slices.ContainsFunc(s.Followers, func(f FollowerStatus) bool { return f.State != string(FollowerStreaming) })
		})
		w.round(t, next, 50)
		for _, n := range []*agentNode{source, target, backup} {
			if n != next {
				next.await("all is there", func(s Status) bool { return s.Followers[0].LagBytes == 0 && s.Followers[1].LagBytes == 0 })
				next.equals(n)
			}
		}
		t.Logf("round %d: %s leads", i, next.c.NodeName)
		for _, n := range []*agentNode{source, target, backup} {
			for _, o := range []*agentNode{source, target, backup} {
				if n != o && n.a.v.Role() == RoleSecondary && o != source {
					n.knowsMember(o)
				}
			}
		}
	}
	for _, n := range []*agentNode{source, target, backup} {
		n.noResync()
	}
}

// knowsMember waits until the node knows where o listens.
func (n *agentNode) knowsMember(o *agentNode) {
	n.t.Helper()
	n.awaitWithin(plannedWait, "knows where "+o.c.NodeName+" listens", func(Status) bool {
		n.a.mu.Lock()
		defer n.a.mu.Unlock()
		return slices.ContainsFunc(n.a.members, func(m memberInfo) bool { return m.ID == o.a.v.id && len(m.Addresses) > 0 && m.Fed })
	})
}

// TestPlannedOpensLast: when the front of the new primary opens, its generation is durable, and the old source's disk says that it
// TestPlannedLeavesCold: a secondary calls in at all that it knows. When it has the lead again, a cold backup among them is idle, as it was
// before: the session from then feeds nobody.
func TestPlannedLeavesCold(t *testing.T) {
	target, cold := newAgentNode(t, RoleSecondary).start(), newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target, cold).start()
	story(t, source, target)
	source.awaitState("in sync")
	for range 5 {
		target.plan()
		awaitVolume(t, "a call at the cold one", func() bool { l, _ := source.a.transport.session(1); return l != nil })
		source.plan()
		source.awaitWithin(plannedWait, "the target in use, the cold backup not", func(s Status) bool {
			return s.State == "in sync" && s.Followers[0].State == string(FollowerStreaming) && s.Followers[1].State == string(FollowerIdle)
		})
	}
}

// is a secondary which handed over.
func TestPlannedOpensLast(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	story(t, source, target)
	source.awaitState("in sync")
	source.write(1)
	opened := 0
	target.front.setOpening(func() error {
		opened++
		if a := target.a.v.log.Anchor(); a.Role != uint8(RolePrimary) || a.Seen.Major != 2 || target.a.v.log.Durable() <= a.Seen.First {
			t.Errorf("the front opens: role %d, seen %s, durable %d", a.Role, rankString(a.Seen), target.a.v.log.Durable())
		}
		if a := source.a.v.log.Anchor(); a.Role != uint8(RoleSecondary) || parseSidecar(a.Extra).handed == "" {
			t.Errorf("the front opens: the old source's disk says role %d, handed over %q", a.Role, parseSidecar(a.Extra).handed)
		}
		return nil
	})
	target.plan()
	if opened != 1 {
		t.Fatalf("opened %d times", opened)
	}
	target.holds(target.write(2))
}

// TestHandoverWords: words that nobody waits for, or of another order, do nothing; a word that is none is refused.
func TestHandoverWords(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	a := target.a
	if why := a.handoverNews(&handoverMessage{Word: wordHanded, Token: 7}); !strings.Contains(why, "did not wait") {
		t.Errorf("handed to who has not asked: %q", why)
	}
	if _, err := a.Promote(t.Context(), PromoteOptions{Force: false}); err == nil {
		t.Error("promoted right after that")
	}
	a.opMu.Lock()
	h := a.beginHandover(false, "a source", 8, handAsk)
	for _, m := range []handoverMessage{{Word: wordHanded, Token: 7}, {Word: wordBack, Token: 7}} {
		a.handoverNews(&m)
	}
	if len(h.news) > 0 {
		t.Error("the word of another order counts")
	}
	a.handoverNews(&handoverMessage{Word: wordBack, Token: 8})
	if len(h.news) != 1 {
		t.Error("the word of this order does not count")
	}
	a.endHandover(h, nil)
	a.opMu.Unlock()
	if _, err := a.onHandover(nil, 1, []byte(`{"word":"surrender"}`)); err == nil {
		t.Error("an unknown word was taken")
	}
	if _, err := a.onHandover(nil, 1, []byte(`{`)); err == nil {
		t.Error("half a word was taken")
	}
	if why := a.invited(&handoverMessage{Word: wordInvite}); !strings.Contains(why, "not home") {
		t.Errorf("a target was invited: %q", why)
	}
	if why, _ := a.handOverAsked(nil, 1, &handoverMessage{Word: wordAsk}); !strings.Contains(why, "does not lead") {
		t.Errorf("a target was asked: %q", why)
	}
	for name, p := range map[string]handedOver{"short": {token: 1, node: "a"}, "spaces": {token: ^uint64(0), node: "a b"}} {
		if got, ok := parseHandedOver(p.encode()); !ok || got != p {
			t.Errorf("%s: %+v (%t)", name, got, ok)
		}
	}
	for _, s := range []string{"", "x y", "0000000000000001", "00 y"} {
		if _, ok := parseHandedOver(s); ok {
			t.Errorf("%q says to whom", s)
		}
	}
}

// TestCallersBounded: whoever is let in may call in with ever new volumes; they are as many as the lead can bear.
func TestCallersBounded(t *testing.T) {
	source := newAgentNode(t, RolePrimary).start()
	source.awaitServing()
	for range maxCallers {
		source.a.addFollower(memberInfo{ID: newVolumeID(), Node: "gone"}, noPort, false)
	}
	if why := source.a.followedBy(nil, 1, &follow{ID: newVolumeID(), Node: "new"}); !strings.Contains(why, "takes no more") || !strings.Contains(why, "restart") {
		t.Errorf("refused by %q", why)
	}
	if n := len(source.a.Status().Followers); n != maxCallers {
		t.Errorf("%d followers", n)
	}
}
