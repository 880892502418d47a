package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// plain is a device with nothing beyond the least.
type plain struct{ blockdev.Device }

// metaData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaData(name string, queries ...string) []any {
	data := []any{uint32(len(name)), name, uint32(len(queries))}
	for _, q := range queries {
		data = append(data, uint32(len(q)), q)
	}
	return data
}

// connectStructured goes into transmission with structured replies and base:allocation.
func connectStructured(t testing.TB, path string) *raw {
	t.Helper()
	c := dial(t, path)
	c.greeting(clientFixedNewstyle | clientNoZeroes)
	c.structure()
	c.option(optGo, goData("")...)
	for kind, _ := c.answer(optGo); kind != repAck; kind, _ = c.answer(optGo) {
	}
	return c
}

// structure asks for structured replies and base:allocation.
func (c *raw) structure() {
	c.t.Helper()
	c.option(optionStructuredReply)
	c.acknowledged(optionStructuredReply)
	c.option(optionSetMetaContext, metaData("", allocationName)...)
	if kind, data := c.answer(optionSetMetaContext); kind != replyMetaContext || string(data[4:]) != allocationName {
		c.t.Fatalf("SET_META_CONTEXT: %x %q", kind, data)
	}
	c.acknowledged(optionSetMetaContext)
}

func (c *raw) acknowledged(id uint32) {
	c.t.Helper()
	if kind, data := c.answer(id); kind != repAck || len(data) != 0 {
		c.t.Fatalf("option %d: %x %q", id, kind, data)
	}
}

// chunk is one of a structured reply, or a simple reply with kind ^0.
type chunk struct {
	done    bool
	kind    uint16
	cookie  uint64
	payload []byte
}

func (c *raw) chunk() chunk {
	c.t.Helper()
	p := c.get(16)
	switch be32(p) {
	case protocol.TRANSMISSION_MAGIC_REPLY:
		return chunk{true, ^uint16(0), be64(p[8:]), p[4:8]}
	case structuredMagic:
		flags := binary.BigEndian.Uint16(p[4:])
		if flags&^chunkDone != 0 {
			c.t.Fatalf("unknown flags %x", flags)
		}
		return chunk{flags == chunkDone, binary.BigEndian.Uint16(p[6:]), be64(p[8:]), c.get(int(be32(c.get(4))))}
	}
	c.t.Fatalf("magic %x", p)
	return chunk{}
}

// structured reads one whole reply and says what it is in words.
func (c *raw) structured() (said string, data []byte) {
	c.t.Helper()
	_, said, data = c.answered()
	return said, data
}

// answered is structured with the cookie of the reply.
func (c *raw) answered() (cookie uint64, said string, data []byte) {
	c.t.Helper()
	var words []string
	for first := true; ; first = false {
		k := c.chunk()
		if first {
			cookie = k.cookie
		} else if k.cookie != cookie {
			c.t.Fatalf("a chunk for %x in the reply to %x", k.cookie, cookie)
		}
		p := k.payload
		switch k.kind {
		case ^uint16(0):
			words = append(words, fmt.Sprintf("simple %d", be32(p)))
		case chunkNone:
			words = append(words, "none")
		case chunkData:
			words = append(words, fmt.Sprintf("data %d+%d", be64(p), len(p)-8))
			data = append(data, p[8:]...)
		case chunkHole:
			words = append(words, fmt.Sprintf("hole %d+%d", be64(p), be32(p[8:])))
			data = append(data, make([]byte, be32(p[8:]))...)
		case chunkBlockStatus:
			for q := p[4:]; len(q) > 0; q = q[8:] {
				words = append(words, fmt.Sprintf("%d:%d", be32(q), be32(q[4:])))
			}
		case chunkError, chunkErrorOffset:
			n := int(binary.BigEndian.Uint16(p[4:]))
			said := fmt.Sprintf("error %d", be32(p))
			if n == 0 || n > len(p)-6 {
				c.t.Fatalf("error text of %d bytes in %q", n, p)
			}
			if p = p[6+n:]; k.kind == chunkErrorOffset {
				said += fmt.Sprintf(" at %d", be64(p))
				p = p[8:]
			}
			if len(p) != 0 {
				c.t.Fatalf("surplus bytes %q", p)
			}
			words = append(words, said)
		default:
			c.t.Fatalf("chunk of kind %d", k.kind)
		}
		if k.done {
			return cookie, strings.Join(words, " "), data
		}
	}
}

