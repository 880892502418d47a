package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

func option(id uint32, data ...any) []byte {
	p := encode(data...)
	return encode(protocol.NEGOTIATION_MAGIC_OPTION, id, uint32(len(p)), p)
}

// Every message of a handshake, as a client says them.
func handshakeMessages() [][]byte {
	return [][]byte{
		encode(clientFixedNewstyle | clientNoZeroes),
		option(optionStructuredReply),
		option(optList),
		option(optionListMetaContext, metaData("fuzz", "base:", "x-y:z")...),
		option(optionSetMetaContext, metaData("fuzz", allocationName)...),
		option(optInfo, goData("fuzz", 1, 2, 3)...),
		option(optGo, goData("fuzz", 3)...),
	}
}

func structuredMessages() [][]byte {
	return [][]byte{
		request(cmdRead, cmdFlagDF, 1, 0, 1000),
		request(cmdRead, 0, 2, 0, 1<<16),
		request(cmdBlockStatus, cmdFlagReqOne, 3, 100, 1000),
		request(cmdBlockStatus, 0, 4, 0, 1<<16),
		request(cmdCache, 0, 5, 0, 1<<16),
		request(cmdWriteZeroes, cmdFlagFastZero|cmdFlagNoHole|cmdFlagFUA, 6, 0, 1000),
		request(cmdWrite, cmdFlagFUA, 7, 0, 4, []byte("data")),
		request(cmdTrim, 0, 8, 5, 1000),
	}
}

// dialogue plays input to a server and returns what it says until it ends the connection or says nothing for a while: it
// waits for more.
func dialogue(l *pipes, input []byte, quiet time.Duration) []byte {
	c := l.dial()
	said := make(chan []byte)
	var played atomic.Bool
	go func() {
		var all []byte
		p := make([]byte, 64<<10)
		for {
			n, err := c.Read(p)
			all = append(all, p[:n]...)
			if err != nil {
				said <- all
				return
			}
			if played.Load() {
				c.SetReadDeadline(time.Now().Add(quiet))
			}
		}
	}()
	c.SetDeadline(time.Now().Add(patience))
	c.Write(input)
	c.Write(bytes.Repeat(request(cmdDisc, 0, 0, 0, 0), 3)) // so that what is complete is answered
	played.Store(true)
	c.SetReadDeadline(time.Now().Add(quiet))
	defer c.Close()
	return <-said
}

// judge says what is wrong with what was said to input, which may begin with the whole handshake shake.
func judge(shake []byte, hello int, input, said []byte) error {
	if len(said) < 18 {
		return fmt.Errorf("half a greeting: %x", said)
	}
	if err := wholeReplies(said[18:]); err != nil || !bytes.HasPrefix(input, shake) {
		return err
	}
	if err := checkStructured(input[len(shake):], said[min(hello, len(said)):]); err != nil {
		return fmt.Errorf("to %x: %w", input[len(shake):], err)
	}
	return nil
}

