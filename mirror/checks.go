package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// checks is what the agent knows of its verifies and scrubs. The last of each is kept in a file beside the journal,
// JOURNAL.checks (see statedir.go).
type checks struct {
	path string // "" is nowhere

	fileMu sync.Mutex // one writer of the file at a time; taken before mu

	mu     sync.Mutex   // guards below; taken after the agent's opMu and mu
	verify *verifyTally // the one that runs or ran last, nil before the first
	stop   context.CancelCauseFunc
	done   chan struct{} // closed when it has ended
	scrub  ScrubStatus

	scrubNow chan struct{} // capacity 1: an order
}

// keptChecks is the file, JSON.
type keptChecks struct {
	Verify *VerifyReport `json:"verify,omitempty"`
	Scrub  ScrubStatus   `json:"scrub"`
}

const maxChecksBytes = 1 << 20

// open takes up what the agent before this one has left. What cannot be read was never there.
func (k *checks) open(c *Config) {
	k.scrubNow = make(chan struct{}, 1)
	k.path = c.beside(".checks")
	kept, err := readChecks(k.path)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.Log.Warn().Err(err).Msg("what was kept of verify and scrub cannot be read")
		}
		return
	}
	if r := kept.Verify; r != nil {
		if r.running() {
			r.State, r.Reason = VerifyInterrupted, "the agent ended"
		}
		k.verify = &verifyTally{r: *r}
	}
	k.scrub = kept.Scrub
	k.scrub.Running = false
}

func readChecks(path string) (kept keptChecks, err error) {
	if path == "" {
		return kept, os.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return kept, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxChecksBytes))
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err != nil {
		return keptChecks{}, fmt.Errorf("%s: %w", path, err)
	}
	return kept, nil
}

// keepChecks writes the file. That it cannot is no reason to stop anything.
func (a *Agent) keepChecks() {
	k := &a.checks
	if k.path == "" {
		return
	}
	k.fileMu.Lock()
	defer k.fileMu.Unlock()
	var kept keptChecks
	k.mu.Lock()
	if k.verify != nil {
		r := k.verify.report(true, time.Now())
		kept.Verify = &r
	}
	kept.Scrub = k.scrub
	k.mu.Unlock()
	if err := kept.write(k.path); err != nil {
		a.log.Warn().Err(err).Msg("what verify and scrub found cannot be kept")
	}
}

func (kept *keptChecks) write(path string) error {
	b, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return replaceFile(path, b)
}

// replaceFile gives the file at path another content, durably: it has the old one or the new one after any crash.
func replaceFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

// checksStatusLocked puts verify and scrub into the status, with their alarms. The agent's mu is held.
func (a *Agent) checksStatusLocked(s *Status, now time.Time) {
	k := &a.checks
	k.mu.Lock()
	t, scrub := k.verify, k.scrub
	k.mu.Unlock()
	if t != nil {
		r := t.report(false, now)
		s.Verify = &r
		if r.Bad() > 0 {
			s.Alarms = append(s.Alarms, r.alarm())
		}
	}
	a.scrubStatusLocked(s, &scrub)
}

// alarm says that both sides differ.
func (r *VerifyReport) alarm() Alarm {
	x := Alarm{
		Name: "verify-differs", Since: r.Ended,
		Reason:   fmt.Sprintf("verify of %s: %s", r.Target, r.Found()),
		NextStep: "mirror-agent verify --show lists them; mirror-agent verify --repair sends the source's bytes to the target (--repair=target the other way); look at that host's disk",
	}
	if x.Since.IsZero() {
		x.Since = r.Started
	}
	switch {
	case r.running():
		x.NextStep = "wait for its end (mirror-agent verify --follow)"
	case r.Options.Repair != "":
		x.NextStep = "mirror-agent verify --show lists what could not be repaired, and why; look at the disks"
	}
	return x
}
