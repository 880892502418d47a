package dataport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
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
			f := newFrameReader(to, to)
			if (f.vec != nil) != (name == "tcp") {
				t.Fatalf("readv: %v", f.vec != nil)
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
