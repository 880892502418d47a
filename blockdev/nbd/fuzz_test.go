package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// exchange plays input to a server over a net.Pipe and returns all that it says.
func exchange(t *testing.T, o Options, e Export, prologue, input []byte) []byte {
	t.Helper()
	o.MaxMemoryBytes, o.MaxPayloadBytes, o.HandshakeTimeout = 1<<20, 1<<20, patience
	s := NewServer(o, e)
	l := newPipes()
	served := make(chan struct{})
	go func() { s.Serve(context.Background(), l); close(served) }()
	c := l.dial()
	c.SetDeadline(time.Now().Add(patience))
	said := make(chan []byte)
	go func() {
		p, _ := io.ReadAll(c)
		said <- p
	}()
	c.Write(append(prologue[:len(prologue):len(prologue)], input...))
	// A polite end, so that everything before it is answered; when the input ends inside a request it is the rest of that.
	c.Write(bytes.Repeat(request(cmdDisc, 0, 0, 0, 0), 3))
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // when it still waits for something
	p := <-said
	c.Close()
	s.Close()
	s.Wait()
	<-served
	return p
}

func fuzzExport() Export {
	return Export{Name: "fuzz", Description: "d", Device: blockdev.NewMemory(1<<16, nil), BlockMin: 1}
}

func FuzzHandshake(f *testing.F) {
	secure := newPKI(f).options(false)
	for _, seed := range [][]byte{
		encode(uint32(3)),
		append(encode(uint32(3)), option(optList)...),
		append(encode(uint32(1)), option(optInfo, goData("fuzz", 1, 2, 3)...)...),
		append(encode(uint32(1)), append(option(optInfo, goData("no")...), option(optGo, goData("", 3)...)...)...),
		append(encode(uint32(0)), option(optionExportName, "fuzz")...),
		append(encode(uint32(3)), append(option(5), append(option(8), option(optAbort)...)...)...),
		append(encode(uint32(1)), option(optGo, ^uint32(0), "x")...),
		bytes.Join(handshakeMessages(), nil),
		append(encode(uint32(1)), append(option(optionStartTLS), option(optGo, goData("fuzz")...)...)...),
		append(encode(uint32(1)), append(option(optionStructuredReply), option(optionSetMetaContext, uint32(0), ^uint32(0))...)...),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		said := exchange(t, secure, fuzzExport(), nil, input)
		if len(said) < 18 {
			t.Fatalf("no greeting: %x", said)
		}
		checkReplies(t, said[18:])
	})
}

// checkReplies walks the replies to options up to where transmission may begin.
func checkReplies(t *testing.T, p []byte) {
	if err := wholeReplies(p); err != nil {
		t.Error(err)
	}
}

func wholeReplies(p []byte) error {
	for len(p) >= 8 && binary.BigEndian.Uint64(p) == protocol.NEGOTIATION_MAGIC_REPLY {
		if len(p) < 20 {
			return fmt.Errorf("half a reply: %x", p)
		}
		n := int(be32(p[16:]))
		if n > len(p)-20 {
			return fmt.Errorf("a reply of %d bytes of which %d are there", n, len(p)-20)
		}
		p = p[20+n:]
	}
	return nil
}

func FuzzTransmission(f *testing.F) {
	f.Add(request(cmdRead, 0, 1, 0, 100))
	f.Add(request(cmdWrite, 1, 1, 10, 4, []byte("data")))
	f.Add(append(request(cmdWrite, 9, 1, 10, 4, []byte("data")), request(cmdFlush, 0, 2, 0, 0)...))
	f.Add(append(request(cmdTrim, 0, 1, 0, 65536), request(cmdWriteZeroes, 2, 2, 1, 65535)...))
	f.Add(request(cmdWrite, 0, 1, 0, ^uint32(0), []byte("not all")))
	f.Add(append(request(99, 0, 1, 0, 0), request(cmdRead, 0, 2, ^uint64(0), 1)...))
	f.Add([]byte("garbage that is no request at all"))
	prologue := append(encode(clientNoZeroes|clientFixedNewstyle, protocol.NEGOTIATION_MAGIC_OPTION, optionExportName, uint32(0)), []byte{}...)
	f.Fuzz(func(t *testing.T, input []byte) {
		said := exchange(t, Options{}, fuzzExport(), prologue, input)
		if len(said) < 28 {
			t.Fatalf("no handshake: %x", said)
		}
		checkTransmission(t, input, said[28:])
	})
}

