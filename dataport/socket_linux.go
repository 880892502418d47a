package dataport

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

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

// setNotSentLow changes it.
func setNotSentLow(c net.Conn, bytes int) {
	if k, ok := c.(syscall.Conn); ok {
		if raw, err := k.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
			})
		}
	}
}
