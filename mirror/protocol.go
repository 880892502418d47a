package mirror

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"mirror-agent/journal"
)

// The messages between a source and a follower. They travel in order over one
// session of the data port; the first byte says the kind. Handshakes are
// JSON, since they are rare and grow; what carries data is binary:
//
//	records  source → follower, Send
//	  0 kind u8   1 flags u8 (1: say at once what was received, 2: make it durable at once and say so)   2 zero 6
//	  8 from u64 (LSN of the first record)   16 declared u64 (source durable up to here)
//	 24 head u64 (source's log)              32 wanted u64 (be durable up to here, and say so)
//	 40 the records as the log holds them
//	ack      follower → source, Send
//	  0 kind u8   1 trouble u8 (of the backing device)   2 zero 6   8 received u64   16 durable u64   24 applied u64
//	hashes   source → follower, Call
//	  0 kind u8   1 zero 3   4 block u32   8 offset u64   16 length u64   24 key 32
//	  reply: 16 bytes per block
//	block    source → follower, Send
//	  0 kind u8   1 flags u8 (1: zeroes)   2 zero 2   4 length u32   8 offset u64   16 done u64
//	 24 data
const (
	kindHello     byte = 1 // Call, hello → follower state
	kindStart     byte = 2 // Call, start → startReply
	kindRecords   byte = 3
	kindAck       byte = 4
	kindResync    byte = 5 // Call, resyncBegin → resyncReply
	kindHashes    byte = 6
	kindBlock     byte = 7
	kindResyncEnd byte = 8  // Call, resyncEnd → resyncReply
	kindBye       byte = 9  // Call: the source ends cleanly
	kindLeave     byte = 11 // Call: the source moves its data flow to another target
	kindRoom      byte = 12 // Call, room → roomReply: see to it that the device can be so large
	kindFetch     byte = 13 // Call, fetch → fetchReply: records for a source whose own log has rotted
	kindVerify    byte = 20 // Call, verifyRequest → verifyReply, see verifywire.go
	kindVerified  byte = 21 // follower → source, Send: verifyAnswer
	kindMembers   byte = 22 // source → follower, Send: what each member of the mirror has, see members.go
	kindVote      byte = 40 // member → member, Call: ballot → ballotReply, see vote.go and ballots.go
	kindMemberSet byte = 23 // source → follower, Send: what another member lacks of the history before the follower's log
	kindHistory   byte = 24 // either way, Call, → historyReply: what a host knows of the mirror's history
	kindFollow    byte = 30 // follower → source, over a session that the follower dialled: Call, follow → followReply, see follow.go
	kindHandover  byte = 31 // either way, Call: handoverMessage → handoverReply, see handover.go
	kindBroken    byte = 10 // follower → source, Send: the stream cannot go on, text says why; shake hands again
)

const (
	protocolVersion    = 1
	recordsHeaderBytes = 40
	ackBytes           = 32
	hashesHeaderBytes  = 56
	blockHeaderBytes   = 24
	hashBytes          = 16
	blockZero          = 1
	// resyncBlockBytes is the unit in which equal blocks are skipped; in what an
	// earlier try has staged it is minDirtyBlock.
	resyncBlockBytes = 64 << 10
	// resyncChunkBytes is compared by one call.
	resyncChunkBytes = 4 << 20
)

var errMessage = errors.New("mirror: malformed message")

// hello opens a session: what the source is.
type hello struct {
	Version     int                  `json:"version"`
	Mirror      string               `json:"mirror"`
	Name        string               `json:"name"`
	Size        int64                `json:"size"`
	Node        string               `json:"node"`
	Generations []journal.Generation `json:"generations"`
	Head        journal.LSN          `json:"head"`
	Durable     journal.LSN          `json:"durable"`
	Agent       string               `json:"agent,omitempty"` // version of the program, for the operator
	Time        int64                `json:"time,omitempty"`  // by the clock of who says it, Unix ns
}

func (h *hello) generation() journal.Generation {
	if len(h.Generations) == 0 {
		return journal.Generation{}
	}
	return h.Generations[len(h.Generations)-1]
}

