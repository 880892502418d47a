package nbd

import (
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"mirror-agent/blockdev"
)

// bufferSize is that of the buffers that requests are read into and replies are gathered in. One read(2) takes in
// 60 writes of 4 KiB.
const bufferSize = 256 << 10

// maxBatch is how many requests are run at once; the buffer has room for nine times as many that have no payload. batchSize is what a pair
// has for them, in bytes, at most.
const (
	maxBatch  = 1024
	batchSize = 256 << 10
)

// memory hands out the buffers of all connections. Every connection has one pair of small buffers; further pairs, for its
// helpers, and large buffers are limited apart from each other, so that those who hold small ones while they wait for a
// large one can never keep it from being free: who holds a large one waits for the socket and the device only.
type memory struct {
	helpers *semaphore.Weighted // pairs
	big     *semaphore.Weighted // bytes
	share   int64               // of big, bytes, that one connection has at most
	pool    sync.Pool           // of *work
	sizes   [26]sync.Pool       // of *[]byte, by log2 of the size
}

func newMemory(o Options) *memory {
	const pair = 2*bufferSize + batchSize
	helpers := max(o.MaxMemoryBytes/2/pair-int64(o.MaxConnections), maxHelpers)
	big := max(o.MaxMemoryBytes/2, int64(roundUp(int(o.MaxPayloadBytes))))
	share := max(big/4, int64(roundUp(int(o.MaxPayloadBytes))))
	return &memory{helpers: semaphore.NewWeighted(helpers), big: semaphore.NewWeighted(big), share: share}
}

// work is what a goroutine needs that reads and runs requests.
type work struct {
	in       []byte // what was read from the socket; [pos:end] is not parsed yet
	pos, end int
	out      []byte // replies; [:sent] are already with the goroutine that took over

	sent    int
	group   []blockdev.Write // writes, zeroes, trims of this batch; Data points into in
	origins []origin         // of group, same index
	reads   []readRequest    // of this batch: what changes nothing
	wrote   bool             // writes were run whose answers go out next
	began   time.Time        // when the last of this batch was received
	next    int              // the first of reads that was not begun
	flushes []syncRequest    // of this batch

	stop  cause // why no more is parsed
	full  bool  // there may be more requests in the buffer: the batch was full
	large largeWrite

	extents []extent // of the request that runs

	dataFrom, dataTo uint64 // all of it was data when it was looked at last

	heads  []byte   // headers of a large read, for as many extents as it may have
	vector [][]byte // what goes out with it
}

type origin struct {
	cookie    uint64
	command   uint16
	fua, fast bool
}

// readRequest is a READ, BLOCK_STATUS or CACHE.
type readRequest struct {
	cookie, offset uint64
	length         uint32
	command, flags uint16
}

// largeWrite is a write whose payload does not fit into the buffer.
type largeWrite struct {
	origin
	offset uint64
	length uint32
}

func (m *memory) work() *work {
	if w, ok := m.pool.Get().(*work); ok {
		return w
	}
	return &work{
		in: make([]byte, bufferSize), out: make([]byte, 0, bufferSize),
		heads: make([]byte, 0, maxReadExtents*holeChunkSize),
	}
}

func (m *memory) release(w *work) {
	w.pos, w.end, w.sent, w.next, w.stop = 0, 0, 0, 0, goOn
	w.dataFrom, w.dataTo = 0, 0 // the next connection may have another device
	w.out, w.reads, w.flushes = w.out[:0], w.reads[:0], w.flushes[:0]
	w.clearGroup()
	m.pool.Put(w)
}

// clearGroup forgets the writes and with them the pointers to their data.
func (w *work) clearGroup() {
	clear(w.group)
	w.group, w.origins = w.group[:0], w.origins[:0]
}

// largeBuffer returns n bytes for which there is room: big was acquired.
func (m *memory) largeBuffer(n int) *[]byte {
	size := roundUp(n)
	b, ok := m.sizes[bits.Len(uint(size))-1].Get().(*[]byte)
	if !ok {
		p := make([]byte, size)
		b = &p
	}
	*b = (*b)[:n]
	return b
}

func (m *memory) releaseLarge(b *[]byte) {
	size := cap(*b)
	m.sizes[bits.Len(uint(size))-1].Put(b)
	m.big.Release(int64(size))
}

// roundUp returns the power of two that holds n bytes, at least bufferSize.
func roundUp(n int) int {
	return max(1<<bits.Len(uint(max(n, 1)-1)), bufferSize)
}
