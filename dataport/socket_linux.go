package dataport

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// notSentLowBytes keeps what the kernel holds unsent small, so that a ping that enters the socket is soon on the wire.
const notSentLowBytes = 256 << 10

// tuneSocket sets what a path wants of TCP. An option that the kernel does not know is no error.
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
		// A backstop only: the port's own thresholds come first, and end a path whose peer acknowledges TCP and nothing else.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}
