package mirror

import (
	"crypto/rand"

	"mirror-agent/journal"
)

// What a volume keeps in its anchor's extra bytes: a mark, 1 byte; the
// volume's own id, 16 bytes; the address that a promoted target serves at.
// Before volumes had ids it was the address alone.
const extraMark = 1

func packExtra(id [16]byte, nbd string) []byte {
	return append(append([]byte{extraMark}, id[:]...), nbd...)
}

func unpackExtra(b []byte) (id [16]byte, nbd string) {
	if len(b) < 17 || b[0] != extraMark {
		return id, string(b)
	}
	copy(id[:], b[1:])
	return id, string(b[17:])
}

// newVolumeID tells a volume from any other of its mirror, so that a
// replaced one is not taken for the one before.
func newVolumeID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// identify fills in the id of a volume that has none yet.
func identify(a *journal.Anchor) {
	if id, nbd := unpackExtra(a.Extra); id == [16]byte{} {
		a.Extra = packExtra(newVolumeID(), nbd)
	}
}
