package nbd

import (
	"bytes"
	"slices"
	"sync"
	"syscall"
	"testing"

	"mirror-agent/blockdev"
)

// What is answered as durable is durable: its Sync has begun after it reached the device, and has ended. The device's Syncs wait
// in the gate; what comes in the meantime is answered around them.
func TestFUAWaitsForItsSync(t *testing.T) {
	data := pattern(4096, 3)
	for _, c := range []struct {
		name    string
		request []byte
		want    []byte // what the device holds when the Sync begins
	}{
		{"write", request(cmdWrite, cmdFlagFUA, 1, 0, 4096, data), data},
		{"large write", request(cmdWrite, cmdFlagFUA, 1, 0, mib, data, make([]byte, mib-4096)), data},
		{"trim", request(cmdTrim, cmdFlagFUA, 1, 0, 4096), make([]byte, 4096)},
		{"zeroes", request(cmdWriteZeroes, cmdFlagFUA, 1, 0, 4096), make([]byte, 4096)},
		{"zeroes without a hole", request(cmdWriteZeroes, cmdFlagFUA|cmdFlagNoHole, 1, 0, 4096), make([]byte, 4096)},
		{"fast zeroes", request(cmdWriteZeroes, cmdFlagFUA|cmdFlagFastZero, 1, 0, 4096), make([]byte, 4096)},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := blockdev.NewMemory(4*mib, nil)
			if _, err := d.WriteAt(pattern(4096, 99), 0); err != nil {
				t.Fatal(err)
			}
			slow, entered, leave := gate(d, blockdev.OpSync, blockdev.Rule{})
			_, path := start(t, Options{}, Export{Device: slow})
			for _, connect := range []func(testing.TB, string) *raw{connect, connectStructured} {
				client := connect(t, path)
				go client.Write(append(c.request[:len(c.request):len(c.request)], request(cmdCache, 0, 2, 0, 512)...))
				client.expect(0, 2) // and not to the other: that has to wait
				<-entered
				got := make([]byte, 4096)
				if d.ReadAt(got, 0); !bytes.Equal(got, c.want) {
					t.Error("the Sync began before the device had it")
				}
				leave <- nil
				client.expect(0, 1)
				// And a Sync that fails is not kept from it.
				go client.Write(c.request)
				<-entered
				leave <- syscall.EIO
				if _, said, _ := client.answered(); said != "error 5" && said != "simple 5" {
					t.Errorf("a Sync that failed: %s", said)
				}
			}
		})
	}
}

// A flush on one connection covers what was answered on another (CAN_MULTI_CONN): its Sync begins after that.
func TestFlushCoversOtherConnections(t *testing.T) {
	d := blockdev.NewMemory(mib, nil)
	slow, entered, leave := gate(d, blockdev.OpSync, blockdev.Rule{})
	_, path := start(t, Options{}, Export{Device: slow, MultiConn: true})
	a, b := connect(t, path), connect(t, path)
	b.put(request(cmdFlush, 0, 1, 0, 0))
	<-entered // a Sync that is too early for what follows
	a.put(request(cmdWrite, 0, 2, 0, 5, []byte("later")))
	a.expect(0, 2)
	b.put(request(cmdFlush, 0, 3, 0, 0), request(cmdCache, 0, 4, 0, 512))
	b.expect(0, 4) // the flush has been received
	leave <- nil
	b.expect(0, 1)
	b.put(request(cmdCache, 0, 5, 0, 512))
	b.expect(0, 5) // and not the flush: it has a Sync of its own
	<-entered
	leave <- nil
	b.expect(0, 3)
}

// strict fails the test when it is asked for what lies outside, or for anything while it may not.
type strict struct {
	*blockdev.Memory
	t    *testing.T
	mu   sync.Mutex
	seen []string
}

func (s *strict) note(op string, off, length int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, op)
	if size, _ := s.Size(); off < 0 || length < 0 || off > size || length > size-off {
		s.t.Errorf("the device is asked for a %s of %d bytes at %d", op, length, off)
	}
}

func (s *strict) ReadAt(p []byte, off int64) (int, error) {
	s.note("read", off, int64(len(p)))
	return s.Memory.ReadAt(p, off)
}

func (s *strict) WriteBatch(ws []blockdev.Write) {
	for i := range ws {
		op := "write"
		switch {
		case ws[i].Trim:
			op = "trim"
		case ws[i].Zero:
			op = "zero"
		}
		if ws[i].Fast {
			op += ", fast"
		}
		s.note(op, ws[i].Offset, ws[i].Size())
	}
	s.Memory.WriteBatch(ws)
}

func (s *strict) Prefetch(off, length int64) error {
	s.note("prefetch", off, length)
	return s.Memory.Prefetch(off, length)
}

func (s *strict) NextData(off int64) (int64, int64, error) {
	s.note("search", off, 0)
	return s.Memory.NextData(off)
}

// What is refused for its place, its flags or its export never reaches the device, and what does reach it is what was asked for.
func TestWhatReachesTheDevice(t *testing.T) {
	const size = mib
	for _, readOnly := range []bool{false, true} {
		d := &strict{Memory: blockdev.NewMemory(size, nil), t: t}
		_, path := start(t, Options{}, Export{Device: d, ReadOnly: readOnly})
		c := connectStructured(t, path)
		ask := func(p []byte) (said string, ops []string) {
			t.Helper()
			d.mu.Lock()
			d.seen = nil
			d.mu.Unlock()
			go c.Write(p)
			said, _ = c.structured()
			d.mu.Lock()
			defer d.mu.Unlock()
			return said, d.seen
		}
		for _, command := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdCache, cmdWriteZeroes, cmdBlockStatus} {
			for _, at := range [][2]uint64{{size, 1}, {size - 1, 2}, {size + 1, 0}, {0, size + 1}, {1 << 63, 1}, {^uint64(0), 1}, {^uint64(0) - 99, 200}} {
				p := request(command, 0, 1, at[0], uint32(at[1]))
				if command == cmdWrite {
					p = append(p, make([]byte, at[1])...)
				}
				if said, ops := ask(p); said[:5] != "error" || len(ops) > 0 {
					t.Errorf("command %d of %d bytes at %d: %s, and the device saw %v", command, at[1], at[0], said, ops)
				}
			}
		}
		for _, x := range []struct {
			request []byte
			op      string
		}{
			{request(cmdWrite, 0, 1, 0, 4, []byte("data")), "write"},
			{request(cmdTrim, 0, 1, 0, 512), "trim"},
			{request(cmdWriteZeroes, 0, 1, 0, 512), "trim"},
			{request(cmdWriteZeroes, cmdFlagNoHole, 1, 0, 512), "zero"},
			{request(cmdCache, 0, 1, 0, 512), "prefetch"},
		} {
			want, answer := []string{x.op}, "simple 0"
			if readOnly && x.op != "prefetch" {
				want, answer = nil, "error 1"
			}
			if said, ops := ask(x.request); said != answer || !slices.Equal(ops, want) {
				t.Errorf("read-only %v: %s, and the device saw %v instead of %v", readOnly, said, ops, want)
			}
		}
	}
}
