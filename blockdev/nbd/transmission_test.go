package nbd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

const mib = 1 << 20

func TestErrorCodes(t *testing.T) {
	const size = 8 * mib
	fail := func(op blockdev.Op, err error) *blockdev.Faulty {
		return blockdev.NewFaulty(blockdev.NewMemory(size, nil), blockdev.Rule{Op: op, Err: err})
	}
	good := blockdev.NewMemory(size, nil)
	data := make([]byte, 4096)
	for _, c := range []struct {
		name    string
		export  Export
		request []byte
		want    uint32
	}{
		{"unknown command", Export{Device: good}, request(77, 0, 1, 0, 4096), 22},
		{"block status", Export{Device: good}, request(7, 0, 1, 0, 4096), 22},
		{"cache", Export{Device: good}, request(cmdCache, 0, 1, 0, 4096), 0},
		{"cache with a flag", Export{Device: good}, request(cmdCache, 1<<3, 1, 0, 4096), 22},
		{"cache outside", Export{Device: good}, request(cmdCache, 0, 1, size, 1), 22},
		{"cache of a device that has none", Export{Device: plain{good}}, request(cmdCache, 0, 1, 0, 4096), 22},
		{"read with an unknown flag", Export{Device: good}, request(cmdRead, 1<<9, 1, 0, 4096), 22},
		{"read with DF", Export{Device: good}, request(cmdRead, 1<<2, 1, 0, 4096), 22},
		{"write with an unknown flag", Export{Device: good}, request(cmdWrite, 1<<1, 1, 0, 4096, data), 22},
		{"fast zero", Export{Device: good}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 0},
		{"fast zero without a hole", Export{Device: good}, request(cmdWriteZeroes, cmdFlagFastZero|cmdFlagNoHole, 1, 0, 4096), 0},
		{"fast zero of a device that does not know", Export{Device: plain{good}}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 95},
		{"fast zero that is not fast", Export{Device: fail(blockdev.OpTrim, syscall.EOPNOTSUPP)}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 95},
		{"fast zero of a device without, wrapped", Export{Device: blockdev.NewFaulty(plain{good})}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 95},
		{"fast zero EIO", Export{Device: fail(blockdev.OpTrim, syscall.EIO)}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 5},
		{"fast zero outside", Export{Device: plain{good}}, request(cmdWriteZeroes, cmdFlagFastZero, 1, size, 1), 28},
		{"fast zero read-only", Export{Device: good, ReadOnly: true}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 4096), 1},
		{"zero that is not supported is not refused as slow", Export{Device: fail(blockdev.OpTrim, syscall.EOPNOTSUPP)}, request(cmdWriteZeroes, 0, 1, 0, 4096), 5},
		{"fast write", Export{Device: good}, request(cmdWrite, cmdFlagFastZero, 1, 0, 4096, data), 22},
		{"trim with NO_HOLE", Export{Device: good}, request(cmdTrim, cmdFlagNoHole, 1, 0, 4096), 22},
		{"flush with an offset", Export{Device: good}, request(cmdFlush, 0, 1, 1, 0), 22},
		{"flush with a length", Export{Device: good}, request(cmdFlush, 0, 1, 0, 1), 22},
		{"read outside", Export{Device: good}, request(cmdRead, 0, 1, size-512, 1024), 22},
		{"read far outside", Export{Device: good}, request(cmdRead, 0, 1, ^uint64(0), 1), 22},
		{"read around 2^64", Export{Device: good}, request(cmdRead, 0, 1, ^uint64(0)-511, 1024), 22},
		{"trim outside", Export{Device: good}, request(cmdTrim, 0, 1, size, 512), 22},
		{"write outside", Export{Device: good}, request(cmdWrite, 0, 1, size-512, 4096, data), 28},
		{"large write outside", Export{Device: good}, request(cmdWrite, 0, 1, size-512, mib, make([]byte, mib)), 28},
		{"zero outside", Export{Device: good}, request(cmdWriteZeroes, 0, 1, 0, size+1), 28},
		{"read too large", Export{Device: good}, request(cmdRead, 0, 1, 0, 32*mib+1), 22},
		{"read of 4 GiB", Export{Device: good}, request(cmdRead, 0, 1, 0, ^uint32(0)), 22},
		{"write too large", Export{Device: good}, request(cmdWrite, 0, 1, 0, 32*mib+1, make([]byte, 32*mib+1)), 22},
		{"misaligned read", Export{Device: good, BlockMin: 512}, request(cmdRead, 0, 1, 256, 512), 22},
		{"misaligned write", Export{Device: good, BlockMin: 512}, request(cmdWrite, 0, 1, 0, 100, data[:100]), 22},
		{"read-only write", Export{Device: good, ReadOnly: true}, request(cmdWrite, 0, 1, 0, 4096, data), 1},
		{"read-only zero", Export{Device: good, ReadOnly: true}, request(cmdWriteZeroes, 0, 1, 0, 4096), 1},
		{"read-only trim", Export{Device: good, ReadOnly: true}, request(cmdTrim, 0, 1, 0, 4096), 1},
		{"read-only flush", Export{Device: good, ReadOnly: true}, request(cmdFlush, 0, 1, 0, 0), 0},
		{"read EIO", Export{Device: fail(blockdev.OpRead, syscall.EIO)}, request(cmdRead, 0, 1, 4096, 4096), 5},
		{"large read EIO", Export{Device: fail(blockdev.OpRead, syscall.EIO)}, request(cmdRead, 0, 1, 4096, 4*mib), 5},
		{"read strange error", Export{Device: fail(blockdev.OpRead, io.ErrUnexpectedEOF)}, request(cmdRead, 0, 1, 4096, 4096), 5},
		{"read outside, says the device", Export{Device: fail(blockdev.OpRead, blockdev.ErrOutOfRange)}, request(cmdRead, 0, 1, 4096, 4096), 22},
		{"write EIO", Export{Device: fail(blockdev.OpWrite, syscall.EIO)}, request(cmdWrite, 0, 1, 0, 4096, data), 5},
		{"write ENOSPC", Export{Device: fail(blockdev.OpWrite, fmt.Errorf("write: %w", syscall.ENOSPC))}, request(cmdWrite, 0, 1, 0, 4096, data), 28},
		{"large write ENOSPC", Export{Device: fail(blockdev.OpWrite, syscall.ENOSPC)}, request(cmdWrite, 0, 1, 0, mib, make([]byte, mib)), 28},
		{"write outside, says the device", Export{Device: fail(blockdev.OpWrite, blockdev.ErrOutOfRange)}, request(cmdWrite, 0, 1, 0, 4096, data), 28},
		{"write read-only, says the device", Export{Device: fail(blockdev.OpWrite, blockdev.ErrReadOnly)}, request(cmdWrite, 0, 1, 0, 4096, data), 1},
		{"write shutting down", Export{Device: fail(blockdev.OpWrite, blockdev.ErrShutdown)}, request(cmdWrite, 0, 1, 0, 4096, data), 108},
		{"flush EIO", Export{Device: fail(blockdev.OpSync, syscall.EIO)}, request(cmdFlush, 0, 1, 0, 0), 5},
		{"FUA write whose sync fails", Export{Device: fail(blockdev.OpSync, syscall.EIO)}, request(cmdWrite, cmdFlagFUA, 1, 0, 4096, data), 5},
		{"FUA write that fails", Export{Device: fail(blockdev.OpWrite, syscall.ENOSPC)}, request(cmdWrite, cmdFlagFUA, 1, 0, 4096, data), 28},
		{"trim EIO", Export{Device: fail(blockdev.OpTrim, syscall.EIO)}, request(cmdTrim, 0, 1, 0, 4096), 5},
		{"zero that may be a hole EIO", Export{Device: fail(blockdev.OpTrim, syscall.EIO)}, request(cmdWriteZeroes, 0, 1, 0, 4096), 5},
		{"zero that may not be a hole", Export{Device: fail(blockdev.OpTrim, syscall.EIO)}, request(cmdWriteZeroes, cmdFlagNoHole, 1, 0, 4096), 0},
		{"zero ENOSPC", Export{Device: fail(blockdev.OpZero, syscall.ENOSPC)}, request(cmdWriteZeroes, cmdFlagNoHole, 1, 0, 4096), 28},
		{"zero of everything", Export{Device: good}, request(cmdWriteZeroes, 0, 1, 0, size), 0},
		{"trim of nothing", Export{Device: good}, request(cmdTrim, 0, 1, 0, 0), 0},
		{"write of nothing", Export{Device: good}, request(cmdWrite, 0, 1, size, 0), 0},
		{"read of nothing", Export{Device: good}, request(cmdRead, 0, 1, 0, 0), 0},
		{"FUA on a read is ignored", Export{Device: good}, request(cmdRead, cmdFlagFUA, 1, 0, 0), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path := start(t, Options{}, c.export)
			client := connect(t, path)
			go client.Write(c.request)
			client.expect(c.want, 1)
			client.put(request(cmdFlush, 0, 2, 5, 5)) // the connection lives and stands at the right byte
			client.expect(22, 2)
		})
	}
}

