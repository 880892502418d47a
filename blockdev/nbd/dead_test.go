package nbd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
)

// hooked calls a function once it has read a number of bytes, before it returns the last of them.
type hooked struct {
	net.Conn
	left int
	then func()
}

func (h *hooked) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if h.left -= n; h.left <= 0 && h.then != nil {
		h.then()
		h.then = nil
	}
	return n, err
}

// A connection dies while the server reads from it: nothing of what was read reaches the device.
func TestNothingRunsOnADeadConnection(t *testing.T) {
	for name, packet := range map[string][]byte{
		"write":       request(cmdWrite, 0, 1, 0, 4, []byte("late")),
		"large write": request(cmdWrite, 0, 1, 0, 2*bufferSize, make([]byte, 2*bufferSize)),
		"trim":        request(cmdTrim, 0, 1, 0, 512),
		"zeroes":      request(cmdWriteZeroes, cmdFlagNoHole, 1, 0, 512),
		"read":        request(cmdRead, 0, 1, 0, 512),
		"large read":  request(cmdRead, 0, 1, 0, mib),
		"cache":       request(cmdCache, 0, 1, 0, 512),
		"several":     append(request(cmdFlush, 0, 1, 0, 0), request(cmdWrite, 0, 1, 0, 4, []byte("late"))...),
	} {
		t.Run(name, func(t *testing.T) {
			d := &strict{Memory: blockdev.NewMemory(4*mib, nil), t: t}
			s, l := NewServer(Options{}, Export{Device: d}), newPipes()
			served := make(chan error)
			go func() { served <- s.Serve(context.Background(), l) }()
			ours, theirs := net.Pipe()
			shake := encode(clientFixedNewstyle|clientNoZeroes, option(optionExportName))
			// As a reply that cannot be sent does; a server that is closed would refuse it for that.
			l.c <- &hooked{ours, len(shake) + len(packet), func() { onlyConn(s).kill() }}
			c := &raw{t, theirs}
			c.SetDeadline(time.Now().Add(patience))
			c.get(18)
			c.put(shake)
			c.get(10)
			c.put(packet)
			c.ended()
			s.Close()
			s.Wait()
			<-served
			if len(d.seen) > 0 {
				t.Errorf("the device was asked for %v", d.seen)
			}
		})
	}
}

// onlyConn is the server's only connection.
func onlyConn(s *Server) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		return c
	}
	return nil
}

// What the device has not got when the connection ends, it never gets: the client may have sent it again elsewhere.
func TestDeadConnectionsRequestsAreDropped(t *testing.T) {
	for _, early := range []int{0, 10, requestSize} { // bytes of the last request that were read long ago
		t.Run(fmt.Sprint(early), func(t *testing.T) { deadConnection(t, early) })
	}
}

func deadConnection(t *testing.T, early int) {
	d := blockdev.NewMemory(mib, nil)
	slow, entered, leave := gate(d, blockdev.OpWrite, blockdev.Rule{Times: maxHelpers + 1})
	s, path := start(t, Options{}, Export{Device: slow})
	c := connect(t, path)
	last := request(cmdWrite, 0, 1000, 4096, 1, []byte{1})
	for i := range uint64(maxHelpers + 1) { // the last one has no other leader beside it
		packet := request(cmdWrite, 0, i, i, 1, []byte{1})
		if i == maxHelpers {
			packet = append(packet, last[:early]...)
		}
		c.put(packet)
		<-entered
	}
	c.put(last[early:]) // stays in the socket
	c.Close()
	// As long as a client needs to give up; shorter than that the check is not made.
	time.Sleep(2 * staleAfter)
	for range maxHelpers + 1 {
		leave <- nil
	}
	for s.Stats().Connections > 0 {
		runtime.Gosched()
	}
	var late [1]byte
	if d.ReadAt(late[:], 4096); late[0] != 0 {
		t.Fatal("a write of a dead connection was applied")
	}
}

