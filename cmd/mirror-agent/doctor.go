package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

// level says how bad a finding is.
type level string

const (
	levelOK   level = "ok"
	levelWarn level = "warn"
	levelFail level = "fail"
)

// finding is one thing that doctor has looked at.
type finding struct {
	Area  string `json:"area"` // config, keys, kernel, limits, clock, disk, network, agent, version
	About string `json:"about,omitempty"`
	Level level  `json:"level"`
	Says  string `json:"says"`
	Do    string `json:"do,omitempty"`
}

// diagnosis is what doctor --json prints.
type diagnosis struct {
	Findings []finding `json:"findings"`
	Warnings int       `json:"warnings"`
	Failures int       `json:"failures"`
}

func (r *diagnosis) add(f ...finding) {
	for _, x := range f {
		switch x.Level {
		case levelWarn:
			r.Warnings++
		case levelFail:
			r.Failures++
		case levelOK:
		}
		r.Findings = append(r.Findings, x)
	}
}

const doctorHelp = `Looks for what would be in the way of a mirror on this host, and says what each
thing means and what to do: the configuration, keys, the kernel's NBD module,
limits, the clock, the disks (space, the time of an fdatasync beside the log,
filesystems that copy on write), and every address of the other hosts, which are
asked who they are: no session begins, and nothing changes there.

It takes the same settings as source, target and run do, and works whether the
agent runs or not; when it runs it is asked too, and so nothing needs to be given
but its name or socket. Written are a few kilobytes beside the log, and removed.

Exit status: 0 nothing fails (there may be warnings), 1 something does.`

