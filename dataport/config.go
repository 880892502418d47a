package dataport

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/rs/zerolog"
)

// Config describes a Node. Start from DefaultConfig.
type Config struct {
	// Name of the node as peers show it in their events. At most 64 bytes. Default: the host's name.
	Name string
	// Listen addresses, HOST:PORT each. Empty: the node only dials.
	Listen []string
	// Key is the node's identity. With it, and unless Insecure is set, every connection is TLS 1.3.
	Key ed25519.PrivateKey
	// Peers are the public keys of the nodes that may connect and that may be connected to.
	Peers []ed25519.PublicKey
	// Insecure: plain TCP without authentication. For a lab; on any address, since it was asked for.
	Insecure bool
	// Log gets changes of paths and sessions, and why a connection was refused. Nothing per message.
	Log    zerolog.Logger
	Timing Timing
	// MaxMessageBytes is the largest message taken from a peer, and told to it in the handshake. At most 1 GiB.
	MaxMessageBytes int
	// SendWindowBytes bounds what a session holds for its peer (queued and not yet consumed); Send blocks above it.
	SendWindowBytes int
	// ReceiveWindowBytes bounds what a peer may send ahead of the client, per session. One message may exceed it.
	ReceiveWindowBytes int
	// MaxPaths per session, MaxSessions per node, MaxPreAuth: connections that have not yet said who they are, of hosts
	// that no peer has come from before (and as many of the others), MaxPreAuthPerHost of one host.
	MaxPaths, MaxSessions, MaxPreAuth, MaxPreAuthPerHost int
	// Dial connects to remote from local ("" or an IP). Nil: TCP.
	Dial func(ctx context.Context, local, remote string) (net.Conn, error)
	// ListenFunc opens a listener. Nil: TCP.
	ListenFunc func(addr string) (net.Listener, error)
	// LocalAddrs are local IPs to bind, chosen anew at every connection: the one whose interface's subnet holds the
	// remote address; else, and where several do, the paths of a port take turns. One that the host has lost is left out
	// until it is back. Empty: the kernel chooses.
	LocalAddrs []string
	// HostAddrs returns the addresses of this host, each with its subnet; asked once a second. Nil: those of its
	// interfaces; with Dial or ListenFunc set: none are known.
	HostAddrs func() ([]netip.Prefix, error)
	// Scheduler for inbound sessions. Nil: LeastCompletion.
	Scheduler Scheduler
	// Compression of what is sent in inbound sessions. "": none. See PortConfig for those of a port.
	Compression Compression
}

// Timing holds the thresholds of liveness. All durations are measured on the local monotonic clock.
type Timing struct {
	// Heartbeat is the interval of pings on every path.
	Heartbeat time.Duration
	// SuspectAfter of silence a path's frames go out again on the others; in effect max(this, 3×SRTT), below PathDownAfter.
	SuspectAfter time.Duration
	// PathDownAfter of silence a path is closed and dialled again.
	PathDownAfter time.Duration
	// UnreachableAfter the last sign of life on any path the session ends and the target counts as unreachable.
	UnreachableAfter time.Duration
	// HandshakeTimeout bounds dialling and, separately, authentication.
	HandshakeTimeout time.Duration
	// BackoffMin and BackoffMax bound the jittered wait between two attempts of a path.
	BackoffMin, BackoffMax time.Duration
}

// DefaultTiming returns the defaults of DESIGN section 5.
func DefaultTiming() Timing {
	return Timing{
		Heartbeat: 50 * time.Millisecond, SuspectAfter: 200 * time.Millisecond,
		PathDownAfter: time.Second, UnreachableAfter: 3 * time.Second,
		HandshakeTimeout: 2 * time.Second,
		BackoffMin:       50 * time.Millisecond, BackoffMax: 2 * time.Second,
	}
}

