package mirror

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
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
	// Of a volume that another one has replaced: where its history parts from that one's, and from where on it is exported; 0 is
	// not known, and not exported (rejoin.go).
	fork, exported journal.LSN
	candidate      [16]byte    // the id of a generation that this volume has given itself its word for, until it has begun it
	applying       journal.LSN // the device may hold parts of what lies below, though it is not applied: see witness.go
	witnesses      []witness
}

// maxExtra is what an anchor has room for, bytes.
const maxExtra = 512

func parseSidecar(b []byte) (s sidecar) {
	lines := append(strings.Split(string(b), "\n"), "", "", "", "", "", "", "", "", "", "")
	s.nbd, s.stamp, s.pending = lines[0], lines[1], lines[2]
	s.active, s.handed = lines[4], lines[5]
	s.fork, s.exported = parseLSN(lines[6]), parseLSN(lines[7])
	if id, err := hex.DecodeString(lines[3]); err == nil {
		copy(s.id[:], id)
	}
	if id, err := hex.DecodeString(lines[8]); err == nil {
		copy(s.candidate[:], id)
	}
	s.applying, s.witnesses = parseLSN(lines[9]), parseWitnesses(lines[10])
	return s
}

func (s sidecar) encode() []byte {
	candidate := ""
	if s.candidate != [16]byte{} {
		candidate = hex.EncodeToString(s.candidate[:])
	}
	text := strings.Join([]string{
		s.nbd, s.stamp, s.pending, hex.EncodeToString(s.id[:]), s.active, s.handed, formatLSN(s.fork), formatLSN(s.exported), candidate, formatLSN(s.applying),
	}, "\n")
	if w := formatWitnesses(s.witnesses); len(text)+1+len(w) <= maxExtra { // long names leave no room for them
		text += "\n" + w
	}
	return []byte(text)
}

func formatLSN(lsn journal.LSN) string {
	if lsn == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(lsn), 10)
}

func parseLSN(s string) journal.LSN {
	n, _ := strconv.ParseUint(s, 10, 64) // "" and what cannot be are not known
	return journal.LSN(n)
}

// forgetFork: the volume has one history again.
func forgetFork(a *journal.Anchor) {
	a.State &^= stateDiverged
	withSidecar(a, func(s *sidecar) { s.fork, s.exported = 0, 0 })
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