func TestReadsAndWrites(t *testing.T) {
	const size = 40 * mib
	d := blockdev.NewMemory(size, nil)
	s, path := start(t, Options{}, Export{Device: d, MultiConn: true})
	c := connect(t, path)
	for i, n := range []int{1, 511, 4096, bufferSize - requestSize - 1, bufferSize - requestSize, bufferSize - requestSize + 1, bufferSize, mib + 3, 32 * mib} {
		data, off := pattern(n, byte(i)), uint64(i*777)
		go c.Write(request(cmdWrite, uint16(i&1), 1, off, uint32(n), data))
		c.expect(0, 1)
		c.put(request(cmdRead, 0, 2, off, uint32(n)))
		c.expect(0, 2)
		if !bytes.Equal(c.get(n), data) {
			t.Fatalf("%d bytes read back differ", n)
		}
	}
	c.put(request(cmdWriteZeroes, 0, 3, 1000, 5000))
	c.expect(0, 3)
	c.put(request(cmdTrim, cmdFlagFUA, 4, 7000, 5000))
	c.expect(0, 4)
	other := connect(t, path)
	other.put(request(cmdRead, 0, 5, 1000, 11000))
	other.expect(0, 5)
	p := other.get(11000)
	if bytes.Count(p[:5000], []byte{0}) != 5000 || bytes.Count(p[6000:], []byte{0}) != 5000 || bytes.Count(p[5000:6000], []byte{0}) > 100 {
		t.Fatal("zeroes are not where they should be")
	}
	c.put(request(cmdDisc, 0, 0, 0, 0))
	c.ended()
	got := s.Stats()
	if got.Writes != 9 || got.Reads != 10 || got.Zeroes != 1 || got.Trims != 1 || got.FUAs != 5 || got.Errors != 0 {
		t.Fatalf("%+v", got)
	}
}

