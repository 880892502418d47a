package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is the connection to a client. After the handshake it is detached: taken out of the runtime's poller, which would be woken by
// everything that arrives, beside the goroutine that it arrives for. A busy client is waited for in poll(2) instead, by a thread that
// has nothing else to do; where one request comes at a time that takes a third less of the processors. Who is silent for warmFor is
// parked in the runtime's poller after all, so that idle clients cost no threads.
//
// Read is for one goroutine at a time, Write and writev for another one; the rest may be called from anywhere. Over TLS nothing is
// detached.
type socket struct {
	net.Conn // until it is detached; its addresses and its deadline for writes are not asked for after that

	seats    *atomic.Int32 // of those that wait warm, all of the server's
	raw      syscall.RawConn
	deadline atomic.Int64 // for reads, when detached: Unix time in ns, 0 is none

	// Of Read.
	recv  func(fd uintptr) bool // tryRecv, bound once
	in    []byte                // what it reads into
	got   int                   // its result
	inErr error
	comes waiting

	// Of Write and writev.
	transmit func(fd uintptr) bool // trySend, bound once
	out      []unix.Iovec          // what it has still to send
	outErr   error
	one      [1][]byte // for writev
	leaves   waiting

	mu     sync.Mutex // guards what follows
	file   *os.File   // when detached: owns the descriptor
	parked net.Conn   // a Read waits in it
	closed bool
}

// waiting is how one side waits warm.
type waiting struct {
	events int16
	lock   func(func(fd uintptr) bool) error // the descriptor's, of that side
	poll   func(fd uintptr) bool             // bound once
	over   bool                              // its result: it is worth another try
}

const (
	// warmFor is longer than a client takes between two requests of which one depends on the other, and on what a disk has to do in between.
	warmFor = 20 * time.Millisecond
	// warmSeats is how many may wait warm in a server: each is a thread.
	warmSeats = 32
)

// newSocket returns nc itself where there is no descriptor to wait for.
func newSocket(nc net.Conn, seats *atomic.Int32) net.Conn {
	if _, ok := nc.(syscall.Conn); !ok {
		return nc
	}
	k := &socket{Conn: nc, seats: seats}
	k.recv, k.transmit = k.tryRecv, k.trySend
	k.comes = waiting{events: unix.POLLIN | unix.POLLRDHUP, poll: func(fd uintptr) bool {
		k.comes.over = poll(fd, k.comes.events, k.patience()) || k.overdue()
		return true
	}}
	k.leaves = waiting{events: unix.POLLOUT, poll: func(fd uintptr) bool {
		k.leaves.over = poll(fd, k.leaves.events, warmFor)
		return true
	}}
	return k
}

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
	k.file, k.raw, k.comes.lock, k.leaves.lock = file, own, own.Read, own.Write
	return k.Conn.Close() // its descriptor; the connection has another one
}

// Read reads what there is, waiting for the first byte until the deadline.
func (k *socket) Read(p []byte) (int, error) {
	if k.raw == nil {
		return k.Conn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	k.in = p
	defer func() { k.in = nil }()
	for {
		if k.overdue() {
			return 0, os.ErrDeadlineExceeded
		}
		if err := k.raw.Read(k.recv); err != nil {
			return 0, net.ErrClosed
		}
		switch {
		case k.inErr == nil && k.got == 0:
			return 0, io.EOF
		case k.inErr == nil:
			return k.got, nil
		case !errors.Is(k.inErr, unix.EAGAIN):
			return 0, os.NewSyscallError("recvfrom", k.inErr)
		}
		if err := k.wait(&k.comes); err != nil {
			return 0, err
		}
	}
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

// writev writes all of bufs.
func (k *socket) writev(bufs [][]byte) error {
	if k.raw == nil {
		_, err := (*net.Buffers)(&bufs).WriteTo(k.Conn)
		return err
	}
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
			return os.NewSyscallError("writev", k.outErr)
		default:
			if err := k.wait(&k.leaves); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxIovecs is IOV_MAX of Linux.
const maxIovecs = 1024

func (k *socket) trySend(fd uintptr) bool {
	for len(k.out) > 0 {
		some := k.out[:min(len(k.out), maxIovecs)]
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&some[0])), uintptr(len(some)))
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

// wait returns when it is worth another try, or the deadline has passed.
func (k *socket) wait(w *waiting) error {
	if k.seats.Add(1) <= warmSeats {
		w.over = false
		err := w.lock(w.poll)
		k.seats.Add(-1)
		if err != nil {
			return net.ErrClosed
		}
		if w.over {
			return nil
		}
	} else {
		k.seats.Add(-1)
	}
	return k.park(w)
}

// park waits in the runtime's poller, by a descriptor of its own.
func (k *socket) park(w *waiting) error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return net.ErrClosed
	}
	nc, err := net.FileConn(k.file)
	if err != nil { // out of descriptors, which passes
		k.mu.Unlock()
		time.Sleep(time.Millisecond)
		return nil
	}
	if w == &k.comes {
		k.parked = nc
		k.passDeadline()
	}
	k.mu.Unlock()
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err == nil {
		look := func(fd uintptr) bool { return poll(fd, w.events, 0) }
		if w == &k.comes {
			err = raw.Read(look)
		} else {
			err = raw.Write(look)
		}
	}
	if w == &k.comes {
		k.mu.Lock()
		k.parked = nil
		k.mu.Unlock()
	}
	return errors.Join(err, nc.Close())
}

// passDeadline is called with mu held while a Read is parked.
func (k *socket) passDeadline() {
	t := time.Time{}
	if at := k.deadline.Load(); at != 0 {
		t = time.Unix(0, at)
	}
	_ = k.parked.SetReadDeadline(t) // it fails when the connection is closed, which ends the wait
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
	if k.parked != nil {
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
	_ = k.shutdown(unix.SHUT_RDWR) // wakes those in poll(2); it fails when the client has hung up already
	return k.file.Close()
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
