package drill

import (
	"fmt"
	"time"

	"mirror-agent/mirror"
)

// Report is what came of a drill. Its JSON is a format: fields may be added.
type Report struct {
	Version int    `json:"version"`
	Mirror  string `json:"mirror"`
	UUID    string `json:"uuid"`
	Node    string `json:"node"`
	Role    string `json:"role"` // of the host whose copy was tried
	Kind    Kind   `json:"kind,omitempty"`
	Label   string `json:"label,omitempty"`

	Result Result `json:"result"`
	Reason string `json:"reason,omitempty"` // why it did not pass

	Asked     string       `json:"asked,omitempty"` // the point in the operator's words
	Point     mirror.Point `json:"point"`
	Newest    mirror.Point `json:"newest"` // that was known of the mirror
	SizeBytes int64        `json:"size_bytes"`

	// RPO: how much older the point was than the newest that was known.
	RPOSeconds float64 `json:"rpo_seconds"`
	RPOBytes   int64   `json:"rpo_bytes"`
	// RTOSeconds from the order to the end of the first check that was good; absent when none was. Where the lead moves: from the
	// order to move it until the first read was answered.
	RTOSeconds *float64 `json:"rto_seconds,omitempty"`

	// Moved is what only a drill has that moves the lead or the flow.
	Moved *Moved `json:"moved,omitempty"`

	Started      time.Time `json:"started"`
	Seconds      float64   `json:"seconds"`
	Device       Means     `json:"device"`
	ScratchBytes int64     `json:"scratch_bytes"` // at its end

	Steps   []Step   `json:"steps"`
	Samples []Sample `json:"samples"`
}

// Result of a drill.
type Result string

// Results.
const (
	Passed      Result = "passed"
	Failed      Result = "failed"      // a check, or a step before it
	Interrupted Result = "interrupted" // by a signal
)

// Step is one thing that was done.
type Step struct {
	Name    string  `json:"name"`
	Check   bool    `json:"check"`   // one of the operator's
	At      float64 `json:"at"`      // seconds after the order
	Seconds float64 `json:"seconds"` // it took
	Error   string  `json:"error,omitempty"`
	Output  string  `json:"output,omitempty"` // its end
}

// Sample is what the mirror did at one moment of the drill.
type Sample struct {
	At             float64 `json:"at"`
	LagBytes       int64   `json:"lag_bytes"`       // what the active target has not got durably
	UnappliedBytes int64   `json:"unapplied_bytes"` // of this host's log
	ScratchBytes   int64   `json:"scratch_bytes"`
}

const reportVersion = 1

// FileName is how the report's files are called, without their ending.
func (r *Report) FileName() string {
	name := "drill-" + r.Mirror
	if r.Moved != nil {
		name += "-" + string(r.Kind)
	}
	if r.Label != "" {
		name += "-" + r.Label
	}
	return name + "-" + r.Started.UTC().Format("20060102T150405Z")
}

// Summary is the drill in one line.
func (r *Report) Summary() string {
	if r.Moved != nil {
		return r.movedSummary()
	}
	s := fmt.Sprintf("%s: RPO %s", r.Result, seconds(r.RPOSeconds))
	if r.RTOSeconds != nil {
		s += ", RTO " + seconds(*r.RTOSeconds)
	}
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	return s
}

func seconds(s float64) string {
	if s > 0 && s < 0.0995 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}
