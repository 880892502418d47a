package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// netLayout says what newNetMirror makes.
type netLayout struct {
	name       string // of the mirror; default mirrorName
	port       int    // default portNumber
	size       int64  // of the device; default 16 MiB
	toTarget   int    // cables in use, default 2
	toBackup   int    // 0: no backup
	seed       int    // so many addresses of the target are given to the source; default all
	sourceArgs []string
	files      bool     // the agents are started with run --config
	root       *netRoot // an installed program in a root of its own, in place of the one built here
}

// netMirror is a source with its target and perhaps a backup, each a real
// mirror-agent in a host of its own, with keys.
type netMirror struct {
	*testMirror
	net *topology
	lay netLayout
}

// newNetMirror prepares the agents on a topology and starts nothing.
func newNetMirror(t testing.TB, n *topology, lay netLayout) *netMirror {
	t.Helper()
	if lay.name == "" {
		lay.name = mirrorName
	}
	if lay.port == 0 {
		lay.port = portNumber
	}
	if lay.toTarget == 0 {
		lay.toTarget = 2
	}
	lay.size = max(lay.size, 16<<20)
	m := &netMirror{testMirror: &testMirror{t: t, dir: shortDir(t), size: lay.size}, net: n, lay: lay}
	if lay.root != nil {
		m.dir = lay.root.dir("d")
	}
	keys := map[string]string{}
	for _, name := range []string{"source", "target", "backup"} {
		keys[name] = makeKey(t, m.path(name, "key"))
	}
	settings := func(name string, host netHost, own ...string) *agent {
		set := []string{
			"--name", lay.name, "--node", name, "--device", m.within(name, "img"), "--size", fmt.Sprint(lay.size),
			"--journal", m.within(name, "journal"), "--journal-size", "64MiB", "--nbd", "unix:" + m.within(name, "nbd"), "--key", m.within(name, "key"),
		}
		for other, key := range keys {
			if other != name {
				set = append(set, "--peer-key", key)
			}
		}
		command := []string{map[bool]string{true: "source", false: "target"}[name == "source"]}
		set = append(set, own...)
		if lay.files {
			set = []string{"--config", m.configFile(name, command[0], set)}
			command = []string{"run"}
		}
		a := newAgent(t, m.dir, name, append(command, set...)...)
		a.device, a.nbd = m.path(name, "img"), "unix:"+m.path(name, "nbd")
		a.inside = host.inside()
		if lay.root != nil {
			a.inside = append(a.inside, "chroot", lay.root.path)
			a.program, a.controlWithin = "/usr/bin/mirror-agent", m.within(name, "ctl")
		}
		return a
	}
	toTarget := addrsOf(n.toTarget[:lay.toTarget], lay.port)
	m.target = settings("target", n.tgt, "--listen", strings.Join(toTarget, ","))
	if lay.seed > 0 {
		toTarget = toTarget[:lay.seed]
	}
	src := append([]string{"--target", strings.Join(toTarget, ",")}, lay.sourceArgs...)
	if lay.toBackup > 0 {
		l := strings.Join(addrsOf(n.toBack[:lay.toBackup], lay.port), ",")
		m.backup = settings("backup", n.bak, "--listen", l)
		src = append(src, "--backup", l)
	}
	m.source = settings("source", n.src, src...)
	return m
}

// within is a file as the agents see it.
func (m *netMirror) within(name, ext string) string {
	p := m.path(name, ext)
	if m.lay.root != nil {
		return strings.TrimPrefix(p, m.lay.root.path)
	}
	return p
}

