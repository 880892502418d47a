package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
)

// explanation is what explain --json prints.
type explanation struct {
	Name     string         `json:"name"`
	State    string         `json:"state"`
	Reason   string         `json:"reason"`
	Since    time.Time      `json:"since"`
	NextStep string         `json:"next_step"`
	Means    string         `json:"means"`
	ByItself string         `json:"by_itself"`
	Choices  []string       `json:"choices"`
	Alarms   []mirror.Alarm `json:"alarms"`
}

func newExplain(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain",
		Short: "Say why the mirror is in its state, and what can be done",
		Long: `Says why the mirror is in the state that it is in, since when, what happens next
by itself, what each other host is doing, and which orders make sense now.`,
		Example: examples("mirror-agent explain", "mirror-agent explain --json"),
		Args:    arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := a.statusNow(c)
			if err != nil {
				return err
			}
			if asJSON {
				w, _ := mirror.WordsFor(mirror.SubjectMirror, st.State)
				return a.printJSON(explanation{st.Name, st.State, st.Reason, st.Since, st.NextStep, w.Means, w.ByItself, choices(&st), st.Alarms})
			}
			view{paint: paint(a.colour), now: a.now()}.explain(a.stdout, &st)
			return nil
		},
	}
	addControlFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (v view) explain(w io.Writer, st *mirror.Status) {
	fmt.Fprintf(w, "%s (%s): %s\n", v.bold(st.Name), st.Role, v.state(st.State))
	row := func(label, format string, args ...any) {
		fmt.Fprintf(w, "  %-8s%s\n", label, fmt.Sprintf(format, args...))
	}
	words, known := mirror.WordsFor(mirror.SubjectMirror, st.State)
	if known {
		row("Means", "%s", words.Means)
	}
	if st.Reason != "" {
		row("Why", "%s", st.Reason)
	}
	if !st.Since.IsZero() {
		row("Since", "%s (%s)", st.Since.Format(sinceStamp), formatSpan(v.now.Sub(st.Since)))
	}
	if known {
		row("Then", "%s", words.ByItself)
	}
	if next := cmp.Or(st.NextStep, words.Next); next != "" {
		row("Next", "%s", next)
	}
	if st.Role == mirror.RolePrimary.String() {
		row("Mode", "%s", modeMeaning(st.Mode, st.OnLoss))
	}
	if s := st.Source; s != nil {
		v.explainSource(row, s)
	}
	for i := range st.Followers {
		v.explainFollower(row, &st.Followers[i])
	}
	v.explainChecks(row, st)
	explainDeciders(row, st)
	for _, a := range st.Alarms {
		what := v.bad(a.Name)
		if a.Reason != st.Reason {
			what += ": " + a.Reason
		}
		row("Alarm", "%s, since %s (%s)", what, a.Since.Format(time.TimeOnly), formatSpan(v.now.Sub(a.Since)))
		if a.NextStep != "" && a.NextStep != st.NextStep {
			row("", "%s", a.NextStep)
		}
	}
	for i, c := range choices(st) {
		label := ""
		if i == 0 {
			label = "You can"
		}
		row(label, "%s", c)
	}
}

func modeMeaning(mode, onLoss string) string {
	s := mode
	switch mirror.Mode(mode) {
	case mirror.ModeAsync:
		s += ": a FLUSH is answered when it is durable here"
	case mirror.ModeFlush:
		s += ": a FLUSH is answered when it is durable here and at the active target"
	case mirror.ModeReceive:
		s += ": a write is answered when the active target has received it, a FLUSH when it is durable here and there"
	case mirror.ModeDurable:
		s += ": a write is answered when it is durable here and at the active target"
	}
	switch mirror.OnLoss(onLoss) {
	case mirror.OnLossContinue:
		s += "; without a target writes continue on this host only"
	case mirror.OnLossFreeze:
		s += "; without a target writes wait"
	}
	return s
}

type rowWriter func(label, format string, args ...any)

func (v view) explainSource(row rowWriter, s *mirror.SourceStatus) {
	switch {
	case s.Connected:
		row("Source", "%s is connected", s.Peer)
	case s.LastSeen.IsZero():
		row("Source", "none has connected since this agent started")
	default:
		row("Source", "%s was last seen %s ago", s.Peer, formatSpan(v.now.Sub(s.LastSeen)))
	}
	v.explainPaths(row, s.Paths)
}

