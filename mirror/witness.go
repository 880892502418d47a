package mirror

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/cespare/xxhash/v2"

	"mirror-agent/journal"
)

// What the anchor says of the device's content.
//
// Before anything of a layer reaches the device, an anchor says how far the layer reaches (sidecar.applying). After a crash the
// device may have any part of what lies below, so there is no way back to a point before that, and what lies below is
// committed: the source had declared it. The anchor that ends a layer names the next one, when there is one to be applied at once.
//
// And it has witnesses: what some pieces of the device read as, by their hashes, of those that were written last. A device that does
// not read so is an older copy, or another one. That goes for a block device as well, which can bear no mark (stamp.go).

const (
	maxWitnesses = 6
	witnessBytes = 512      // of the device
	witnessStep  = 16 << 10 // bytes of a write of which one may come
)

// witness is the hash of witnessBytes of the device at off.
type witness struct {
	off  int64
	hash uint32
}

func witnessHash(p []byte) uint32 { return uint32(xxhash.Sum64(p)) }

func formatWitnesses(ws []witness) string {
	var b []byte
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint64(b, uint64(w.off))
		b = binary.LittleEndian.AppendUint32(b, w.hash)
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

func parseWitnesses(s string) (ws []witness) {
	b, _ := base64.RawStdEncoding.DecodeString(s) // what cannot be are none
	for ; len(b) >= 12; b = b[12:] {
		ws = append(ws, witness{int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint32(b[8:])})
	}
	return ws
}

// witnessed picks witnesses from what is written of one layer, all over it.
type witnessed struct {
	ws   []witness
	seen int
}

// wrote takes what was written at off.
func (x *witnessed) wrote(p []byte, off int64) {
	for len(p) >= witnessBytes {
		n := min(witnessStep, len(p))
		x.take(p[:n], off)
		p, off = p[n:], off+int64(n)
	}
}

// take has every piece that it is called with become a witness with the same chance.
func (x *witnessed) take(p []byte, off int64) {
	x.seen++
	at := x.seen - 1
	if at >= maxWitnesses {
		if at = rand.IntN(x.seen); at >= maxWitnesses {
			return
		}
	}
	from := rand.IntN(len(p)/witnessBytes) * witnessBytes
	w := witness{off + int64(from), witnessHash(p[from : from+witnessBytes])}
	if at < len(x.ws) {
		x.ws[at] = w
	} else {
		x.ws = append(x.ws, w)
	}
}

// renew returns the witnesses after layer l: those of its writes, and of the older ones as many as there is room for and it left as
// they were.
func (x *witnessed) renew(older []witness, l *layer) []witness {
	ws := slices.Clone(x.ws)
	for _, w := range older {
		untouched := true
		l.lookup(w.off, w.off+witnessBytes, func(extent) { untouched = false }, func(int64, int64) {})
		if untouched && len(ws) < maxWitnesses {
			ws = append(ws, w)
		}
	}
	return ws
}

// announce makes it durable that the device is about to get layer l. applyMu is held.
func (v *Volume) announce(l *layer) error {
	if parseSidecar(v.log.Anchor().Extra).applying < l.end {
		err := v.log.WriteAnchor(func(a *journal.Anchor) {
			withSidecar(a, func(s *sidecar) { s.applying = l.end })
			v.fillAnchor(a)
		})
		if err != nil {
			return err
		}
	}
	v.mixed.Store(uint64(l.end))
	return nil
}

// firstPoint is the earliest LSN at which the device's content is known: it has all below, and nothing of what lies above.
func (v *Volume) firstPoint() journal.LSN { return max(v.log.Applied(), journal.LSN(v.mixed.Load())) }

// testify compares the device with the witnesses, as far as nothing in the log lies over them. An error says that it
// is not the device that belongs to the log; differs, how many of how many differ, fewer than that.
func (v *Volume) testify(ws []witness) (differs, of int, err error) {
	first := int64(-1)
	p := make([]byte, witnessBytes)
	for _, w := range ws {
		if w.off < 0 || w.off > v.size.Load()-witnessBytes {
			continue
		}
		if x := v.overlay.lookup(nil, w.off, w.off+witnessBytes); len(x) != 1 || !x[0].base {
			continue
		}
		if _, err := v.dev.ReadAt(p, w.off); err != nil && !errors.Is(err, io.EOF) {
			continue // that is met again, by who reads
		}
		of++
		if witnessHash(p) != w.hash {
			differs++
			first = max(first, w.off)
		}
	}
	if 2*differs <= of {
		return differs, of, nil
	}
	return differs, of, fmt.Errorf("the device does not hold what was last written to it: %d of %d samples differ, one of them at byte %d: it is an older copy or another device, or something else has written to it; "+
		"nothing was changed: give back the device that belongs to this journal, or promote the other side, or move the journal away and let the mirror be resynced", differs, of, first)
}
