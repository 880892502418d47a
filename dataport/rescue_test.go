package dataport

import "testing"

// A frame that was taken from a slow path goes elsewhere; when nothing else is left it may go there again, or it, and with it
// the order of all, would wait for ever.
func TestOnlyTheSlowPathIsLeft(t *testing.T) {
	s := &Session{node: plainNode(t, nil)}
	slow, quick := &path{s: s, id: 1, state: PathActive}, &path{s: s, id: 2, state: PathActive}
	s.paths = []*path{slow, quick}
	if s.offered(1000, slow); len(s.ready) != 1 || s.ready[0] != quick {
		t.Errorf("%d paths are offered, want the quick one", len(s.ready))
	}
	quick.state = PathSuspected
	if s.offered(1000, slow); len(s.ready) != 1 || s.ready[0] != slow {
		t.Errorf("%d paths are offered, want the one that is left", len(s.ready))
	}
}
