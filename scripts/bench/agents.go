package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// agentHost is one agent with its files.
type agentHost struct {
	name    string
	ns      string // network namespace, "": the machine's own
	address string // it listens at
	device  string
	journal string
	key     string
	public  string
	control string
	nbd     string // unix socket
	cmd     *exec.Cmd
	args    []string
}

// mirrorPlan says what startMirror builds.
type mirrorPlan struct {
	prefill        bool // the source's device is full of noise, else it is empty
	journal        string
	sizeMiB        int // 0: the bench's
	backup         bool
	sourceNS       string
	targetNS       string
	targetAddress  string // "": loopback
	source, target []string
}

// agents is a source, a target and perhaps a hot backup, over TLS with keys.
type agents struct {
	b                      *bench
	p                      *peer
	source, target, backup *agentHost
}

// newHost makes a host's key and names its files, which must not be there yet.
func (b *bench) newHost(name, ns, address string) (*agentHost, error) {
	h := &agentHost{
		name: name, ns: ns, address: address, device: b.file(name + ".img"), journal: b.file(name + ".log"), key: b.file(name + ".key"),
		control: b.socket(name + ".ctl"), nbd: b.socket(name),
	}
	for _, f := range []string{h.device, h.journal, h.key, h.control, h.nbd} {
		if err := os.RemoveAll(f); err != nil {
			return nil, err
		}
	}
	for _, args := range [][]string{{"keygen", "--key", h.key}, {"keygen", "--key", h.key, "--show"}} {
		out, err := exec.Command(b.o.agent, args...).Output()
		if err != nil {
			return nil, fmt.Errorf("keygen: %w", err)
		}
		h.public = strings.TrimSpace(string(out))
	}
	return h, nil
}

// run starts the host's agent, again with what it was started with when args are none.
func (m *agents) run(ctx context.Context, h *agentHost, args ...string) error {
	if len(args) > 0 {
		h.args = append(args, "--name", "bench", "--device", h.device, "--journal", h.journal, "--key", h.key, "--control", h.control, "--nbd", "unix:"+h.nbd)
	}
	_ = os.Remove(h.control) // of a run that was killed
	name, all := m.b.o.agent, h.args
	if h.ns != "" {
		name, all = "ip", append([]string{"netns", "exec", h.ns, m.b.o.agent}, h.args...)
	}
	if err := m.b.start(m.p, name, all...); err != nil {
		return err
	}
	h.cmd = m.p.procs[len(m.p.procs)-1]
	return m.b.until(ctx, m.p, 30*time.Second, exists(h.control))
}

// kill ends the host's agent by SIGKILL.
func (m *agents) kill(h *agentHost) error {
	if err := h.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	_ = h.cmd.Wait() // says that it was killed
	return nil
}

// order runs a command of the agent's.
func (m *agents) order(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, m.b.o.agent, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mirror-agent %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// agentStatus is what the bench looks at of status --json.
type agentStatus struct {
	State     string
	Log       struct{ Head, Applied int64 }
	Followers []struct {
		State    string
		Resynced struct{ Started, Ended time.Time }
	}
}

func (m *agents) status(h *agentHost) (agentStatus, error) { return m.b.status(h.control) }

func (b *bench) status(control string) (s agentStatus, err error) {
	out, err := exec.Command(b.o.agent, "status", "--json", "--control", control).Output()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// untilInSync waits until all followers of the source stream.
func (m *agents) untilInSync(ctx context.Context, followers int) error {
	return m.b.until(ctx, m.p, 5*time.Minute, func() bool {
		s, err := m.status(m.source)
		if err != nil || s.State != "in sync" || len(s.Followers) != followers {
			return false
		}
		for _, f := range s.Followers {
			if f.State != "streaming" {
				return false
			}
		}
		return true
	})
}

// startMirror starts the hosts and waits until they are in sync.
func (b *bench) startMirror(ctx context.Context, p *peer, plan mirrorPlan) (*agents, error) {
	m, err := b.prepareMirror(ctx, p, plan)
	if err != nil {
		return nil, err
	}
	followers := 1
	if plan.backup {
		followers = 2
	}
	return m, m.untilInSync(ctx, followers)
}

func (b *bench) prepareMirror(ctx context.Context, p *peer, plan mirrorPlan) (m *agents, err error) {
	if plan.sizeMiB == 0 {
		plan.sizeMiB = b.o.sizeMiB
	}
	size := fmt.Sprintf("%dMiB", plan.sizeMiB)
	m = &agents{b: b, p: p}
	address := func() (string, error) {
		if plan.targetAddress != "" {
			return plan.targetAddress, nil
		}
		return freePort()
	}
	var at, backupAt string
	if at, err = address(); err != nil {
		return nil, err
	}
	if m.source, err = b.newHost("source", plan.sourceNS, ""); err != nil {
		return nil, err
	}
	if m.target, err = b.newHost("target", plan.targetNS, at); err != nil {
		return nil, err
	}
	hosts := []*agentHost{m.target}
	if plan.backup {
		if backupAt, err = address(); err != nil {
			return nil, err
		}
		if m.backup, err = b.newHost("backup", plan.targetNS, backupAt); err != nil {
			return nil, err
		}
		hosts = append(hosts, m.backup)
	}
	if plan.prefill {
		if plan.sizeMiB != b.o.sizeMiB {
			return nil, errors.New("prefill: of the bench's size only")
		}
		if err := b.copies("source.img"); err != nil {
			return nil, err
		}
	}
	p.socket = m.source.nbd
	keys := []string{}
	for _, h := range append(hosts, m.source) {
		keys = append(keys, "--peer-key", h.public)
	}
	common := append([]string{"--size", size, "--journal-size", plan.journal}, keys...)
	for _, h := range hosts {
		if err := m.run(ctx, h, append(append([]string{"target", "--listen", h.address}, common...), plan.target...)...); err != nil {
			return nil, err
		}
	}
	args := append([]string{"source", "--target", m.target.address}, common...)
	if plan.backup {
		args = append(args, "--backup", m.backup.address, "--backups", "hot")
	}
	return m, m.run(ctx, m.source, append(args, plan.source...)...)
}
