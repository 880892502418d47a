package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/server"

	"mirror-agent/blockdev"
)

// goNBD serves a device by go-nbd's own server, one connection after the other, and returns the path of its socket. It is right about
// READ and WRITE within the device, zero lengths included, about writes to a read-only export, unknown commands
// without data, and LIST and ABORT with one export. Nothing else is asked of it.
func goNBD(t *testing.T, d blockdev.Device, o *server.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "oracle.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := server.Handle(c, []*server.Export{{Name: "disk", Backend: d}}, o); err != nil && !errors.Is(err, io.EOF) {
				t.Error("the oracle:", err)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

// goDisk goes into transmission as both servers know it.
func goDisk(t *testing.T, path string) *raw {
	t.Helper()
	c := dial(t, path)
	c.get(18)
	c.put(clientFixedNewstyle)
	c.option(optGo, goData("disk")...)
	for kind, _ := c.answer(optGo); kind != repAck; kind, _ = c.answer(optGo) {
	}
	return c
}

// pair returns a connection to our server of one device and to go-nbd's of another, or of the same.
func pair(t *testing.T, ours, theirs blockdev.Device, readOnly bool) (a, b *raw) {
	t.Helper()
	_, path := start(t, Options{}, Export{Name: "disk", Device: ours, ReadOnly: readOnly})
	a, b = goDisk(t, path), goDisk(t, goNBD(t, theirs, &server.Options{ReadOnly: readOnly}))
	t.Cleanup(func() {
		b.put(request(cmdDisc, 0, 0, 0, 0))
		b.ended()
	})
	return a, b
}

func randomSeed(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// readOrWrite is a random request within the device and the length of its reply. Sizes are small for the most part, and now and then
// larger than the server's buffers.
func readOrWrite(rng *rand.Rand, cookie uint64, size int) (p []byte, reply int) {
	off := rng.IntN(size + 1)
	most := []int{1, 513, 5000, 70_000, 2 * bufferSize}[rng.IntN(5)]
	n := rng.IntN(min(size-off, most) + 1)
	if rng.IntN(2) == 0 {
		return request(cmdRead, 0, cookie, uint64(off), uint32(n)), replySize + n
	}
	return request(cmdWrite, uint16(rng.IntN(2)), cookie, uint64(off), uint32(n), pattern(n, byte(cookie))), replySize
}

// The same random stream, request by request, gets the same bytes and leaves the same bytes.
func TestAgainstGoNBD(t *testing.T) {
	const size = 2 * mib
	ours, theirs := blockdev.NewMemory(size, nil), blockdev.NewMemory(size, nil)
	a, b := pair(t, ours, theirs, false)
	rng := randomSeed(t)
	for i := range uint64(400) {
		p, reply := readOrWrite(rng, i, size)
		if rng.IntN(20) == 0 {
			p, reply = request(77, 0, i, 0, 0), replySize
		}
		for _, c := range []*raw{a, b} {
			go c.Write(p)
		}
		if got, want := a.get(reply), b.get(reply); !bytes.Equal(got, want) {
			h := parseRequest(p)
			t.Fatalf("request %d, command %d of %d bytes at %d: the replies differ", i, h.Type, h.Length, h.Offset)
		}
	}
	x, y := make([]byte, size), make([]byte, size)
	ours.ReadAt(x, 0)
	theirs.ReadAt(y, 0)
	if !bytes.Equal(x, y) {
		t.Error("the devices differ")
	}
}

// Both serve the same device at once: what is written by either is read by the other.
func TestGoNBDOfTheSameDevice(t *testing.T) {
	const size = 2 * mib
	d := blockdev.NewMemory(size, nil)
	a, b := pair(t, d, d, false)
	rng, model := randomSeed(t), make([]byte, size)
	for i := range uint64(400) {
		c := []*raw{a, b}[rng.IntN(2)]
		p, reply := readOrWrite(rng, i, size)
		go c.Write(p)
		h, got := parseRequest(p), c.get(reply)
		if be32(got[4:]) != 0 || be64(got[8:]) != i {
			t.Fatalf("request %d: %x", i, got[:replySize])
		}
		place := model[h.Offset:][:h.Length]
		if h.Type == cmdWrite {
			copy(place, p[requestSize:])
		} else if !bytes.Equal(got[replySize:], place) {
			t.Fatalf("request %d: %d bytes at %d differ", i, h.Length, h.Offset)
		}
	}
}

// Whole packets of requests that do not touch each other: go-nbd answers one after the other, we as they are ready, and the answers
// are the same.
func TestPipelinedAgainstGoNBD(t *testing.T) {
	const part, parts = 64 << 10, 32
	a, b := pair(t, blockdev.NewMemory(part*parts, nil), blockdev.NewMemory(part*parts, nil), false)
	rng := randomSeed(t)
	for round := range 30 {
		var packet []byte
		length := map[uint64]int{} // of the replies
		for i := range uint64(parts) {
			cookie := uint64(round)<<32 | i
			p, n := readOrWrite(rng, cookie, part)
			at := be64(p[16:])
			copy(p[16:], encode(at+i*part))
			packet, length[cookie] = append(packet, p...), n
		}
		var said [2]map[uint64]string
		for k, c := range []*raw{a, b} {
			go c.Write(packet)
			said[k] = map[uint64]string{}
			for range parts {
				head := c.get(replySize)
				cookie := be64(head[8:])
				if said[k][cookie] != "" || length[cookie] == 0 {
					t.Fatalf("round %d: a reply to %x that nobody waits for", round, cookie)
				}
				said[k][cookie] = string(head) + string(c.get(length[cookie]-replySize))
			}
		}
		for cookie, want := range said[1] {
			if said[0][cookie] != want {
				t.Fatalf("round %d: the replies to %x differ", round, cookie)
			}
		}
	}
}

// A read-only export, and the options that both answer.
func TestRefusalsAgainstGoNBD(t *testing.T) {
	d := blockdev.NewMemory(mib, nil)
	a, b := pair(t, d, d, true)
	for i, n := range []int{0, 1, 4096, bufferSize, mib} {
		p := request(cmdWrite, uint16(i&1), uint64(i), 0, uint32(n), pattern(n, 1))
		for _, c := range []*raw{a, b} {
			go c.Write(p)
			c.expect(1, uint64(i))
			c.alive()
		}
	}
	_, path := start(t, Options{}, Export{Name: "disk", Device: d})
	var said [2][]byte
	for i, path := range []string{path, goNBD(t, d, nil)} {
		c := dial(t, path)
		c.get(18)
		c.put(clientFixedNewstyle)
		c.option(optList)
		c.option(99, "data")
		c.option(optAbort)
		said[i] = c.get(20 + 4 + 4 + 20 + 20 + 20)
		c.ended()
	}
	if !bytes.Equal(said[0], said[1]) {
		t.Errorf("LIST, an unknown option, ABORT: we say %x, go-nbd %x", said[0], said[1])
	}
}
