//go:build !linux

package dataport

import (
	"net"
	"time"
)

// tuneSocket sets what a path wants of TCP where only the portable options are known.
func tuneSocket(c net.Conn, _ time.Duration) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
	}
}

// socketMTU is not known here.
func socketMTU(*net.TCPConn, bool) int { return 0 }

// setNotSentLow is not known here.
func setNotSentLow(net.Conn, int) {}
