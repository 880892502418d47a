package nbd

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"mirror-agent/blockdev"
)

// BenchmarkServer measures requests of 4 KiB through a unix socket with a client that keeps depth of them in flight and
// sends as many at once as it got replies. Nothing is flushed.
func BenchmarkServer(b *testing.B) {
	for _, kind := range []string{"memory", "file"} {
		for _, command := range []uint16{cmdWrite, cmdRead} {
			for _, depth := range []int{1, 32} {
				name := map[uint16]string{cmdWrite: "write", cmdRead: "read"}[command]
				b.Run(fmt.Sprintf("%s/%s/depth=%d", kind, name, depth), func(b *testing.B) {
					benchmark(b, benchDevice(b, kind), command, depth)
				})
			}
		}
	}
}

const benchSize = 64 << 20

func benchDevice(b *testing.B, kind string) blockdev.Device {
	var d blockdev.Device = blockdev.NewMemory(benchSize, nil)
	if kind == "file" {
		f, err := blockdev.OpenFile(filepath.Join(b.TempDir(), "device"), blockdev.FileOptions{Create: true, Size: benchSize})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		d = f
	}
	for off := int64(0); off < benchSize; off += 1 << 20 {
		if _, err := d.WriteAt(pattern(1<<20, 1), off); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

func benchmark(b *testing.B, d blockdev.Device, command uint16, depth int) {
	const n = 4096
	_, path := start(b, Options{}, Export{Device: d})
	c := connect(b, path)
	c.SetDeadline(noDeadline)
	sent, reply := [][]byte{}, replySize
	for i := range 1024 { // addresses far apart, the same every time
		off := uint64(i) * 40503 % (benchSize / n) * n
		p := request(command, 0, uint64(i), off, n)
		if command == cmdWrite {
			p = append(p, make([]byte, n)...)
		}
		sent = append(sent, p)
	}
	if command == cmdRead {
		reply += n
	}
	r := bufio.NewReaderSize(c, 256<<10)
	buf := make([]byte, 0, 256<<10)
	b.SetBytes(n)
	b.ReportAllocs()
	b.ResetTimer()
	for issued, done := 0, 0; done < b.N; {
		buf = buf[:0]
		for issued < b.N && issued-done < depth {
			buf = append(buf, sent[issued%len(sent)]...)
			issued++
		}
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		for first := true; first || r.Buffered() >= reply; first = false {
			if _, err := io.CopyN(io.Discard, r, int64(reply)); err != nil {
				b.Fatal(err)
			}
			done++
		}
	}
}
