package nbd

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// Everything at once, by several connections, against a model: each has its own part of the device.
func TestRandomRequests(t *testing.T) {
	const part, conns, rounds = 3 * mib, 3, 150
	f, err := blockdev.OpenFile(t.TempDir()+"/device", blockdev.FileOptions{Create: true, Size: conns * part})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, path := start(t, Options{MaxMemoryBytes: 16 * mib, MaxPayloadBytes: 2 * mib}, Export{Device: f, MultiConn: true})
	seed := time.Now().UnixNano()
	t.Log("seed", seed)
	done := make(chan error, conns)
	for i := range conns {
		c := connect(t, path)
		c.SetDeadline(time.Now().Add(5 * time.Minute)) // hundreds of fdatasyncs
		rng := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
		go func() { done <- randomRequests(c, rng, uint64(i*part), part, rounds) }()
	}
	for range conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// randomRequests sends packets of non-overlapping requests and checks all replies before the next packet.
func randomRequests(c *raw, rng *rand.Rand, base uint64, part, rounds int) error {
	want := make([]byte, part)
	for round := range rounds {
		var packet []byte
		expect := map[uint64][]byte{}
		at := 0
		for cookie := uint64(round) << 32; at < part && len(expect) < 64; cookie++ {
			off := at + rng.IntN(part/8)
			n := 1 + rng.IntN(20000)
			if rng.IntN(10) == 0 {
				n = 1 + rng.IntN(mib)
			}
			if off+n > part {
				break
			}
			at = off + n
			expect[cookie] = nil
			flags := uint16(rng.IntN(2))
			switch rng.IntN(6) {
			case 0:
				packet = append(packet, request(cmdWriteZeroes, flags, cookie, base+uint64(off), uint32(n))...)
				clear(want[off:at])
			case 1:
				packet = append(packet, request(cmdTrim, flags, cookie, base+uint64(off), uint32(n))...)
				clear(want[off:at])
			case 2:
				packet = append(packet, request(cmdFlush, 0, cookie, 0, 0)...)
			case 3, 4:
				copy(want[off:at], pattern(n, byte(rng.Uint32())))
				packet = append(packet, request(cmdWrite, flags, cookie, base+uint64(off), uint32(n), want[off:at])...)
			default:
				expect[cookie] = want[off:at]
				packet = append(packet, request(cmdRead, 0, cookie, base+uint64(off), uint32(n))...)
			}
		}
		go c.Write(packet)
		for len(expect) > 0 {
			var head [replySize]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return err
			}
			errno, cookie := be32(head[4:]), be64(head[8:])
			data, ok := expect[cookie]
			if errno != 0 || !ok {
				return fmt.Errorf("round %d: reply to %x with %d", round, cookie, errno)
			}
			delete(expect, cookie)
			got := make([]byte, len(data))
			if _, err := io.ReadFull(c, got); err != nil {
				return err
			}
			if !bytes.Equal(got, data) {
				return fmt.Errorf("round %d: read %x differs", round, cookie)
			}
		}
	}
	return nil
}