func (v view) explainFollower(row rowWriter, f *mirror.FollowerStatus) {
	label := "Target"
	if f.Kind == "backup" {
		label = "Backup"
	}
	s := fmt.Sprintf("%s: %s", f.Target, v.state(f.State))
	switch {
	case f.Active:
		s = fmt.Sprintf("%s (active): %s", f.Target, v.state(f.State))
	case f.Hot:
		s = fmt.Sprintf("%s (hot): %s", f.Target, v.state(f.State))
	}
	if !f.Since.IsZero() {
		s += fmt.Sprintf(" since %s (%s)", f.Since.Format(time.TimeOnly), formatSpan(v.now.Sub(f.Since)))
	}
	if f.Reason != "" {
		s += ", " + f.Reason
	}
	row(label, "%s", s)
	if w, ok := mirror.WordsFor(mirror.SubjectFollower, f.State); ok && f.State != string(mirror.FollowerStreaming) {
		row("", "%s; %s", w.Means, w.ByItself)
	}
	if w, ok := mirror.WordsFor(mirror.SubjectPort, f.Port); ok && f.Port != "connected" {
		row("", "connection %s: %s", f.Port, w.Means)
	}
	switch f.Durable {
	case 0:
		row("", "nothing is there yet")
	default:
		row("", "%s not yet there, RPO %.1f s", formatSize(max(f.LagBytes, uint64(max(f.DirtyBytes, 0)))), f.RPOSeconds)
	}
	v.explainPaths(row, f.Paths)
}

func (v view) explainPaths(row rowWriter, paths []mirror.PathStatus) {
	for _, p := range paths {
		reason := ""
		if p.Reason != "" && p.State != "active" && p.State != "standby" {
			reason = ": " + p.Reason
		}
		row("", "path %d  %s → %s  %s%s", p.ID, p.Local, p.Remote, v.state(p.State), reason)
	}
}

// explainDeciders says who decides about a promotion.
func explainDeciders(row rowWriter, st *mirror.Status) {
	if e := st.Electorate; e != nil && len(e.Members) > 0 && st.Arbiter == nil {
		row("Members", "%s", e.Meaning)
	}
	switch a := st.Arbiter; {
	case a == nil:
	case a.Held:
		row("Arbiter", "%s leases this host for %.1f s still", a.Name, a.Seconds)
	case a.Problem != "":
		row("Arbiter", "%s: %s", a.Name, a.Problem)
	default:
		row("Arbiter", "%s decides which host is primary", a.Name)
	}
}

// choices are the orders that make sense in a state.
func choices(st *mirror.Status) []string {
	list := []string{}
	backup := "backup" // of the first behind the active one, then by address
	for i := range st.Followers {
		f := &st.Followers[i]
		if f.Active {
			backup = "backup"
		}
		if f.Active && f.State == "streaming" {
			continue
		}
		switch {
		case f.Active:
			list = append(list, fmt.Sprintf("wait (%s: %s)", f.Target, f.State))
		case f.Kind == "backup" && !activeStreams(st):
			list = append(list, fmt.Sprintf("`mirror-agent switch %s` (%s: %s, %s behind)", cmp.Or(backup, f.Target), f.Target, f.State, formatSize(f.LagBytes)))
			backup = ""
		case f.Kind == "target" && f.State == "streaming":
			list = append(list, fmt.Sprintf("`mirror-agent switch primary` (%s is back, %s behind)", f.Target, formatSize(f.LagBytes)))
		}
	}
	list = append(list, wayHome(st)...)
	if st.State == "suspended" {
		list = append(list, "`mirror-agent resume`")
	}
	if st.Source != nil && !st.Source.Connected && st.Role == mirror.RoleSecondary.String() {
		list = append(list, "wait for the source to come back", "`mirror-agent promote` if the source is gone for good")
	}
	return list
}

// wayHome is how the lead goes home, where it is not there and could go now.
func wayHome(st *mirror.Status) []string {
	if st.Role != mirror.RolePrimary.String() {
		if st.Home && st.Source != nil && st.Source.Connected && st.State == "streaming" {
			return []string{fmt.Sprintf("`mirror-agent failback` (%s leads; this host, home, is in sync)", st.Source.Peer)}
		}
		return nil
	}
	for i := range st.Followers {
		if f := &st.Followers[i]; f.Home && !st.Home && f.State == "streaming" {
			return []string{fmt.Sprintf("`mirror-agent failback` (%s, home, is in sync)", f.Target)}
		}
	}
	return nil
}

func activeStreams(st *mirror.Status) bool {
	for i := range st.Followers {
		if st.Followers[i].Active && st.Followers[i].State == "streaming" {
			return true
		}
	}
	return false
}
