package dataport

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"
)

// keyring is the node's key and those of its peers. Both may change while connections come and go: a handshake looks
// when it needs them, and a session whose peer's key has gone ends.
type keyring struct {
	mu      sync.Mutex // leaf: guards the fields below
	own     *tls.Certificate
	peers   []ed25519.PublicKey
	version uint64 // of peers
}

func newKeyring(key ed25519.PrivateKey, peers []ed25519.PublicKey) (*keyring, error) {
	own, err := certificateOf(key)
	if err != nil {
		return nil, err
	}
	k := &keyring{own: own}
	k.setPeers(peers)
	return k, nil
}

func (k *keyring) setPeers(peers []ed25519.PublicKey) {
	pinned := make([]ed25519.PublicKey, len(peers))
	for i, p := range peers {
		pinned[i] = bytes.Clone(p)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.peers = pinned // replaced as a whole, never changed: readers keep theirs
	k.version++
}

func (k *keyring) certificate() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.own
}

func (k *keyring) pinned() []ed25519.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.peers
}

// now is the version of the peers' keys. A nil keyring, that of plain TCP, never changes.
func (k *keyring) now() uint64 {
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.version
}

// config makes the TLS configuration of both sides: TLS 1.3, and the peer's key pinned.
func (k *keyring) config() *tls.Config {
	return &tls.Config{
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.certificate(), nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.certificate(), nil },
		MinVersion:           tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify:          true, // the chain means nothing; VerifyConnection pins the key, on every connection
		VerifyConnection:            func(cs tls.ConnectionState) error { _, err := pinnedKey(cs, k.pinned()); return err },
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		NextProtos:                  []string{"mirror-agent-dataport/1"},
	}
}

var errPlainKeys = errors.New("dataport: this node talks plain TCP (Insecure): it has no keys to change")

// SetPeers replaces the public keys of the nodes that may connect and that may be connected to. Sessions with peers
// whose key is not among them end at once; all others go on. So a peer's key is changed without a pause: here first
// both its keys, then its new one there (SetKey), then the new one alone here.
func (n *Node) SetPeers(peers []ed25519.PublicKey) error {
	if n.keys == nil {
		return errPlainKeys
	}
	if err := validPeers(peers); err != nil {
		return err
	}
	n.keys.setPeers(peers)
	n.endUnpinned()
	return nil
}

// SetKey changes the node's own key. Connections that are there stay; each new one presents the new key, which the
// peers must know already. A session belongs to the key it began with: a path that joins it later is refused by the
// peer, and a new session begins.
func (n *Node) SetKey(key ed25519.PrivateKey) error {
	if n.keys == nil {
		return errPlainKeys
	}
	if len(key) != ed25519.PrivateKeySize {
		return fmt.Errorf("dataport: key has %d bytes, an Ed25519 private key has %d", len(key), ed25519.PrivateKeySize)
	}
	own, err := certificateOf(key)
	if err != nil {
		return err
	}
	n.keys.mu.Lock()
	n.keys.own = own
	n.keys.mu.Unlock()
	return nil
}

func validPeers(peers []ed25519.PublicKey) error {
	if len(peers) == 0 {
		return errors.New("dataport: no peer keys: without one nobody could connect")
	}
	for i, k := range peers {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("dataport config: peer key %d has %d bytes, an Ed25519 public key has %d", i, len(k), ed25519.PublicKeySize)
		}
	}
	return nil
}

// endUnpinned ends the sessions whose peer's key is not allowed any more. Whoever adds a session after a handshake
// that began before a change calls it too.
func (n *Node) endUnpinned() {
	pinned := n.keys.pinned()
next:
	for _, s := range n.sessionsOf(nil) {
		for _, k := range pinned {
			if k.Equal(s.peerKey) {
				continue next
			}
		}
		select {
		case <-s.begun:
		default:
			continue // its SessionUp comes first; whoever is adding it looks again then
		}
		s.fail("the peer's key "+s.peer.Key+" is not allowed any more", endProtocol)
	}
}

// refusals bounds what the log says of connections that came to nothing: a flood of them would fill the disk.
type refusals struct {
	second int64
	told   int
	untold int
}

const refusalsASecond = 5

// tell reports whether to write a line, and how many were left out before it.
func (r *refusals) tell(now time.Time) (bool, int) {
	if s := now.Unix(); s != r.second {
		r.second, r.told = s, 0
	}
	if r.told >= refusalsASecond {
		r.untold++
		return false, 0
	}
	r.told++
	n := r.untold
	r.untold = 0
	return true, n
}
