package dataport

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
)

// How paths are bound to their session. Over TLS the first path's exporter (RFC 8446, 7.5) yields the session's
// secret: only the two ends of that one connection know it. Whoever joins another path proves the secret with an HMAC
// over the joining connection's own exporter, so that a path can neither be spliced into a foreign session nor relayed.
// Over plain TCP (Insecure) the secret travels in the clear: it keeps paths apart by mistake, not by malice.

const (
	exporterLabel = "EXPORTER-mirror-agent-dataport"
	roleDials     = "dials"
	roleAccepts   = "accepts"
)

// bindingOf returns a value that both ends of this connection know and that belongs to no other connection.
func bindingOf(t *tls.Conn, nonce [32]byte) ([]byte, error) {
	if t == nil {
		return nonce[:], nil
	}
	cs := t.ConnectionState()
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	return b, nil
}

func sessionSecret(binding []byte, id SessionID, dials, accepts uint64) (secret [32]byte) {
	m := hmac.New(sha256.New, binding)
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(id))
	binary.LittleEndian.PutUint64(b[8:], dials)
	binary.LittleEndian.PutUint64(b[16:], accepts)
	m.Write([]byte("session secret"))
	m.Write(b[:])
	m.Sum(secret[:0])
	return secret
}

func joinProof(secret [32]byte, role string, binding []byte, id SessionID, path PathID) (proof [32]byte) {
	m := hmac.New(sha256.New, secret[:])
	var b [12]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(id))
	binary.LittleEndian.PutUint32(b[8:], uint32(path))
	m.Write([]byte("join " + role))
	m.Write(b[:])
	m.Write(binding)
	m.Sum(proof[:0])
	return proof
}

func random32() (b [32]byte) {
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return b
}

func randomID() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:])
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}
