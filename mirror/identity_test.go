package mirror

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"mirror-agent/journal"
)

// A disk that does not give the journal is not a journal to be moved away: who followed that advice gave up what was only in there.
func TestNoJournal(t *testing.T) {
	for _, c := range []struct {
		name        string
		err         error
		says, never string
	}{
		{"its disk fails", fmt.Errorf("read the anchors: %w", syscall.EIO), "look at its disk", "move"},
		{"no journal", journal.ErrNoAnchor, "choose another --journal", "look at its disk"},
	} {
		got := noJournal("/srv/vol0.journal", "/srv/vol0.img", c.err).Error()
		if !strings.Contains(got, c.says) || strings.Contains(got, c.never) || !strings.Contains(got, "/srv/vol0.journal") || !strings.Contains(got, c.err.Error()) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}