// Data at [64 KiB, 128 KiB) and [1 MiB, 1 MiB + 64 KiB) of 4 MiB.
func sparse(t *testing.T) *blockdev.Memory {
	d := blockdev.NewMemory(4*mib, nil)
	for _, off := range []int64{64 << 10, mib} {
		if _, err := d.WriteAt(pattern(64<<10, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestStructuredReplies(t *testing.T) {
	const k = 1 << 10
	fail := func(r blockdev.Rule) blockdev.Device { return blockdev.NewFaulty(sparse(t), r) }
	for _, c := range []struct {
		name    string
		export  Export
		request []byte
		want    string
	}{
		{"short read", Export{}, request(cmdRead, 0, 1, 10, 100), "data 10+100"},
		{"read of a short hole", Export{}, request(cmdRead, 0, 1, 2*mib, 4*k), "data 2097152+4096"},
		{"read with holes", Export{}, request(cmdRead, 0, 1, 32*k, 128*k), "hole 32768+32768 data 65536+65536 hole 131072+32768"},
		{
			"large read with holes",
			Export{},
			request(cmdRead, 0, 1, 0, 4*mib),
			"hole 0+65536 data 65536+65536 hole 131072+917504 data 1048576+65536 hole 1114112+3080192",
		},
		{"read of a hole", Export{}, request(cmdRead, 0, 1, 2*mib, mib), "hole 2097152+1048576"},
		{"read of data", Export{}, request(cmdRead, 0, 1, 64*k, 64*k), "data 65536+65536"},
		{"DF", Export{}, request(cmdRead, cmdFlagDF, 1, 0, 4*mib), "data 0+4194304"},
		{"small DF", Export{}, request(cmdRead, cmdFlagDF, 1, 32*k, 128*k), "data 32768+131072"},
		{"device without extents", Export{Device: plain{sparse(t)}}, request(cmdRead, 0, 1, 0, 4*mib), "data 0+4194304"},
		{"read of nothing", Export{}, request(cmdRead, 0, 1, 5, 0), "none"},
		{"read outside", Export{}, request(cmdRead, 0, 1, 4*mib, 1), "error 22"},
		{"read too large", Export{}, request(cmdRead, 0, 1, 0, 32*mib+1), "error 75"},
		{"DF read too large", Export{}, request(cmdRead, cmdFlagDF, 1, 0, 32*mib+1), "error 75"},
		{"read with a wrong flag", Export{}, request(cmdRead, cmdFlagReqOne, 1, 0, 1), "error 22"},
		{"read EIO", Export{Device: fail(blockdev.Rule{Op: blockdev.OpRead, Err: syscall.EIO})}, request(cmdRead, 0, 1, 512, 512), "error 5 at 512"},
		{
			"read EIO in the middle",
			Export{Device: fail(blockdev.Rule{Op: blockdev.OpRead, Err: syscall.EIO, Short: 1024})},
			request(cmdRead, 0, 1, 512, 4096), "error 5 at 1536",
		},
		{
			"large read EIO at its second piece",
			Export{Device: fail(blockdev.Rule{Op: blockdev.OpRead, Nth: 2, Err: syscall.EIO, Short: 512})},
			request(cmdRead, 0, 1, 0, 4*mib), fmt.Sprintf("error 5 at %d", mib+512),
		},
		{"write", Export{}, request(cmdWrite, 0, 1, 0, 4, []byte("data")), "simple 0"},
		{"write outside", Export{}, request(cmdWrite, 0, 1, 4*mib, 4, []byte("data")), "error 28"},
		{"write to a read-only export", Export{ReadOnly: true}, request(cmdWrite, 0, 1, 0, 4, []byte("data")), "error 1"},
		{"flush EIO", Export{Device: fail(blockdev.Rule{Op: blockdev.OpSync, Err: syscall.EIO})}, request(cmdFlush, 0, 1, 0, 0), "error 5"},
		{"slow zero", Export{Device: plain{sparse(t)}}, request(cmdWriteZeroes, cmdFlagFastZero, 1, 0, 512), "error 95"},
		{"unknown command", Export{}, request(55, 0, 1, 0, 0), "error 22"},

		{"status", Export{}, request(cmdBlockStatus, 0, 1, 0, 4*mib), "65536:3 65536:0 917504:3 65536:0 3080192:3"},
		{"status of a part", Export{}, request(cmdBlockStatus, 0, 1, 100*k, 100*k), "28672:0 73728:3"},
		{"status of one byte", Export{}, request(cmdBlockStatus, 0, 1, 65537, 1), "1:0"},
		{"status, the first", Export{}, request(cmdBlockStatus, cmdFlagReqOne, 1, 0, 4*mib), "65536:3"},
		{"status, the first, within it", Export{}, request(cmdBlockStatus, cmdFlagReqOne, 1, 0, 512), "512:3"},
		{"status of the last byte", Export{}, request(cmdBlockStatus, 0, 1, 4*mib-1, 1), "1:3"},
		{"status with FUA", Export{}, request(cmdBlockStatus, cmdFlagFUA, 1, 0, 512), "512:3"},
		{"status of a device without extents", Export{Device: plain{sparse(t)}}, request(cmdBlockStatus, 0, 1, 0, 4*mib), "4194304:0"},
		{"status with large blocks", Export{BlockMin: 64 * k}, request(cmdBlockStatus, 0, 1, 0, mib), "65536:3 65536:0 917504:3"},
		{"status outside", Export{}, request(cmdBlockStatus, 0, 1, 4*mib, 1), "error 22"},
		{"status of nothing", Export{}, request(cmdBlockStatus, 0, 1, 0, 0), "error 22"},
		{"misaligned status", Export{BlockMin: 512}, request(cmdBlockStatus, 0, 1, 1, 512), "error 22"},
		{"status with a wrong flag", Export{}, request(cmdBlockStatus, cmdFlagDF, 1, 0, 512), "error 22"},
		{
			"status EIO",
			Export{Device: finder{sparse(t), func(int64) (int64, int64, error) { return 0, 0, syscall.EIO }}},
			request(cmdBlockStatus, 0, 1, 0, 512), "error 5",
		},
		{
			"status of a device that makes no progress",
			Export{Device: finder{sparse(t), func(int64) (int64, int64, error) { return 0, 0, nil }}},
			request(cmdBlockStatus, 0, 1, 0, 512), "error 5",
		},
		{
			"status of a device that lies",
			Export{Device: finder{sparse(t), func(int64) (int64, int64, error) { return -5, math.MaxInt64, nil }}},
			request(cmdBlockStatus, 0, 1, 0, 512), "512:0",
		},
		{
			"read of a device that makes no progress",
			Export{Device: finder{sparse(t), func(int64) (int64, int64, error) { return 0, 0, nil }}},
			request(cmdRead, 0, 1, 0, mib), "data 0+1048576",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.export.Device == nil {
				c.export.Device = sparse(t)
			}
			_, path := start(t, Options{}, c.export)
			client := connectStructured(t, path)
			client.put(c.request)
			cookie, said, data := client.answered()
			if said != c.want || cookie != 1 {
				t.Fatalf("%s for %x, want %s for 1", said, cookie, c.want)
			}
			if h := parseRequest(c.request); h.Type == cmdRead && !strings.HasPrefix(c.want, "error") {
				want := make([]byte, h.Length)
				sparse(t).ReadAt(want, int64(h.Offset))
				if !bytes.Equal(data, want) {
					t.Fatal("the data differs")
				}
			}
			client.put(request(cmdFlush, 0, 2, 1, 0)) // it stands at the right byte
			if said, _ := client.structured(); said != "error 22" {
				t.Fatal(said)
			}
		})
	}
}

// finder has a NextData of its own.
type finder struct {
	blockdev.Device
	next func(off int64) (int64, int64, error)
}

func (f finder) NextData(off int64) (int64, int64, error) { return f.next(off) }

// Data in every second block: more extents than a reply may have. The client goes on where it ends.
func TestManyExtents(t *testing.T) {
	const size, block = 64 * mib, 4096
	d := finder{blockdev.NewMemory(size, nil), func(off int64) (int64, int64, error) {
		start := max(off, (off/block|1)*block)
		return start, (start/block + 1) * block, nil
	}}
	_, path := start(t, Options{}, Export{Device: d})
	c := connectStructured(t, path)
	off, replies := uint64(0), 0
	for off < size {
		c.put(request(cmdBlockStatus, 0, 1, off, uint32(size-off)))
		p := c.chunk()
		if !p.done || p.kind != chunkBlockStatus || len(p.payload) > 4+8*maxStatusExtents {
			t.Fatalf("%+v", p)
		}
		for q := p.payload[4:]; len(q) > 0; q = q[8:] {
			if want := (off/block + 1) % 2 * 3; be32(q) != block || uint64(be32(q[4:])) != want {
				t.Fatalf("extent of %d bytes at %d: %d", be32(q), off, be32(q[4:]))
			}
			off += block
		}
		replies++
	}
	if want := size / block / maxStatusExtents; off != size || replies != want {
		t.Errorf("%d bytes in %d replies, want %d", off, replies, want)
	}
	c.put(request(cmdRead, 0, 1, 0, 32*mib))
	said, data := c.structured()
	if len(data) != 32*mib || strings.Count(said, "hole") > maxReadExtents || strings.Count(said, "hole") < 10 {
		t.Error(len(data), said)
	}
}

// What is allocated as it is written, zeroed and trimmed, from a file.
func TestStatusOfAFile(t *testing.T) {
	f, err := blockdev.OpenFile(t.TempDir()+"/device", blockdev.FileOptions{Create: true, Size: 4 * mib})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, path := start(t, Options{}, Export{Device: f})
	c := connectStructured(t, path)
	for _, step := range []struct {
		request []byte
		want    string
	}{
		{nil, "4194304:3"},
		{request(cmdWrite, 0, 1, mib, 2*mib, pattern(2*mib, 1)), "1048576:3 2097152:0 1048576:3"},
		{request(cmdTrim, 0, 1, 2*mib, mib), "1048576:3 1048576:0 2097152:3"},
		{request(cmdWriteZeroes, 0, 1, 0, 4*mib), "4194304:3"},
	} {
		if step.request != nil {
			c.put(step.request)
			if said, _ := c.structured(); said != "simple 0" {
				t.Fatal(said)
			}
		}
		c.put(request(cmdBlockStatus, 0, 2, 0, 4*mib))
		if said, _ := c.structured(); said != step.want {
			t.Fatalf("%s, want %s", said, step.want)
		}
	}
}

// A read within what is known to be data does not ask the device again; on another connection it does.
func TestSearchIsRemembered(t *testing.T) {
	asked := 0
	d := finder{sparse(t), func(off int64) (int64, int64, error) { asked++; return off, 4 * mib, nil }}
	s, path := start(t, Options{}, Export{Device: d})
	for range 2 {
		c := connectStructured(t, path)
		for i := range uint64(4) {
			c.put(request(cmdRead, 0, 1, i*mib, mib))
			c.structured()
		}
		c.put(request(cmdDisc, 0, 0, 0, 0))
		c.ended()
	}
	s.Close()
	s.Wait()
	if asked < 2 || asked >= 8 { // who takes the lead from a slow one asks anew
		t.Errorf("asked %d times", asked)
	}
}
