package hook

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mirror-agent/mirror"
)

// Hook is one command and what it is run on.
type Hook struct {
	On      []string // kinds of events; see Expand
	Run     []string // the program and its arguments
	Timeout time.Duration
}

// DefaultTimeout is for a hook that does not say.
const DefaultTimeout = 30 * time.Second

// groups are names for several kinds.
var groups = map[string][]string{
	"all":         nil, // every kind
	"role":        {"started", "serving", "promoted", "fenced"},
	"target-lost": {"follower-down", "target-unreachable"},
	"resync":      {"follower-resync", "follower-streaming", "resynced", "resync-held"},
	"alarm":       {"alarm-raised", "alarm-cleared"},
}

// Names lists what a hook may ask for: groups, then kinds.
func Names() []string {
	var names []string
	for g := range groups {
		names = append(names, g)
	}
	slices.Sort(names)
	return append(names, mirror.EventKinds()...)
}

// Expand turns names of kinds and groups into kinds; nil is every kind.
func Expand(names []string) (map[string]bool, error) {
	if len(names) == 0 {
		return nil, errors.New("no event is named")
	}
	kinds := map[string]bool{}
	every := false
	for _, n := range names {
		group, isGroup := groups[n]
		switch {
		case n == "all":
			every = true
		case isGroup:
			for _, k := range group {
				kinds[k] = true
			}
		case slices.Contains(mirror.EventKinds(), n):
			kinds[n] = true
		default:
			return nil, fmt.Errorf("no event is called %q; there are %s", n, strings.Join(Names(), ", "))
		}
	}
	if every {
		return nil, nil //nolint:nilnil // every kind
	}
	return kinds, nil
}

// Validate says what is wrong with h, and fills in the default timeout.
func (h *Hook) Validate() error {
	if _, err := Expand(h.On); err != nil {
		return err
	}
	if len(h.Run) == 0 || h.Run[0] == "" {
		return errors.New("no command to run")
	}
	if h.Timeout == 0 {
		h.Timeout = DefaultTimeout
	}
	if h.Timeout < 0 {
		return fmt.Errorf("timeout %s: must be positive", h.Timeout)
	}
	return nil
}

// Parse reads the short form EVENT[,EVENT…]=COMMAND, where COMMAND is the shell's.
func Parse(s string) (Hook, error) {
	on, command, ok := strings.Cut(s, "=")
	if !ok || strings.TrimSpace(command) == "" {
		return Hook{}, fmt.Errorf("hook %q: give EVENT[,EVENT]=COMMAND", s)
	}
	h := Hook{Run: []string{"/bin/sh", "-c", command}}
	for n := range strings.SplitSeq(on, ",") {
		h.On = append(h.On, strings.TrimSpace(n))
	}
	return h, h.Validate()
}
