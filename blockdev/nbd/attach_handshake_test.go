package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

var goodGreeting = encode(protocol.NEGOTIATION_MAGIC_OLDSTYLE, protocol.NEGOTIATION_MAGIC_OPTION, uint16(3))

func replyTo(option, kind uint32, data ...any) []byte {
	p := encode(data...)
	return append(encode(protocol.NEGOTIATION_MAGIC_REPLY, option, kind, uint32(len(p))), p...)
}

func goReply(kind uint32, data ...any) []byte { return replyTo(7, kind, data...) }

// goodReplies is all that a server says to a client that is content.
func goodReplies(name string, size uint64) []byte {
	return bytes.Join([][]byte{
		goodGreeting,
		goReply(3, uint16(0), size, uint16(0x16d)),
		goReply(3, uint16(3), uint32(512), uint32(4096), uint32(32<<20)),
		goReply(3, uint16(1), name),
		goReply(3, uint16(77), "something new"),
		goReply(1),
	}, nil)
}

// serveOnce says what it was given whatever the client says, and hangs up.
func serveOnce(c net.Conn, says []byte) {
	go io.Copy(io.Discard, c)
	c.Write(says)
	c.Close()
}

// scripted is a server that has said everything already.
type scripted struct {
	io.Reader
	said bytes.Buffer
}

func (s *scripted) Write(p []byte) (int, error) { return s.said.Write(p) }

func negotiateWith(says []byte) (offer, error) {
	return negotiate(&scripted{Reader: bytes.NewReader(says)}, "vol0")
}

func TestClientHandshake(t *testing.T) {
	s := &scripted{Reader: bytes.NewReader(append(goodReplies("vol0", 1<<40), "transmission"...))}
	o, err := negotiate(s, "vol0")
	if err != nil || o != (offer{name: "vol0", size: 1 << 40, flags: 0x16d, blockMin: 512}) {
		t.Fatalf("%+v, %v", o, err)
	}
	if rest, _ := io.ReadAll(s.Reader); string(rest) != "transmission" {
		t.Errorf("it read into the transmission; left are %q", rest)
	}
	want := encode(uint32(3), protocol.NEGOTIATION_MAGIC_OPTION, uint32(7), uint32(14), uint32(4), "vol0", uint16(2), uint16(1), uint16(3))
	if !bytes.Equal(s.said.Bytes(), want) {
		t.Errorf("it said %x, want %x", s.said.Bytes(), want)
	}
	for i := range goodReplies("vol0", 1) { // cut at every byte
		if _, err := negotiateWith(goodReplies("vol0", 1)[:i]); err == nil {
			t.Fatalf("content with the first %d bytes", i)
		}
	}
}

func TestClientHandshakeRefusals(t *testing.T) {
	size := goReply(3, uint16(0), uint64(1), uint16(1))
	for name, tt := range map[string]struct {
		says [][]byte
		want string
	}{
		"other service":       {[][]byte{bytes.Repeat([]byte("HTTP/1.1 400 Bad"), 4)}, "no NBD server"},
		"oldstyle":            {[][]byte{encode(protocol.NEGOTIATION_MAGIC_OLDSTYLE, uint64(0x420281861253), uint16(0))}, "too old"},
		"not fixed":           {[][]byte{encode(protocol.NEGOTIATION_MAGIC_OLDSTYLE, protocol.NEGOTIATION_MAGIC_OPTION, uint16(0))}, "too old"},
		"reply's magic":       {[][]byte{goodGreeting, make([]byte, 20)}, "magic"},
		"other option":        {[][]byte{goodGreeting, replyTo(6, 1)}, "option 6"},
		"huge reply":          {[][]byte{goodGreeting, encode(protocol.NEGOTIATION_MAGIC_REPLY, uint32(7), uint32(3), uint32(0xffffffff))}, "4294967295 bytes"},
		"replies without end": {[][]byte{goodGreeting, bytes.Repeat(size, maxClientReplies+1)}, "more than"},
		"no size":             {[][]byte{goodGreeting, goReply(1)}, "did not tell"},
		"empty info":          {[][]byte{goodGreeting, goReply(3)}, "less than two"},
		"short info":          {[][]byte{goodGreeting, goReply(3, uint16(0), uint32(1))}, "info of 6 bytes"},
		"long info":           {[][]byte{goodGreeting, goReply(3, uint16(3), make([]byte, 50))}, "info of 52 bytes"},
		"long name":           {[][]byte{goodGreeting, goReply(3, uint16(1), make([]byte, maxNameSize+1))}, "name of 4097"},
		"odd reply":           {[][]byte{goodGreeting, goReply(99)}, "unknown reply 99"},
		"unknown export":      {[][]byte{goodGreeting, goReply(1<<31|6, "no such\x1b[31m export")}, `no export "vol0" ("no such\x1b[31m export")`},
		"TLS":                 {[][]byte{goodGreeting, goReply(1<<31 | 5)}, "wants TLS"},
		"draining":            {[][]byte{goodGreeting, goReply(1<<31 | 7)}, "shutting down"},
		"no GO":               {[][]byte{goodGreeting, goReply(1<<31 | 1)}, "does not know GO"},
		"policy":              {[][]byte{goodGreeting, goReply(1<<31|2, "by policy")}, `error 2 ("by policy")`},
	} {
		_, err := negotiateWith(bytes.Join(tt.says, nil))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want …%s…", name, err, tt.want)
		}
		refused := tt.says[0][0] == goodGreeting[0] && len(tt.says) == 2 && binary.BigEndian.Uint32(append(tt.says[1], make([]byte, 20)...)[12:])>>31 == 1
		if errors.Is(err, ErrNotServed) != refused {
			t.Errorf("%s: %v; ErrNotServed %t", name, err, !refused)
		}
	}
}

func FuzzClientHandshake(f *testing.F) {
	f.Add(goodReplies("vol0", 1<<30))
	f.Add(append(bytes.Clone(goodGreeting), goReply(1<<31|6, "none")...))
	f.Fuzz(func(t *testing.T, says []byte) {
		o, err := negotiateWith(says)
		if err != nil && o != (offer{}) {
			t.Errorf("an offer beside the error %v", err)
		}
		if len(o.name) > maxNameSize {
			t.Error("a name of", len(o.name))
		}
	})
}
