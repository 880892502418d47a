package nbd

import (
	"bytes"
	"sync/atomic"
	"syscall"
	"testing"

	"mirror-agent/blockdev"
)

// syncs is a device that tells by whom a Sync was asked for.
type syncs struct {
	blockdev.Device
	own, withWrite atomic.Int32 // Syncs, groups that have one in them
}

func (s *syncs) Sync() error {
	s.own.Add(1)
	return s.Device.Sync()
}

func (s *syncs) WriteBatch(ws []blockdev.Write) {
	if len(ws) == 1 && ws[0].Sync {
		s.withWrite.Add(1)
	}
	blockdev.ApplyBatch(s.Device, ws)
}

// A client that always waits for its FUA write has it done as one step of the device; one that sends more meanwhile has not. Either way it is
// durable when it is answered.
func TestFUAOfOneThatWaits(t *testing.T) {
	d := &syncs{Device: blockdev.NewMemory(mib, nil)}
	s, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	data := pattern(512, 1)
	cookie := uint64(0)
	fua := func(n uint64) {
		t.Helper()
		var all []byte
		for range n {
			cookie++
			all = append(all, request(cmdWrite, cmdFlagFUA, cookie, 0, 512, data)...)
		}
		c.put(all)
		for range n {
			if errno, _ := c.reply(); errno != 0 {
				t.Fatal(errno)
			}
		}
	}
	for range 4 * serialSyncs {
		fua(1)
	}
	before := d.withWrite.Load()
	if before < 2*serialSyncs || d.own.Load() < 1 {
		t.Errorf("of %d writes that were waited for %d were one step", cookie, before)
	}
	for range 10 {
		fua(2)
	}
	if n := d.withWrite.Load(); n != before {
		t.Errorf("%d of two at a time were one step", n-before)
	}
	if got := s.Stats(); got.FUAs != cookie || got.Writes != cookie || got.Flushes != 0 {
		t.Errorf("%d FUA writes were counted as %+v", cookie, got)
	}
}

// A Sync in the leader holds up no other request either, whatever it says is what the client is told, and a client that was caught
// sending more has the flusher again.
func TestFlushOfOneThatWaits(t *testing.T) {
	for _, slow := range []struct {
		name  string
		again func(cookie uint64) []byte
	}{
		{"flush", func(cookie uint64) []byte { return request(cmdFlush, 0, cookie, 0, 0) }},
		{"FUA", func(cookie uint64) []byte { return request(cmdWrite, cmdFlagFUA, cookie, 0, 512, make([]byte, 512)) }},
	} {
		t.Run(slow.name, func(t *testing.T) {
			d, entered, leave := gate(blockdev.NewMemory(mib, nil), blockdev.OpSync, blockdev.Rule{})
			s, path := start(t, Options{}, Export{Device: d})
			c := connect(t, path)
			for _, outcome := range []error{nil, syscall.EIO} {
				for i := range uint64(2 * serialSyncs) {
					c.put(slow.again(i))
					<-entered
					leave <- nil
					c.expect(0, i)
				}
				c.put(slow.again(100))
				<-entered
				c.put(bytes.Join([][]byte{request(cmdRead, 0, 101, 0, 512), slow.again(102)}, nil))
				c.expect(0, 101)
				c.get(512)
				c.alive()
				leave <- outcome
				want := uint32(0)
				if outcome != nil {
					want = 5
				}
				c.expect(want, 100)
				// The client was caught sending more, so this one is the flusher's.
				<-entered
				leave <- nil
				c.expect(0, 102)
			}
			if got := s.Stats(); got.Flushes+got.FUAs != 4*serialSyncs+3 || got.Errors != 1 {
				t.Errorf("%d flushes, %d FUA writes, %d errors", got.Flushes, got.FUAs, got.Errors)
			}
		})
	}
}

// foreseer notes the calls of Foresee; those on the leader's goroutine last until they are let go.
type foreseer struct {
	blockdev.Device
	calls chan bool
	leave chan struct{}
}

func (f *foreseer) Foresee(here bool) {
	f.calls <- here
	if here {
		<-f.leave
	}
}

// TestForesee: the device may begin what it expects when the client has its answers, in the leader for a client that waits for each
// of them; that holds up no other request either.
func TestForesee(t *testing.T) {
	d := &foreseer{blockdev.NewMemory(mib, nil), make(chan bool, 1000), make(chan struct{}, 1000)}
	_, path := start(t, Options{}, Export{Device: d})
	c := connect(t, path)
	cookie := uint64(0)
	write := func() {
		cookie++
		c.put(request(cmdWrite, 0, cookie, 0, 512, make([]byte, 512)))
		c.expect(0, cookie)
	}
	flush := func() {
		cookie++
		c.put(request(cmdFlush, 0, cookie, 0, 0))
		c.expect(0, cookie)
	}
	write()
	if <-d.calls {
		t.Error("a client that nothing is known of was made to wait")
	}
	for range 1000 {
		d.leave <- struct{}{}
	}
	for range 2 * serialSyncs {
		write()
		flush()
	}
	for len(d.calls) > 0 {
		<-d.calls
	}
	for len(d.leave) > 0 {
		<-d.leave
	}
	write() // is answered before
	if !<-d.calls {
		t.Fatal("another goroutine was to be woken for a client that waits")
	}
	cookie++
	c.put(request(cmdRead, 0, cookie, 0, 512))
	c.expect(0, cookie)
	c.get(512)
	d.leave <- struct{}{}
	if len(d.calls) > 0 {
		t.Error("the device was told of a read")
	}
	write()
	if <-d.calls {
		t.Error("a client that was caught sending more was made to wait")
	}
	flush()
}
