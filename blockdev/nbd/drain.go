package nbd

import (
	"errors"
	"os"
	"time"
)

// A server that drains finishes what the device has. What comes after that is answered by how the client takes replies:
//
//	structured   ESHUTDOWN, until nothing is under way; then the connection is closed. libnbd and qemu tell their users so.
//	simple       nothing is answered, and as soon as all that the device has is, the connection is closed. So takes Linux it, for
//	             whom every error is an I/O error of the filesystem: it waits, and sends what had no answer again on the next
//	             connection. See attach.go.

// shutdownGrace is how long a connection without work stays open for requests that are on their way, to be told
// ESHUTDOWN.
const shutdownGrace = 50 * time.Millisecond

// hangUp closes a connection whose last reply was sent, and sees to it that this reply arrives: who closes a TCP socket with
// requests in it that were not read resets it, and what the client has not yet got of the replies is lost.
func (c *conn) hangUp() {
	half, ok := c.socket.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	unheard, until := make([]byte, 64<<10), time.Now().Add(goodbyeTimeout)
	for time.Now().Before(until) {
		c.socket.SetReadDeadline(until) // again when a kick came in between
		if _, err := c.socket.Read(unheard); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}
