package main

import (
	"fmt"
	"strings"
)

// report is the outcome of a drill, as demo --drill --json prints it. Times
// are in seconds.
type report struct {
	OK      bool         `json:"ok"`
	Version string       `json:"version"`
	Size    int64        `json:"size_bytes"`
	Mode    string       `json:"mode"`
	Seconds float64      `json:"seconds"`
	Steps   []stepResult `json:"steps"`

	PathDetection float64 `json:"path_detection_seconds"`   // path cut → seen
	WritePause    float64 `json:"write_pause_seconds"`      // longest pause of writes meanwhile
	Detection     float64 `json:"target_detection_seconds"` // target killed → seen
	Switch        float64 `json:"switch_seconds"`           // target killed → backup in sync
	RTO           float64 `json:"rto_seconds"`              // order to promote → first successful read
	RPO           float64 `json:"rpo_seconds"`              // age of the oldest answered write that was lost
	Forced        bool    `json:"promotion_forced"`

	Writes       int `json:"writes"`
	Answered     int `json:"writes_answered"`
	Checked      int `json:"blocks_checked"`
	LostFlushed  int `json:"lost_flushed"`
	LostAnswered int `json:"lost_answered"`
}

// stepResult is one step of the story.
type stepResult struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Detail  string  `json:"detail,omitempty"`
}

const stepColumns = 46

func (s stepResult) line(p paint) string {
	outcome := p.good("ok")
	if !s.OK {
		outcome = p.bad("FAILED")
	}
	line := fmt.Sprintf("  %-*s %8s   %s", stepColumns, s.Name, formatSeconds(s.Seconds), outcome)
	if s.Detail != "" {
		line += "   " + p.dim(s.Detail)
	}
	return line
}

// text is the short report at the end.
func (r *report) text(p paint) string {
	var b strings.Builder
	verdict := p.good("the mirror held")
	if !r.OK {
		verdict = p.bad("the mirror did NOT hold")
	}
	fmt.Fprintf(&b, "\n%s   %d writes, %d acknowledged, %d blocks checked, %d flushed versions lost, %d only acknowledged lost\n",
		verdict, r.Writes, r.Answered, r.Checked, r.LostFlushed, r.LostAnswered)
	fmt.Fprintf(&b, "  path cut       seen after %s, writes paused for at most %s\n", formatSeconds(r.PathDetection), formatSeconds(r.WritePause))
	fmt.Fprintf(&b, "  target killed  seen after %s, backup in sync after %s\n", formatSeconds(r.Detection), formatSeconds(r.Switch))
	fmt.Fprintf(&b, "  source killed  RTO %s   RPO %s\n", formatSeconds(r.RTO), formatSeconds(r.RPO))
	return b.String()
}
