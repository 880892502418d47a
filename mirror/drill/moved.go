package drill

import "fmt"

// Moved is what a report has of a drill that moves the lead or the flow.
type Moved struct {
	From string `json:"from"` // the host or target before
	To   string `json:"to"`
	// Clients of the front that closed; their connections ended.
	Clients int `json:"clients"`
	// HandoverSeconds is how long nobody served, from the order to the open front.
	HandoverSeconds float64 `json:"handover_seconds,omitempty"`
	// ReplicationSeconds is how long a record took, after the move, from its order until it was durable on the other side; absent
	// when there was none.
	ReplicationSeconds *float64 `json:"replication_seconds,omitempty"`
	// Written is how many writes there were while the lead was away.
	Written uint64 `json:"written"`
	// BackSeconds is how long the way back took; absent when nothing was to be moved back.
	BackSeconds *float64 `json:"back_seconds,omitempty"`
	// Stranded: lead or flow are not where they were. NextStep is what to do then.
	Stranded bool   `json:"stranded"`
	NextStep string `json:"next_step,omitempty"`
}

func (r *Report) movedSummary() string {
	m := r.Moved
	s := string(r.Result) + ": "
	if r.Kind != SwitchOver {
		s += fmt.Sprintf("RPO %d B", r.RPOBytes)
		if r.RTOSeconds != nil {
			s += ", RTO " + seconds(*r.RTOSeconds)
		}
		s += ", "
	}
	if m.ReplicationSeconds != nil {
		s += "a record is on the other side after " + seconds(*m.ReplicationSeconds) + ", "
	}
	switch {
	case m.Stranded:
		s += "NOT as before: " + m.NextStep
	case m.BackSeconds != nil:
		s += "back after " + seconds(*m.BackSeconds)
	case r.Kind == Failback && r.Result == Passed:
		s += m.To + " leads"
	default:
		s += "nothing was moved"
	}
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	return s
}
