package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// nbdRequest is one that two servers are asked to do, and what both answered.
type nbdRequest struct {
	kind, flags uint16
	off         int64
	length      int
	data        []byte    // of a write
	read        [2][]byte // by either
	err         [2]error
}

// randomNBDRequest is one within a part of a device, or wrong in one way.
func randomNBDRequest(r *rand.Rand, base, part, size int64) *nbdRequest {
	const read, write = protocol.TRANSMISSION_TYPE_REQUEST_READ, protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	kinds := []uint16{read, read, write, write, write, nbdFlush, nbdTrim, nbdWriteZeroes, nbdWriteZeroes, 77}
	q := &nbdRequest{kind: kinds[r.IntN(len(kinds))], length: 512 << r.IntN(8)}
	q.off = base + r.Int64N((part-int64(q.length))/512)*512
	if r.IntN(2) == 0 { // not by blocks
		q.length = 1 + r.IntN(int(part)/2)
		q.off = base + r.Int64N(part-int64(q.length))
	}
	switch r.IntN(8) {
	case 0:
		q.flags = nbdFlagFUA
	case 1:
		q.flags = 1 << 9
	case 2:
		if q.kind == nbdWriteZeroes {
			q.flags = 1 << 1 // NO_HOLE
		}
	case 3:
		q.off = size - int64(q.length) + 1 + r.Int64N(100_000) // over the end, or behind it
	}
	if q.kind == nbdFlush {
		q.off, q.length = 0, 0
	}
	if q.kind == write {
		q.data = make([]byte, q.length)
		for i := 0; i < len(q.data); i += 8 {
			q.data[i] = byte(r.Uint32())
		}
	}
	return q
}

// TestNBDAgainstNbdkit: packets of requests that do not touch each other, right and wrong ones, get the same errors and the same bytes from
// the agent's volume, with its log and a target, as from nbdkit with a file; and in the end the devices are the same.
func TestNBDAgainstNbdkit(t *testing.T) {
	needTools(t, "nbdkit")
	m := newMirror(t, layout{size: 16 << 20})
	m.start()
	peer, socket := filepath.Join(m.dir, "peer"), filepath.Join(m.dir, "peer.nbd")
	writeFile(t, peer, "")
	truncate(t, peer, m.size)
	background(t, "nbdkit", "-f", "-U", socket, "file", peer)
	eventually(t, startLimit, "nbdkit listens", func() (bool, string) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false, err.Error()
		}
		return c.Close() == nil, "it does not end"
	})
	ours := m.source.dial(startLimit)
	theirs, err := dialNBD("unix:"+socket, "")
	if err != nil {
		t.Fatal(err)
	}
	const parts = 32
	r, part := newRand(t), m.size/parts
	for round := range 60 {
		packet := make([]*nbdRequest, parts)
		for i := range packet {
			packet[i] = randomNBDRequest(r, int64(i)*part, part, m.size)
		}
		var asked sync.WaitGroup
		for i, c := range []*nbdClient{ours, theirs} {
			for _, q := range packet {
				if q.kind == protocol.TRANSMISSION_TYPE_REQUEST_READ {
					q.read[i] = make([]byte, q.length)
				}
				asked.Go(func() { q.err[i] = c.do(q.kind, q.flags, q.off, q.length, q.data, q.read[i]) })
			}
		}
		asked.Wait()
		for _, q := range packet {
			what := fmt.Sprintf("round %d, command %d with flags %#x, %d bytes at %d", round, q.kind, q.flags, q.length, q.off)
			checkEqual(t, what, q.err[0], q.err[1])
			if q.err[0] == nil && !bytes.Equal(q.read[0], q.read[1]) {
				t.Fatalf("%s: other data than nbdkit's", what)
			}
		}
	}
	checkEqual(t, "flush", [2]error{ours.flush(), theirs.flush()}, [2]error{})
	ours.close()
	theirs.close()
	m.stopLevel("target")
	sameFile(t, m.source.device, peer)
}
