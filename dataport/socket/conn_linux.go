package socket

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

// Conn is a connection that can be detached; before that it is what New was given. Read and ReadVec are for one goroutine at a time, Write and
// Writev for another one; the rest may be called from anywhere.
type Conn struct {
	net.Conn // until it is detached; only its addresses are asked for after that

	crowd    *Crowd
	raw      syscall.RawConn
	deadline atomic.Int64 // for reads, when detached: Unix time in ns, 0 is none
	late     atomic.Int64 // for writes, likewise

	// Of Read and ReadVec.
	recv     func(fd uintptr) bool // tryRecv, bound once
	in       []byte                // what it reads into
	behind   []byte                // and then
	vec      [2]unix.Iovec         // of both
	got      int                   // its result
	inErr    error
	hot      func(fd uintptr) bool // spins, bound once
	usual    time.Duration         // how long it waited for the last few requests, weighted
	warm     func(fd uintptr) bool // polls, bound once
	came     bool                  // its result
	recvCold func(fd uintptr) bool // tryRecv, until there is something; bound once
	parked   syscall.RawConn       // of cold; changed by the reader alone, with mu held
	span     int64                 // of the crowd, when it was last counted
	idle     bool                  // see Expect

	// Of Write and Writev.
	transmit func(fd uintptr) bool // trySend, bound once
	writable func(fd uintptr) bool // polls, bound once
	tcp      bool
	alone    bool         // see SendLargeAlone
	out      []unix.Iovec // what it has still to send
	msg      unix.Msghdr  // for out
	sent     int
	outErr   error
	one      [1][]byte // for Writev

	mu       sync.Mutex // guards what follows
	file     *os.File   // when detached: owns the descriptor
	cold     net.Conn   // in the runtime's poller; nil: in none
	draining net.Conn   // in the runtime's poller, where the writer waits: cold, or one of its own
	lateAt   net.Conn   // the last one that had a deadline for writes set
	closed   bool
}

// warmFor is longer than a peer takes between two requests of which one depends on the other, and on what a disk has to do in between.
const warmFor = 20 * time.Millisecond

// A peer that asks again as soon as it has its answer is waited for hot: without sleeping, which would cost its next request the time of a wakeup.
const hotFor = 50 * time.Microsecond

// prompt says whether the peer usually asks within hotFor.
func (k *Conn) prompt() bool { return k.usual < hotFor }

// waited takes how long a wait took. Who was slow all the time is prompt again after eight short waits.
func (k *Conn) waited(took time.Duration) { k.usual += (min(took, 8*hotFor) - k.usual) / 4 }

// SendLargeAlone has every large piece go out over TCP by a system call of its own. That is for one large piece at a time: Linux copies it a
// sixth faster. A stream of them is a quarter slower for it.
func (k *Conn) SendLargeAlone() { k.alone = k.tcp }

// Expect says whether what is read next is worth a thread of its own, which it is until somebody says otherwise. For the reading goroutine.
func (k *Conn) Expect(busy bool) { k.idle = !busy }

// New returns a *Conn, or nc itself where there is no descriptor to wait for.
func New(nc net.Conn, all *Crowd) net.Conn {
	if _, ok := nc.(syscall.Conn); !ok {
		return nc
	}
	k := &Conn{Conn: nc, crowd: all}
	_, k.tcp = nc.(*net.TCPConn)
	k.recv, k.transmit = k.tryRecv, k.trySend
	k.writable = func(fd uintptr) bool { return Poll(fd, unix.POLLOUT, 0) }
	k.hot = func(fd uintptr) bool {
		k.got, k.inErr = Spin(fd, k.in, hotFor, true)
		return true
	}
	k.recvCold = func(fd uintptr) bool { return k.tryRecv(fd) && !errors.Is(k.inErr, unix.EAGAIN) }
	k.warm = func(fd uintptr) bool {
		k.came = Poll(fd, comes, k.patience()) || k.overdue()
		return true
	}
	return k
}

// comes are the events that a Read waits for.
const comes = unix.POLLIN | unix.POLLRDHUP

// Detach takes the connection out of the runtime's poller. It is called once, when nobody reads or writes, and forgets deadlines that were set
// before. On an error all stays as it was.
func (k *Conn) Detach() error {
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
	file := os.NewFile(uintptr(fd), "connection")
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
func (k *Conn) Read(p []byte) (n int, err error) {
	if k.raw == nil {
		return k.Conn.Read(p)
	}
	return k.read(p, nil)
}

// ReadVec is Read into first and then, by the same system call, into second. It reads to first alone before the connection is detached.
func (k *Conn) ReadVec(first, second []byte) (n int, err error) {
	if k.raw == nil {
		return k.Conn.Read(first)
	}
	return k.read(first, second)
}

func (k *Conn) read(p, behind []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	k.in, k.behind = p, behind
	if k.parked != nil {
		n, err = k.readCold()
	} else {
		n, err = k.readWarm()
	}
	k.in, k.behind = nil, nil
	return n, err
}

func (k *Conn) readWarm() (int, error) {
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
		if k.idle {
			// there is nothing to win
		} else if busy := k.crowd.count(&k.span); busy <= k.crowd.warmSeats {
			began := time.Now()
			if busy <= k.crowd.hotSeats && k.prompt() {
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

func (k *Conn) readCold() (int, error) {
	began := time.Now()
	if err := k.parked.Read(k.recvCold); errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, os.ErrDeadlineExceeded
	} else if err != nil {
		return 0, net.ErrClosed
	}
	if !k.idle && time.Since(began) < warmFor && k.crowd.count(&k.span) <= k.crowd.warmSeats {
		k.warmUp()
	}
	return k.received()
}

// received is the outcome of tryRecv.
func (k *Conn) received() (int, error) {
	switch {
	case k.inErr != nil:
		return 0, os.NewSyscallError("recvfrom", k.inErr)
	case k.got == 0:
		return 0, io.EOF
	}
	return k.got, nil
}

func (k *Conn) tryRecv(fd uintptr) bool {
	for {
		n, errno := k.receive(fd)
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

func (k *Conn) receive(fd uintptr) (n uintptr, errno syscall.Errno) {
	if len(k.behind) == 0 {
		n, _, errno = unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&k.in[0])), uintptr(len(k.in)), unix.MSG_DONTWAIT, 0, 0)
		return n, errno
	}
	k.vec = [2]unix.Iovec{{Base: &k.in[0], Len: uint64(len(k.in))}, {Base: &k.behind[0], Len: uint64(len(k.behind))}}
	n, _, errno = unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&k.vec)), 2)
	k.vec = [2]unix.Iovec{}
	return n, errno
}

