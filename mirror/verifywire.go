package mirror

import (
	"encoding/binary"
	"fmt"

	"mirror-agent/journal"
)

// The messages of a verify, little endian:
//
//	request  source → follower, Call
//	  0 kind u8   1 what u8   2 flags u8 (1: read below the cache)   3 zero   4 unit u32   8 number u64
//	 16 not before u64 (LSN)   24 offset u64   32 length u64   40 key 32
//	  reply:
//	  0 status u8   1 flags u8 (1: was read below the cache)   2 zero 6   8 at u64 (LSN)   16 body
//	    sums: one for each unit   hole: up to where, end of the data there, u64 each   data: the bytes   scan: none
//	sums     follower → source, Send, the answer to a scan
//	  0 kind u8   1 flags u8   2 zero 6   8 number u64   16 at u64   24 one for each unit
//	a sum:  0 state u8   1 keyed hash 16
//
// A follower answers from its state at exactly the LSN it names, never below "not before": a request comes behind the records
// that were sent before it.
type verifyRequest struct {
	what      uint8
	direct    bool
	unit      int64 // bytes; units are aligned to it on the device
	number    uint64
	notBefore journal.LSN
	off, end  int64
	key       [32]byte
}

// What a source asks for.
const (
	verifyScan  uint8 = iota + 1 // sums, later: the stream goes on meanwhile, and what it changes is marked
	verifySums                   // sums, now
	verifyHole                   // how far there is nothing but a hole
	verifyBytes                  // the bytes
)

// How a request was taken.
const (
	verifyDone uint8 = iota
	verifyNotYet
	verifyRefused    // the body says why
	verifyUnreadable // of bytes: the disk does not give them
)

// States of a sum.
const (
	sumHash       uint8 = iota // the hash counts
	sumZero                    // all zeroes
	sumTouched                 // written meanwhile
	sumUnreadable              // the disk does not give it
)

const (
	verifyRequestBytes = 72
	verifyReplyBytes   = 16
	verifyAnswerBytes  = 24
	sumBytes           = 1 + hashBytes
	// verifyBlockBytes is the unit of a scan, verifyUnitBytes that of what it finds.
	verifyBlockBytes = 64 << 10
	verifyUnitBytes  = 4 << 10
	// maxVerifyChunk is asked for by one request, but for holes.
	maxVerifyChunk = 4 << 20
)

// blockSum is what is compared.
type blockSum struct {
	state uint8
	hash  [hashBytes]byte
}

// settled: it says what the block holds.
func (s blockSum) settled() bool { return s.state == sumHash || s.state == sumZero }

func sumOf(key *[32]byte, b []byte) blockSum {
	if allZero(b) {
		return blockSum{state: sumZero}
	}
	var s blockSum
	hashBlock(s.hash[:], key, b)
	return s
}

func (r *verifyRequest) encode() []byte {
	b := make([]byte, verifyRequestBytes)
	b[0], b[1] = kindVerify, r.what
	if r.direct {
		b[2] = 1
	}
	le := binary.LittleEndian
	le.PutUint32(b[4:], uint32(r.unit))
	le.PutUint64(b[8:], r.number)
	le.PutUint64(b[16:], uint64(r.notBefore))
	le.PutUint64(b[24:], uint64(r.off))
	le.PutUint64(b[32:], uint64(r.end-r.off))
	copy(b[40:], r.key[:])
	return b
}

