package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-agent/journal"
)

// Arbiter decides who may be primary where the members by themselves cannot: with two of them nobody can tell a dead peer from a
// cut cable. It leases that to one at a time. Its methods are called by one goroutine at a time; an error says that nothing is
// known of what came of the call.
type Arbiter interface {
	// Name is what the operator calls it.
	Name() string
	// Leases: a primary has to hold a lease. Without one Renew is never called.
	Leases() bool
	// Renew gets or renews the lease of a primary, and records who has everything that a FLUSH was answered for.
	Renew(ctx context.Context, h Holder) (Ruling, error)
	// Grant gives the lease to a target that is to become primary, if nobody has it and the record names it. A dry run changes nothing.
	Grant(ctx context.Context, h Holder, dryRun bool) (Ruling, error)
	// Release gives the lease back, of one that has handed over.
	Release(ctx context.Context) error
	Close() error
}

// Holder is who asks an arbiter.
type Holder struct {
	ID         memberID
	Node       string
	Generation journal.Generation // of a primary its own; of a target the highest that it has seen
	// Eligible are the others that have everything that a FLUSH was answered for.
	Eligible []memberID
}

// Ruling is what an arbiter says.
type Ruling struct {
	// TTL: the lease is held for so long from the moment on at which the call was made. 0: it is not held.
	TTL time.Duration
	// Refused says why it is not.
	Refused string
	// Superseded: the record has a higher generation, or another one of the same number. This primary's time is over.
	Superseded bool
	// Generation is what a granted target is to begin.
	Generation journal.Generation
	// Recorded are the eligible ones, as the record has them now.
	Recorded []memberID
}

// operatorArbiter is the one that is always there: a human, who speaks by `promote`. It never grants anything by itself.
type operatorArbiter struct{}

func (operatorArbiter) Name() string { return "operator" }
func (operatorArbiter) Leases() bool { return false }

func (operatorArbiter) Renew(context.Context, Holder) (Ruling, error) {
	return Ruling{}, errors.New("the operator leases nothing")
}

func (operatorArbiter) Grant(context.Context, Holder, bool) (Ruling, error) {
	return Ruling{Refused: "only an operator's order promotes where there is no majority: mirror-agent promote"}, nil
}

func (operatorArbiter) Release(context.Context) error { return nil }
func (operatorArbiter) Close() error                  { return nil }

// newArbiter makes the one that c names.
func newArbiter(c *Config) (Arbiter, error) {
	if c.Arbiter == "" || c.Arbiter == "operator" {
		return operatorArbiter{}, nil
	}
	o, err := parseEtcd(c.Arbiter)
	if err != nil {
		return nil, fmt.Errorf("arbiter: %w", err)
	}
	o.mirror, o.ttl = c.Name, c.ArbiterTTL
	o.caFile, o.certFile, o.keyFile = c.ArbiterCA, c.ArbiterCert, c.ArbiterKey
	return newEtcd(o)
}

// validateArbiter checks the settings of arbiter and automatic promotion.
func (c *Config) validateArbiter() error {
	leases := c.Arbiter != "" && c.Arbiter != "operator"
	if leases {
		if _, err := parseEtcd(c.Arbiter); err != nil {
			return fmt.Errorf("arbiter: %w", err)
		}
		if c.ArbiterTTL < minArbiterTTL || c.ArbiterTTL > time.Hour || c.ArbiterTTL%time.Second != 0 {
			return fmt.Errorf("arbiter-ttl %v: whole seconds, from %v to an hour", c.ArbiterTTL, minArbiterTTL)
		}
	}
	if !leases && (c.ArbiterCA != "" || c.ArbiterCert != "" || c.ArbiterKey != "") {
		return errors.New("arbiter-tls-ca, arbiter-tls-cert and arbiter-tls-key are for an arbiter: --arbiter etcd://HOST:PORT/PREFIX")
	}
	if (c.ArbiterCert == "") != (c.ArbiterKey == "") {
		return errors.New("arbiter-tls-cert and arbiter-tls-key: give both or neither")
	}
	return nil
}

// stateFrozen: a primary that does not hold the arbiter's lease.
const stateFrozen = "frozen"

const minArbiterTTL = 2 * time.Second
