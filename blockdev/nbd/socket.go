package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is the connection to a client. After the handshake it is detached: taken out of the runtime's poller, which would be woken by
// everything that arrives, beside the goroutine that it arrives for. A busy client is waited for in poll(2) instead, by a thread that
// has nothing else to do, and without sleeping at all (hotFor) where it usually asks again at once; where one request comes at a time that
// takes a third less of the processors. Who is silent for warmFor, or is one of many that are busy, is in the runtime's poller after all, by
// a second descriptor: so idle clients cost no threads, and many busy ones are waited for together.
//
// Read is for one goroutine at a time, Write and writev for another one; the rest may be called from anywhere. Over TLS nothing is
// detached.
type socket struct {
	net.Conn // until it is detached; its addresses and its deadline for writes are not asked for after that

	crowd    *crowd
	raw      syscall.RawConn
	deadline atomic.Int64 // for reads, when detached: Unix time in ns, 0 is none

	// Of Read.
	recv     func(fd uintptr) bool // tryRecv, bound once
	in       []byte                // what it reads into
	got      int                   // its result
	inErr    error
	hot      func(fd uintptr) bool // spins, bound once
	usual    time.Duration         // how long it waited for the last few requests, weighted
	warm     func(fd uintptr) bool // polls, bound once
	came     bool                  // its result
	recvCold func(fd uintptr) bool // tryRecv, until there is something; bound once
	parked   syscall.RawConn       // of cold
	span     int64                 // of the crowd, when it was last counted

	// Of Write and writev.
	transmit func(fd uintptr) bool // trySend, bound once
	tcp      bool
	out      []unix.Iovec // what it has still to send
	msg      unix.Msghdr  // for out
	outErr   error
	one      [1][]byte // for writev

	mu     sync.Mutex // guards what follows
	file   *os.File   // when detached: owns the descriptor
	cold   net.Conn   // in the runtime's poller; nil: in none
	closed bool
}

// crowd estimates how many sockets of a server are busy: how many waited for their client in a span of time, this one or the one before.
type crowd struct {
	span      atomic.Int64 // number of the present one
	now, last atomic.Int32
}

const crowdSpan = 50 * time.Millisecond

// count takes one that waits, which keeps in span when it was last counted, and returns how many there are.
func (c *crowd) count(span *int64) int32 {
	n := time.Now().UnixNano() / int64(crowdSpan)
	if before := c.span.Load(); before != n && c.span.CompareAndSwap(before, n) {
		now := c.now.Swap(0)
		if before != n-1 {
			now = 0
		}
		c.last.Store(now)
	}
	if *span != n {
		*span = n
		c.now.Add(1)
	}
	return max(c.now.Load(), c.last.Load())
}

// warmSeats is how many busy clients are waited for warm. Where there are more than processors to serve them, one wait for all of them costs
// less than one for each.
var warmSeats = int32(max(4, 2*runtime.NumCPU()))

// warmFor is longer than a client takes between two requests of which one depends on the other, and on what a disk has to do in between.
const warmFor = 20 * time.Millisecond

// A client that asks again as soon as it has its answer is waited for hot: without sleeping, which would cost its next request the time of a
// wakeup. Half of the processors are enough for that.
const hotFor = 50 * time.Microsecond

var hotSeats = int32(max(1, runtime.NumCPU()/2))

// prompt says whether the client usually asks within hotFor.
func (k *socket) prompt() bool { return k.usual < hotFor }

// waited takes how long a wait took. Who was slow all the time is prompt again after eight short waits.
func (k *socket) waited(took time.Duration) { k.usual += (min(took, 8*hotFor) - k.usual) / 4 }

// newSocket returns nc itself where there is no descriptor to wait for.
func newSocket(nc net.Conn, all *crowd) net.Conn {
	if _, ok := nc.(syscall.Conn); !ok {
		return nc
	}
	k := &socket{Conn: nc, crowd: all}
	_, k.tcp = nc.(*net.TCPConn)
	k.recv, k.transmit = k.tryRecv, k.trySend
	k.hot = func(fd uintptr) bool {
		k.got, k.inErr = spin(fd, k.in, hotFor, true)
		return true
	}
	k.recvCold = func(fd uintptr) bool { return k.tryRecv(fd) && !errors.Is(k.inErr, unix.EAGAIN) }
	k.warm = func(fd uintptr) bool {
		k.came = poll(fd, comes, k.patience()) || k.overdue()
		return true
	}
	return k
}

// comes are the events that a Read waits for.
const comes = unix.POLLIN | unix.POLLRDHUP