// Many requests in one packet: the writes among them reach the device as one group, in their order.
func TestOneBatch(t *testing.T) {
	d := &recorder{Memory: blockdev.NewMemory(mib, nil)}
	_, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	var all []byte
	for i := range uint64(40) {
		all = append(all, request(cmdWrite, 0, i, i%3*100, 4096, pattern(4096, byte(i)))...)
	}
	c.put(all)
	for i := range uint64(40) {
		c.expect(0, i)
	}
	if got := d.groups.Load(); got > 4 {
		t.Errorf("40 writes of one packet in %d groups", got)
	}
	c.put(request(cmdRead, 0, 99, 0, 4296))
	c.expect(0, 99)
	want := make([]byte, 4296)
	for i := range 40 {
		copy(want[i%3*100:], pattern(4096, byte(i)))
	}
	if !bytes.Equal(c.get(4296), want) {
		t.Error("the order of the writes was not kept")
	}
}

type recorder struct {
	*blockdev.Memory
	groups atomic.Int32
}

func (r *recorder) WriteBatch(ws []blockdev.Write) {
	r.groups.Add(1)
	r.Memory.WriteBatch(ws)
}

// The stream is cut into pieces at every byte, and ends at every byte: what is complete is done, what is not leaves no trace.
func TestCutAtEveryByte(t *testing.T) {
	stream := bytes.Join([][]byte{
		request(cmdWrite, 0, 1, 0, 40, bytes.Repeat([]byte{1}, 40)),
		request(cmdRead, 0, 2, 0, 40),
		request(99, 0, 3, 0, 40),
		request(cmdWrite, 1<<9, 4, 0, 40, bytes.Repeat([]byte{9}, 40)),
		request(cmdWrite, cmdFlagFUA, 5, 40, 40, bytes.Repeat([]byte{2}, 40)),
		request(cmdFlush, 0, 6, 0, 0),
		request(cmdBlockStatus, 0, 7, 0, 40),
		request(cmdRead, 0, 8, 0, 0),
	}, nil)
	for _, c := range []struct {
		name       string
		structured bool
		want       map[uint64]string // by cookie
	}{
		{"simple", false, map[uint64]string{
			1: "simple 0", 2: "simple 0", 3: "simple 22", 4: "simple 22", 5: "simple 0", 6: "simple 0", 7: "simple 22", 8: "simple 0",
		}},
		{"structured", true, map[uint64]string{
			1: "simple 0", 2: "data 0+40", 3: "error 22", 4: "error 22", 5: "simple 0", 6: "simple 0", 7: "40:0", 8: "none",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for cut := range len(stream) + 1 {
				cutAt(t, stream, cut, c.structured, c.want)
			}
		})
	}
}

