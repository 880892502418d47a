package dataport

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// A packed message is one whose frames carry flagPacked. What they carry together, little endian:
//
//	algorithm u8 (1 s2, 2 zstd)   length u32 of the plain message   block
//
// The block is one s2 block, or one zstd frame without dictionary, and nothing behind it. A packed message is always
// shorter than its plain one: what does not shrink goes plain. Messages are packed one by one, so that each stands for
// itself whichever session, path or order it has. Flow control counts what is on the wire, sizes in the API the plain message.
const packedHeaderBytes = 5

// Compression says how a side packs its messages.
type Compression string

// The ways to pack.
const (
	CompressNone Compression = "none"
	CompressS2   Compression = "s2"   // for a LAN: a gigabyte a second and core
	CompressZstd Compression = "zstd" // for a WAN: smaller, some four times the work
	CompressAuto Compression = "auto" // message by message, see autopack.go
)

// ParseCompression reads one of none, s2, zstd, auto.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case CompressNone, CompressS2, CompressZstd, CompressAuto:
		return c, nil
	}
	return "", fmt.Errorf("compression %q: choose none, s2, zstd or auto", s)
}

// validate takes "" too, which is none.
func (c Compression) validate() error {
	if c == "" {
		return nil
	}
	_, err := ParseCompression(string(c))
	return err
}

type packAlgorithm uint8

const (
	packNone packAlgorithm = iota
	packS2
	packZstd
	packEnd
)

func (a packAlgorithm) compression() Compression {
	return [...]Compression{CompressNone, CompressS2, CompressZstd}[a]
}

// packSet is what a node can unpack, as its hello says: bit 0 s2, bit 1 zstd.
type packSet uint8

const packAll packSet = 1<<(packEnd-1) - 1

func (s packSet) has(a packAlgorithm) bool {
	return a > packNone && a < packEnd && s&(1<<(a-1)) != 0
}

// codec packs and unpacks for one node. At most as many messages at once as there are processors, the others wait for
// their turn; so its memory is that many encoders, decoders and scratch buffers of a message, whatever peers do.
type codec struct {
	turns chan struct{} // holds one item for each message being packed

	encoderOnce, decoderOnce sync.Once
	encoder                  *zstd.Encoder
	decoder                  *zstd.Decoder
}

func newCodec() *codec { return &codec{turns: make(chan struct{}, runtime.GOMAXPROCS(0))} }

// zstdWindowBytes is as far as matches reach back, and what an encoder keeps of memory beside its tables.
const zstdWindowBytes = 1 << 20

func (c *codec) zstdEncoder() *zstd.Encoder {
	c.encoderOnce.Do(func() {
		// The frames have a checksum of their own. An error is possible for options out of range only.
		c.encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
			zstd.WithEncoderConcurrency(cap(c.turns)), zstd.WithWindowSize(zstdWindowBytes), zstd.WithLowerEncoderMem(true))
	})
	return c.encoder
}

func (c *codec) zstdDecoder() *zstd.Decoder {
	c.decoderOnce.Do(func() {
		c.decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(cap(c.turns)), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true))
	})
	return c.decoder
}

// pack returns the packed message, or nil when it would not be shorter than size by worth bytes at least. The parts are
// read and not kept.
func (c *codec) pack(a packAlgorithm, parts [][]byte, size, worth int) *buffer {
	c.turns <- struct{}{}
	defer func() { <-c.turns }()
	plain, joined := join(parts, size)
	if joined != nil {
		defer joined.release()
	}
	scratch := newBuffer(packedHeaderBytes + max(s2.MaxEncodedLen(size), size+size/128+64))
	defer scratch.release()
	out := scratch.data[:packedHeaderBytes]
	out[0] = byte(a)
	binary.LittleEndian.PutUint32(out[1:], uint32(size))
	if a == packS2 {
		out = out[:packedHeaderBytes+len(s2.Encode(scratch.data[packedHeaderBytes:], plain))]
	} else {
		out = c.zstdEncoder().EncodeAll(plain, out)
	}
	if len(out)+worth > size {
		return nil
	}
	b := newBuffer(len(out)) // the scratch is as large as the plain message, and this may wait long for the peer
	copy(b.data, out)
	return b
}

// join returns the parts in one piece, and the buffer to release when it had to be made.
func join(parts [][]byte, size int) ([]byte, *buffer) {
	for _, p := range parts {
		if len(p) == size {
			return p, nil
		}
		if len(p) > 0 {
			break
		}
	}
	b := newBuffer(size)
	at := 0
	for _, p := range parts {
		at += copy(b.data[at:], p)
	}
	return b.data, b
}

// packed is a packed message taken apart; nothing of its block has been looked at.
type packed struct {
	algorithm packAlgorithm
	size      int // of the plain message
	block     []byte
}

