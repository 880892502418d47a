package integration

import (
	"strings"
	"testing"
)

// claimRegister: who is not registered cannot send; clients of one node know nothing of each other.
func claimRegister(t *testing.T, _ *plays) {
	n := newTopology(t)
	cables := n.toTarget[:2]
	target := startHost(t, n.tgt, nodeOf("target", addrsOf(cables, portNumber)...))
	source := startHost(t, n.src, nodeOf("source"))
	b := newBooks(t)

	if err := source.try(portOrder{Do: "open", Client: "stranger", Port: &portSettings{Target: addrsOf(cables, portNumber)}}, nil); err == nil {
		t.Error("a client that is not registered has opened a port")
	}
	// The same by the data port itself: whose registration is over.
	gone := source.register("gone")
	gone.do(portOrder{Do: "unregister"})
	wantError(t, gone, portOrder{Do: "open", Port: &portSettings{Target: addrsOf(cables, portNumber)}}, "dataport: closed")
	one, two := source.register("one"), source.register("two")
	for _, u := range []*user{one, two} {
		u.open(portSettings{Target: addrsOf(cables, portNumber)})
	}
	// Over there nobody is registered as either: no session, so nothing can be sent, and the reason is told.
	one.until(portLimit, "the refusal is told", func(v *portView) bool {
		return len(v.Paths) == 2 && strings.Contains(v.Paths[0].Reason, `no client is registered as "one"`)
	})
	wantError(t, one, portOrder{Do: "send"}, "no session")
	farOne := target.register("one")
	one.untilPaths(2)
	wantError(t, two, portOrder{Do: "send"}, "no session")
	farTwo := target.register("two")
	two.untilPaths(2)
	if err := source.try(portOrder{Do: "register", Client: "one"}, nil); err == nil || !strings.Contains(err.Error(), "already registered") {
		t.Errorf("a second client of one name: %v", err)
	}

	// Both send; what is said to the one is not heard by the other.
	one.load(steady(streamForth))
	two.load(steady(streamForth))
	farOne.untilHanded(0, 100)
	farTwo.untilHanded(0, 100)
	// The far client of the first does not take its messages any more: that holds up the first, and nobody else.
	farOne.do(portOrder{Do: "stall", On: true})
	stuck := one.until(portLimit, "the window is full", func(v *portView) bool { return v.Queued > 16<<20-25<<10 })
	farTwo.untilHanded(farTwo.view().Handed, 300)
	if v := one.view(); v.Sent != stuck.Sent {
		t.Errorf("the stalled client's port went on from %d to %d messages", stuck.Sent, v.Sent)
	}
	checkEqual(t, "active paths of the stalled one", one.view().count("active"), 2)
	checkEqual(t, "active paths of the other", two.view().count("active"), 2)
	farOne.do(portOrder{Do: "stall"})

	// Neither do they see each other's events.
	before := len(two.events())
	one.do(portOrder{Do: "suspend"})
	one.do(portOrder{Do: "resume"})
	one.untilNamed(0, "Resumed")
	if l := two.events(); len(l) != before {
		t.Errorf("the other client was told: %s", eventKinds(l[before:]))
	}
	sessions := map[string]bool{}
	for _, e := range one.events() {
		sessions[e.Session] = true
	}
	for _, e := range two.events() {
		if e.Session != "" && sessions[e.Session] {
			t.Errorf("an event of the other's session: %+v", e)
		}
	}
	one.unload(streamForth)
	two.unload(streamForth)
	a := b.close(one, two, farOne, farTwo)
	checkEqual(t, "sessions", a.Sessions, 2)
	t.Logf("ledgers: %+v", a)

	// Who takes his registration back cannot send any more, and the other can.
	one.do(portOrder{Do: "unregister"})
	wantError(t, one, portOrder{Do: "send"}, "closed")
	if err := two.try(portOrder{Do: "send", Client: two.client}, nil); err != nil {
		t.Errorf("the other client: %v", err)
	}
}

func wantError(t testing.TB, u *user, o portOrder, part string) {
	t.Helper()
	o.Client = u.client
	if err := u.try(o, nil); err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("%s/%s: %s: %v; an error with %q is expected", u.name, u.client, o.Do, err, part)
	}
}