// DefaultConfig returns a Config that lacks only an identity (Key and Peers, or Insecure) and addresses.
func DefaultConfig() Config {
	name, err := os.Hostname()
	if err != nil || name == "" || len(name) > maxNameBytes {
		name = "node"
	}
	return Config{
		Name: name, Log: zerolog.Nop(), Timing: DefaultTiming(),
		MaxMessageBytes: 64 << 20, SendWindowBytes: 16 << 20, ReceiveWindowBytes: 16 << 20,
		MaxPaths: 16, MaxSessions: 64, MaxPreAuth: 64, MaxPreAuthPerHost: 16,
	}
}

// Validate says what is wrong with the configuration and the way out.
func (c *Config) Validate() error {
	switch {
	case c.Name == "" || len(c.Name) > maxNameBytes:
		return fmt.Errorf("dataport config: name must have 1 to %d bytes, has %d", maxNameBytes, len(c.Name))
	case c.Key == nil && !c.Insecure:
		return errors.New("dataport config: no key: create one (mirror-agent keygen) and name it with --key, or ask for plain TCP with --insecure (lab only)")
	case c.Key != nil && len(c.Key) != ed25519.PrivateKeySize:
		return fmt.Errorf("dataport config: key has %d bytes, an Ed25519 private key has %d", len(c.Key), ed25519.PrivateKeySize)
	case c.Key != nil && !c.Insecure && len(c.Peers) == 0:
		return errors.New("dataport config: no peer keys: name the public key of every peer with --peer-key ed25519:…; without one nobody could connect")
	case c.MaxMessageBytes < 1 || c.MaxMessageBytes > 1<<30:
		return fmt.Errorf("dataport config: MaxMessageBytes %d is not within 1 … 1 GiB", c.MaxMessageBytes)
	case c.SendWindowBytes < minWindowBytes || c.ReceiveWindowBytes < minWindowBytes:
		return fmt.Errorf("dataport config: windows must be at least %d bytes (send %d, receive %d)", minWindowBytes, c.SendWindowBytes, c.ReceiveWindowBytes)
	case c.MaxPaths < 1 || c.MaxSessions < 1 || c.MaxPreAuth < 1 || c.MaxPreAuthPerHost < 1:
		return errors.New("dataport config: MaxPaths, MaxSessions, MaxPreAuth and MaxPreAuthPerHost must be at least 1")
	}
	if len(c.Peers) > 0 {
		if err := validPeers(c.Peers); err != nil {
			return err
		}
	}
	for _, a := range c.Listen {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("dataport config: listen address %q: %w (want HOST:PORT)", a, err)
		}
	}
	for _, a := range c.LocalAddrs {
		if net.ParseIP(a) == nil {
			return fmt.Errorf("dataport config: local address %q is not an IP", a)
		}
	}
	if err := c.Compression.validate(); err != nil {
		return fmt.Errorf("dataport config: %w", err)
	}
	return c.Timing.validate()
}

func (t Timing) validate() error {
	switch {
	case t.Heartbeat <= 0 || t.HandshakeTimeout <= 0 || t.BackoffMin <= 0 || t.BackoffMax < t.BackoffMin:
		return errors.New("dataport config: heartbeat, handshake timeout and backoff must be above zero, BackoffMax not below BackoffMin")
	case t.SuspectAfter < 2*t.Heartbeat:
		return fmt.Errorf("dataport config: SuspectAfter %v must be at least two heartbeats (%v)", t.SuspectAfter, 2*t.Heartbeat)
	case t.PathDownAfter <= t.SuspectAfter:
		return fmt.Errorf("dataport config: PathDownAfter %v must be above SuspectAfter %v", t.PathDownAfter, t.SuspectAfter)
	case t.UnreachableAfter <= t.PathDownAfter:
		return fmt.Errorf("dataport config: UnreachableAfter %v must be above PathDownAfter %v", t.UnreachableAfter, t.PathDownAfter)
	}
	return nil
}
