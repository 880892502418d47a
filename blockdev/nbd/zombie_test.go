package nbd

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// A client that has waited too long for an answer gives its connection up and sends the request again on another one
// (Linux does: nbd_xmit_timeout). The first one is then a zombie. When it is applied after the answer to the second, it may
// undo what the client wrote there meanwhile, and nobody would ever know.
//
// The server's part: what a connection that ended had not yet given to the device is dropped, and the device is given
// everything else in the order in which it was received. The device's part: it orders writes by when it was given
// them, however long it takes over them. The mirror's log does (LSN), and so does ordered below.

// ordered is a device that takes its time and still orders writes by when it was given them, as a log does.
type ordered struct {
	blockdev.Device
	hold chan struct{} // writes to the first block of the device return when it is closed

	mu     sync.Mutex // guards what follows
	next   int
	writer map[int64]int // per offset the place in the order of what is there
	held   int
}

func newOrdered() *ordered {
	return &ordered{Device: blockdev.NewMemory(mib, nil), hold: make(chan struct{}), writer: map[int64]int{}}
}

func (o *ordered) WriteBatch(ws []blockdev.Write) {
	o.mu.Lock()
	place := o.next
	o.next += len(ws)
	wait := false
	for i := range ws {
		wait = wait || ws[i].Offset == 0
	}
	if wait {
		o.held++
	}
	hold := o.hold
	o.mu.Unlock()
	if wait {
		<-hold
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range ws {
		if place+i < o.writer[ws[i].Offset] {
			continue // overtaken
		}
		o.writer[ws[i].Offset] = place + i
		_, ws[i].Err = o.Device.WriteAt(ws[i].Data, ws[i].Offset)
	}
}

func (o *ordered) stuck() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held
}

// given is how many writes the device has got.
func (o *ordered) given() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next
}

// release lets go what is held.
func (o *ordered) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.hold)
	o.hold, o.held = make(chan struct{}), 0
}

func (o *ordered) word(t *testing.T, off int64) string {
	t.Helper()
	p := make([]byte, 8)
	if _, err := o.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimRight(p, "\x00"))
}

func startTCP(t *testing.T, o Options, e Export) (*Server, string) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, done := NewServer(o, e), make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() { s.Close(); s.Wait(); <-done })
	return s, l.Addr().String()
}

func connectTCP(t *testing.T, address string) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	c := &raw{t, nc}
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.option(optionExportName)
	c.get(10)
	return c
}

// giveUp ends a connection as the kernel does, by shutdown; the descriptor stays. The kernel shuts the other direction, too,
// so that a reply would be answered with a reset: here the server gets no such hint.
func giveUp(t *testing.T, c *raw) {
	t.Helper()
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func wordWrite(cookie uint64, off int64, word string) []byte {
	return request(cmdWrite, 0, cookie, uint64(off), 8, append([]byte(word), make([]byte, 8-len(word))...))
}

func TestZombieIsNeverAppliedAfterItsSuccessor(t *testing.T) {
	const spot = 4096
	for _, tt := range []struct {
		name string
		// zombie leaves the first "old" at spot on its way: what it sends is all that the server gets of it.
		zombie func(c *raw, d *ordered)
	}{
		{"given to the device", func(c *raw, d *ordered) { c.put(append(wordWrite(1, 0, "hold"), wordWrite(2, spot, "old")...)) }},
		{"not read yet", func(c *raw, d *ordered) { // the server has stopped reading: all of its helpers are in the device
			for i := range uint64(maxHelpers + 1) {
				c.put(wordWrite(i, 0, "hold"))
				until(c.t, "the write reaches the device", func() bool { return d.stuck() > int(i) })
			}
			c.put(wordWrite(99, spot, "old"))
		}},
		{"half of it", func(c *raw, d *ordered) {
			c.put(append(wordWrite(1, 0, "hold"), wordWrite(2, spot, "old")[:requestSize+3]...))
		}},
		{"behind a large one that is not complete", func(c *raw, d *ordered) {
			c.put(wordWrite(1, 0, "hold"))
			c.put(request(cmdWrite, 0, 2, spot, 2<<18), []byte("old"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newOrdered()
			s, address := startTCP(t, Options{}, Export{Device: d, MultiConn: true})
			first := connectTCP(t, address)
			tt.zombie(first, d)
			until(t, "the device is busy", func() bool { return d.stuck() > 0 })
			// As long as a client waits at the least before it gives up; the server relies on more than this.
			time.Sleep(2 * staleAfter)
			giveUp(t, first)
			second := connectTCP(t, address)
			second.put(wordWrite(2, spot, "old"))
			second.expect(0, 2)
			second.put(wordWrite(3, spot, "new"))
			second.expect(0, 3)
			d.release()
			until(t, "the first connection has ended", func() bool { return s.Stats().Connections == 1 })
			if got := d.word(t, spot); got != "new" {
				t.Errorf("the device holds %q, the last write answered was \"new\"", got)
			}
		})
	}
}

// TestZombiesAtRandom: a client like the kernel's with several connections that it gives up at random, sending again
// elsewhere what had no answer. What it was answered last is what is there in the end.
func TestZombiesAtRandom(t *testing.T) {
	const spots, rounds = 8, 40
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	d := newOrdered()
	s, address := startTCP(t, Options{}, Export{Device: d, MultiConn: true})
	last, given := map[int64]string{}, 0
	for round := range rounds {
		old, again := connectTCP(t, address), connectTCP(t, address)
		var batch []byte
		var lost []int64
		if rng.IntN(2) == 0 {
			batch = wordWrite(1, 0, "hold")
			given++
		}
		for i := range 1 + rng.IntN(6) {
			off := int64(1+rng.IntN(spots)) * 4096
			batch = append(batch, wordWrite(uint64(100+i), off, fmt.Sprint("r", round, ".", i))...)
			lost = append(lost, off)
		}
		given += len(lost)
		if rng.IntN(2) == 0 { // the last one is only partly on its way
			batch = batch[:len(batch)-1-rng.IntN(30)]
			given--
		}
		old.put(batch)
		// A client gives up after a second at the least; the server has then read what it can read.
		until(t, "what is complete is in the device", func() bool { return d.given() == given })
		giveUp(t, old)
		for i, off := range lost { // each write again, then its successor
			again.put(wordWrite(1, off, fmt.Sprint("r", round, ".", i)))
			again.expect(0, 1)
			last[off] = fmt.Sprint("s", round, ".", i)
			again.put(wordWrite(2, off, last[off]))
			again.expect(0, 2)
		}
		given += 2 * len(lost)
		again.Close()
		d.release()
	}
	until(t, "all connections have ended", func() bool { return s.Stats().Connections == 0 })
	for off, want := range last {
		if got := d.word(t, off); got != want {
			t.Errorf("seed %d: at %d is %q, the last answered write was %q", seed, off, got, want)
		}
	}
}
