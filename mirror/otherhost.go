package mirror

import "time"

// HostStatus is what the agent of another host said of itself when the session began.
type HostStatus struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of its agent; "" before agents said it
	// ClockAhead is how far its clock is ahead of this host's, give or take ClockUnsure: half of the time that the answer
	// took. On a target, which did not ask, that is not known, and everything that was on the way is in ClockAhead.
	ClockAhead  float64   `json:"clock_ahead_seconds"`
	ClockUnsure float64   `json:"clock_unsure_seconds"`
	Met         time.Time `json:"met"`
}

// meet makes one of what came: its clock said at, between asked and answered by ours. at of 0: an agent that does not say it.
func meet(name, version string, at int64, asked, answered time.Time) *HostStatus {
	h := &HostStatus{Name: name, Version: version, Met: answered}
	if at == 0 {
		return h
	}
	half := answered.Sub(asked) / 2
	h.ClockAhead, h.ClockUnsure = time.Unix(0, at).Sub(asked.Add(half)).Seconds(), half.Seconds()
	return h
}
