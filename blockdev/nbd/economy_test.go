package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"mirror-agent/blockdev"
)

// counting is a listener of pipes whose connections count: each Read and Write stands for a system call. A pipe gives a Read all of one
// Write that it has room for.
type counting struct {
	*pipes
	mu            sync.Mutex // guards what follows
	reads, writes []int      // bytes of each that has returned
}

type countingConn struct {
	net.Conn
	all *counting
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.pipes.Accept()
	return countingConn{c, l}, err
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	c.all.reads = append(c.all.reads, n)
	return n, err
}

func (c countingConn) Write(p []byte) (int, error) {
	c.all.mu.Lock()
	c.all.writes = append(c.all.writes, len(p))
	c.all.mu.Unlock()
	return c.Conn.Write(p)
}

// since returns the calls that were made after the last time.
func (l *counting) since() (reads, writes []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	reads, writes = l.reads, l.writes
	l.reads, l.writes = nil, nil
	return reads, writes
}

// startCounting serves a device and returns a client of it.
func startCounting(t *testing.T, e Export) (*counting, *raw) {
	t.Helper()
	s, l := NewServer(Options{HandshakeTimeout: 10 * patience}, e), &counting{pipes: newPipes()}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	c := &raw{t, l.dial()}
	t.Cleanup(func() { c.Close(); s.Close(); s.Wait(); <-served })
	c.SetDeadline(time.Now().Add(patience))
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.option(optionExportName)
	c.get(10)
	c.alive()
	l.since()
	return l, c
}

// packet is n requests of 4 KiB in one piece, at places that are no neighbours.
func packet(command uint16, n int) []byte {
	var p []byte
	for i := range n {
		p = append(p, request(command, 0, uint64(i), uint64(i)*8192, 4096)...)
		if command == cmdWrite {
			p = append(p, pattern(4096, byte(i))...)
		}
	}
	return p
}

// Many requests that come together cost one system call to receive and one to answer. After a large write each had cost two of its own, until
// the next small write.
func TestSystemCallsOfAPacket(t *testing.T) {
	const n = 60
	large := request(cmdWrite, 0, 1, 0, mib, make([]byte, mib))
	for name, command := range map[string]uint16{"reads": cmdRead, "writes": cmdWrite} {
		t.Run(name, func(t *testing.T) {
			l, c := startCounting(t, Export{Device: blockdev.NewMemory(4*mib, nil)})
			answers := n * replySize
			if command == cmdRead {
				answers += n * 4096
			}
			sent := packet(command, n)
			c.put(sent)
			c.get(answers)
			if reads, writes := l.since(); !slices.Equal(reads, []int{len(sent)}) || !slices.Equal(writes, []int{answers}) {
				t.Errorf("received by %v, answered by %v", reads, writes)
			}
			c.put(large)
			c.expect(0, 1)
			l.since()
			// A large write is followed by a large write, most likely, whose payload goes where it belongs.
			c.put(large)
			c.expect(0, 1)
			if reads, _ := l.since(); !slices.Equal(reads, []int{requestSize, mib}) {
				t.Errorf("a large write after another is received by %v", reads)
			}
			go c.Write(sent) // it may be received in two pieces, the first of which is answered before the second
			c.get(answers)
			if reads, writes := l.since(); len(reads) > 3 || len(writes) > 2 {
				t.Errorf("after a large write: received by %v, answered by %v", reads, writes)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		l, c := startCounting(t, Export{Device: blockdev.NewMemory(4*mib, nil)})
		c.put(large)
		c.expect(0, 1)
		l.since()
		c.put(request(cmdWrite, 0, 2, 4*mib, 32*mib, make([]byte, 32*mib)))
		c.expect(errnoNoSpace, 2)
		if reads, _ := l.since(); len(reads) > 32*mib/bufferSize+2 {
			t.Errorf("a refused write of 32 MiB is thrown away by %d calls", len(reads))
		}
	})
}

// groups is a device that knows the largest group that it was given.
type groups struct {
	*blockdev.Memory
	largest int
}

func (g *groups) WriteBatch(ws []blockdev.Write) {
	g.largest = max(g.largest, len(ws))
	blockdev.ApplyBatch(g.Memory, ws)
}

// A buffer full of headers made a connection keep 1.3 MiB that no limit counted. What runs at once is bounded now, and counted.
func TestABatchIsBounded(t *testing.T) {
	const n = bufferSize / requestSize
	d := &groups{Memory: blockdev.NewMemory(mib, nil)}
	_, c := startCounting(t, Export{Device: d})
	var all []byte
	for i := range uint64(n) {
		all = append(all, request(cmdTrim, 0, i, 0, 512)...)
	}
	c.put(all)
	for i := range uint64(n) {
		c.expect(0, i)
	}
	c.alive()
	if d.largest != maxBatch {
		t.Errorf("%d requests came to the device as groups of up to %d", n, d.largest)
	}

	s := NewServer(Options{}, Export{Device: d})
	nc, _ := net.Pipe()
	alone := newConn(s, nc)
	e, err := s.exports[0].negotiated(false, false)
	if err != nil {
		t.Fatal(err)
	}
	alone.export, alone.device = e, d
	w := s.memory.work()
	for _, command := range []uint16{cmdTrim, cmdRead, cmdFlush} {
		p := request(command, 0, 1, 0, 0)
		w.pos, w.end = 0, copy(w.in, bytes.Repeat(p, n))
		alone.parse(w)
		if !w.full || len(w.group)+len(w.reads)+len(w.flushes) != maxBatch || w.pos != maxBatch*requestSize {
			t.Errorf("command %d: a batch of %d, %d, %d", command, len(w.group), len(w.reads), len(w.flushes))
		}
		w.clearGroup()
		w.reads, w.flushes = w.reads[:0], w.flushes[:0]
	}
	has := cap(w.group)*int(unsafe.Sizeof(blockdev.Write{})) + cap(w.origins)*int(unsafe.Sizeof(origin{})) +
		cap(w.reads)*int(unsafe.Sizeof(readRequest{})) + cap(w.flushes)*int(unsafe.Sizeof(syncRequest{}))
	if has > batchSize {
		t.Errorf("full batches take %d bytes of a pair, counted are %d", has, batchSize)
	}
}

// In the usual case nothing is allocated per request.
func TestAllocationsOfAPacket(t *testing.T) {
	const n, rounds, warmUp = 60, 200, 20
	_, path := start(t, Options{}, Export{Device: blockdev.NewMemory(4*mib, nil)})
	for name, command := range map[string]uint16{"reads": cmdRead, "writes": cmdWrite} {
		c := connect(t, path)
		sent := packet(command, n)
		answers := make([]byte, n*replySize)
		if command == cmdRead {
			answers = make([]byte, n*(replySize+4096))
		}
		var before, after runtime.MemStats
		for i := range warmUp + rounds {
			if i == warmUp {
				runtime.ReadMemStats(&before)
			}
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, answers); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if made := after.Mallocs - before.Mallocs; made*10 > rounds*n {
			t.Errorf("%d %s made %d allocations", rounds*n, name, made)
		}
	}
}
