package nbd

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/dataport/socket"
)

// impatience is how long the rest of a request is waited for without giving the processor up for good. Clients send
// header and payload by a system call each, so the rest is microseconds away; being put to sleep and woken up costs more.
const impatience = 20 * time.Microsecond

// poller reads from a socket without waiting.
type poller struct {
	raw syscall.RawConn
	run func(fd uintptr) bool // receive, bound once
	p   []byte                // what the call that runs reads into
	n   int                   // its result
}

// newPoller returns nil for what is not a socket: TLS, a pipe.
func newPoller(nc net.Conn) *poller {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	r := &poller{raw: raw}
	r.run = r.receive
	return r
}

// read returns 0 when nothing comes, also at the end of the stream and on errors: the one who reads on will see.
func (r *poller) read(p []byte) int {
	r.p, r.n = p, 0
	if len(p) > 0 {
		_ = r.raw.Read(r.run)
	}
	r.p = nil
	return r.n
}

// receive always says that it is done, so its caller does not wait.
func (r *poller) receive(fd uintptr) bool {
	r.n, _ = socket.Spin(fd, r.p, impatience, false)
	return true
}

// waiting says whether there is something to read.
func (r *poller) waiting() (is bool) {
	_ = r.raw.Control(func(fd uintptr) { is = socket.Poll(fd, unix.POLLIN, 0) })
	return is
}
