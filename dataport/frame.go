package dataport

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// A frame is a header of fixed size, little endian, and its payload. A path is a stream of frames.
//
//	 0         4     5     6         8                  16
//	┌─────────┬─────┬─────┬─────────┬──────────────────┐
//	│ "MDP1"  │type │flags│ zero    │ session          │
//	├─────────┴─────┴─────┴─────────┼──────────────────┤ 32
//	│ 16 sequence                   │ 24 acknowledged  │
//	├───────────────────────────────┼──────────────────┤ 48
//	│ 32 selective ack bits         │ 40 consumed      │
//	├───────────────────────────────┼──────────────────┤ 64
//	│ 48 credit                     │ 56 path bytes    │
//	├───────────────┬───────────────┼────────┬─────────┤ 80
//	│ 64 client     │ 68 payload len│ 72 msg │ 76 frag │
//	│               │               │ length │ offset  │
//	├───────────────┴───────────────┼────────┴─────────┤ 96
//	│ 80 call id                    │ 88 payload XXH3  │
//	├───────────────────────────────┼──────────────────┘
//	│ 96 header xxh64 (of 0..95)    │ 104 payload …
//	└───────────────────────────────┘
//
// sequence: of frames that carry data (data, reply), from 1 and without gap per direction of a session; for ping and
// pong a time stamp of the side that pings, for gone a path id; else 0. A frame that goes out again keeps its sequence and its bounds.
//
// call id: the number of a message among those of its sender, or 0; a reply has that of its call.
//
// Every frame of an established path carries the newest state of its sender's receiving half, all of it growing only:
// acknowledged: all data frames below arrived (bit i of selective ack: acknowledged+1+i arrived too); the sender may forget them.
// consumed: all data frames below belong to messages whose OnMessage returned.
// credit: the peer may have sent frames of this total cost (payload length + frameCost each, resent ones not counted again).
// path bytes: total cost of data frames that arrived on the very path this frame is on.
//
// Payloads have XXH3 (64 bits, seed 0): several times as fast as xxh64 on long ones, and the sum of every payload is worked
// out twice. The version is part of the magic.
const (
	headerBytes = 104
	frameMagic  = 'M' | 'D'<<8 | 'P'<<16 | '1'<<24

	// maxFramePayload bounds the payload of a data frame: a bigger message is split, so that it holds up neither the
	// small frames of its path nor the other paths.
	maxFramePayload = 256 << 10
	// maxControlPayload bounds the payload of all other frames, and of every frame before authentication.
	maxControlPayload = 4 << 10
	// frameCost is what a data frame counts above its payload, so that credit bounds the number of frames too.
	frameCost = 256
)

type frameType uint8

const (
	frameHello frameType = iota + 1
	frameData
	frameAck
	framePing
	framePong
	frameReply // a data frame that answers a Call
	frameClose // payload: reason; ends the session, with flagDrain this path only
	frameAddrs // payload: where the sender listens now: addresses as in hello
	frameGone  // sequence: id of a path that the side that dials has removed; the other one answers the same
	frameBatch // a data frame of several messages, see batch.go
	frameTypeEnd
)

type frameFlags uint8

const (
	flagFirst   frameFlags = 1 << iota // first fragment of a message
	flagLast                           // last fragment of a message
	flagCall                           // the message wants a reply
	flagError                          // the reply is an error text
	flagDeaf                           // the sender hears nothing on this path; counts on a ping, whose time stamp dates it
	flagStandby                        // the side that dials asks: no data here while another path is active
	flagDrain                          // give this path nothing more; from the side that accepts: I need it no more
	flagPacked                         // the message is packed, see compress.go; on all its frames
)

type header struct {
	typ         frameType
	flags       frameFlags
	session     SessionID
	seq         uint64
	ack         uint64
	sack        uint64
	consumed    uint64
	credit      uint64
	pathBytes   uint64
	client      uint32
	payload     uint32 // length
	message     uint32 // length of the whole message
	offset      uint32 // of this payload in the message
	call        uint64
	payloadHash uint64
}

