package blockdev

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectors are kept from one pwritev to the next: unix.Pwritev makes new ones for every group of more than eight buffers.
var vectors = sync.Pool{New: func() any { return new([maxIOVec]unix.Iovec) }}

// pwritev is the system call. bufs are at most maxIOVec.
func pwritev(fd int, bufs [][]byte, off int64) (int, error) {
	pooled := vectors.Get().(*[maxIOVec]unix.Iovec)
	vs := pooled[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			v := unix.Iovec{Base: unsafe.SliceData(b)}
			v.SetLen(len(b))
			vs = append(vs, v)
		}
	}
	// The kernel takes the offset in two longs; where one is enough the other is zero.
	const longBits = unix.SizeofLong * 8
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(vs))), uintptr(len(vs)),
		uintptr(off), uintptr(uint64(off)>>(longBits-1)>>1), 0)
	clear(vs) // they are the callers' buffers
	vectors.Put(pooled)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
