package nbd

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/blockdev"
)

// One client that asks for much and takes nothing had all of the large buffers in the end, and every other client's next large write waited for
// them for ever, with all that came behind it.
func TestOneClientNeverHasAllLargeBuffers(t *testing.T) {
	const size = mib
	d, entered, leave := gate(blockdev.NewMemory(4*mib, nil), blockdev.OpRead, blockdev.Rule{})
	release := sync.OnceFunc(func() { close(leave) })
	defer release()
	s, path := start(t, Options{MaxPayloadBytes: size, MaxMemoryBytes: 16 * size, HandshakeTimeout: 10 * patience}, Export{Device: d})
	greedy := connect(t, path)
	until(t, "it is there", func() bool { return s.Stats().Connections == 1 })
	s.mu.Lock()
	var c *conn
	for c = range s.conns {
	}
	s.mu.Unlock()
	greedy.put(bytes.Repeat(request(cmdRead, 0, 1, 0, size), 2*maxHelpers))
	<-entered
	until(t, "it has all that it may have", func() bool {
		if c.share.TryAcquire(1) {
			c.share.Release(1)
			return false
		}
		return true
	})
	other := connect(t, path)
	write := func(when string) {
		t.Helper()
		other.SetDeadline(time.Now().Add(patience))
		if _, err := other.Write(request(cmdWrite, 0, 1, 0, size, make([]byte, size))); err != nil {
			t.Fatal(when, err)
		}
		other.expect(0, 1)
	}
	write("its reads are in the device:")
	release()
	until(t, "one is on its way to the client", func() bool { return c.owing.Load() > 0 })
	write("its replies are not taken:")
}

// Several of them may have all. As long as nobody else wants any they may take their time; then the one that has stood still for longest has as
// much of it as a handshake, and one is enough.
func TestClientsThatTakeNothingAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, clients = mib, 8
		s, l := NewServer(Options{MaxPayloadBytes: size, MaxMemoryBytes: 2 * clients * size, HandshakeTimeout: time.Minute},
			Export{Device: &plain{blockdev.NewMemory(4*mib, nil)}}), newPipes()
		go s.Serve(context.Background(), l)
		connect := func() *raw {
			c := &raw{t, l.dial()}
			c.SetDeadline(time.Now().Add(100 * time.Hour))
			c.greeting(clientFixedNewstyle | clientNoZeroes)
			c.option(optionExportName)
			c.get(10)
			return c
		}
		var all []*raw
		for range clients {
			c := connect()
			c.put(request(cmdRead, 0, 1, 0, size))
			all = append(all, c)
			time.Sleep(time.Hour)
		}
		second := all[1]
		second.expect(0, 1)
		second.get(size / 2) // it has moved, but not by a whole step
		other := connect()
		for i := range 2 {
			if n := s.Stats().Connections; n != clients+1-i {
				t.Fatalf("%d connections", n)
			}
			began := time.Now()
			other.put(request(cmdWrite, 0, 1, 0, size, make([]byte, size)))
			other.expect(0, 1)
			if took, want := time.Since(began), time.Duration(1-i)*time.Minute; took != want {
				t.Errorf("write %d was answered after %s, want %s", i, took, want)
			}
			synctest.Wait()
		}
		all[0].ended()
		for _, c := range append(all, other) {
			c.Close()
		}
		s.Close()
		s.Wait()
		synctest.Wait()
	})
}

// A payload that comes slowly, but comes, may take longer than a handshake; one that hardly comes may not.
func TestPayloadThatTrickles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		step  int
		every time.Duration
		lives bool
	}{
		{"a step in time", payloadStep, 50 * time.Second, true},
		{"little by little", payloadStep / 8, 6 * time.Second, true},
		{"too little", payloadStep / 8, 20 * time.Second, false},
		{"byte by byte", 1, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, l := NewServer(Options{HandshakeTimeout: time.Minute}, Export{Device: blockdev.NewMemory(8*mib, nil)}), newPipes()
				go s.Serve(context.Background(), l)
				c := &raw{t, l.dial()}
				c.greeting(clientFixedNewstyle | clientNoZeroes)
				c.option(optionExportName)
				c.get(10)
				p := request(cmdWrite, 0, 1, 0, 8*mib, make([]byte, 8*mib))
				began, lives := time.Now(), true
				for c.put(p[:requestSize]); len(p) > 0 && lives; p = p[min(tt.step, len(p)):] {
					if len(p) == requestSize+8*mib {
						p = p[requestSize:]
					}
					time.Sleep(tt.every)
					_, err := c.Write(p[:min(tt.step, len(p))])
					lives = err == nil
				}
				if lives != tt.lives {
					t.Errorf("after %s: lives %v, want %v", time.Since(began), lives, tt.lives)
				}
				if lives {
					c.expect(0, 1)
				}
				c.Close()
				s.Close()
				s.Wait()
				synctest.Wait()
			})
		})
	}
}