func decodeVerifyRequest(b []byte) (r verifyRequest, err error) {
	if len(b) != verifyRequestBytes {
		return r, fmt.Errorf("%w: verify request of %d bytes", errMessage, len(b))
	}
	le := binary.LittleEndian
	off, length := le.Uint64(b[24:]), le.Uint64(b[32:])
	r = verifyRequest{what: b[1], direct: b[2]&1 != 0, unit: int64(le.Uint32(b[4:])), number: le.Uint64(b[8:]), notBefore: journal.LSN(le.Uint64(b[16:]))}
	copy(r.key[:], b[40:])
	switch {
	case r.what < verifyScan || r.what > verifyBytes:
		return r, fmt.Errorf("%w: verify request of kind %d", errMessage, r.what)
	case r.unit < sectorBytes || r.unit > maxVerifyChunk:
		return r, fmt.Errorf("%w: verify in units of %d bytes", errMessage, r.unit)
	case length == 0 || off > maxDeviceBytes || length > maxDeviceBytes-off:
		return r, fmt.Errorf("%w: verify of %d bytes at %d", errMessage, length, off)
	case r.what != verifyHole && (length > maxVerifyChunk || length/uint64(r.unit) > maxVerifyChunk/verifyUnitBytes):
		return r, fmt.Errorf("%w: verify of %d bytes at once", errMessage, length)
	}
	r.off, r.end = int64(off), int64(off+length)
	return r, nil
}

// units is in how many units of that size [off, end) lies.
func units(off, end, unit int64) int { return int((end+unit-1)/unit - off/unit) }

// verifyReply is what a request gets at once.
type verifyReply struct {
	status uint8
	below  bool
	at     journal.LSN
	body   []byte
}

func (r *verifyReply) encode() []byte {
	b := make([]byte, verifyReplyBytes, verifyReplyBytes+len(r.body))
	b[0] = r.status
	if r.below {
		b[1] = 1
	}
	binary.LittleEndian.PutUint64(b[8:], uint64(r.at))
	return append(b, r.body...)
}

func decodeVerifyReply(b []byte) (r verifyReply, err error) {
	if len(b) < verifyReplyBytes || b[0] > verifyUnreadable {
		return r, fmt.Errorf("%w: reply of %d bytes to a verify", errMessage, len(b))
	}
	return verifyReply{status: b[0], below: b[1]&1 != 0, at: journal.LSN(binary.LittleEndian.Uint64(b[8:])), body: b[verifyReplyBytes:]}, nil
}

// verifyAnswer is what a scan found.
type verifyAnswer struct {
	below  bool
	number uint64
	at     journal.LSN
	sums   []blockSum
}

func (a *verifyAnswer) encode() []byte {
	b := make([]byte, verifyAnswerBytes, verifyAnswerBytes+len(a.sums)*sumBytes)
	b[0] = kindVerified
	if a.below {
		b[1] = 1
	}
	binary.LittleEndian.PutUint64(b[8:], a.number)
	binary.LittleEndian.PutUint64(b[16:], uint64(a.at))
	return appendSums(b, a.sums)
}

func decodeVerifyAnswer(b []byte) (a verifyAnswer, err error) {
	if len(b) < verifyAnswerBytes {
		return a, fmt.Errorf("%w: sums of %d bytes", errMessage, len(b))
	}
	a = verifyAnswer{below: b[1]&1 != 0, number: binary.LittleEndian.Uint64(b[8:]), at: journal.LSN(binary.LittleEndian.Uint64(b[16:]))}
	a.sums, err = decodeSums(b[verifyAnswerBytes:])
	return a, err
}

func appendSums(b []byte, sums []blockSum) []byte {
	for _, s := range sums {
		b = append(append(b, s.state), s.hash[:]...)
	}
	return b
}

func decodeSums(b []byte) ([]blockSum, error) {
	if len(b)%sumBytes != 0 || len(b) > maxVerifyChunk/verifyUnitBytes*sumBytes+sumBytes {
		return nil, fmt.Errorf("%w: sums of %d bytes", errMessage, len(b))
	}
	sums := make([]blockSum, len(b)/sumBytes)
	for i := range sums {
		s := b[i*sumBytes:]
		if sums[i].state = s[0]; s[0] > sumUnreadable {
			return nil, fmt.Errorf("%w: sum of state %d", errMessage, s[0])
		}
		copy(sums[i].hash[:], s[1:])
	}
	return sums, nil
}
