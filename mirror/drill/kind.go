package drill

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Kind of a drill: what is tried.
type Kind string

// Kinds. View is a look at a copy beside everything else; the others move what they are called after, and back.
const (
	View       Kind = "view"
	SwitchOver Kind = "switch-over" // the flow to a backup and back; on the host that leads
	Failover   Kind = "failover"    // the lead to a target and home again; on that target
	Failback   Kind = "failback"    // the lead home, where it stays; on either host
)

// Kinds are all of them.
var Kinds = []Kind{View, SwitchOver, Failover, Failback}

// Moves are the settings of drills that move something.
type Moves struct {
	// To is the backup that the flow moves to: "backup", the next one (default), or its address. SwitchOver.
	To string `yaml:"to"`
	// Cold allows a backup that is not in sync, and gets what it lacks first. SwitchOver.
	Cold bool `yaml:"cold"`
	// WithClients allows that clients use the front that closes. Failover, Failback.
	WithClients bool `yaml:"with-clients"`
	// Limit is how long a front may be closed for a handover; 0 is the agent's default. Failover, Failback.
	Limit time.Duration `yaml:"limit"`
	// Wait is how long the mirror may take to be in sync after a move.
	Wait time.Duration `yaml:"wait"`
	// Timeout ends the way forward, checks and all: then the way back begins.
	Timeout time.Duration `yaml:"timeout"`
	// Back is how long the way back is tried.
	Back time.Duration `yaml:"back"`
}

const (
	defaultWait    = 2 * time.Minute
	defaultForward = 30 * time.Minute
	defaultBack    = 10 * time.Minute
)

func (c *Config) validateKind() error {
	switch c.Kind {
	case "":
		c.Kind = View
	case View, SwitchOver, Failover, Failback:
	default:
		return fmt.Errorf("kind: %q: choose view, switch-over, failover or failback", c.Kind)
	}
	if c.Kind == View {
		if c.Moves != (Moves{}) {
			return errors.New("to, cold, with-clients, limit, wait, timeout and back are for the kinds that move something: say which kind")
		}
		return nil
	}
	if c.At != "" || c.NBD != "" || c.ScratchDir != "" || c.ScratchSize != "" {
		return fmt.Errorf("at, nbd, scratch-dir and scratch-size are for a view, not for kind %s, which tries the device itself", c.Kind)
	}
	// A device is attached only where that was asked for: a mount writes, and what it writes counts.
	if c.Device == "" && c.Mount == "" {
		c.Device = None
	}
	if c.Kind != Failover && (c.Device != None || c.Mount != "") {
		return fmt.Errorf("device, mount: not for kind %s: the checks use what its front serves", c.Kind)
	}
	return c.validateMoves()
}

func (c *Config) validateMoves() error {
	m := &c.Moves
	for _, k := range []struct {
		name string
		said bool
		of   []Kind
	}{
		{"to", m.To != "", []Kind{SwitchOver}},
		{"cold", m.Cold, []Kind{SwitchOver}},
		{"with-clients", m.WithClients, []Kind{Failover, Failback}},
		{"limit", m.Limit != 0, []Kind{Failover, Failback}},
	} {
		fits := false
		for _, of := range k.of {
			fits = fits || of == c.Kind
		}
		if k.said && !fits {
			return fmt.Errorf("%s: not for kind %s", k.name, c.Kind)
		}
	}
	if _, _, err := net.SplitHostPort(m.To); err != nil && m.To != "" && m.To != "backup" {
		return fmt.Errorf("to: %q: give backup or a target's HOST:PORT", m.To)
	}
	for _, t := range []struct {
		name    string
		value   *time.Duration
		without time.Duration
	}{{"limit", &m.Limit, 0}, {"wait", &m.Wait, defaultWait}, {"timeout", &m.Timeout, defaultForward}, {"back", &m.Back, defaultBack}} {
		if *t.value < 0 {
			return fmt.Errorf("%s: %v is negative", t.name, *t.value)
		}
		if *t.value == 0 {
			*t.value = t.without
		}
	}
	return nil
}