// The stream is cut at every byte, and then every 32-bit field of every message is made as wrong as can be, one at a time.
// What the server says stays well-formed, answers what was asked, and it has nothing left of it in the end.
func TestMalformedStreams(t *testing.T) {
	s := NewServer(Options{MaxMemoryBytes: mib, MaxPayloadBytes: mib}, fuzzExport())
	l := newPipes()
	served := make(chan error)
	go func() { served <- s.Serve(context.Background(), l) }()
	shake := bytes.Join(handshakeMessages(), nil)
	hello := len(dialogue(l, shake, time.Second))
	inputs := make(chan []byte)
	var players sync.WaitGroup
	for range 16 {
		players.Go(func() {
			for input := range inputs {
				err := judge(shake, hello, input, dialogue(l, input, 20*time.Millisecond))
				if err != nil { // a busy machine may be quiet for that long in the middle of a reply
					err = judge(shake, hello, input, dialogue(l, input, 5*time.Second))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	stream := bytes.Join(append([][]byte{shake}, structuredMessages()...), nil)
	for cut := range stream {
		inputs <- stream[:cut]
	}
	for field := 0; field+4 <= len(stream); field += 2 {
		for _, value := range []uint32{0, 1 << 31, ^uint32(0), 0x10001} {
			wrong := bytes.Clone(stream)
			binary.BigEndian.PutUint32(wrong[field:], value)
			inputs <- wrong
		}
	}
	close(inputs)
	players.Wait()
	for s.Stats().Connections > 0 {
		runtime.Gosched()
	}
	c := &raw{t, l.dial()}
	c.SetDeadline(time.Now().Add(patience))
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.option(optionExportName)
	c.get(10)
	c.alive()
	s.Close()
	s.Wait()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// What a connection leaves behind, however it ends: nothing.
func TestTenThousandConnections(t *testing.T) {
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	t.Run("unix", func(t *testing.T) {
		s, path := start(t, Options{}, Export{Name: "fuzz", Device: blockdev.NewMemory(mib, nil)})
		thousands(t, s, "unix", path, total)
	})
	t.Run("TCP", func(t *testing.T) { // fewer: each keeps a port for a while
		s, address := startTCP(t, Options{}, Export{Name: "fuzz", Device: blockdev.NewMemory(mib, nil)})
		thousands(t, s, "tcp", address, total/5)
	})
}

// descriptors is how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("descriptors cannot be counted here:", err)
	}
	return len(all)
}

func thousands(t *testing.T, s *Server, network, address string, total int) {
	first, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	// What ends by itself (the connections in the backlog, the monitor) gets the time to; the runtime's own cleaning up takes
	// several rounds.
	settle := func(goroutines, files int) (int, int, uint64) {
		for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if s.Stats().Connections == 0 && !s.watching.Load() && runtime.NumGoroutine() <= goroutines && descriptors(t) <= files {
				break
			}
		}
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), descriptors(t), m.HeapAlloc
	}
	goroutines, files, heap := settle(runtime.NumGoroutine(), descriptors(t))
	shake := bytes.Join(handshakeMessages(), nil)
	inputs := [][]byte{
		nil, shake[:40], shake, append(bytes.Clone(shake), structuredMessages()[1]...),
		append(bytes.Clone(shake), request(cmdWrite, 0, 1, 0, 1<<20, make([]byte, 1000))...), bytes.Repeat([]byte("garbage"), 10),
	}
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := w; i < total; i += 8 {
				for s.Stats().Connections > s.options.MaxConnections/2 { // the others have not ended yet
					time.Sleep(time.Millisecond)
				}
				c, err := net.Dial(network, address)
				for err != nil { // the backlog is full
					time.Sleep(time.Millisecond)
					c, err = net.Dial(network, address)
				}
				c.SetDeadline(time.Now().Add(patience))
				input := inputs[i%len(inputs)]
				if len(input) > 0 { // else it is gone before anybody has looked
					io.ReadFull(c, make([]byte, 18))
				}
				c.Write(input)
				if i/len(inputs)%2 == 0 { // it waits until the server has done with it
					c.(interface{ CloseWrite() error }).CloseWrite()
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	workers.Wait()
	for served := false; !served; { // the last in the queue: now all of them were accepted
		c, err := net.Dial(network, address)
		if err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(c, make([]byte, 18))
		served = err == nil // else it was one too many
		c.Close()
	}
	if g, f, h := settle(goroutines, files); g > goroutines || f > files || h > heap+2*mib {
		t.Errorf("%d goroutines, %d descriptors and %d KiB more", g-goroutines, f-files, (int64(h)-int64(heap))>>10)
	}
	// A worker has two at most that were not counted when it looked.
	if n := s.Stats().Refused; n > 0 {
		t.Errorf("%d of %d were refused: nothing is shown by them", n, total)
	}
}
