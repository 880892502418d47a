package dataport_test

import (
	"context"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"mirror-agent/dataport"
)

// copySpeed is what plain TCP does on this machine right now: one connection over loopback, io.Copy at the far end.
func copySpeed(t testing.TB, total int) float64 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			// The embedded writer hides ReadFrom and WriteTo: no splice, the bytes come to user space as everybody's do.
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			_ = c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256<<10)
	start := time.Now()
	for sent := 0; sent < total; sent += len(b) {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return float64(total) / time.Since(start).Seconds() / 1e6
}

type sink struct{ n atomic.Int64 }

func (s *sink) OnMessage(_ context.Context, m dataport.Message) ([]byte, error) {
	s.n.Add(1)
	return nil, nil
}
func (s *sink) OnEvent(dataport.Event) {}

// portSpeed sends messages of size one after the other and waits for the last receipt.
func portSpeed(t testing.TB, paths, size, total int, secure bool) (mbps float64, perSecond float64) {
	t.Helper()
	tc, sc := config("target", "127.0.0.1:0"), config("source")
	tc.Timing, sc.Timing = dataport.DefaultTiming(), dataport.DefaultTiming()
	if secure {
		a, _ := dataport.GenerateKey()
		b, _ := dataport.GenerateKey()
		tc.Insecure, tc.Key, tc.Peers = false, a, append(tc.Peers, pub(b))
		sc.Insecure, sc.Key, sc.Peers = false, b, append(sc.Peers, pub(a))
	}
	tn := node(t, tc)
	defer tn.Close()
	s := &sink{}
	register(t, tn, s)
	sn := node(t, sc)
	defer sn.Close()
	source := newRecorder()
	p := open(t, register(t, sn, source), dataport.PortConfig{Target: tn.Addrs(), Paths: paths})
	source.awaitEvent(t, dataport.PathUp, paths)
	b := make([]byte, size)
	n := total / size
	start := time.Now()
	var last *dataport.Receipt
	for range n {
		r, err := p.Send(context.Background(), b)
		if err != nil {
			t.Fatal(err)
		}
		last = r
	}
	if err := last.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	d := time.Since(start).Seconds()
	return float64(n*size) / d / 1e6, float64(n) / d
}

// TestThroughput prints numbers beside plain TCP of the same minute; it judges nothing, a shared machine cannot.
func TestThroughput(t *testing.T) {
	if os.Getenv("DATAPORT_BENCH") == "" {
		t.Skip("set DATAPORT_BENCH=1: measures for some seconds")
	}
	for round := range 5 {
		plain := copySpeed(t, 2<<30)
		two, _ := portSpeed(t, 2, 256<<10, 2<<30, false)
		one, _ := portSpeed(t, 1, 256<<10, 2<<30, false)
		big, _ := portSpeed(t, 2, 4<<20, 2<<30, false)
		secure, _ := portSpeed(t, 2, 256<<10, 1<<30, true)
		_, small := portSpeed(t, 2, 200, 40<<20, false)
		t.Logf("round %d: io.Copy %.0f MB/s; 256 KiB messages over 2 paths %.0f (%.2f), 1 path %.0f (%.2f); 4 MiB over 2 paths %.0f (%.2f); TLS 2 paths %.0f (%.2f); 200 B: %.0f messages/s",
			round, plain, two, two/plain, one, one/plain, big, big/plain, secure, secure/plain, small)
	}
}

// BenchmarkMessages is for profiles: both ends in one process.
func BenchmarkMessages(b *testing.B) {
	for _, m := range []struct {
		name        string
		paths, size int
		secure      bool
	}{{"1MiB-1path", 1, 1 << 20, false}, {"1MiB-2paths", 2, 1 << 20, false}, {"4KiB-2paths", 2, 4 << 10, false}, {"1MiB-1path-TLS", 1, 1 << 20, true}} {
		b.Run(m.name, func(b *testing.B) {
			b.SetBytes(int64(m.size))
			b.ReportAllocs()
			portSpeed(b, m.paths, m.size, m.size*b.N, m.secure)
		})
	}
}

func BenchmarkCall(b *testing.B) {
	tn := node(b, config("target", "127.0.0.1:0"))
	register(b, tn, newRecorder())
	source := newRecorder()
	p := open(b, register(b, node(b, config("source")), source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(b, dataport.SessionUp, 1)
	payload := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Call(context.Background(), payload); err != nil {
			b.Fatal(err)
		}
	}
}
