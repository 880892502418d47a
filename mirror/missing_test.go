package mirror

import (
	"strings"
	"testing"
	"time"

	"mirror-agent/journal"
)

// TestMissing: what is not here is what the source's log had more when it was last heard of, whichever session said so last.
func TestMissing(t *testing.T) {
	v := newHost(t, RoleSecondary).mustOpen(t)
	defer func() { _ = v.Close() }()
	now := time.Now()
	a := &Agent{v: v}
	if m := a.missing(now); m.Known || !strings.Contains(m.String(), "not known") {
		t.Errorf("never heard of a source: %v", m)
	}
	from := func(peer string, ago time.Duration, more journal.LSN) *inbound {
		l, _ := pair()
		l.name = peer
		return &inbound{link: l, receiver: &receiver{lastSeen: now.Add(-ago), sourceHead: v.log.Head() + more}}
	}
	a.noteHeard(from("nyc1", 5*time.Second, 3<<20))
	a.noteHeard(from("nyc1", 7*time.Second, 9<<20)) // older
	if m := a.missing(now); !m.Known || m.Bytes != 3<<20 || m.Seconds != 5 || !strings.Contains(m.String(), "nyc1 was last heard of 5s ago: 3.0 MiB of its log") {
		t.Errorf("%+v: %v", m, m)
	}
	a.inbound = from("nyc1", time.Second, 0)
	if m := a.missing(now); m.Bytes != 0 || m.Seconds != 1 || !strings.Contains(m.String(), "nothing it had then is missing") {
		t.Errorf("%+v: %v", m, m)
	}
}
