package mirror

import (
	"errors"
	"testing"
)

// TestPromoteChecksTheAddress: an address that the front would refuse ends a
// promotion before anything has happened; another one is promoted with.
func TestPromoteChecksTheAddress(t *testing.T) {
	target := newAgentNode(t, RoleSecondary)
	target.front.refuses = "0.0.0.0:1"
	target.c.NBD = target.front.refuses
	target.start()
	source := newAgentNode(t, RolePrimary, target).start()
	source.awaitState("in sync")
	p := source.write(1)
	source.end()
	target.awaitState("waiting")
	before := target.a.Status().Generation
	for _, ordered := range []string{"", target.front.refuses} { // "": the configured one
		if _, err := target.a.Promote(t.Context(), PromoteOptions{NBD: ordered, Force: true}); !errors.Is(err, errRefusedAddress) {
			t.Fatalf("%q: %v", ordered, err)
		}
		if s := target.a.Status(); s.Role != "secondary" || s.Generation != before {
			t.Fatalf("%q: refused, and %s of generation %s", ordered, s.Role, s.Generation)
		}
	}
	if _, err := target.a.Promote(t.Context(), PromoteOptions{NBD: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	target.awaitServing()
	target.holds(p)
}