// cutAt plays the stream in two pieces, and has every answer; or only the first of them.
func cutAt(t *testing.T, stream []byte, cut int, structured bool, want map[uint64]string) {
	d := blockdev.NewMemory(4096, nil)
	s := NewServer(Options{}, Export{Device: plain{d}})
	l := newPipes()
	go s.Serve(context.Background(), l)
	c := &raw{t, l.dial()}
	c.SetDeadline(time.Now().Add(patience))
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	if structured {
		c.structure()
	}
	c.option(optionExportName)
	c.get(10)
	if cut%2 == 0 {
		go func() {
			c.Write(stream[:cut])
			c.Write(stream[cut:])
		}()
		got := map[uint64]string{}
		for range want {
			cookie, said, _ := c.answered()
			if got[cookie] += said; cookie == 2 && !structured {
				c.get(40)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("cut at %d: %v, want %v", cut, got, want)
		}
		c.Close()
	} else {
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			io.Copy(io.Discard, c)
		}()
		c.put(stream[:cut])
		c.Close()
		<-heard
	}
	s.Close()
	s.Wait()
	var got [80]byte
	d.ReadAt(got[:], 0)
	for i, end := range []int{68, 68 + 28 + 28 + 68 + 68} {
		want := byte(0)
		if cut >= end || cut%2 == 0 {
			want = byte(i + 1)
		}
		// A complete request may still be dropped with its connection; an incomplete one must be.
		piece := got[i*40:][:40]
		if !bytes.Equal(piece, bytes.Repeat(piece[:1], 40)) || piece[0] != want && (want == 0 || cut%2 == 0) {
			t.Fatalf("cut at %d: write %d left %v", cut, i+1, piece)
		}
	}
}

func TestBrokenMagicEnds(t *testing.T) {
	_, path := start(t, Options{}, Export{Device: blockdev.NewMemory(mib, nil)})
	c := connect(t, path)
	bad := request(cmdWrite, 0, 2, 0, 4, []byte("evil"))
	bad[0]++
	c.put(append(request(cmdFlush, 0, 1, 0, 0), bad...))
	io.Copy(io.Discard, c)
	if _, err := c.Write(bad); err == nil {
		c.ended()
	}
}

// Lengths that lie must not cost memory.
func TestHugeLengthsKeepMemoryFlat(t *testing.T) {
	_, path := start(t, Options{MaxMemoryBytes: 64 * mib}, Export{Device: blockdev.NewMemory(mib, nil)})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 50 {
		c := connect(t, path)
		c.put(request(cmdWrite, 0, 1, 0, ^uint32(0), make([]byte, 1000)))
		c.Close()
	}
	c := connect(t, path)
	c.put(bytes.Repeat(request(cmdRead, 0, 1, 0, ^uint32(0)), 5000))
	for range 5000 {
		c.expect(22, 1)
	}
	c.Close()
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 60*mib {
		t.Fatalf("%d MiB allocated", grown/mib)
	}
}

