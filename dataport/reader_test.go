package dataport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"mirror-agent/dataport/socket"
)

// TestFrameReader: frames of all sizes, in whatever pieces they come, are read as they were sent: over TCP, where the
// header behind a payload comes with it, and over a connection without readv.
func TestFrameReader(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, seed))
	var sent []byte
	var sizes []int
	for i := range 600 {
		n := r.IntN(300)
		switch r.IntN(4) {
		case 0:
			n = 0
		case 1:
			n = bulkyBytes - 2 + r.IntN(4)
		case 2:
			n = r.IntN(200 << 10)
		}
		head := make([]byte, headerBytes)
		binary.LittleEndian.PutUint32(head, uint32(i))
		binary.LittleEndian.PutUint32(head[4:], uint32(n))
		sent = append(sent, head...)
		for range n {
			sent = append(sent, byte(r.Uint32()))
		}
		sizes = append(sizes, n)
	}
	for name, pair := range map[string]func() (net.Conn, net.Conn){"tcp": tcpPair(t), "pipe": net.Pipe} {
		t.Run(name, func(t *testing.T) {
			from, to := pair()
			defer to.Close()
			go func() {
				r := rand.New(rand.NewPCG(seed, 1))
				for b := sent; len(b) > 0; {
					n := min(1+r.IntN(100<<10), len(b))
					if r.IntN(3) == 0 {
						n = min(1+r.IntN(2*headerBytes), len(b))
					}
					if _, err := from.Write(b[:n]); err != nil {
						t.Error(err)
						break
					}
					b = b[n:]
				}
				_ = from.Close()
			}()
			if name == "tcp" {
				to = socket.New(to, socket.NewCrowd(1, 0))
				defer to.Close()
				if err := to.(interface{ Detach() error }).Detach(); err != nil {
					t.Fatal(err)
				}
			}
			f := newFrameReader(to, to)
			if f.vec != (name == "tcp") {
				t.Fatalf("readv: %v", f.vec)
			}
			at := 0
			for i, n := range sizes {
				head, err := f.header()
				if err != nil {
					t.Fatalf("header %d: %v", i, err)
				}
				if !bytes.Equal(head, sent[at:at+headerBytes]) {
					t.Fatalf("header %d differs", i)
				}
				at += headerBytes
				f.expect(uint32(n))
				b := make([]byte, n)
				if _, err := io.ReadFull(f, b); err != nil || !bytes.Equal(b, sent[at:at+n]) {
					t.Fatalf("payload %d of %d bytes: %v", i, n, err)
				}
				at += n
			}
			if _, err := f.header(); !errors.Is(err, io.EOF) || f.more() {
				t.Errorf("after the last: %v", err)
			}
		})
	}
}

// TestFrameReaderExpects: only who has read several bulky frames on end waits for more of them by a thread of its own.
func TestFrameReaderExpects(t *testing.T) {
	from, to := tcpPair(t)()
	defer from.Close()
	said := &says{Conn: to}
	defer said.Close()
	f := newFrameReader(said, said)
	step := func(payload uint32, want string) {
		t.Helper()
		said.words = ""
		f.expect(payload)
		if said.words != want {
			t.Errorf("a frame of %d bytes, run of %d: %q, not %q", payload, f.run, said.words, want)
		}
	}
	if said.words != "idle " {
		t.Errorf("at first: %q", said.words)
	}
	for range busyRun - 1 {
		step(bulkyBytes, "")
	}
	step(bulkyBytes, "busy ")
	step(bulkyBytes, "")
	step(0, "idle ")
	step(bulkyBytes, "busy ")
	for i := range busyRun {
		step(100, map[bool]string{true: "idle "}[i == 0])
	}
	step(100, "")
	step(bulkyBytes, "")
}

// says notes what is expected of it.
type says struct {
	net.Conn
	words string
}

func (s *says) ReadVec(first, _ []byte) (int, error) { return s.Read(first) }
func (s *says) Expect(busy bool)                     { s.words += map[bool]string{true: "busy ", false: "idle "}[busy] }

func tcpPair(t *testing.T) func() (net.Conn, net.Conn) {
	return func() (net.Conn, net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		from, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		to, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return from, to
	}
}