// followerState answers a hello: what the follower has.
type followerState struct {
	Refused     string               `json:"refused,omitempty"`
	Primary     bool                 `json:"primary,omitempty"`
	Mirror      string               `json:"mirror"`
	Name        string               `json:"name"`
	Node        string               `json:"node"`
	ID          [16]byte             `json:"id"` // of the volume
	Size        int64                `json:"size"`
	Blank       bool                 `json:"blank"`
	Zeroed      bool                 `json:"zeroed"` // blank, and the device reads as zeroes all over
	Seen        journal.Generation   `json:"seen"`
	Generations []journal.Generation `json:"generations"`
	Head        journal.LSN          `json:"head"`
	Chain       uint64               `json:"chain"`
	Committed   journal.LSN          `json:"committed"`
	Ring        int64                `json:"ring"`
	// Rejoins: it was given up, and shows its history up to where that parts from the source's; Rewinds: it has more, which
	// goes; Compare: it cannot show that place, for this reason (rejoin.go).
	Rejoins   bool     `json:"rejoins,omitempty"`
	Rewinds   bool     `json:"rewinds,omitempty"`
	Compare   string   `json:"compare,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // where the other members find it
	Agent     string   `json:"agent,omitempty"`     // as in hello
	Time      int64    `json:"time,omitempty"`
}

// start tells the follower where the stream begins; what it has from there on
// it cuts.
type start struct {
	At    journal.LSN `json:"at"`
	Chain uint64      `json:"chain"`
}

type startReply struct {
	Refused string `json:"refused,omitempty"`
}

// room asks a follower to enlarge its backing device, before a resize record.
type room struct {
	Size int64 `json:"size"`
}

type roomReply struct {
	Refused string `json:"refused,omitempty"`
}

// resyncBegin announces a fuzzy copy; records from From on follow in between.
type resyncBegin struct {
	From    journal.LSN   `json:"from"`
	Size    int64         `json:"size"`
	Partial *partialBegin `json:"partial,omitempty"` // nil: all blocks are compared
}

// partialBegin: only what changed since Base is copied, over the state that
// the follower has at At; what it has beyond that it cuts. Chain is the
// source's chain value at Base, which the follower's log must have too.
type partialBegin struct {
	At    journal.LSN `json:"at"`
	Base  journal.LSN `json:"base"`
	Chain uint64      `json:"chain"`
	Bytes int64       `json:"bytes"` // about to be copied, for the status
}

type resyncReply struct {
	Refused string `json:"refused,omitempty"`
	// Compare: a partial resync cannot be, for this reason; all blocks have
	// to be compared.
	Compare string `json:"compare,omitempty"`
	// Staged are the blocks of resyncBlockBytes that an earlier try of a
	// partial resync left, a roaring bitmap: they are to be compared.
	Staged []byte `json:"staged,omitempty"`
	// Rewound are the blocks, of the size that a dirty set has, that a volume which rejoins has to get back: they are copied.
	Rewound     []byte `json:"rewound,omitempty"`
	RetryMillis int64  `json:"retry_ms,omitempty"` // not before
}

// resyncEnd says that the copy and all records below At make a state that
// the source's device had; the follower's log begins there.
type resyncEnd struct {
	At          journal.LSN          `json:"at"`
	Chain       uint64               `json:"chain"`
	Generations []journal.Generation `json:"generations"`
}

func encodeJSON(kind byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("mirror: " + err.Error()) // plain structs: cannot happen
	}
	return append([]byte{kind}, b...)
}

func decodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", errMessage, err)
	}
	return nil
}

type recordsHeader struct {
	Flags                        recordsFlags
	From, Declared, Head, Wanted journal.LSN
}

// recordsFlags: what a follower is to do with records as soon as it has them.
type recordsFlags uint8

const (
	pushReceived recordsFlags = 1 << iota
	pushDurable
)

// pushes are the flags that a mode's writes need.
func (m Mode) pushes() recordsFlags {
	switch m {
	case ModeReceive:
		return pushReceived
	case ModeDurable:
		return pushDurable
	case ModeAsync, ModeFlush:
	}
	return 0
}

func (h recordsHeader) put(b []byte) {
	clear(b[:8])
	b[0], b[1] = kindRecords, byte(h.Flags)
	binary.LittleEndian.PutUint64(b[8:], uint64(h.From))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.Declared))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.Head))
	binary.LittleEndian.PutUint64(b[32:], uint64(h.Wanted))
}

func decodeRecords(b []byte) (h recordsHeader, raw []byte, err error) {
	if len(b) < recordsHeaderBytes {
		return h, nil, fmt.Errorf("%w: records of %d bytes", errMessage, len(b))
	}
	h.Flags = recordsFlags(b[1])
	h.From = journal.LSN(binary.LittleEndian.Uint64(b[8:]))
	h.Declared = journal.LSN(binary.LittleEndian.Uint64(b[16:]))
	h.Head = journal.LSN(binary.LittleEndian.Uint64(b[24:]))
	h.Wanted = journal.LSN(binary.LittleEndian.Uint64(b[32:]))
	return h, b[recordsHeaderBytes:], nil
}

type ack struct {
	Received, Durable, Applied journal.LSN
	Trouble                    uint8
}

func (a ack) encode() []byte {
	b := make([]byte, ackBytes)
	b[0], b[1] = kindAck, a.Trouble
	binary.LittleEndian.PutUint64(b[8:], uint64(a.Received))
	binary.LittleEndian.PutUint64(b[16:], uint64(a.Durable))
	binary.LittleEndian.PutUint64(b[24:], uint64(a.Applied))
	return b
}

func decodeAck(b []byte) (a ack, err error) {
	if len(b) != ackBytes {
		return a, fmt.Errorf("%w: acknowledgement of %d bytes", errMessage, len(b))
	}
	a.Trouble = b[1]
	a.Received = journal.LSN(binary.LittleEndian.Uint64(b[8:]))
	a.Durable = journal.LSN(binary.LittleEndian.Uint64(b[16:]))
	a.Applied = journal.LSN(binary.LittleEndian.Uint64(b[24:]))
	return a, nil
}

type hashRequest struct {
	Offset, Length int64
	Unit           int64 // bytes of a block: resyncBlockBytes or minDirtyBlock
	Key            [32]byte
}

func (r hashRequest) encode() []byte {
	b := make([]byte, hashesHeaderBytes)
	b[0] = kindHashes
	binary.LittleEndian.PutUint32(b[4:], uint32(r.Unit))
	binary.LittleEndian.PutUint64(b[8:], uint64(r.Offset))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.Length))
	copy(b[24:], r.Key[:])
	return b
}

func decodeHashRequest(b []byte, size int64) (r hashRequest, err error) {
	if len(b) != hashesHeaderBytes {
		return r, fmt.Errorf("%w: hash request of %d bytes", errMessage, len(b))
	}
	r.Unit = int64(binary.LittleEndian.Uint32(b[4:]))
	if r.Unit != resyncBlockBytes && r.Unit != minDirtyBlock {
		return r, fmt.Errorf("%w: blocks of %d bytes, %d and %d are possible", errMessage, r.Unit, resyncBlockBytes, minDirtyBlock)
	}
	off, length := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	if length > resyncChunkBytes || off > uint64(size) || length > uint64(size)-off {
		return r, fmt.Errorf("%w: hashes of %d bytes at %d on a device of %d", errMessage, length, off, size)
	}
	r.Offset, r.Length = int64(off), int64(length)
	copy(r.Key[:], b[24:])
	return r, nil
}

type blockHeader struct {
	Zero         bool
	Length       int64
	Offset, Done int64
}

func (h blockHeader) put(b []byte) {
	clear(b[:4])
	b[0] = kindBlock
	if h.Zero {
		b[1] = blockZero
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(h.Length))
	binary.LittleEndian.PutUint64(b[8:], uint64(h.Offset))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.Done))
}

func decodeBlock(b []byte, size int64) (h blockHeader, data []byte, err error) {
	if len(b) < blockHeaderBytes {
		return h, nil, fmt.Errorf("%w: block of %d bytes", errMessage, len(b))
	}
	h.Zero = b[1]&blockZero != 0
	length := uint64(binary.LittleEndian.Uint32(b[4:]))
	off, done := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	data = b[blockHeaderBytes:]
	if off > uint64(size) || length > uint64(size)-off || done > uint64(size) || !h.Zero && uint64(len(data)) != length || h.Zero && len(data) != 0 {
		return h, nil, fmt.Errorf("%w: block %d+%d with %d bytes on a device of %d", errMessage, off, length, len(data), size)
	}
	h.Length, h.Offset, h.Done = int64(length), int64(off), int64(done)
	return h, data, nil
}