// A request that stays in the device holds up no other request of the connection, whichever it is.
func TestSlowRequestHoldsUpNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		op   blockdev.Op
		slow []byte
		size int
	}{
		{"flush", blockdev.OpSync, request(cmdFlush, 0, 1, 0, 0), 0},
		{"FUA write", blockdev.OpSync, request(cmdWrite, cmdFlagFUA, 1, 0, 512, make([]byte, 512)), 0},
		{"write", blockdev.OpWrite, request(cmdWrite, 0, 1, 0, 512, make([]byte, 512)), 0},
		{"large write", blockdev.OpWrite, request(cmdWrite, 0, 1, 0, mib, make([]byte, mib)), 0},
		{"trim", blockdev.OpTrim, request(cmdTrim, 0, 1, 0, 512), 0},
		{"read", blockdev.OpRead, request(cmdRead, 0, 1, 4096, 512), 512},
		{"large read", blockdev.OpRead, request(cmdRead, 0, 1, 4096, mib), mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, entered, leave := gate(blockdev.NewMemory(4*mib, nil), c.op, blockdev.Rule{Times: 1})
			_, path := start(t, Options{}, Export{Device: d})
			client := connect(t, path)
			// In one packet with it, before it and behind it; the last one is incomplete.
			tail := request(cmdRead, 0, 4, 0, 512)
			first := request(cmdRead, 0, 2, 2*mib, 1000)
			if c.op == blockdev.OpRead {
				first = request(99, 0, 2, 0, 0)
			}
			client.put(bytes.Join([][]byte{first, c.slow, request(cmdRead, 0, 3, 0, 512), tail[:10]}, nil))
			<-entered
			client.put(tail[10:])
			want := map[uint64]int{2: 1000, 3: 512, 4: 512}
			if c.op == blockdev.OpRead {
				want[2] = -1
			}
			for len(want) > 0 {
				errno, cookie := client.reply()
				n, ok := want[cookie]
				if !ok || (errno != 0) != (n < 0) {
					t.Fatal("reply to", cookie, "with", errno)
				}
				client.get(max(n, 0))
				delete(want, cookie)
			}
			client.put(request(cmdRead, 0, 5, 0, 512))
			client.expect(0, 5)
			client.get(512)
			leave <- nil
			client.expect(0, 1)
			client.get(c.size)
			client.alive()
		})
	}
}

// More slow requests than there may be helpers: the connection waits and goes on.
func TestManySlowRequests(t *testing.T) {
	d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpRead, blockdev.Rule{})
	_, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	const n = 3 * maxHelpers
	for i := range uint64(n) {
		c.put(request(cmdRead, 0, i, 0, 1))
	}
	for range maxHelpers + 1 {
		<-entered
	}
	for range n {
		leave <- nil
	}
	seen := map[uint64]bool{}
	for range n {
		errno, cookie := c.reply()
		c.get(1)
		if errno != 0 || seen[cookie] {
			t.Fatal(errno, cookie)
		}
		seen[cookie] = true
	}
}

// One Sync serves all that came while the one before ran, and none is content with the one before.
func TestFlushIsSharedAndNotEarly(t *testing.T) {
	d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpSync, blockdev.Rule{})
	s, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	c.put(request(cmdFlush, 0, 1, 0, 0))
	<-entered
	for i := range uint64(20) {
		c.put(request(cmdFlush, 0, 100+i, 0, 0))
	}
	c.alive() // they are parsed now
	leave <- nil
	c.expect(0, 1)
	<-entered
	c.alive() // and none of them is answered
	leave <- syscall.EIO
	for i := range uint64(20) {
		c.expect(5, 100+i)
	}
	if got := s.Stats(); got.Flushes != 1 || got.Errors != 20 {
		t.Fatalf("%+v", got)
	}
}

// "The server MUST handle all outstanding requests" after a DISC, and then close.
func TestDisconnectWaitsForWhatIsOutstanding(t *testing.T) {
	d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpSync, blockdev.Rule{Times: 1})
	s, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	c.put(request(cmdWrite, cmdFlagFUA, 1, 0, 512, make([]byte, 512)), request(cmdDisc, 0, 0, 0, 0))
	<-entered
	if got := s.Stats().Connections; got != 1 {
		t.Fatal(got, "connections")
	}
	leave <- nil
	c.expect(0, 1)
	c.ended()
}