// parsePacked checks what the peer says before anything is allocated for it.
func parsePacked(b []byte, offered packSet, maxMessage int) (packed, error) {
	if len(b) <= packedHeaderBytes {
		return packed{}, fmt.Errorf("%w: packed message of %d bytes", ErrProtocol, len(b))
	}
	p := packed{packAlgorithm(b[0]), int(binary.LittleEndian.Uint32(b[1:])), b[packedHeaderBytes:]}
	switch {
	case !offered.has(p.algorithm):
		return packed{}, fmt.Errorf("%w: message packed by algorithm %d, which was not agreed", ErrProtocol, p.algorithm)
	case p.size > maxMessage:
		return packed{}, fmt.Errorf("%w: packed message unfolds to %d bytes, at most %d", ErrProtocol, p.size, maxMessage)
	case p.size <= len(b):
		return packed{}, fmt.Errorf("%w: message of %d bytes is packed into %d", ErrProtocol, p.size, len(b))
	}
	return p, nil
}

// unpack returns the plain message. Only p.size bytes are allocated for it, whatever the block holds.
func (c *codec) unpack(p packed) (*buffer, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	b := newBuffer(p.size)
	var out []byte
	var err error
	if p.algorithm == packS2 {
		out, err = s2.Decode(b.data, p.block)
	} else {
		out, err = c.zstdDecoder().DecodeAll(p.block, b.data[:0:p.size])
	}
	if err == nil && len(out) != p.size {
		err = fmt.Errorf("it has %d bytes", len(out))
	}
	if err != nil {
		b.release()
		return nil, fmt.Errorf("%w: message packed by %s into %d bytes, said to have %d: %w", ErrProtocol, p.algorithm.compression(), len(p.block), p.size, err)
	}
	return b, nil
}

// check looks at what the block says of itself: its length, and where it ends.
func (p packed) check() error {
	if p.algorithm == packS2 {
		if n, err := s2.DecodedLen(p.block); err != nil || n != p.size {
			return fmt.Errorf("%w: s2 block of %d bytes in a message of %d", ErrProtocol, n, p.size)
		}
		return nil // the decoder refuses a block that ends elsewhere than its bytes do
	}
	var h zstd.Header
	if err := h.Decode(p.block); err != nil {
		return fmt.Errorf("%w: packed message: %w", ErrProtocol, err)
	}
	if h.Skippable || h.DictionaryID != 0 || h.HasFCS && h.FrameContentSize != uint64(p.size) {
		return fmt.Errorf("%w: zstd frame of %d bytes (skippable %v, dictionary %d) in a message of %d", ErrProtocol, h.FrameContentSize, h.Skippable, h.DictionaryID, p.size)
	}
	// RFC 8878, 3.1.1.2: blocks up to the one that says it is the last.
	at := uint64(h.HeaderSize)
	for last := false; !last; {
		if at+3 > uint64(len(p.block)) {
			return fmt.Errorf("%w: zstd frame is cut off", ErrProtocol)
		}
		b := p.block[at:]
		head := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = head&1 != 0
		n := uint64(head >> 3)
		if head>>1&3 == 1 { // one byte, repeated
			n = 1
		}
		at += 3 + n
	}
	if h.HasCheckSum {
		at += 4
	}
	if at != uint64(len(p.block)) {
		return fmt.Errorf("%w: zstd frame of %d bytes in a block of %d", ErrProtocol, at, len(p.block))
	}
	return nil
}

// packedIn takes apart a packed message of the peer. s.mu may be held.
func (s *Session) packedIn(b []byte) (packed, error) {
	return parsePacked(b, s.node.unpacks, s.node.conf.MaxMessageBytes)
}

// unfold makes a message plain that arrived packed. No lock is held.
func (s *Session) unfold(m *inMsg) error {
	if m.flags&flagPacked == 0 {
		return nil
	}
	plain, err := s.unpack(m.buf.data)
	if err != nil {
		return err
	}
	m.buf.release()
	m.buf = plain
	return nil
}

func (s *Session) unpack(b []byte) (*buffer, error) {
	p, err := s.packedIn(b)
	if err != nil {
		return nil, err
	}
	plain, err := s.node.codec.unpack(p)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.counts.Compression.ReceivedPacked += uint64(len(b))
	s.counts.Compression.ReceivedUnpacked += uint64(len(plain.data))
	s.mu.Unlock()
	return plain, nil
}

// unpackReply makes a reply plain, in memory that is the caller's. It runs in the goroutine of the Call, so that the
// replies of many calls are no more memory than their callers wait for.
func (s *Session) unpackReply(b []byte) ([]byte, error) {
	plain, err := s.unpack(b)
	if err != nil {
		s.fail(err.Error(), endProtocol)
		return nil, s.Err()
	}
	defer plain.release()
	return append(make([]byte, 0, len(plain.data)), plain.data...), nil
}

// packReply returns a reply packed, or nil when it goes plain. No lock is held.
func (s *Session) packReply(reply []byte) *buffer {
	if s.packer == nil || len(reply) > s.maxMsg {
		return nil
	}
	s.mu.Lock()
	link := s.linkSpeed()
	s.mu.Unlock()
	return s.packer.pack([][]byte{reply}, len(reply), link)
}