// detach is called between the handshake and the first request, when nobody reads or writes. On an error all stays as it was.
func (k *socket) detach() error {
	raw, err := k.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	fd, duped := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, duped = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if duped != nil {
		return os.NewSyscallError("fcntl", duped)
	}
	// A descriptor that blocks when os.File sees it stays out of the poller.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "NBD client")
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), file.Close())
	}
	own, err := file.SyscallConn()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errors.Join(net.ErrClosed, file.Close())
	}
	k.file, k.raw = file, own
	return k.Conn.Close() // its descriptor; the connection has another one
}

// Read reads what there is, waiting for the first byte until the deadline.
func (k *socket) Read(p []byte) (n int, err error) {
	if k.raw == nil {
		return k.Conn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	k.in = p
	if k.parked != nil {
		n, err = k.readCold()
	} else {
		n, err = k.readWarm()
	}
	k.in = nil
	return n, err
}

func (k *socket) readWarm() (int, error) {
	for {
		if k.overdue() {
			return 0, os.ErrDeadlineExceeded
		}
		if err := k.raw.Read(k.recv); err != nil {
			return 0, net.ErrClosed
		}
		if !errors.Is(k.inErr, unix.EAGAIN) {
			return k.received()
		}
		if busy := k.crowd.count(&k.span); busy <= warmSeats {
			began := time.Now()
			if busy <= hotSeats && k.prompt() {
				if err := k.raw.Read(k.hot); err != nil {
					return 0, net.ErrClosed
				}
				if !errors.Is(k.inErr, unix.EAGAIN) {
					k.waited(time.Since(began))
					return k.received()
				}
			}
			k.came = false
			if err := k.raw.Read(k.warm); err != nil {
				return 0, net.ErrClosed
			}
			k.waited(time.Since(began))
			if k.came {
				continue
			}
		}
		if err := k.cool(); err != nil {
			return 0, err
		}
		if k.parked != nil {
			return k.readCold()
		}
	}
}

func (k *socket) readCold() (int, error) {
	began := time.Now()
	if err := k.parked.Read(k.recvCold); errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, os.ErrDeadlineExceeded
	} else if err != nil {
		return 0, net.ErrClosed
	}
	if time.Since(began) < warmFor && k.crowd.count(&k.span) <= warmSeats {
		k.warmUp()
	}
	return k.received()
}

// received is the outcome of tryRecv.
func (k *socket) received() (int, error) {
	switch {
	case k.inErr != nil:
		return 0, os.NewSyscallError("recvfrom", k.inErr)
	case k.got == 0:
		return 0, io.EOF
	}
	return k.got, nil
}

func (k *socket) tryRecv(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&k.in[0])), uintptr(len(k.in)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			k.got, k.inErr = int(n), nil
			return true
		case unix.EINTR:
		default:
			k.got, k.inErr = 0, errno
			return true
		}
	}
}

// Write writes all of p.
func (k *socket) Write(p []byte) (int, error) {
	if k.raw == nil {
		return k.Conn.Write(p)
	}
	k.one[0] = p
	err := k.writev(k.one[:])
	k.one[0] = nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// writev writes all of bufs, when detached.
func (k *socket) writev(bufs [][]byte) error {
	all := k.out[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			all = append(all, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
		}
	}
	k.out = all
	defer func() {
		clear(all)
		k.out = all[:0]
	}()
	for len(k.out) > 0 {
		if err := k.raw.Write(k.transmit); err != nil {
			return net.ErrClosed
		}
		switch {
		case k.outErr == nil:
		case !errors.Is(k.outErr, unix.EAGAIN):
			return os.NewSyscallError("sendmsg", k.outErr)
		default:
			if err := k.drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxIovecs is IOV_MAX of Linux.
const maxIovecs = 1024

// Linux copies a large piece of memory into a TCP socket a sixth faster when it is all that a system call sends.
const sentAlone = 64 << 10

// next returns the pieces that go out by the next system call, at least one, and whether others follow at once: MSG_MORE keeps TCP from
// sending a small packet before them.
func (k *socket) next() (some []unix.Iovec, flags uintptr) {
	n := min(len(k.out), maxIovecs)
	if k.tcp {
		for i := range n {
			if k.out[i].Len >= sentAlone {
				n = max(i, 1)
				break
			}
		}
		if n < len(k.out) {
			flags = unix.MSG_MORE
		}
	}
	return k.out[:n], flags
}

func (k *socket) trySend(fd uintptr) bool {
	for len(k.out) > 0 {
		var n uintptr
		var errno syscall.Errno
		some, flags := k.next()
		if len(some) == 1 {
			n, _, errno = unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(some[0].Base)), uintptr(some[0].Len), flags, 0, 0)
		} else {
			k.msg.Iov, k.msg.Iovlen = &some[0], uint64(len(some))
			n, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&k.msg)), flags)
			k.msg.Iov = nil
		}
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			k.outErr = errno
			return true
		}
		for len(k.out) > 0 && uint64(n) >= k.out[0].Len {
			n -= uintptr(k.out[0].Len)
			k.out = k.out[1:]
		}
		if n > 0 {
			k.out[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(k.out[0].Base), n))
			k.out[0].Len -= uint64(n)
		}
	}
	k.outErr = nil
	return true
}

