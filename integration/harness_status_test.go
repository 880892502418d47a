package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// status holds the fields of `status --json` that the tests lean on. They are
// spelt out here and not taken from the product: their names are a contract.
type status struct {
	Name       string `json:"name"`
	UUID       string `json:"uuid"`
	Role       string `json:"role"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	NextStep   string `json:"next_step"`
	Mode       string `json:"mode"`
	Generation string `json:"generation"`
	Device     struct {
		Path      string `json:"path"`
		SizeBytes int64  `json:"size_bytes"`
	} `json:"device"`
	Arbiter struct {
		Held           bool   `json:"held"`
		TargetRecorded bool   `json:"target_recorded"`
		Problem        string `json:"problem"`
	} `json:"arbiter"`
	Log struct {
		Head      uint64 `json:"head"`
		Durable   uint64 `json:"durable"`
		Committed uint64 `json:"committed"`
		Applied   uint64 `json:"applied"`
		Tail      uint64 `json:"tail"`
		SizeBytes int64  `json:"size_bytes"`
	} `json:"log"`
	NBD struct {
		Address      string `json:"address"`
		Connections  int    `json:"connections"`
		Reads        uint64 `json:"reads"`
		Writes       uint64 `json:"writes"`
		Flushes      uint64 `json:"flushes"`
		Trims        uint64 `json:"trims"`
		ReadBytes    uint64 `json:"read_bytes"`
		WrittenBytes uint64 `json:"written_bytes"`
	} `json:"nbd"`
	Verify *verifyReport `json:"verify"`
	Scrub  *struct {
		Running bool `json:"running"`
		Found   int  `json:"found"`
		Mended  int  `json:"mended"`
	} `json:"scrub"`
	ActiveTarget string     `json:"active_target"`
	Followers    []follower `json:"followers"`
	Alarms       []alarm    `json:"alarms"`
}

type alarm struct {
	Name     string `json:"name"`
	Reason   string `json:"reason"`
	NextStep string `json:"next_step"`
}

type follower struct {
	Target     string  `json:"target"`
	Kind       string  `json:"kind"`
	State      string  `json:"state"`
	Active     bool    `json:"active"`
	Received   uint64  `json:"received"`
	Durable    uint64  `json:"durable"`
	LagBytes   uint64  `json:"lag_bytes"`
	RPOSeconds float64 `json:"rpo_seconds"`
	DirtyBytes int64   `json:"dirty_bytes"`
	Paths      []struct {
		ID            int    `json:"id"`
		Local         string `json:"local"`
		Remote        string `json:"remote"`
		State         string `json:"state"`
		RTTMicros     int64  `json:"rtt_us"`
		BytesSent     uint64 `json:"bytes_sent"`
		BytesReceived uint64 `json:"bytes_received"`
		ResentFrames  uint64 `json:"resent_frames"`
	} `json:"paths"`
	Resynced *struct {
		All           bool   `json:"all"`
		Reason        string `json:"reason"`
		LookedAtBytes int64  `json:"looked_at_bytes"`
		SentBytes     int64  `json:"sent_bytes"`
	} `json:"resynced"`
}

const streaming = "streaming"

// follower returns the first of a kind: "target" or "backup".
func (s *status) follower(kind string) follower {
	for _, f := range s.Followers {
		if f.Kind == kind {
			return f
		}
	}
	return follower{}
}

// status asks the agent; it may not be up yet, which is an error.
func (a *agent) status() (status, error) {
	a.t.Helper()
	var s status
	r := a.command("status", "--json")
	if r.code != 0 {
		return s, fmt.Errorf("status: exit status %d: %s", r.code, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		return s, fmt.Errorf("status --json: %w in %s", err, r.stdout)
	}
	return s, nil
}

func (a *agent) mustStatus() status {
	a.t.Helper()
	s, err := a.status()
	if err != nil {
		a.t.Fatalf("%s: %v", a.name, err)
	}
	return s
}

// until waits for a state of the agent. An agent that ends meanwhile fails the
// test at once.
func (a *agent) until(within time.Duration, what string, ok func(*status) bool) (found status) {
	a.t.Helper()
	eventually(a.t, within+a.patience, a.name+": "+what, func() (bool, string) {
		a.t.Helper()
		if a.hasEnded() {
			a.t.Fatalf("%s has ended while waiting for: %s", a.name, what)
		}
		s, err := a.status()
		if err != nil {
			return false, err.Error()
		}
		found = s
		return ok(&s), s.brief()
	})
	return found
}

// untilUp waits until the agent answers.
func (a *agent) untilUp() status {
	a.t.Helper()
	return a.until(15*time.Second, "answers", func(*status) bool { return true })
}

// untilStreaming waits until the follower of a kind is in sync and active.
func (a *agent) untilStreaming(kind string) status {
	a.t.Helper()
	return a.until(40*time.Second, kind+" is streaming", func(s *status) bool {
		f := s.follower(kind)
		return f.State == streaming && f.Active
	})
}

// untilLevel waits until the follower has, durably, all that the source has when it is asked first; what is written meanwhile may be
// under way.
func (a *agent) untilLevel(kind string) status {
	a.t.Helper()
	var head uint64
	return a.until(40*time.Second, kind+" has everything", func(s *status) bool {
		if head == 0 {
			head = s.Log.Head
		}
		f := s.follower(kind)
		return f.State == streaming && f.Active && f.DirtyBytes == 0 && f.Durable >= head
	})
}

// brief is what a message about an unexpected state needs.
func (s *status) brief() string {
	b := fmt.Sprintf("%s, %s (%s), head %d durable %d applied %d", s.Role, s.State, s.Reason, s.Log.Head, s.Log.Durable, s.Log.Applied)
	for _, f := range s.Followers {
		b += fmt.Sprintf("; %s %s: %s active %v received %d durable %d lag %d dirty %d", f.Kind, f.Target, f.State, f.Active, f.Received, f.Durable, f.LagBytes, f.DirtyBytes)
		for _, p := range f.Paths {
			b += fmt.Sprintf(" [%s→%s %s]", p.Local, p.Remote, p.State)
		}
	}
	return b
}

func checkEqual[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
