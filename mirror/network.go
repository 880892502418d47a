package mirror

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
)

// What the operator changes of the links to the other hosts while they are in use.

// SetBandwidth limits what this host sends to each follower, over all its paths; spec is as Config.Bandwidth, "none"
// lifts the limit. It lasts until the agent ends: the configuration says it for the next start.
func (a *Agent) SetBandwidth(_ context.Context, spec string) error {
	if err := validBandwidth(spec); err != nil {
		return err
	}
	a.opMu.Lock()
	defer a.opMu.Unlock()
	if a.v.Role() != RolePrimary {
		return errors.New("this volume is secondary: the limit is for what the source sends")
	}
	if err := a.transport.setBandwidth(spec); err != nil {
		return err
	}
	a.mu.Lock()
	a.c.Bandwidth = spec
	a.mu.Unlock()
	a.event("bandwidth", "", "bandwidth is %s", shownBandwidth(spec))
	return nil
}

func shownBandwidth(spec string) string {
	if spec == "" || spec == "none" {
		return "not limited"
	}
	return spec
}

// SetKeys takes this host's key and the keys of the others anew. Connections to hosts whose key is not among them end;
// all others stay, and present the new key when they are made again.
func (a *Agent) SetKeys(key ed25519.PrivateKey, peers []ed25519.PublicKey) error {
	a.opMu.Lock()
	defer a.opMu.Unlock()
	a.mu.Lock()
	same := key.Equal(a.c.Key) && samePeers(peers, a.c.Peers)
	a.mu.Unlock()
	if same {
		return nil
	}
	if err := a.transport.setKeys(key, peers); err != nil {
		return fmt.Errorf("keys stay as they were: %w", err)
	}
	a.mu.Lock()
	a.c.Key, a.c.Peers = key, peers
	a.mu.Unlock()
	a.event("keys", "", "this host's key is %s, %d other hosts' keys are let in", publicText(key), len(peers))
	return nil
}

func samePeers(a, b []ed25519.PublicKey) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}