func (h *header) sequenced() bool {
	return h.typ == frameData || h.typ == frameReply || h.typ == frameBatch
}

// encode fills b[:headerBytes], checksum included.
func (h *header) encode(b []byte) {
	_ = b[headerBytes-1]
	le := binary.LittleEndian
	le.PutUint32(b[0:], frameMagic)
	b[4], b[5], b[6], b[7] = byte(h.typ), byte(h.flags), 0, 0
	le.PutUint64(b[8:], uint64(h.session))
	le.PutUint64(b[16:], h.seq)
	le.PutUint64(b[24:], h.ack)
	le.PutUint64(b[32:], h.sack)
	le.PutUint64(b[40:], h.consumed)
	le.PutUint64(b[48:], h.credit)
	le.PutUint64(b[56:], h.pathBytes)
	le.PutUint32(b[64:], h.client)
	le.PutUint32(b[68:], h.payload)
	le.PutUint32(b[72:], h.message)
	le.PutUint32(b[76:], h.offset)
	le.PutUint64(b[80:], h.call)
	le.PutUint64(b[88:], h.payloadHash)
	le.PutUint64(b[96:], xxhash.Sum64(b[:96]))
}

// decode reads a header and checks everything that can be checked without knowing the session; only then may the
// payload length be allocated. maxMessage bounds the message length.
func (h *header) decode(b []byte, maxMessage uint32) error {
	_ = b[headerBytes-1]
	le := binary.LittleEndian
	if m := le.Uint32(b[0:]); m != frameMagic {
		return fmt.Errorf("%w: magic %#08x is not this protocol and version", ErrFrame, m)
	}
	if got, want := xxhash.Sum64(b[:96]), le.Uint64(b[96:]); got != want {
		return fmt.Errorf("%w: header checksum", ErrFrame)
	}
	*h = header{
		typ: frameType(b[4]), flags: frameFlags(b[5]), session: SessionID(le.Uint64(b[8:])),
		seq: le.Uint64(b[16:]), ack: le.Uint64(b[24:]), sack: le.Uint64(b[32:]), consumed: le.Uint64(b[40:]),
		credit: le.Uint64(b[48:]), pathBytes: le.Uint64(b[56:]),
		client: le.Uint32(b[64:]), payload: le.Uint32(b[68:]), message: le.Uint32(b[72:]), offset: le.Uint32(b[76:]),
		call: le.Uint64(b[80:]), payloadHash: le.Uint64(b[88:]),
	}
	if h.typ == 0 || h.typ >= frameTypeEnd || b[6] != 0 || b[7] != 0 {
		return fmt.Errorf("%w: type %d flags %#x", ErrFrame, b[4], b[5])
	}
	if !h.sequenced() {
		if h.payload > maxControlPayload || h.message != 0 || h.offset != 0 || h.flags&flagPacked != 0 {
			return fmt.Errorf("%w: type %d with payload of %d bytes", ErrFrame, h.typ, h.payload)
		}
		return nil
	}
	end := uint64(h.offset) + uint64(h.payload)
	first, last := h.flags&flagFirst != 0, h.flags&flagLast != 0
	switch {
	case h.seq == 0 || h.seq == 1<<64-1:
		return fmt.Errorf("%w: sequence %d", ErrFrame, h.seq)
	case h.payload > maxFramePayload:
		return fmt.Errorf("%w: payload of %d bytes, at most %d", ErrFrame, h.payload, maxFramePayload)
	case h.message > maxMessage:
		return fmt.Errorf("%w: message of %d bytes, at most %d", ErrFrame, h.message, maxMessage)
	case first != (h.offset == 0), last != (end == uint64(h.message)), end > uint64(h.message), h.payload == 0 && h.message != 0:
		return fmt.Errorf("%w: fragment %d+%d of %d", ErrFrame, h.offset, h.payload, h.message)
	}
	return nil
}
