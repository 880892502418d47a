package dataport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// prose shrinks to a third or so; noise does not.
func prose(n int) []byte { return bytes.Repeat(proseOnce(), n>>17+1)[:n:n] }

var proseOnce = sync.OnceValue(func() []byte {
	words := strings.Fields("the mirror carries every write to another host and answers when it is durable there, log tail head record block")
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < 128<<10 {
		b = append(append(b, words[r.IntN(len(words))]...), ' ')
		b = append(strconv.AppendInt(b, r.Int64N(1000), 10), ' ')
	}
	return b[:128<<10]
})

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func TestPackAndUnpack(t *testing.T) {
	c := newCodec()
	for _, a := range []packAlgorithm{packS2, packZstd} {
		for _, n := range []int{1000, 4096, 5000, 70_000, 1 << 20, 3<<20 + 7} {
			t.Run(fmt.Sprintf("%s %d", a.compression(), n), func(t *testing.T) {
				plain := prose(n)
				parts := [][]byte{nil, plain[:n/3], plain[n/3 : n/2], {}, plain[n/2:]}
				b := c.pack(a, parts, n, 1)
				if b == nil || len(b.data) >= n {
					t.Fatal("prose does not shrink")
				}
				if n > 1<<20 && cap(b.b) > n {
					t.Errorf("%d bytes are held for %d packed ones", cap(b.b), len(b.data))
				}
				p, err := parsePacked(b.data, packAll, n)
				if err != nil {
					t.Fatal(err)
				}
				back, err := c.unpack(p)
				if err != nil || !bytes.Equal(back.data, plain) {
					t.Fatalf("it comes back as something else: %v", err)
				}
				if one := c.pack(a, [][]byte{plain}, n, 1); !bytes.Equal(one.data, b.data) {
					t.Error("one part or several: not the same")
				}
			})
		}
		if b := c.pack(a, [][]byte{noise(64<<10, 1)}, 64<<10, 1); b != nil {
			t.Errorf("%s packs noise into %d bytes of 65536", a.compression(), len(b.data))
		}
	}
}

// packedAs makes a packed message of any claims.
func packedAs(a packAlgorithm, size int, block []byte) []byte {
	b := append([]byte{byte(a)}, binary.LittleEndian.AppendUint32(nil, uint32(size))...)
	return append(b, block...)
}

func zstdOf(t testing.TB, plain []byte, o ...zstd.EOption) []byte {
	e, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(plain, nil)
}

type badPacked struct {
	b    []byte
	want string
}

