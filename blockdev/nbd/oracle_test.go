package nbd

import (
	"bytes"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/server"

	"mirror-agent/blockdev"
)

// go-nbd's own server and ours answer the same requests with the same bytes, as far as its server is right.
func TestAgainstGoNBD(t *testing.T) {
	const size = 1 << 20
	ours, theirs := blockdev.NewMemory(size, nil), blockdev.NewMemory(size, nil)
	_, path := start(t, Options{}, Export{Device: ours, MultiConn: true})
	oracle := filepath.Join(t.TempDir(), "oracle.sock")
	l, err := net.Listen("unix", oracle)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		done <- server.Handle(c, []*server.Export{{Name: "", Backend: theirs}}, nil)
	}()
	a, b := connect(t, path), dial(t, oracle)
	b.get(18)
	b.put(clientFixedNewstyle)
	b.option(optGo, goData("")...)
	for kind, _ := b.answer(optGo); kind != repAck; kind, _ = b.answer(optGo) {
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range uint64(300) {
		off := rng.IntN(size)
		n := rng.IntN(min(size-off, 70000) + 1)
		p, want := request(cmdRead, 0, i, uint64(off), uint32(n)), replySize+n
		if rng.IntN(2) == 0 {
			p, want = request(cmdWrite, 0, i, uint64(off), uint32(n), pattern(n, byte(i))), replySize
		}
		for _, c := range []*raw{a, b} {
			go c.Write(p)
		}
		if got, expected := a.get(want), b.get(want); !bytes.Equal(got, expected) {
			t.Fatalf("request %d, %d bytes at %d: the replies differ", i, n, off)
		}
	}
	b.put(request(cmdDisc, 0, 0, 0, 0))
	if err := <-done; err != nil {
		t.Error("the oracle:", err)
	}
	x, y := make([]byte, size), make([]byte, size)
	ours.ReadAt(x, 0)
	theirs.ReadAt(y, 0)
	if !bytes.Equal(x, y) {
		t.Error("the devices differ")
	}
}
