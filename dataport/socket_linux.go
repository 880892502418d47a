package dataport

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notSentLowBytes keeps what the kernel holds unsent small, so that a ping that enters the socket is soon on the wire: a
// write blocks from there on, and what waits then waits in the path's queue, where small frames overtake it and from where
// it can still move to another path. It says nothing about what is under way, so it costs no speed, whatever the delay. On
// a slow path it would be much; there depth is what bounds it (meter.go).
const notSentLowBytes = 256 << 10

// tuneSocket sets what a path wants of TCP. An option that the kernel does not know is no error.
//
// SO_SNDBUF and SO_RCVBUF are left alone: setting either ends the kernel's tuning of it, which follows rate and delay up
// to net.ipv4.tcp_wmem and tcp_rmem, and a value set is bounded by net.core.wmem_max and rmem_max, mostly far below these.
// A link of 500 Mbit/s and 30 ms is full with the defaults of a plain kernel (make bench); where they do not suffice
// several paths do.
func tuneSocket(c net.Conn, userTimeout time.Duration) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetNoDelay(true)
	_ = t.SetKeepAlive(false) // heartbeats see more, and sooner
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowBytes)
		// A backstop only: the port's own thresholds come first, and end a path whose peer acknowledges TCP and nothing
		// else. It is above all of them, or the kernel would reset, as an error of another name, a path that is still judged.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

// socketMTU is that of the route of a connected socket, 0 when the kernel does not say.
func socketMTU(c *net.TCPConn, v6 bool) (mtu int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	_ = raw.Control(func(fd uintptr) {
		if n, err := unix.GetsockoptInt(int(fd), level, option); err == nil {
			mtu = n
		}
	})
	return mtu
}

// vectorReader is readv on a connection, within its read deadline. One goroutine uses it.
type vectorReader struct {
	raw  syscall.RawConn
	iov  [2][]byte
	call func(fd uintptr) bool // tries once
	n    int
	err  error
}

// newVectorReader returns nil when c is no TCP connection.
func newVectorReader(c net.Conn) *vectorReader {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	v := &vectorReader{raw: raw}
	v.call = func(fd uintptr) bool {
		for {
			v.n, v.err = unix.Readv(int(fd), v.iov[:])
			if !errors.Is(v.err, unix.EINTR) {
				return !errors.Is(v.err, unix.EAGAIN)
			}
		}
	}
	return v
}

// read fills first and then second with what there is, at least one byte.
func (v *vectorReader) read(first, second []byte) (int, error) {
	v.iov = [2][]byte{first, second}
	err := v.raw.Read(v.call)
	v.iov = [2][]byte{}
	switch {
	case err != nil:
		return 0, err
	case v.err != nil:
		return 0, os.NewSyscallError("readv", v.err)
	case v.n == 0:
		return 0, io.EOF
	}
	return v.n, nil
}
