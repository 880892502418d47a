package dataport

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
)

func sampleHeader() header {
	return header{
		typ: frameData, flags: flagFirst | flagCall, session: 0x1122334455667788, seq: 7, ack: 3, sack: 5, consumed: 2,
		credit: 1 << 24, pathBytes: 4242, client: 0xcafe, payload: 1000, message: 5000, offset: 0, call: 9, payloadHash: 0xabcdef,
	}
}

func sampleHello() hello {
	h := hello{
		kind: helloJoin, session: 77, incarnation: 5, port: 6, path: 2, maxMessage: 1 << 20, credit: 1 << 24,
		name: "alpha", client: "vol", reason: "", addrs: addrList{3, []string{"10.0.0.1:7001", "10.0.1.1:7001"}}, generation: 8,
	}
	h.nonce[0], h.proof[1], h.secret[2], h.history[3] = 1, 2, 3, 4
	return h
}

// golden compares with testdata; the bytes on the wire are a contract.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != hex.Dump(got) {
		t.Errorf("%s: the format changed; now\n%s", name, hex.Dump(got))
	}
}

func TestGolden(t *testing.T) {
	h, b := sampleHeader(), make([]byte, headerBytes)
	h.encode(b)
	golden(t, "frame_header.hex", b)
	var back header
	if err := back.decode(b, 1<<20); err != nil || back != h {
		t.Fatalf("decoded %+v, %v", back, err)
	}
	hi := sampleHello()
	golden(t, "hello.hex", hi.encode())
	golden(t, "addrs.hex", hi.addrs.append(nil))
	var hiBack hello
	if err := hiBack.decode(hi.encode()); err != nil || hiBack.name != "alpha" || len(hiBack.addrs.list) != 2 || hiBack.addrs.version != 3 || hiBack.proof != hi.proof ||
		hiBack.generation != 8 || hiBack.history != hi.history {
		t.Fatalf("decoded %+v, %v", hiBack, err)
	}
}

func TestHeaderRefuses(t *testing.T) {
	for _, row := range []struct {
		name, want string
		change     func(h *header)
	}{
		{"payload beyond a frame", "payload of", func(h *header) { h.payload, h.message = maxFramePayload+1, 1<<20 }},
		{"payload of 4 GiB", "payload of", func(h *header) { h.payload = 1<<32 - 1 }},
		{"message beyond the limit", "message of", func(h *header) { h.message = 1<<20 + 1 }},
		{"fragment past its message", "fragment", func(h *header) { h.offset, h.flags = 4500, 0 }},
		{"offset overflows", "fragment", func(h *header) { h.offset, h.flags = 1<<32-1, 0 }},
		{"first without offset 0", "fragment", func(h *header) { h.offset = 8 }},
		{"last before the end", "fragment", func(h *header) { h.flags |= flagLast }},
		{"empty fragment", "fragment", func(h *header) { h.payload = 0 }},
		{"sequence 0", "sequence", func(h *header) { h.seq = 0 }},
		{"highest sequence", "sequence", func(h *header) { h.seq = 1<<64 - 1 }},
		{"unknown type", "type", func(h *header) { h.typ = frameTypeEnd }},
		{"type 0", "type", func(h *header) { h.typ = 0 }},
		{"control frame with a big payload", "payload of", func(h *header) { h.typ, h.message, h.payload = frameClose, 0, maxControlPayload+1 }},
		{"control frame with a message", "payload", func(h *header) { h.typ = framePing }},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, b := sampleHeader(), make([]byte, headerBytes)
			row.change(&h)
			h.encode(b)
			var back header
			err := back.decode(b, 1<<20)
			if !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v, want %q", err, row.want)
			}
		})
	}
	h, b := sampleHeader(), make([]byte, headerBytes)
	h.encode(b)
	for i := range b { // any bit anywhere is seen
		b[i] ^= 0x10
		var back header
		if err := back.decode(b, 1<<20); !errors.Is(err, ErrFrame) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		b[i] ^= 0x10
	}
}

func FuzzHeader(f *testing.F) {
	h, b := sampleHeader(), make([]byte, headerBytes)
	h.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < headerBytes {
			return
		}
		// With a right checksum, or nothing behind it would ever be reached.
		b := bytes.Clone(in[:headerBytes])
		var h header
		_ = h.decode(b, 1<<20)
		seal(b)
		if err := h.decode(b, 1<<20); err != nil {
			return
		}
		if h.payload > maxFramePayload || h.message > 1<<20 || h.sequenced() && uint64(h.offset)+uint64(h.payload) > uint64(h.message) {
			t.Fatalf("accepted %+v", h)
		}
		again := make([]byte, headerBytes)
		h.encode(again)
		if !bytes.Equal(again, b) {
			t.Fatalf("encode of decode differs:\n%x\n%x", again, b)
		}
	})
}

func FuzzHello(f *testing.F) {
	h := sampleHello()
	for h.kind = helloOpen; h.kind < helloKindEnd; h.kind++ {
		f.Add(h.encode())
	}
	h.kind, h.code, h.reason, h.addrs = helloRefused, RefusedLimit, strings.Repeat("no", maxReasonBytes/2), addrList{}
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, in []byte) {
		var h hello
		if h.decode(in) != nil {
			return
		}
		if !bytes.Equal(h.encode(), in) {
			t.Fatalf("encode of decode differs for %x", in)
		}
	})
}

func FuzzAddrs(f *testing.F) {
	f.Add(addrList{3, []string{"10.0.0.1:7001", "[::1]:1"}}.append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, err := decodeAddrs(in)
		if err != nil {
			return
		}
		if len(a.list) > maxAddrs || !bytes.Equal(a.append(nil), in) {
			t.Fatalf("encode of decode differs for %x", in)
		}
	})
}

func seal(b []byte) {
	copy(b[96:104], sum64(b[:96]))
}
