package mirror

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"mirror-agent/journal"
)

// Rot in the log (G7). The other side has the same bytes at the same LSN while its log reaches back, and the chain proves that
// they are the same. A volume whose log is rotten at x is opened as one that ends at x, and:
//
//	secondary  not promotable without force; the source streams from x, which overwrites what is rotten. Where the
//	           rest continues it, it is read on here and the stream begins anew behind it. The source's log does
//	           not reach back: resync. The source has nothing there: what nobody has is cut.
//	primary    the front stays closed; what is rotten is fetched from the target (kindFetch). None that has it within
//	           StartWait: the start is refused, nothing was changed.
//
// Rot below applied is found only when a follower needs it: it is resynced, since the device has it all.

// damage is what is wrong with a volume's log.
type damage struct {
	rot     *journal.CorruptError
	promise journal.LSN // the log must reach this again
}

// Damage of the log, nil when it is whole.
func (v *Volume) damageNow() *damage { return v.damage.Load() }

// tookRecovery keeps what Open or Resume found.
func (v *Volume) tookRecovery(r *journal.Recovery) error {
	found := v.found
	v.found = nil
	if err := v.learn(found); err != nil {
		return err
	}
	if r.Rot != nil {
		v.damage.Store(&damage{rot: r.Rot, promise: r.Promise})
		return nil
	}
	v.damage.Store(nil)
	return nil
}

// onRecover takes a record that recovery found, one call at a time.
func (v *Volume) onRecover(r journal.Record) error {
	if r.Op == journal.OpGeneration {
		v.found = append(v.found, r)
	}
	return v.recovered(r)
}

// resumeLog reads on in a damaged log after records were put where it was rotten. True: it is whole.
func (v *Volume) resumeLog() (bool, error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	r, err := v.log.Resume()
	if err != nil {
		return false, v.journalError(err)
	}
	if err := v.tookRecovery(r); err != nil {
		return false, err
	}
	v.changed()
	return r.Rot == nil, nil
}

// giveUpRepair ends the log where it is damaged.
func (v *Volume) giveUpRepair() error { return v.cut(v.log.Head()) }

// repairStep goes on with the repair of a secondary's log after records of its source came in. errRepaired: the log now ends
// elsewhere than the stream goes on.
func (v *Volume) repairStep(sourceHead journal.LSN) error {
	at := v.log.Head()
	whole, err := v.resumeLog()
	if err != nil {
		return err
	}
	if !whole && v.log.Head() >= min(v.damageNow().promise, sourceHead) {
		// The source has written, or lost, something else here than was promised: its history counts.
		err = v.giveUpRepair()
	} else if whole {
		err = v.undoPromotion()
	}
	if err != nil {
		return err
	}
	if head := v.log.Head(); head != at {
		return fmt.Errorf("%w: it was read on from LSN %d to %d", errRepaired, at, head)
	}
	return nil
}

// errRepaired ends a stream that has put right what was rotten; the next handshake finds the log's real end.
var errRepaired = errors.New("mirror: the log goes on behind what was rotten")

// fetch asks a follower for records of this log (Call, fetch → fetchReply and the records).
type fetch struct {
	Mirror string      `json:"mirror"`
	From   journal.LSN `json:"from"`
	Chain  uint64      `json:"chain"`
}

// fetchReply is followed by the records, as the log holds them; its length, u32, comes before it.
type fetchReply struct {
	Refused string             `json:"refused,omitempty"`
	Seen    journal.Generation `json:"seen"` // highest generation that the follower has seen
}

func (r fetchReply) encode(raw []byte) []byte {
	j := encodeJSON(0, r)[1:]
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(j)))
	return append(append(b, j...), raw...)
}

func decodeFetchReply(b []byte) (r fetchReply, raw []byte, err error) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return r, nil, fmt.Errorf("%w: fetched %d bytes", errMessage, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if err := json.Unmarshal(b[4:4+n], &r); err != nil {
		return r, nil, fmt.Errorf("%w: %w", errMessage, err)
	}
	return r, b[4+n:], nil
}

// serveFetch answers from this volume's log and changes nothing.
func (v *Volume) serveFetch(node, mirror string, b []byte) ([]byte, error) {
	var f fetch
	if err := decodeJSON(b, &f); err != nil {
		return nil, err
	}
	reply := fetchReply{Seen: v.Seen()}
	refuse := func(format string, args ...any) ([]byte, error) {
		reply.Refused = fmt.Sprintf(format, args...)
		return reply.encode(nil), nil
	}
	if f.Mirror != mirror {
		return refuse("%s holds another mirror (uuid %s)", node, mirror)
	}
	if d := v.damageNow(); d != nil && f.From >= v.log.Head() {
		return refuse("the log of %s is damaged too, at LSN %d", node, d.rot.LSN)
	}
	if head, tail := v.log.Head(), v.log.Tail(); f.From < tail || f.From >= head {
		return refuse("%s has the log from LSN %d to %d", node, tail, head)
	}
	chain, err := v.log.ChainAt(f.From)
	if err != nil {
		return refuse("%s: %v", node, err)
	}
	if chain != f.Chain {
		return refuse("the log of %s differs at LSN %d", node, f.From)
	}
	buf := make([]byte, batchBytes)
	n, err := v.log.ReadRaw(f.From, buf)
	var short journal.ErrShortBuffer
	if errors.As(err, &short) {
		buf = make([]byte, short.Need)
		n, err = v.log.ReadRaw(f.From, buf)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return refuse("%s: %v", node, err)
	}
	return reply.encode(buf[:n]), nil
}

// repairRaw puts records that a follower sent where the log of this primary is rotten.
func (v *Volume) repairRaw(raw []byte) error {
	if _, err := v.checkRaw(raw); err != nil {
		return err
	}
	_, err := v.log.AppendRaw(v.log.Head(), raw)
	return v.journalError(err)
}

// rotFound takes rot that was met while the volume runs. Below applied the device has everything: followers that need it from
// the log are resynced. Elsewhere only the peer has it: the volume stops, and is repaired when it starts again.
func (v *Volume) rotFound(rot *journal.CorruptError) error {
	if rot.LSN >= v.log.Applied() {
		return v.fail("journal", rot)
	}
	for {
		old := v.rotten.Load()
		if uint64(rot.LSN) < old || v.rotten.CompareAndSwap(old, uint64(rot.LSN)+1) {
			return rot
		}
	}
}

// intactFrom is where the part of the log begins in which no rot was met.
func (v *Volume) intactFrom() journal.LSN {
	return max(v.log.Tail(), journal.LSN(v.rotten.Load()))
}
