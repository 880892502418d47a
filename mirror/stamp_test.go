package mirror

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mirror-agent/journal"
)

// TestStampIsChecked: a device is taken when it bears the stamp that its journal knows, or the one that was being given when
// the power went; any other is refused by name, with nothing changed.
func TestStampIsChecked(t *testing.T) {
	a, c := soleAgent(t)
	mustClose := func() mark {
		t.Helper()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		m, known := readMark(c.Device)
		if !known || m.stamp == "" {
			t.Fatalf("a device file without a stamp after an orderly end: %v, %t", m, known)
		}
		return m
	}
	bear := func(m mark) {
		t.Helper()
		if err := unix.Setxattr(c.Device, deviceAttribute, []byte(m.String()), 0); err != nil {
			t.Fatal(err)
		}
	}
	older := mustClose()
	a = reopenSole(t, c)
	newest := mustClose()
	if older.stamp == newest.stamp {
		t.Fatal("one stamp for two runs")
	}
	bear(older)
	if b, err := Open(t.Context(), *c, nullFront{}); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		if err == nil {
			_ = b.Close()
		}
		t.Fatalf("with an older copy of the device: %v", err)
	}
	if m, _ := readMark(c.Device); m != older {
		t.Errorf("the refused device bears %v now, not %v", m, older)
	}
	bear(newest)
	a = reopenSole(t, c)
	own := a.v.log.Anchor()
	m := mustClose()

	for _, tt := range []struct {
		name           string
		device         mark
		stamp, pending string // of the anchor
		say            string // "": it is taken
	}{
		{"its own", mark{m.name, m.mirror, "aa"}, "aa", "", ""},
		{"a crash before the device got the new one", mark{m.name, m.mirror, "aa"}, "aa", "bb", ""},
		{"a crash after that", mark{m.name, m.mirror, "bb"}, "aa", "bb", ""},
		{"an older one", mark{m.name, m.mirror, "cc"}, "aa", "bb", "do not belong together"},
		{"no stamp", mark{m.name, m.mirror, ""}, "aa", "", "does not bear the mark"},
		{"a journal of before there were stamps", mark{m.name, m.mirror, "cc"}, "", "", ""},
	} {
		bear(tt.device)
		anchor := own
		withSidecar(&anchor, func(s *sidecar) { s.stamp, s.pending = tt.stamp, tt.pending })
		err := c.belongTogether(anchor)
		if (err == nil) != (tt.say == "") || err != nil && !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	bear(mark{m.name, "3f8f6a0e-9f4e-4d0b-8a6e-000000000001", "cc"})
	anchor := journal.Anchor{Name: own.Name, Mirror: [16]byte{1}, Extra: own.Extra}
	withSidecar(&anchor, func(s *sidecar) { s.stamp = "aa" })
	if err := c.belongTogether(anchor); err == nil || !strings.Contains(err.Error(), "another mirror") {
		t.Errorf("another mirror's: %v", err)
	}
}