// badPackedMessages are what a hostile peer may send where 1 MiB is the largest message and s2 is what was offered,
// besides zstd where that is not the point.
func badPackedMessages(t testing.TB) map[string]badPacked {
	const n = 100_000
	s2Block, zBlock := s2.Encode(nil, prose(n)), zstdOf(t, prose(n))
	s2Bomb, zBomb := s2.Encode(nil, make([]byte, 64<<20)), zstdOf(t, make([]byte, 64<<20))
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	return map[string]badPacked{
		"nothing":                        {nil, "of 0 bytes"},
		"no block":                       {packedAs(packS2, 1000, nil), "of 5 bytes"},
		"algorithm 0":                    {packedAs(packNone, n, s2Block), "algorithm 0"},
		"algorithm unknown":              {packedAs(packEnd, n, s2Block), "not agreed"},
		"algorithm 255":                  {packedAs(255, n, s2Block), "not agreed"},
		"length beyond the limit":        {packedAs(packS2, 1<<20+1, s2Block), "unfolds to"},
		"length of 4 GiB":                {packedAs(packZstd, 1<<32-1, zBlock), "unfolds to"},
		"length 0":                       {packedAs(packS2, 0, s2Block), "is packed into"},
		"does not shrink":                {packedAs(packS2, 100, s2.Encode(nil, noise(100, 1))), "is packed into"},
		"s2 bomb":                        {packedAs(packS2, 1<<20, s2Bomb), "s2 block of 67108864"},
		"s2 length too small":            {packedAs(packS2, n-1, s2Block), "s2 block of"},
		"s2 length too large":            {packedAs(packS2, n+1, s2Block), "s2 block of"},
		"s2 truncated":                   {packedAs(packS2, n, s2Block[:len(s2Block)-9]), "corrupt"},
		"s2 trailing":                    {packedAs(packS2, n, append(bytes.Clone(s2Block), 0)), "corrupt"},
		"s2 garbage":                     {packedAs(packS2, n, append(bytes.Clone(s2Block[:3]), noise(5000, 2)...)), "corrupt"},
		"s2 said to be zstd":             {packedAs(packZstd, n, s2Block), "magic"},
		"zstd said to be s2":             {packedAs(packS2, n, zBlock), "s2 block"},
		"zstd bomb":                      {packedAs(packZstd, 1<<20, zBomb), "zstd frame of 67108864"},
		"zstd bomb that hides its size":  {packedAs(packZstd, 1<<20, hideSize(t, 64<<20)), "size"},
		"zstd length too small":          {packedAs(packZstd, n-1, zBlock), "zstd frame"},
		"zstd shorter than said, hidden": {packedAs(packZstd, 1<<20, hideSize(t, 300_000)), "has 300000 bytes"},
		"zstd truncated":                 {packedAs(packZstd, n, zBlock[:len(zBlock)-9]), "zstd frame"},
		"zstd trailing":                  {packedAs(packZstd, n, append(bytes.Clone(zBlock), 1)), "zstd frame of"},
		"zstd with a skippable frame":    {packedAs(packZstd, n, slices.Concat(zBlock, skippable)), "zstd frame of"},
		"zstd behind a skippable frame":  {packedAs(packZstd, n, slices.Concat(skippable, zBlock)), "skippable true"},
		"zstd two frames":                {packedAs(packZstd, n, slices.Concat(zBlock, zBlock)), "zstd frame of"},
		"zstd garbage":                   {packedAs(packZstd, n, slices.Concat(zBlock[:12], noise(5000, 3))), "zstd"},
		"zstd with a wrong checksum":     {packedAs(packZstd, n, wrongLast(zBlock)), "CRC"},
		"zstd with a dictionary":         {packedAs(packZstd, n, withDictionary(zBlock)), "dictionary 7"},
	}
}

