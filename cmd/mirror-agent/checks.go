package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"mirror-agent/mirror"
)

// How verify and scrub are shown.

// verifyLine is how far a verify is, with a bar.
func (v view) verifyLine(r *mirror.VerifyReport) string {
	share := 0.0
	if r.TotalBytes > 0 {
		share = float64(r.DoneBytes) / float64(r.TotalBytes)
	}
	s := fmt.Sprintf("%s of %s   %s  %2.0f %%", formatSize(r.DoneBytes), formatSize(r.TotalBytes), bar(share, barColumns), share*100)
	switch {
	case r.State == mirror.VerifyWaiting:
		s += "   waits: " + r.Reason
	case r.State != mirror.VerifyRunning:
		s += "   " + r.State
	case r.LeftSeconds != nil:
		s += fmt.Sprintf("   %s left", formatSpan(time.Duration(*r.LeftSeconds*float64(time.Second))))
	}
	if r.State == mirror.VerifyRunning && r.Yields {
		s += fmt.Sprintf("   yields to applications, %s/s", formatSize(r.RateBytes))
	}
	if r.DifferentBytes > 0 {
		s += "   " + v.bad(r.Found())
	}
	return s
}

// verifyReads is what was compared.
func verifyReads(r *mirror.VerifyReport) string {
	if r.SourceRead == "" {
		return ""
	}
	return fmt.Sprintf("log and %s here, log and %s there", r.SourceRead, r.TargetRead)
}

// verified is the whole report.
func (v view) verified(w io.Writer, name string, r *mirror.VerifyReport) {
	found := r.Found()
	if r.Bad() > 0 {
		found = v.bad(found)
	} else {
		found = v.good(found)
	}
	fmt.Fprintf(w, "%s: verify of %s %s: %s\n", name, r.Target, r.State, found)
	took := v.now.Sub(r.Started)
	if !r.Ended.IsZero() {
		took = r.Ended.Sub(r.Started)
	}
	fmt.Fprintf(w, "  when      %s, %s\n", r.Started.Format(sinceStamp), formatSpan(took))
	fmt.Fprintf(w, "  compared  %s of %s, %s of holes passed over, at LSN %d to %d\n", formatSize(r.ComparedBytes), formatSize(r.TotalBytes), formatSize(r.HoleBytes), r.FirstLSN, r.LastLSN)
	if s := verifyReads(r); s != "" {
		fmt.Fprintf(w, "  read      %s\n", s)
	}
	if r.State != mirror.VerifyDone && r.Reason != "" {
		fmt.Fprintf(w, "  why       %s\n", r.Reason)
	}
	if len(r.Differences) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  OFFSET\tLENGTH\t\tLSN\tWHAT\tREPAIRED")
	for _, d := range r.Differences {
		repaired := d.Repaired
		if d.Why != "" {
			repaired = "no: " + d.Why
		}
		fmt.Fprintf(t, "  %d\t%d\t%s\t%d\t%s\t%s\n", d.Offset, d.Length, formatSize(d.Offset), d.LSN, d.Kind, repaired)
	}
	t.Flush()
	if more := r.Extents - int64(len(r.Differences)); more > 0 {
		fmt.Fprintf(w, "  and %d more places\n", more)
	}
}

// checks shows the last verify and what a scrub found, in the status.
func (v view) checks(w io.Writer, st *mirror.Status) {
	if r := st.Verify; r != nil {
		fmt.Fprintf(w, "  verify    %s\n", v.lastVerify(r))
	}
	if s := st.Scrub; s != nil && (s.Running || !s.Ended.IsZero()) {
		fmt.Fprintf(w, "  scrub     %s\n", v.lastScrub(s))
	}
}

func (v view) lastVerify(r *mirror.VerifyReport) string {
	switch r.State {
	case mirror.VerifyRunning, mirror.VerifyWaiting:
		return v.verifyLine(r)
	case mirror.VerifyDone:
		return fmt.Sprintf("%s ago, %s: %s", formatSpan(v.now.Sub(r.Ended)), r.Target, r.Found())
	}
	return fmt.Sprintf("%s ago, %s: %s at %s of %s, %s", formatSpan(v.now.Sub(r.Ended)), r.Target, r.State, formatSize(r.DoneBytes), formatSize(r.TotalBytes), r.Found())
}

func (v view) lastScrub(s *mirror.ScrubStatus) string {
	if s.Running {
		return fmt.Sprintf("%s of the log's %s read: %s", formatSize(s.DoneBytes), formatSize(s.TotalBytes), s.Verdict())
	}
	return fmt.Sprintf("%s ago, %s of the log: %s", formatSpan(v.now.Sub(s.Ended)), formatSize(s.DoneBytes), s.Verdict())
}

func (v view) explainChecks(row rowWriter, st *mirror.Status) {
	if r := st.Verify; r != nil {
		row("Verify", "%s", v.lastVerify(r))
		if s := verifyReads(r); s != "" {
			row("", "what was compared: %s", s)
		}
	}
	if s := st.Scrub; s != nil {
		if s.Running || !s.Ended.IsZero() {
			row("Scrub", "%s", v.lastScrub(s))
		}
		if !s.Next.IsZero() && !s.Running {
			row("", "the log is scrubbed next at %s", s.Next.Format(sinceStamp))
		}
	}
}
