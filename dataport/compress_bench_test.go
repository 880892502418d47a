package dataport_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"mirror-agent/dataport"
)

// packedSpeed sends messages of data over two loopback paths with TLS, limited as said; it returns bytes and CPU seconds per second.
func packedSpeed(t *testing.T, how dataport.Compression, limit string, data []byte, total int) (mbps, cpu float64) {
	t.Helper()
	a, b := key(t), key(t)
	tc, sc := secureConfig("target", a, nil, "127.0.0.1:0"), secureConfig("source", b, nil)
	tc.Peers, sc.Peers = append(tc.Peers, pub(b)), append(sc.Peers, pub(a))
	tc.Timing, sc.Timing = dataport.DefaultTiming(), dataport.DefaultTiming()
	tn := node(t, tc)
	defer tn.Close()
	register(t, tn, &sink{})
	sn := node(t, sc)
	defer sn.Close()
	source := newRecorder()
	p := open(t, register(t, sn, source), dataport.PortConfig{Target: tn.Addrs(), Paths: 2, Compression: how, Bandwidth: bandwidth(t, limit)})
	source.awaitEvent(t, dataport.PathUp, 2)
	used := func() float64 {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	const size = 256 << 10
	start, before := time.Now(), used()
	var last *dataport.Receipt
	for at := 0; at < total; at += size {
		r, err := p.Send(context.Background(), data[at%len(data):][:size])
		if err != nil {
			t.Fatal(err)
		}
		last = r
	}
	if err := last.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	d := time.Since(start).Seconds()
	return float64(total) / d / 1e6, (used() - before) / d
}

// TestCompressionSpeed prints what packing costs on a link that needs none and gains on those that do; it judges nothing.
// The data is a program file: DATAPORT_BENCH names it, or is 1 for the test's own.
func TestCompressionSpeed(t *testing.T) {
	name := os.Getenv("DATAPORT_BENCH")
	if name == "" {
		t.Skip("set DATAPORT_BENCH=1: measures for some seconds")
	}
	if name == "1" {
		name = os.Args[0]
	}
	program, err := os.ReadFile(name)
	if err != nil || len(program) < 4<<20 {
		t.Fatalf("%s: %d bytes, %v", name, len(program), err)
	}
	program = program[:len(program)>>18<<18]
	random := make([]byte, 8<<20)
	_, _ = rand.Read(random)
	for _, row := range []struct {
		name, limit string
		data        []byte
		total       int
	}{
		{"program, no limit", "none", program, 128 << 20},
		{"random, no limit", "none", random, 128 << 20},
		{"program, 1 Gbit/s", "1Gbit/s", program, 96 << 20},
		{"random, 1 Gbit/s", "1Gbit/s", random, 64 << 20},
		{"program, 100 Mbit/s", "100Mbit/s", program, 16 << 20},
	} {
		modes := []dataport.Compression{dataport.CompressNone, dataport.CompressS2, dataport.CompressZstd, dataport.CompressAuto}
		speed, cpu := map[dataport.Compression][]float64{}, map[dataport.Compression][]float64{}
		for range 3 { // in turns
			for _, m := range modes {
				s, c := packedSpeed(t, m, row.limit, row.data, row.total)
				speed[m], cpu[m] = append(speed[m], s), append(cpu[m], c)
			}
		}
		line := row.name + ":"
		for _, m := range modes {
			slices.Sort(speed[m])
			slices.Sort(cpu[m])
			line += fmt.Sprintf("  %s %.0f MB/s, %.2f CPUs;", m, speed[m][1], cpu[m][1])
		}
		t.Log(line)
	}
}