func wrongLast(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// withDictionary makes the frame say that it wants dictionary 7 (RFC 8878, 3.1.1.1).
func withDictionary(b []byte) []byte {
	out := append(bytes.Clone(b[:4]), b[4]|1)
	rest := b[5:]
	if b[4]&0x20 == 0 { // a window descriptor comes first
		out, rest = append(out, rest[0]), rest[1:]
	}
	return append(append(out, 7), rest...)
}

// hideSize returns a zstd frame of n zeroes that does not say how many they are: streams cannot.
func hideSize(t testing.TB, n int) []byte {
	var out bytes.Buffer
	e, err := zstd.NewWriter(&out, zstd.WithWindowSize(1<<16), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < n; at += 100_000 {
		_, _ = e.Write(make([]byte, min(100_000, n-at)))
		_ = e.Flush()
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var h zstd.Header
	if err := h.Decode(out.Bytes()); err != nil || h.HasFCS {
		t.Fatalf("it says its size: %+v %v", h, err)
	}
	return out.Bytes()
}

func TestUnpackRefuses(t *testing.T) {
	c := newCodec()
	for name, row := range badPackedMessages(t) {
		t.Run(name, func(t *testing.T) {
			p, err := parsePacked(row.b, packAll, 1<<20)
			if err == nil {
				_, err = c.unpack(p)
			}
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v, want %q", err, row.want)
			}
		})
	}
	if _, err := parsePacked(packedAs(packZstd, 100_000, zstdOf(t, prose(100_000))), 1, 1<<20); !errors.Is(err, ErrProtocol) {
		t.Errorf("zstd where s2 alone was offered: %v", err)
	}
}

// The same over the wire: the session ends with words, and nothing is allocated beyond a message.
func TestHostilePackedMessagesEndTheSession(t *testing.T) {
	rows := badPackedMessages(t)
	rows["packed by what was not offered"] = badPacked{packedAs(packZstd, 100_000, zstdOf(t, prose(100_000))), "not agreed"}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			n := plainNode(t, func(c *Config) { c.MaxMessageBytes = 1 << 20 })
			if name == "packed by what was not offered" {
				n.unpacks = 1 << (packS2 - 1)
			}
			c, id := dialHello(t, n)
			s := n.sessionsOf(nil)[0]
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for seq, at := uint64(1), 0; at < len(row.b) || seq == 1; seq++ {
				piece := row.b[at:min(at+maxFramePayload, len(row.b))]
				h := header{
					typ: frameData, flags: flagPacked, session: id, client: clientID("test"), seq: seq, ack: 1, consumed: 1,
					payload: uint32(len(piece)), message: uint32(len(row.b)), offset: uint32(at), payloadHash: sumOf(piece),
				}
				if at == 0 {
					h.flags |= flagFirst
				}
				if at += len(piece); at == len(row.b) {
					h.flags |= flagLast
				}
				b := make([]byte, headerBytes)
				h.encode(b)
				if _, err := c.Write(append(b, piece...)); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-s.Done():
			case <-time.After(20 * time.Second):
				t.Fatal("the session goes on")
			}
			runtime.ReadMemStats(&after)
			if err := s.Err(); !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), ErrProtocol.Error()) {
				t.Errorf("it ended for another reason: %v", err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
				t.Errorf("%d bytes were allocated on its word", got)
			}
			if s.Stats().MessagesReceived != 0 {
				t.Error("a message was delivered")
			}
		})
	}
}

// Frames of one message that do not agree on whether it is packed.
func TestPackedFlagChangesInAMessage(t *testing.T) {
	n := plainNode(t, nil)
	c, id := dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	for i, flags := range []frameFlags{flagFirst | flagPacked, flagLast} {
		h := header{
			typ: frameData, flags: flags, session: id, client: clientID("test"), seq: uint64(i + 1), ack: 1, consumed: 1,
			payload: 10, message: 20, offset: uint32(10 * i), payloadHash: sumOf(make([]byte, 10)),
		}
		b := make([]byte, headerBytes)
		h.encode(b)
		_, _ = c.Write(append(b, make([]byte, 10)...))
	}
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the session goes on")
	}
	if !strings.Contains(s.Err().Error(), "does not follow") {
		t.Errorf("it ended for another reason: %v", s.Err())
	}
}

func FuzzPacked(f *testing.F) {
	c := newCodec()
	for _, n := range []int{300, 5000} {
		for _, a := range []packAlgorithm{packS2, packZstd} {
			f.Add(c.pack(a, [][]byte{prose(n)}, n, 1).data)
		}
	}
	for _, row := range badPackedMessages(f) {
		if len(row.b) < 10_000 {
			f.Add(row.b)
		}
	}
	const most = 64 << 10
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parsePacked(in, packAll, most)
		if err != nil {
			return
		}
		b, err := c.unpack(p)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if len(b.data) != p.size || p.size > most || p.size <= len(in) {
			t.Fatalf("unfolded %d into %d, said %d", len(in), len(b.data), p.size)
		}
		// What came out packs and unfolds to the same again.
		if again := c.pack(p.algorithm, [][]byte{b.data}, p.size, 1); again != nil {
			q, err := parsePacked(again.data, packAll, most)
			if err != nil {
				t.Fatal(err)
			}
			back, err := c.unpack(q)
			if err != nil || !bytes.Equal(back.data, b.data) {
				t.Fatalf("packed again it is another: %v", err)
			}
		}
		b.release()
	})
}
