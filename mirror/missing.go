package mirror

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/journal"
)

// Missing is what a promoted target has not got of its source, as far as it can know: what the source's log had more when it
// was last heard of. What the source wrote after that nobody here knows; in the modes receive and durable it has answered
// none of it while this host was its active target.
type Missing struct {
	Known   bool    `json:"known"` // the source was heard of since this agent started
	Source  string  `json:"source"`
	Bytes   int64   `json:"bytes"`   // of its log
	Seconds float64 `json:"seconds"` // since it was last heard of
}

func (m Missing) String() string {
	switch {
	case !m.Known:
		return "what the source has more is not known: it was not heard of since this agent started"
	case m.Source == "":
		return "nothing is missing"
	}
	what := "nothing it had then is missing"
	if m.Bytes > 0 {
		what = humanize.IBytes(uint64(m.Bytes)) + " of its log that it had then are missing"
	}
	return fmt.Sprintf("%s was last heard of %s ago: %s; what it wrote since then is not known", m.Source, time.Duration(m.Seconds*float64(time.Second)).Round(time.Millisecond), what)
}

// heard is the source as it was last heard of.
type heard struct {
	peer string
	at   time.Time
	head journal.LSN
	// level: this volume was in sync with it.
	level bool
}

// noteHeard keeps what a session's receiver knew of its source. a.mu is held.
func (a *Agent) noteHeard(in *inbound) {
	r := in.receiver
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sourceHead > 0 && !r.lastSeen.Before(a.source.at) {
		a.source = heard{
			peer: in.link.Peer(), at: r.lastSeen, head: r.sourceHead,
			level: r.started && r.resyncAll == 0 && behind(r.sourceHead, r.received) <= maxBehindBytes,
		}
	}
}

// missing is what a promotion now would not have.
func (a *Agent) missing(now time.Time) Missing {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inbound != nil {
		a.noteHeard(a.inbound)
	}
	s := a.source
	if s.at.IsZero() {
		return Missing{}
	}
	head := a.v.log.Head()
	return Missing{Known: true, Source: s.peer, Bytes: int64(s.head - min(s.head, head)), Seconds: now.Sub(s.at).Seconds()}
}
