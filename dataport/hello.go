package dataport

import (
	"encoding/binary"
	"fmt"
)

// A hello is the payload of the first frame in either direction of a path (type hello). Integers little endian; a
// string is a length u16 and its bytes; a list a count u8 and its strings. At most maxControlPayload in all.
//
//	kind u8 (1 open a session, 2 join one, 3 accepted, 4 refused)   code u8 (of a refusal)
//	session u64   incarnation u64   port u64   path u32   max message u32   credit u64   unpacks u8
//	history [16]  generation u64
//	nonce [32]    proof [32]    secret [32]
//	name   client   reason: string    addresses: version u64, list
//
// open: session is chosen at random by the side that dials; port tells two ports of one process apart.
// generation: of the client's history, see fence.go; open, join: the sender's own; accepted, refused: the highest that it
// has seen. addresses: where the sender listens, see announce.go.
// join, accepted: proof shows the session's secret, bound to this connection (see secret.go).
// unpacks: the algorithms that the sender takes messages packed by, a bit each (see compress.go); unknown bits mean nothing.
// secret: over plain TCP the accepting side gives the session's secret in the clear; zero over TLS.
type hello struct {
	flags       frameFlags // of the frame's header, not in the payload: flagStandby in a join
	kind        helloKind
	code        RefuseCode
	session     SessionID
	incarnation uint64
	port        uint64
	path        PathID
	maxMessage  uint32
	credit      uint64
	unpacks     packSet
	history     [16]byte
	generation  uint64
	nonce       [32]byte
	proof       [32]byte
	secret      [32]byte
	name        string
	client      string
	reason      string
	addrs       addrList
}

type helloKind uint8

const (
	helloOpen helloKind = iota + 1
	helloJoin
	helloAccepted
	helloRefused
	helloKindEnd
)

// RefuseCode says why a hello was refused.
type RefuseCode uint8

// The codes of a refusal.
const (
	RefusedNoClient  RefuseCode = iota + 1 // nobody is registered by that name
	RefusedNoSession                       // the session to join is not known here
	RefusedProof                           // the proof of the session's secret is wrong
	RefusedLimit                           // too many sessions or paths
	RefusedHello                           // the hello makes no sense
	RefusedFenced                          // a higher generation has been seen here
)

const (
	maxNameBytes   = 64
	maxReasonBytes = 512
	maxAddrBytes   = 256
	maxAddrs       = 12
	minWindowBytes = 64 << 10
)

func appendString(b []byte, s string, most int) []byte {
	if len(s) > most {
		s = s[:most]
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendList(b []byte, list []string) []byte {
	if len(list) > maxAddrs {
		list = list[:maxAddrs]
	}
	b = append(b, byte(len(list)))
	for _, s := range list {
		b = appendString(b, s, maxAddrBytes)
	}
	return b
}

func (h *hello) encode() []byte {
	le := binary.LittleEndian
	b := []byte{byte(h.kind), byte(h.code)}
	b = le.AppendUint64(b, uint64(h.session))
	b = le.AppendUint64(b, h.incarnation)
	b = le.AppendUint64(b, h.port)
	b = le.AppendUint32(b, uint32(h.path))
	b = le.AppendUint32(b, h.maxMessage)
	b = le.AppendUint64(b, h.credit)
	b = append(b, byte(h.unpacks))
	b = append(b, h.history[:]...)
	b = le.AppendUint64(b, h.generation)
	b = append(b, h.nonce[:]...)
	b = append(b, h.proof[:]...)
	b = append(b, h.secret[:]...)
	b = appendString(b, h.name, maxNameBytes)
	b = appendString(b, h.client, maxNameBytes)
	b = appendString(b, h.reason, maxReasonBytes)
	return h.addrs.append(b)
}

// reader takes a payload apart; after the first thing that does not fit it yields zeroes and keeps bad set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, min(n, 64))
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *reader) str(most int) string {
	n := int(r.u16())
	if n > most {
		r.bad = true
	}
	if r.bad {
		return ""
	}
	return string(r.take(n))
}

func (r *reader) list() []string {
	n := int(r.u8())
	if n > maxAddrs {
		r.bad = true
	}
	var l []string
	for i := 0; i < n && !r.bad; i++ {
		l = append(l, r.str(maxAddrBytes))
	}
	return l
}

func (h *hello) decode(b []byte) error {
	r := &reader{b: b}
	*h = hello{kind: helloKind(r.u8()), code: RefuseCode(r.u8())}
	h.session, h.incarnation, h.port = SessionID(r.u64()), r.u64(), r.u64()
	h.path, h.maxMessage, h.credit = PathID(r.u32()), r.u32(), r.u64()
	h.unpacks = packSet(r.u8())
	copy(h.history[:], r.take(16))
	h.generation = r.u64()
	copy(h.nonce[:], r.take(32))
	copy(h.proof[:], r.take(32))
	copy(h.secret[:], r.take(32))
	h.name, h.client, h.reason = r.str(maxNameBytes), r.str(maxNameBytes), r.str(maxReasonBytes)
	h.addrs = r.addrs()
	switch {
	case r.bad || len(r.b) != 0:
		return fmt.Errorf("%w: its length does not fit", ErrBadHello)
	case h.kind == 0 || h.kind >= helloKindEnd:
		return fmt.Errorf("%w: kind %d", ErrBadHello, h.kind)
	case h.kind != helloRefused && (h.name == "" || h.session == 0 || h.path == 0):
		return fmt.Errorf("%w: name, session or path missing", ErrBadHello)
	}
	return nil
}
