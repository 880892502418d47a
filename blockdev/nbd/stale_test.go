package nbd

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the server has of a connection that it did not look at for long, and that the client has closed meanwhile, is not
// run: the rest of a request whose beginning was read long ago, and what was not read at all. A connection that is
// only slow loses nothing. Every way by which bytes reach a request is gone through.
//
// All who may lead the connection are in the device (see ordered), so the last write stays where it is until they are let
// go. The client half-closes, so that no reply of the server meets a reset and gives the end away.
func TestStaleConnectionIsAskedFirst(t *testing.T) {
	const spot = 4096
	small := wordWrite(99, spot, "late")
	late := append([]byte("late"), make([]byte, bufferSize-4)...)
	middling, large := request(cmdWrite, 0, 99, spot, 200<<10, late[:200<<10]), request(cmdWrite, 0, 99, spot, bufferSize, late)
	p := newPKI(t)
	for _, tt := range []struct {
		name    string
		network string
		secure  bool
		last    []byte
		early   []int // bytes of the last write that were read long ago
	}{
		{"unix", "unix", false, small, []int{0, 10, requestSize, requestSize + 3}},
		{"TCP", "tcp", false, small, []int{0, 10, requestSize, requestSize + 3}},
		{"TLS", "tcp", true, small, []int{0, 10, requestSize, requestSize + 3}},
		{"unix, large", "unix", false, large, []int{0, 10, requestSize, requestSize + 3}},
		{"TCP, middling, on its way", "tcp", false, middling, []int{0, 10, requestSize, requestSize + 3}},
		{"TCP, large, on its way", "tcp", false, large, []int{0, 10, requestSize, requestSize + 3}},
	} {
		for _, early := range tt.early {
			for _, closes := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %d bytes read, closed %v", tt.name, early, closes), func(t *testing.T) {
					t.Parallel()
					d := newOrdered()
					o := p.options(true)
					if !tt.secure {
						o = Options{}
					}
					s, addr := start(t, o, Export{Device: d})
					if tt.network == "tcp" {
						s, addr = startTCP(t, o, Export{Device: d})
						narrow(t, s)
					}
					c, socket := dialFor(t, tt.network, addr), (*raw)(nil)
					c.greeting(clientFixedNewstyle | clientNoZeroes)
					if socket = c; tt.secure {
						c = c.secure(p)
					}
					c.option(optionExportName)
					c.get(10)
					for i := range maxHelpers + 1 {
						packet := wordWrite(uint64(i), 0, "hold")
						if i == maxHelpers {
							packet = append(packet, tt.last[:early]...)
						}
						c.put(packet)
						until(t, "the write reaches the device", func() bool { return d.stuck() == i+1 })
					}
					c.put(tt.last[early:])
					time.Sleep(2 * staleAfter) // at least; longer is as good
					if closes {
						giveUp(t, socket)
					}
					d.release()
					if !closes {
						seen := map[uint64]bool{}
						for range maxHelpers + 2 {
							errno, cookie := c.reply()
							if errno != 0 || seen[cookie] {
								t.Fatalf("error %d of %d", errno, cookie)
							}
							seen[cookie] = true
						}
						if got := d.word(t, spot); got != "late" {
							t.Errorf("the device holds %q", got)
						}
						return
					}
					until(t, "the connection has ended", func() bool { return s.Stats().Connections == 0 })
					if got := d.word(t, spot); got != "" {
						t.Errorf("%q was written for a client that is gone", got)
					}
				})
			}
		}
	}
}

// narrow makes the server's sockets take in less than a large write: the rest of it, and the end of the stream behind it, are still at
// the client when the server looks.
func narrow(t *testing.T, s *Server) {
	t.Helper()
	until(t, "the server listens", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.listeners) == 1
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		raw, err := l.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) })
		if err != nil || set != nil {
			t.Fatal(err, set)
		}
	}
}

// dialFor connects with room for a large write that the server does not read yet.
func dialFor(t *testing.T, network, addr string) *raw {
	t.Helper()
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(2 * bufferSize); err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	return &raw{t, nc}
}