func newDoctor(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [--config FILE] [flags]",
		Short: "Look for what is in the way of a mirror on this host",
		Long:  doctorHelp,
		Example: examples(
			"mirror-agent doctor --config /etc/mirror-agent/vol0.yaml",
			"mirror-agent doctor --name vol0",
			"mirror-agent doctor --config vol0.yaml --json | jq '.findings[] | select(.level != \"ok\")'",
		),
		DisableFlagsInUseLine: true,
		Args:                  arguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.examine(c)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(r)
			} else {
				view{paint: paint(a.colour), now: a.now()}.findings(a.stdout, r)
			}
			if err == nil && r.Failures > 0 {
				return &silentError{fmt.Errorf("%d findings fail", r.Failures)}
			}
			return err
		},
	}
	addDaemonFlags(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// examine looks at everything.
func (a *app) examine(c *cobra.Command) (*diagnosis, error) {
	r := &diagnosis{Findings: []finding{}}
	s, given, err := a.doctorSettings(c, r)
	if err != nil {
		return nil, err
	}
	st := a.doctorAgent(c, s, r)
	a.examineKeys(s, given, r)
	r.add(examineKernel("/")...)
	r.add(examineLimits()...)
	r.add(examineClock(st)...)
	for _, d := range diskPlaces(s, st) {
		r.add(examineDisk(d)...)
	}
	r.add(a.examineNetwork(c.Context(), s, st)...)
	r.add(examineVersions(st)...)
	return r, nil
}

// doctorSettings are what the flags, the environment and the file say, as far as they make sense; given: at all.
func (a *app) doctorSettings(c *cobra.Command, r *diagnosis) (s *settings, given bool, err error) {
	l, err := newLoader(a, c.Flags())
	if err != nil {
		r.add(finding{"config", "", levelFail, err.Error(), "correct it; the checks below do without it"})
		d := defaultSettings()
		return &d, false, nil
	}
	role := mirror.RolePrimary
	switch {
	case l.file != nil:
		role = 0
	case c.Flags().Changed("listen"):
		role = mirror.RoleSecondary
	}
	got, err := l.load(role)
	if err != nil {
		var usage *usageError
		if l.file == nil || errors.As(err, &usage) {
			return nil, false, err
		}
		r.add(finding{"config", l.file.path, levelFail, err.Error(), "correct it; the checks below do with what could be read"})
		return &got, true, nil
	}
	given = l.file != nil || got.config.Device != ""
	if !given {
		r.add(finding{"config", "", levelOK, "no configuration was given: what the agent says is used, if one runs", ""})
		return &got, false, nil
	}
	whole := got // complete adds the keys, which are looked at by themselves
	if err := whole.config.Validate(); err != nil {
		r.add(finding{"config", configName(l), levelFail, err.Error(), "correct it"})
	} else if err := a.secureFront(&whole); err != nil {
		r.add(finding{"config", configName(l), levelFail, err.Error(), "correct it, or the files that it names"})
	} else {
		r.add(finding{"config", configName(l), levelOK, summary(&got), ""})
	}
	if t := whole.front.tls; t != nil {
		for _, w := range t.warnings {
			r.add(finding{"config", "NBD's TLS", levelWarn, w, "renew it; it is read again when it changes"})
		}
	}
	return &got, true, nil
}

func configName(l *loader) string {
	if l.file != nil {
		return l.file.path
	}
	return "flags"
}

// doctorAgent asks the agent, if one runs.
func (a *app) doctorAgent(c *cobra.Command, s *settings, r *diagnosis) *mirror.Status {
	var cl *control.Client
	var err error
	switch {
	case s.control != "":
		cl = control.NewClient(s.control)
	case s.config.Name != "":
		cl = control.NewClient(a.socketOf(s.config.Name))
	default:
		cl, err = a.client(c)
	}
	var st mirror.Status
	if err == nil {
		defer cl.Close()
		st, err = askStatus(c.Context(), cl)
	}
	if err != nil {
		r.add(finding{"agent", "", levelOK, "does not run (" + oneLine(err.Error()) + ")", ""})
		return nil
	}
	r.add(finding{"agent", st.Name, levelOK, fmt.Sprintf("runs: %s, %s", st.Role, st.State), ""})
	for _, x := range st.Alarms {
		l := levelWarn
		if x.Name == st.State && x.Name != "degraded" { // it does not do its work
			l = levelFail
		}
		r.add(finding{"agent", "alarm " + x.Name, l, x.Reason, x.NextStep})
	}
	return &st
}

// examineVersions compares this program with the agents that are known of.
func examineVersions(st *mirror.Status) []finding {
	own := readVersion().Version
	list := []finding{{"version", "this program", levelOK, own, ""}}
	if st == nil {
		return list
	}
	compare := func(who, version string) {
		f := finding{"version", who, levelOK, version, ""}
		switch {
		case version == "":
			return
		case version != own:
			f.Level, f.Do = levelWarn, "bring all hosts to one version: targets first, then the source"
		}
		list = append(list, f)
	}
	compare("the agent here", st.Version)
	for i := range st.Followers {
		if h := st.Followers[i].Host; h != nil {
			compare(h.Name+", "+st.Followers[i].Target, h.Version)
		}
	}
	if st.Source != nil && st.Source.Host != nil {
		compare(st.Source.Host.Name+", the source", st.Source.Host.Version)
	}
	return list
}

func (v view) findings(w io.Writer, r *diagnosis) {
	mark := map[level]string{levelOK: v.good("ok  "), levelWarn: v.warn("WARN"), levelFail: v.bad("FAIL")}
	for _, f := range r.Findings {
		about := f.Area
		if f.About != "" {
			about += "  " + f.About
		}
		fmt.Fprintf(w, "%s  %s: %s\n", mark[f.Level], about, strings.ReplaceAll(f.Says, "\n", "; "))
		if f.Do != "" {
			fmt.Fprintf(w, "      → %s\n", f.Do)
		}
	}
	switch {
	case r.Failures > 0:
		fmt.Fprintf(w, "%s, %d warnings\n", v.bad(fmt.Sprintf("%d fail", r.Failures)), r.Warnings)
	case r.Warnings > 0:
		fmt.Fprintf(w, "%s\n", v.warn(fmt.Sprintf("nothing fails, %d warnings", r.Warnings)))
	default:
		fmt.Fprintf(w, "%s\n", v.good("all is well"))
	}
}