// So many requests wait for a Sync that the connection is not read any more: it goes on when the Sync has ended, loses none of
// them, and can be closed meanwhile.
func TestManyFlushesWait(t *testing.T) {
	for _, closes := range []bool{false, true} {
		d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpSync, blockdev.Rule{Times: 1})
		s, path := start(t, Options{}, Export{Device: d})
		c := connect(t, path)
		c.put(request(cmdFlush, 0, 1, 0, 0))
		<-entered
		const many = maxPendingSyncs + 10
		c.put(bytes.Repeat(request(cmdFlush, 0, 2, 0, 0), many))
		served := onlyConn(s)
		until(t, "as many wait as may", func() bool {
			served.flushMu.Lock()
			defer served.flushMu.Unlock()
			return len(served.pending) > maxPendingSyncs
		})
		c.put(bytes.Repeat(request(cmdFlush, 0, 3, 0, 0), many))
		if closes {
			s.Close()
			leave <- nil
			s.Wait() // nobody waits for a flush that is never begun
			continue
		}
		leave <- nil
		answers := map[uint64]int{}
		for range 2*many + 1 {
			errno, cookie := c.reply()
			if answers[cookie]++; errno != 0 {
				t.Fatal(errno)
			}
		}
		if answers[1] != 1 || answers[2] != many || answers[3] != many {
			t.Errorf("%v", answers)
		}
		c.alive()
	}
}

// There is one large buffer, and it is in the device. A connection that waits for it holds up no other, and ends with the server
// although it does not get it.
func TestWaitingForMemoryEnds(t *testing.T) {
	const size = mib
	d, entered, leave := gate(blockdev.NewMemory(4*mib, nil), blockdev.OpWrite, blockdev.Rule{Times: 1})
	s, l := NewServer(Options{MaxPayloadBytes: size, MaxMemoryBytes: size}, Export{Device: d}), newPipes()
	served := make(chan error)
	go func() { served <- s.Serve(context.Background(), l) }()
	transmission := func() *raw {
		c := &raw{t, l.dial()}
		c.SetDeadline(time.Now().Add(patience))
		c.greeting(clientFixedNewstyle | clientNoZeroes)
		c.option(optionExportName)
		c.get(10)
		return c
	}
	large := request(cmdWrite, 0, 1, 0, size, make([]byte, size))
	holder, waiter, other := transmission(), transmission(), transmission()
	holder.put(large)
	<-entered
	waiter.put(large[:requestSize+10]) // all of it was read when this returns
	other.alive()
	s.Close()
	until(t, "only the one in the device is left", func() bool { return s.Stats().Connections == 1 })
	leave <- nil
	s.Wait()
	<-served
	for _, c := range []*raw{holder, waiter, other} {
		c.Close()
	}
}

// Large writes that end half-way give their memory back.
func TestHalfALargeWriteLeavesNothing(t *testing.T) {
	const size = mib
	s, path := start(t, Options{MaxPayloadBytes: size, MaxMemoryBytes: size}, Export{Device: blockdev.NewMemory(4*mib, nil)})
	large := request(cmdWrite, 0, 1, 0, size, make([]byte, size))
	for range 3 {
		c := connect(t, path)
		c.put(large[:len(large)/3])
		c.Close()
	}
	until(t, "they have ended", func() bool { return s.Stats().Connections == 0 })
	c := connect(t, path)
	go c.Write(large)
	c.expect(0, 1)
	c.alive()
}

// The payload of a large write has the time that a handshake has, and after it the connection may be silent for as long as it likes.
func TestPayloadDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := NewServer(Options{HandshakeTimeout: time.Minute}, Export{Device: blockdev.NewMemory(4*mib, nil)}), newPipes()
		go s.Serve(context.Background(), l)
		large := request(cmdWrite, 0, 1, 0, mib, make([]byte, mib))
		for _, part := range []int{requestSize, requestSize + 1, len(large) / 2, len(large) - 1, len(large)} {
			c := &raw{t, l.dial()}
			c.greeting(clientFixedNewstyle | clientNoZeroes)
			c.option(optionExportName)
			c.get(10)
			time.Sleep(time.Hour)
			c.put(large[:part])
			began := time.Now()
			if part < len(large) {
				c.ended()
				if took := time.Since(began); took != time.Minute {
					t.Errorf("%d of %d bytes: ended after %s", part, len(large), took)
				}
			} else {
				c.expect(0, 1)
				time.Sleep(24 * time.Hour)
				c.alive()
			}
			c.Close()
		}
		s.Close()
		s.Wait()
		synctest.Wait()
	})
}

// A slow request takes a helper, of which there are few, and gives it back.
func TestHelpersComeBack(t *testing.T) {
	d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpTrim, blockdev.Rule{})
	_, path := start(t, Options{MaxMemoryBytes: 1}, Export{Device: d})
	c := connect(t, path)
	for i := range uint64(2 * maxHelpers) {
		c.put(request(cmdTrim, 0, i, 0, 512))
		<-entered
		c.alive() // although that one is slow
		leave <- nil
		c.expect(0, i)
	}
}
