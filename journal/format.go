package journal

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cespare/xxhash/v2"
)

// A record is a header and its payload, little endian. It starts at a multiple of 8 and may wrap
// around the end of the ring anywhere, also inside the header.
//
//	  0         4    5     6        8                 16
//	+---------+----+-----+--------+-----------------+
//	| magic   | op | flg | volume |       LSN       |
//	+---------+----+-----+--------+-----------------+ 16
//	|          offset             | length | paylen |
//	+-----------------------------+--------+--------+ 32
//	|         time, ns            |  durable (LSN)  |
//	+-----------------------------+-----------------+ 48
//	|       xxh64(payload)        |      chain      |
//	+-----------------------------+-----------------+ 64
//	|  payload …                  | zeroes to the next multiple of 8
//	+-----------------------------+
//
// chain = xxh64(chain of the previous record, 8 bytes LE ‖ bytes 0..55). The padding is in no hash; it is
// always zero.
const (
	// HeaderSize is the size of a record without its payload, bytes.
	HeaderSize = 64
	// MaxPayload is the largest payload of one record, bytes (the largest NBD request).
	MaxPayload = 32 << 20

	recordMagic = 0x474c414d // "MALG"
	chained     = 56         // bytes of the header under the chain
	maxLSN      = LSN(math.MaxInt64 / 2)
)

var le = binary.LittleEndian

// LSN is a byte position in the log; always a multiple of 8 at a record boundary.
type LSN uint64

// Op is what a record does.
type Op uint8

// The operations. Payloads and fields of the last three are the owner's; the journal only carries them.
const (
	OpWrite      Op = 1
	OpZero       Op = 2
	OpTrim       Op = 3 // reads back as zeroes, always
	OpCheckpoint Op = 4
	OpGeneration Op = 5
	OpResize     Op = 6
)

var opNames = [...]string{OpWrite: "write", OpZero: "zero", OpTrim: "trim", OpCheckpoint: "checkpoint", OpGeneration: "generation", OpResize: "resize"}

func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// control says that a record may use the Reserve.
func (o Op) control() bool { return o >= OpCheckpoint && o <= OpResize }

// Record is a decoded header.
type Record struct {
	Op          Op
	Flags       uint8
	Volume      uint16
	LSN         LSN
	Offset      uint64 // bytes on the device
	Length      uint32 // bytes on the device
	PayloadLen  uint32
	Time        int64 // Unix, ns
	Durable     LSN   // the writer's durable LSN when it wrote this: its promise
	PayloadHash uint64
	Chain       uint64
}

// Data is where the payload starts.
func (r Record) Data() LSN { return r.LSN + HeaderSize }

// End is where the next record starts.
func (r Record) End() LSN { return r.LSN + LSN(RecordSize(int(r.PayloadLen))) }

// RecordSize is what a record takes in the ring, bytes.
func RecordSize(payloadBytes int) int64 { return int64(HeaderSize+payloadBytes+7) &^ 7 }

// check holds the rules that every record obeys, written here or come from elsewhere.
func (r *Record) check() error {
	switch {
	case r.LSN%8 != 0 || r.LSN > maxLSN:
		return fmt.Errorf("%w record: LSN %d", ErrInvalid, r.LSN)
	case r.Durable > r.LSN:
		return fmt.Errorf("%w record at %d: promises LSN %d, its own future", ErrInvalid, r.LSN, r.Durable)
	case r.PayloadLen > MaxPayload:
		return fmt.Errorf("%w record at %d: payload of %d bytes", ErrInvalid, r.LSN, r.PayloadLen)
	}
	switch r.Op {
	case OpWrite:
		if r.PayloadLen != r.Length || r.Length == 0 {
			return fmt.Errorf("%w record at %d: write of %d bytes with a payload of %d", ErrInvalid, r.LSN, r.Length, r.PayloadLen)
		}
	case OpZero, OpTrim:
		if r.PayloadLen != 0 || r.Length == 0 {
			return fmt.Errorf("%w record at %d: %v of %d bytes with a payload of %d", ErrInvalid, r.LSN, r.Op, r.Length, r.PayloadLen)
		}
	case OpCheckpoint, OpGeneration, OpResize:
		return nil
	default:
		return fmt.Errorf("%w record at %d: %v", ErrInvalid, r.LSN, r.Op)
	}
	if r.Offset > math.MaxInt64-uint64(r.Length) {
		return fmt.Errorf("%w record at %d: offset %d", ErrInvalid, r.LSN, r.Offset)
	}
	return nil
}

// encode writes the header into b[:HeaderSize], continuing the chain, and sets r.Chain.
func (r *Record) encode(b []byte, previous uint64) {
	_ = b[HeaderSize-1]
	le.PutUint32(b[0:], recordMagic)
	b[4], b[5] = byte(r.Op), r.Flags
	le.PutUint16(b[6:], r.Volume)
	le.PutUint64(b[8:], uint64(r.LSN))
	le.PutUint64(b[16:], r.Offset)
	le.PutUint32(b[24:], r.Length)
	le.PutUint32(b[28:], r.PayloadLen)
	le.PutUint64(b[32:], uint64(r.Time))
	le.PutUint64(b[40:], uint64(r.Durable))
	le.PutUint64(b[48:], r.PayloadHash)
	r.Chain = chainOf(previous, b)
	le.PutUint64(b[56:], r.Chain)
}

// decodeHeader reads b[:HeaderSize] and applies the rules. It does not know the chain before it, see chainOf.
func decodeHeader(b []byte) (Record, error) {
	if len(b) < HeaderSize {
		return Record{}, fmt.Errorf("%w record: %d bytes of header", ErrInvalid, len(b))
	}
	if m := le.Uint32(b); m != recordMagic {
		return Record{}, fmt.Errorf("%w record: magic %#08x", ErrInvalid, m)
	}
	r := Record{
		Op: Op(b[4]), Flags: b[5], Volume: le.Uint16(b[6:]),
		LSN: LSN(le.Uint64(b[8:])), Offset: le.Uint64(b[16:]),
		Length: le.Uint32(b[24:]), PayloadLen: le.Uint32(b[28:]),
		Time: int64(le.Uint64(b[32:])), Durable: LSN(le.Uint64(b[40:])),
		PayloadHash: le.Uint64(b[48:]), Chain: le.Uint64(b[56:]),
	}
	return r, r.check()
}

func checksum(b []byte) uint64 { return xxhash.Sum64(b) }

// chainOf is the chain value of the record with this header, after a record with chain value previous.
func chainOf(previous uint64, header []byte) uint64 {
	var b [8 + chained]byte
	le.PutUint64(b[:], previous)
	copy(b[8:], header[:chained])
	return checksum(b[:])
}

// ParseRaw walks whole records as ReadRaw gives them and calls fn for each; payload points into raw. Sizes and
// the format's rules are checked, hashes and the chain are not.
func ParseRaw(raw []byte, fn func(r Record, payload []byte) error) error {
	for len(raw) > 0 {
		r, err := decodeHeader(raw)
		if err != nil {
			return err
		}
		size := RecordSize(int(r.PayloadLen))
		if size > int64(len(raw)) {
			return fmt.Errorf("%w record at %d: %d bytes of %d", ErrInvalid, r.LSN, len(raw), size)
		}
		if err := fn(r, raw[HeaderSize:HeaderSize+int(r.PayloadLen)]); err != nil {
			return err
		}
		raw = raw[size:]
	}
	return nil
}