// cool has the runtime's poller wait for the client, by a descriptor of its own. Out of descriptors it is as it was, a little later.
func (k *Conn) cool() error {
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
func (k *Conn) warmUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cold != nil {
		k.cold.Close()
	}
	k.cold, k.parked = nil, nil
}

// passDeadline is called with mu held and cold set.
func (k *Conn) passDeadline() {
	_ = k.cold.SetReadDeadline(timeOf(k.deadline.Load())) // it fails when the connection is closed, which ends the wait
}

// SetReadDeadline ends a Read that waits: at once when it is parked, else within warmFor.
func (k *Conn) SetReadDeadline(t time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil {
		return k.Conn.SetReadDeadline(t)
	}
	k.deadline.Store(instant(t))
	if k.cold != nil {
		k.passDeadline()
	}
	return nil
}

// SetDeadline is both.
func (k *Conn) SetDeadline(t time.Time) error {
	return errors.Join(k.SetReadDeadline(t), k.SetWriteDeadline(t))
}

// instant and timeOf keep a deadline in a number; 0 is none.
func instant(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixNano(), 1)
}

func timeOf(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// patience is warmFor or what is left until the deadline.
func (k *Conn) patience() time.Duration {
	if at := k.deadline.Load(); at != 0 {
		return min(warmFor, max(time.Until(time.Unix(0, at)), 0))
	}
	return warmFor
}

func (k *Conn) overdue() bool {
	at := k.deadline.Load()
	return at != 0 && time.Now().UnixNano() >= at
}

// SyscallConn gives access to the descriptor.
func (k *Conn) SyscallConn() (syscall.RawConn, error) {
	if k.raw != nil {
		return k.raw, nil
	}
	return k.Conn.(syscall.Conn).SyscallConn()
}

// CloseWrite says to the peer that nothing more comes.
func (k *Conn) CloseWrite() error {
	if k.raw == nil {
		if half, ok := k.Conn.(interface{ CloseWrite() error }); ok {
			return half.CloseWrite()
		}
		return errors.ErrUnsupported
	}
	return k.shutdown(unix.SHUT_WR)
}

func (k *Conn) shutdown(how int) (err error) {
	if ctl := k.raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), how) }); ctl != nil {
		return ctl
	}
	return err
}

// Close ends the connection, and whoever waits for it. What was written still goes out.
func (k *Conn) Close() error {
	return k.close(func() { _ = k.shutdown(unix.SHUT_RDWR) }) // wakes those who wait; it fails when the peer has hung up already
}

// Abort resets a connection of TCP: what was written and has not gone out does not, and the peer gets an error. Else it is Close.
func (k *Conn) Abort() error {
	if !k.tcp {
		return k.Close()
	}
	k.mu.Lock()
	if k.file == nil && !k.closed {
		_ = k.Conn.(*net.TCPConn).SetLinger(0)
	}
	k.mu.Unlock()
	return k.close(func() { _ = k.raw.Control(disconnect) })
}

// disconnect ends a connection as connect(2) tells: by an address of no family.
func disconnect(fd uintptr) {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); errno != 0 {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Shutdown(int(fd), unix.SHUT_RDWR)
	}
}

// close calls wake, which ends all waiting, when it is detached.
func (k *Conn) close(wake func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	if k.file == nil {
		return k.Conn.Close()
	}
	wake()
	err := k.file.Close()
	if k.cold != nil {
		err = errors.Join(err, k.cold.Close())
		k.cold = nil
	}
	return err
}

// Spin receives what is there, or comes within limit, without sleeping; EAGAIN when nothing does. None of its system calls can block, so the
// scheduler is not told of them, which would cost as much as they do. Other threads have their turns in between, other goroutines when share
// says so: what is on its way for certain is not worth that.
func Spin(fd uintptr, p []byte, limit time.Duration, share bool) (int, error) {
	for began := time.Now(); ; {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			return int(n), nil
		case errno != unix.EAGAIN && errno != unix.EINTR:
			return 0, errno
		case time.Since(began) > limit:
			return 0, unix.EAGAIN
		}
		if share {
			runtime.Gosched()
		}
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // perhaps it is the client that waits for this processor
	}
}

// Poll waits for events, or the end of the connection, in the kernel; it reports whether they came within limit.
func Poll(fd uintptr, events int16, limit time.Duration) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p[:], int((limit+time.Millisecond-1)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return n > 0 || err != nil
		}
	}
}