// checkTransmission walks input as a server must and checks that every reply belongs to a request of it, and has data
// exactly when it should.
func checkTransmission(t *testing.T, input, said []byte) {
	type key struct {
		cookie uint64
		length int
	}
	reads, others := map[key]int{}, map[uint64]int{}
	input = append(input[:len(input):len(input)], bytes.Repeat(request(cmdDisc, 0, 0, 0, 0), 3)...)
	for len(input) >= requestSize {
		h := parseRequest(input)
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST || h.Type == cmdDisc {
			break
		}
		input = input[requestSize:]
		others[h.Handle]++
		if h.Type == cmdRead {
			reads[key{h.Handle, int(h.Length)}]++
		}
		if h.Type == cmdWrite {
			if uint64(h.Length) > uint64(len(input)) {
				break
			}
			input = input[h.Length:]
		}
	}
	for len(said) > 0 {
		if len(said) < replySize || be32(said) != protocol.TRANSMISSION_MAGIC_REPLY {
			if len(reads) > 0 {
				return // data of a read whose cookie another request has too: it cannot be told where a reply begins
			}
			t.Fatalf("not a reply: %x", said)
		}
		errno, cookie := be32(said[4:]), be64(said[8:])
		said = said[replySize:]
		if others[cookie]--; others[cookie] < 0 {
			t.Fatalf("a reply to %x that nobody waits for", cookie)
		}
		if errno != 0 {
			continue
		}
		for k := range reads {
			if k.cookie == cookie {
				if reads[k]--; reads[k] == 0 {
					delete(reads, k)
				}
				said = said[min(k.length, len(said)):]
				break
			}
		}
	}
}

func FuzzStructured(f *testing.F) {
	for _, seed := range structuredMessages() {
		f.Add(seed)
	}
	f.Add(bytes.Join(structuredMessages(), nil))
	f.Add(append(request(cmdRead, 0, 1, 0, ^uint32(0)), request(cmdBlockStatus, 0, 2, ^uint64(0), 1)...))
	prologue := bytes.Join(handshakeMessages(), nil)
	hello := len(exchange(&testing.T{}, Options{}, fuzzExport(), prologue, nil))
	f.Fuzz(func(t *testing.T, input []byte) {
		said := exchange(t, Options{}, fuzzExport(), prologue, input)
		if len(said) < hello {
			t.Fatalf("no handshake: %x", said)
		}
		if err := checkStructured(input, said[hello:]); err != nil {
			t.Fatal(err)
		}
	})
}

// checkStructured checks what structured replies allow to check without more: every chunk is whole, belongs to a request,
// and lies within it.
func checkStructured(input, said []byte) error {
	requests := map[uint64][]protocol.TransmissionRequestHeader{}
	input = append(input[:len(input):len(input)], bytes.Repeat(request(cmdDisc, 0, 0, 0, 0), 3)...)
	for len(input) >= requestSize {
		h := parseRequest(input)
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST || h.Type == cmdDisc {
			break
		}
		requests[h.Handle] = append(requests[h.Handle], h)
		if input = input[requestSize:]; h.Type == cmdWrite {
			input = input[min(uint64(h.Length), uint64(len(input))):]
		}
	}
	within := func(cookie, off uint64, n int) bool {
		for _, h := range requests[cookie] {
			if off >= h.Offset && off+uint64(n) <= h.Offset+uint64(h.Length) && n > 0 {
				return true
			}
		}
		return false
	}
	for len(said) >= replySize {
		cookie, size := be64(said[8:]), replySize
		if len(requests[cookie]) == 0 {
			return fmt.Errorf("nobody asked for %x", said)
		}
		if be32(said) == structuredMagic {
			if len(said) < chunkSize || int(be32(said[16:])) > len(said)-chunkSize {
				return fmt.Errorf("half a chunk: %x", said)
			}
			size = chunkSize + int(be32(said[16:]))
			p := said[chunkSize:size]
			switch kind := binary.BigEndian.Uint16(said[6:]); {
			case kind == chunkData && !within(cookie, be64(p), len(p)-8), kind == chunkHole && !within(cookie, be64(p), int(be32(p[8:]))):
				return fmt.Errorf("outside of what was asked for: %.60x", said)
			case kind == chunkBlockStatus && (len(p) < 12 || len(p)%8 != 4):
				return fmt.Errorf("a block status of %d bytes", len(p))
			}
		} else if be32(said) != protocol.TRANSMISSION_MAGIC_REPLY || be32(said[4:]) != 0 {
			return fmt.Errorf("not a reply: %.60x", said)
		}
		said = said[size:]
	}
	if len(said) > 0 {
		return fmt.Errorf("half a reply: %x", said)
	}
	return nil
}

var _ net.Listener = (*pipes)(nil)
