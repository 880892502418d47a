package nbd

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// Export is a device under a name.
type Export struct {
	// Name by which clients ask for it and Description for people, at most 4096 bytes each.
	Name, Description string
	// Device is what is served. Its Sync must cover the writes of all connections.
	Device blockdev.Device
	// ReadOnly refuses every change with EPERM.
	ReadOnly bool
	// MultiConn tells clients that they may use several connections at once (CAN_MULTI_CONN).
	MultiConn bool
	// BlockMin is the smallest unit of offset and length in bytes, a power of two up to 64 KiB; 0 is 1.
	// BlockPreferred is what works best, a power of two; 0 is 4096.
	BlockMin, BlockPreferred uint32
}

// export is an Export as one connection negotiated it.
type export struct {
	device         blockdev.Device
	size           atomic.Uint64 // bytes, as far as the connection knows; see covers
	readOnly       bool
	structured     bool // replies may be structured
	allocation     bool // BLOCK_STATUS may be asked for
	fastZero       bool // the device knows what it can zero fast
	finder         blockdev.DataFinder
	prefetcher     blockdev.Prefetcher
	foreseer       blockdev.Foreseer
	blockMin       uint32
	blockPreferred uint32
	flags          uint16
}

// check panics on an export that no client could use: that is a mistake in the program, not of a user.
func (e *Export) check() {
	power := func(n uint32) bool { return n == 0 || bits.OnesCount32(n) == 1 }
	switch {
	case e.Device == nil:
		panic(fmt.Sprintf("nbd: export %q has no device", e.Name))
	case len(e.Name) > maxNameSize || len(e.Description) > maxNameSize:
		panic("nbd: the name or description of an export is longer than 4096 bytes")
	case !power(e.BlockMin) || e.BlockMin > maxMinimumBlock || !power(e.BlockPreferred):
		panic(fmt.Sprintf("nbd: export %q: block sizes %d and %d are not powers of two in range", e.Name, e.BlockMin, e.BlockPreferred))
	}
}

func (e *Export) negotiated(structured, allocation bool) (*export, error) {
	size, err := e.Device.Size()
	if err != nil {
		return nil, fmt.Errorf("size of export %q: %w", e.Name, err)
	}
	n := &export{
		device: e.Device, readOnly: e.ReadOnly, structured: structured, allocation: allocation,
		blockMin: max(e.BlockMin, 1), blockPreferred: e.BlockPreferred,
		flags: protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes |
			flagSendFastZero,
	}
	n.size.Store(uint64(size))
	n.finder, _ = e.Device.(blockdev.DataFinder)
	n.foreseer, _ = e.Device.(blockdev.Foreseer)
	_, n.fastZero = e.Device.(blockdev.FastZeroer)
	if n.prefetcher, _ = e.Device.(blockdev.Prefetcher); n.prefetcher != nil {
		n.flags |= flagSendCache
	}
	if structured {
		n.flags |= flagSendDF
	}
	if n.blockPreferred == 0 {
		n.blockPreferred = preferredBlock
	}
	n.blockPreferred = max(n.blockPreferred, n.blockMin, 512)
	if e.ReadOnly {
		n.flags |= flagReadOnly
	}
	if e.MultiConn {
		n.flags |= protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	}
	return n, nil
}

// covers says whether the range lies on the device. One that became larger is seen to be by the first request beyond: the
// client was told by another connection, since NBD has no way to tell it by this one.
func (e *export) covers(off, length uint64) bool {
	for range 2 {
		if size := e.size.Load(); off <= size && length <= size-off {
			return true
		}
		now, err := e.device.Size()
		if err != nil || uint64(now) <= e.size.Load() {
			return false
		}
		e.size.Store(uint64(now))
	}
	return false
}