// configFile writes the flags of an agent as its file.
func (m *netMirror) configFile(name, role string, flags []string) string {
	m.t.Helper()
	values, order := map[string][]string{}, []string{"role"}
	values["role"] = []string{role}
	for i := 0; i+1 < len(flags); i += 2 {
		k := strings.TrimPrefix(flags[i], "--")
		if !slices.Contains(order, k) {
			order = append(order, k)
		}
		values[k] = append(values[k], flags[i+1])
	}
	var b strings.Builder
	for _, k := range order {
		switch v := values[k]; k {
		case "peer-key", "backup":
			fmt.Fprintf(&b, "%s:\n", k)
			for _, word := range v {
				fmt.Fprintf(&b, "  - %s\n", strconv.Quote(word))
			}
		default:
			fmt.Fprintf(&b, "%s: %s\n", k, strconv.Quote(v[0]))
		}
	}
	file := m.path(name, "yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// begin starts all agents and waits until the target is in sync over all its paths.
func (m *netMirror) begin() {
	m.t.Helper()
	m.start()
	m.source.until(startLimit, "all paths are active", func(s *status) bool { return activePaths(s) == m.lay.toTarget })
}

// replaceArg gives an agent another value of a flag; replaceArgs one value in place of several.
func (a *agent) replaceArg(flag, value string) {
	a.args[slices.Index(a.args, flag)+1] = value
}

func (a *agent) replaceArgs(flag, value string) {
	var args []string
	for i := 0; i < len(a.args); i++ {
		if a.args[i] == flag {
			i++
			continue
		}
		args = append(args, a.args[i])
	}
	a.args = append(args, flag, value)
}

// dialName connects to an agent's NBD export of a name.
func (a *agent) dialName(name string) *nbdClient {
	a.t.Helper()
	var c *nbdClient
	eventually(a.t, startLimit, a.name+" serves NBD", func() (bool, string) {
		var err error
		if c, err = dialNBD(a.nbd, name); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return c
}

// agentEvent is a line of `events --json`.
type agentEvent struct {
	Sequence uint64 `json:"sequence"`
	Kind     string `json:"kind"`
	Target   string `json:"target"`
	Path     string `json:"path"`
	Text     string `json:"text"`
}

// eventsAfter returns what happened on an agent after an event.
func (a *agent) eventsAfter(n uint64) (l []agentEvent) {
	a.t.Helper()
	for line := range strings.Lines(a.mustCommand("events", "--json", "--after", strconv.FormatUint(n, 10))) {
		var e agentEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			a.t.Fatalf("events --json: %v in %s", err, line)
		}
		l = append(l, e)
	}
	return l
}

// lastEvent is the sequence of the newest event.
func (a *agent) lastEvent() uint64 {
	a.t.Helper()
	l := a.eventsAfter(0)
	if len(l) == 0 {
		return 0
	}
	return l[len(l)-1].Sequence
}

// untilEvent waits for an event of a kind after n.
func (a *agent) untilEvent(n uint64, kind string) {
	a.t.Helper()
	eventually(a.t, portLimit, a.name+": event "+kind, func() (bool, string) {
		l := a.eventsAfter(n)
		return slices.ContainsFunc(l, func(e agentEvent) bool { return e.Kind == kind }), fmt.Sprint(l)
	})
}

// portEvents are the events that the data port had for the agent, in its words.
func portEvents(l []agentEvent) (found []eventLine) {
	kinds := map[string]string{
		"path-up": "PathUp", "path-suspect": "PathSuspect", "path-down": "PathDown", "target-unreachable": "TargetUnreachable",
		"switching": "Switching", "switched": "Switched", "peer-restarted": "PeerRestarted", "suspended": "Suspended", "resumed": "Resumed",
	}
	for _, e := range l {
		if kind, ok := kinds[e.Kind]; ok {
			id, _ := strconv.ParseUint(e.Path, 10, 32) // none: 0
			found = append(found, eventLine{Kind: kind, Path: uint32(id), Target: e.Target, Reason: e.Text})
		}
	}
	return found
}

// netRoot is a root directory with an installed program and nothing else.
type netRoot struct{ path string }

func (r *netRoot) dir(p string) string { return filepath.Join(r.path, p) }
