package mirror

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"mirror-agent/journal"
)

// sidecar is what a volume keeps in its anchor's extra bytes, a line each.
type sidecar struct {
	nbd            string   // where a promoted target serves
	stamp, pending string   // see stamp.go
	active         string   // name of the active follower, "" is the first one
	id             [16]byte // tells the volume from any other of its mirror
	handed         string   // to whom a source handed over, see handedOver.encode; "": to nobody, or that one leads
}

func parseSidecar(b []byte) (s sidecar) {
	lines := append(strings.Split(string(b), "\n"), "", "", "", "", "")
	s.nbd, s.stamp, s.pending = lines[0], lines[1], lines[2]
	s.active, s.handed = lines[4], lines[5]
	if id, err := hex.DecodeString(lines[3]); err == nil {
		copy(s.id[:], id)
	}
	return s
}

func (s sidecar) encode() []byte {
	return []byte(s.nbd + "\n" + s.stamp + "\n" + s.pending + "\n" + hex.EncodeToString(s.id[:]) + "\n" + s.active + "\n" + s.handed)
}

// withSidecar changes the sidecar in an anchor.
func withSidecar(a *journal.Anchor, change func(*sidecar)) {
	s := parseSidecar(a.Extra)
	change(&s)
	a.Extra = s.encode()
}

// newVolumeID tells a volume from any other of its mirror, so that a
// replaced one is not taken for the one before.
func newVolumeID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// identify fills in the id of a volume that has none yet.
func identify(a *journal.Anchor) {
	withSidecar(a, func(s *sidecar) {
		if s.id == [16]byte{} {
			s.id = newVolumeID()
		}
	})
}