// cool has the runtime's poller wait for the client, by a descriptor of its own. Out of descriptors it is as it was, a little later.
func (k *socket) cool() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return net.ErrClosed
	}
	nc, err := net.FileConn(k.file)
	if err == nil {
		if k.parked, err = nc.(syscall.Conn).SyscallConn(); err == nil {
			k.cold = nc
			k.passDeadline()
			return nil
		}
		nc.Close()
	}
	time.Sleep(time.Millisecond)
	return nil
}

// warmUp takes the client out of the runtime's poller.
func (k *socket) warmUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cold != nil {
		k.cold.Close()
	}
	k.cold, k.parked = nil, nil
}

// drain waits until a client that reads slowly takes more. It is rare, and may take long.
func (k *socket) drain() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return net.ErrClosed
	}
	nc, err := net.FileConn(k.file)
	k.mu.Unlock()
	if err != nil { // out of descriptors, which passes
		time.Sleep(time.Millisecond)
		return nil
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Write(func(fd uintptr) bool { return poll(fd, unix.POLLOUT, 0) })
	}
	return errors.Join(err, nc.Close())
}

// passDeadline is called with mu held and cold set.
func (k *socket) passDeadline() {
	t := time.Time{}
	if at := k.deadline.Load(); at != 0 {
		t = time.Unix(0, at)
	}
	_ = k.cold.SetReadDeadline(t) // it fails when the connection is closed, which ends the wait
}

// SetReadDeadline ends a Read that waits: at once when it is parked, else within warmFor.
func (k *socket) SetReadDeadline(t time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil {
		return k.Conn.SetReadDeadline(t)
	}
	at := int64(0)
	if !t.IsZero() {
		at = max(t.UnixNano(), 1)
	}
	k.deadline.Store(at)
	if k.cold != nil {
		k.passDeadline()
	}
	return nil
}

// SetDeadline is that for reads, when detached.
func (k *socket) SetDeadline(t time.Time) error {
	k.mu.Lock()
	if k.file == nil {
		defer k.mu.Unlock()
		return k.Conn.SetDeadline(t)
	}
	k.mu.Unlock()
	return k.SetReadDeadline(t)
}

// patience is warmFor or what is left until the deadline.
func (k *socket) patience() time.Duration {
	if at := k.deadline.Load(); at != 0 {
		return min(warmFor, max(time.Until(time.Unix(0, at)), 0))
	}
	return warmFor
}

func (k *socket) overdue() bool {
	at := k.deadline.Load()
	return at != 0 && time.Now().UnixNano() >= at
}

// SyscallConn gives access to the descriptor.
func (k *socket) SyscallConn() (syscall.RawConn, error) {
	if k.raw != nil {
		return k.raw, nil
	}
	return k.Conn.(syscall.Conn).SyscallConn()
}

// CloseWrite says to the client that nothing more comes.
func (k *socket) CloseWrite() error {
	if k.raw == nil {
		if half, ok := k.Conn.(interface{ CloseWrite() error }); ok {
			return half.CloseWrite()
		}
		return errors.ErrUnsupported
	}
	return k.shutdown(unix.SHUT_WR)
}

func (k *socket) shutdown(how int) (err error) {
	if ctl := k.raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), how) }); ctl != nil {
		return ctl
	}
	return err
}

// Close ends the connection, and whoever waits for it.
func (k *socket) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	if k.file == nil {
		return k.Conn.Close()
	}
	_ = k.shutdown(unix.SHUT_RDWR) // wakes those who wait; it fails when the client has hung up already
	err := k.file.Close()
	if k.cold != nil {
		err = errors.Join(err, k.cold.Close())
		k.cold = nil
	}
	return err
}

// poll waits for events, or the end of the connection, in the kernel.
func poll(fd uintptr, events int16, limit time.Duration) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p[:], int((limit+time.Millisecond-1)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return n > 0 || err != nil
		}
	}
}
