package socket

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Write writes all of p.
func (k *Conn) Write(p []byte) (int, error) {
	if k.raw == nil {
		return k.Conn.Write(p)
	}
	k.one[0] = p
	n, err := k.Writev(k.one[:])
	k.one[0] = nil
	return n, err
}

// Writev writes all of bufs, which it leaves as they are, and returns how many bytes of them went out. Before the connection is detached it is
// that of net.Buffers.
func (k *Conn) Writev(bufs [][]byte) (int, error) {
	if k.raw == nil {
		all := append(net.Buffers(nil), bufs...)
		n, err := all.WriteTo(k.Conn)
		return int(n), err
	}
	all := k.out[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			all = append(all, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
		}
	}
	k.out, k.sent = all, 0
	defer func() {
		clear(all)
		k.out = all[:0]
	}()
	for len(k.out) > 0 {
		if k.tardy() {
			return k.sent, os.ErrDeadlineExceeded
		}
		if err := k.raw.Write(k.transmit); err != nil {
			return k.sent, net.ErrClosed
		}
		switch {
		case k.outErr == nil:
		case !errors.Is(k.outErr, unix.EAGAIN):
			return k.sent, os.NewSyscallError("sendmsg", k.outErr)
		default:
			if err := k.drain(); err != nil {
				return k.sent, err
			}
		}
	}
	return k.sent, nil
}

// maxIovecs is IOV_MAX of Linux.
const maxIovecs = 1024

// sentAlone is what a large piece has, see SendLargeAlone.
const sentAlone = 64 << 10

// next returns the pieces that go out by the next system call, at least one, and whether others follow at once: MSG_MORE keeps TCP from
// sending a small packet before them.
func (k *Conn) next() (some []unix.Iovec, flags uintptr) {
	n := min(len(k.out), maxIovecs)
	if k.alone {
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

func (k *Conn) trySend(fd uintptr) bool {
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
		k.sent += int(n)
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

// drain waits until a peer that reads slowly takes more: where the reader is parked, else by a descriptor for this once.
func (k *Conn) drain() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return net.ErrClosed
	}
	at, raw, err := k.cold, k.parked, error(nil)
	own := at == nil
	if own {
		if at, err = net.FileConn(k.file); err != nil { // out of descriptors, which passes
			k.mu.Unlock()
			time.Sleep(time.Millisecond)
			return nil
		}
		raw, err = at.(syscall.Conn).SyscallConn()
	}
	if k.draining = at; k.late.Load() != 0 || k.lateAt == at {
		k.passLate()
	}
	k.mu.Unlock()
	if err == nil {
		// An error tells of a descriptor that the reader has closed, of the deadline, or of the end: the next write will see.
		_ = raw.Write(k.writable)
	}
	k.mu.Lock()
	k.draining = nil
	k.mu.Unlock()
	if own {
		err = errors.Join(err, at.Close())
	}
	return err
}

// passLate is called with mu held and draining set.
func (k *Conn) passLate() {
	_ = k.draining.SetWriteDeadline(timeOf(k.late.Load())) // it fails when the reader has closed it, which ends the wait
	k.lateAt = k.draining
}

// SetWriteDeadline ends a Write or Writev that waits, at once.
func (k *Conn) SetWriteDeadline(t time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil {
		return k.Conn.SetWriteDeadline(t)
	}
	k.late.Store(instant(t))
	if k.draining != nil {
		k.passLate()
	}
	return nil
}

// tardy says whether the deadline for writes has passed.
func (k *Conn) tardy() bool {
	at := k.late.Load()
	return at != 0 && time.Now().UnixNano() >= at
}
