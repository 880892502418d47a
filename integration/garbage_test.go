package integration

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// memoryGrowth is what a process may grow by under a flood of nonsense (G8).
const memoryGrowth = 64 << 20

// TestGarbage talks nonsense to every port there is: the agent goes on, its
// memory does not grow, and honest clients are served meanwhile.
func TestGarbage(t *testing.T) {
	for _, secured := range []bool{true, false} {
		name := map[bool]string{true: "with keys", false: "plain"}[secured]
		t.Run(name, func(t *testing.T) {
			m := newMirror(t, layout{insecure: !secured})
			m.start()
			l := newLedger(baseSeed, m.size)
			c := m.source.dial(startLimit)
			ld := l.startLoad(c, newRand(t), 2, 10)
			ld.untilAnswered(t, 100)
			sourceBefore, targetBefore := m.source.residentBytes(), m.target.residentBytes()
			r := newRand(t)
			for _, g := range nbdGarbage(r) {
				for range 30 {
					throw(t, m.source.nbd, g)
				}
				ld.untilAnswered(t, 20)
			}
			for _, g := range portGarbage(r) {
				for range 30 {
					throw(t, m.target.listen[0], g)
				}
				ld.untilAnswered(t, 20)
			}
			held := hold(t, m.target.listen[0], 200)
			ld.untilAnswered(t, 100)
			held()
			if m.source.hasEnded() || m.target.hasEnded() {
				t.Fatal("an agent has ended")
			}
			for _, a := range []struct {
				*agent
				before int64
			}{{m.source, sourceBefore}, {m.target, targetBefore}} {
				now := a.residentBytes()
				t.Logf("%s: %d MiB before, %d MiB after", a.name, a.before>>20, now>>20)
				if now > a.before+memoryGrowth {
					t.Errorf("%s has grown from %d to %d MiB", a.name, a.before>>20, now>>20)
				}
			}
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			if err := l.verify(c.read, allAcked); err != nil {
				t.Fatal(err)
			}
			c.close()
			m.stopLevel("target")
		})
	}
}

// throw sends bytes and reads what comes for a moment.
func throw(t testing.TB, addr string, b []byte) {
	t.Helper()
	conn, err := dialRaw(addr)
	if err != nil {
		t.Fatalf("%s takes no connection any more: %v", addr, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
	conn.Write(b)
	io.Copy(io.Discard, io.LimitReader(conn, 64<<10))
}

// hold opens connections that say nothing; the returned func ends them.
func hold(t testing.TB, addr string, n int) func() {
	t.Helper()
	var conns []net.Conn
	for range n {
		if c, err := dialRaw(addr); err == nil {
			conns = append(conns, c)
		}
	}
	return func() {
		for _, c := range conns {
			c.Close()
		}
	}
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func nbdGarbage(r *rand.Rand) [][]byte {
	flags := []byte{0, 0, 0, 3}
	option := func(id, length uint32, body ...byte) []byte {
		b := append([]byte{}, flags...)
		b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
		b = binary.BigEndian.AppendUint32(b, id)
		b = binary.BigEndian.AppendUint32(b, length)
		return append(b, body...)
	}
	request := func(kind uint16, off uint64, length uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, off)
		return binary.BigEndian.AppendUint32(b, length)
	}
	open := option(protocol.NEGOTIATION_ID_OPTION_GO, 6, 0, 0, 0, 0, 0, 0)
	then := func(reqs ...[]byte) []byte {
		b := append([]byte{}, open...)
		for _, q := range reqs {
			b = append(b, q...)
		}
		return b
	}
	return [][]byte{
		noise(r, 64<<10),
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		option(protocol.NEGOTIATION_ID_OPTION_GO, 0xffffffff),
		option(protocol.NEGOTIATION_ID_OPTION_GO, 8, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0),
		option(1, 0xfffffff0, noise(r, 4096)...),
		option(0xdeadbeef, 1<<31, noise(r, 4096)...),
		then(request(protocol.TRANSMISSION_TYPE_REQUEST_WRITE, 0, 0xffffffff)),
		then(request(protocol.TRANSMISSION_TYPE_REQUEST_READ, 0, 0xffffffff)),
		then(request(protocol.TRANSMISSION_TYPE_REQUEST_READ, 1<<63, 4096), request(0xffff, 0, 0), request(7, 0, 1<<30)),
		then(noise(r, 1024)),
	}
}

func portGarbage(r *rand.Rand) [][]byte {
	huge := append(binary.LittleEndian.AppendUint32(nil, 0xffffffff), noise(r, 4096)...)
	clientHello := append([]byte{0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff}, noise(r, 2048)...)
	var all255 [4096]byte
	for i := range all255 {
		all255[i] = 255
	}
	return [][]byte{
		noise(r, 64<<10), huge, clientHello, all255[:], make([]byte, 64<<10),
		[]byte("GET / HTTP/1.1\r\n\r\n"), []byte("NBDMAGICIHAVEOPT"),
	}
}
