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
	var words []string
	for {
		k := c.chunk()
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
			return strings.Join(words, " "), data
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
			said, data := client.structured()
			if said != c.want {
				t.Fatalf("%s, want %s", said, c.want)
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

func TestMetaContext(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	list, set := optionListMetaContext, optionSetMetaContext
	many := make([]string, 500)
	for i := range many {
		many[i] = "x-a:"
	}
	for _, c := range []struct {
		name string
		id   uint32
		data []any
		want uint32
		id32 int // of the context in the reply, -1: none
	}{
		{"list all", list, metaData(""), repAck, 0},
		{"list by wildcard", list, metaData("first", "base:"), repAck, 0},
		{"list by name", list, metaData("second", "x-no:thing", allocationName), repAck, 0},
		{"list another", list, metaData("second", "base:other", "qemu:"), repAck, -1},
		{"list many", list, metaData("second", many...), repAck, -1},
		{"set", set, metaData("first", allocationName), repAck, 1},
		{"set twice the same", set, metaData("first", allocationName, allocationName), repAck, 1},
		{"set nothing", set, metaData("first"), repAck, -1},
		{"set by wildcard", set, metaData("first", "base:"), repAck, -1},
		{"set another", set, metaData("first", "base:allocationx"), repAck, -1},
		{"unknown export", set, metaData("third", allocationName), protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, -1},
		{"unknown export in a list", list, metaData("third"), protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, -1},
		{"no namespace", set, metaData("first", "allocation"), replyErrInvalid, -1},
		{"surplus", set, append(metaData("first", allocationName), "x"), replyErrInvalid, -1},
		{"4 Gi queries", set, []any{uint32(0), ^uint32(0)}, replyErrInvalid, -1},
		{"a query of 4 GiB", set, []any{uint32(0), uint32(1), ^uint32(0), "base:"}, replyErrInvalid, -1},
		{"a name of 4 GiB", list, []any{^uint32(0), "first"}, replyErrInvalid, -1},
		{"a name longer than names are", list, metaData(strings.Repeat("n", maxNameSize+1)), replyErrInvalid, -1},
		{"too large", list, metaData("", strings.Repeat("x:", maxOptionSize)), replyErrTooBig, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(clientFixedNewstyle)
			client.option(c.id, c.data...)
			if kind, _ := client.answer(c.id); kind != replyErrInvalid && kind != replyErrTooBig {
				t.Fatalf("before structured replies: %x", kind)
			}
			client.option(optionStructuredReply)
			client.acknowledged(optionStructuredReply)
			client.option(c.id, c.data...)
			got := -1
			kind, data := client.answer(c.id)
			if kind == replyMetaContext {
				if string(data[4:]) != allocationName {
					t.Fatalf("%q", data)
				}
				got = int(be32(data))
				kind, _ = client.answer(c.id)
			}
			if kind != c.want || got != c.id32 {
				t.Fatalf("%x with context %d, want %x with %d", kind, got, c.want, c.id32)
			}
		})
	}
	// Cut at every byte, each is malformed and costs nothing.
	client := dial(t, path)
	client.greeting(clientFixedNewstyle)
	client.option(optionStructuredReply, "surplus")
	if kind, _ := client.answer(optionStructuredReply); kind != replyErrInvalid {
		t.Fatalf("%x", kind)
	}
	client.option(optionStructuredReply)
	client.acknowledged(optionStructuredReply)
	for whole, cut := encode(metaData("first", allocationName)...), 0; cut < len(whole); cut++ {
		client.option(set, whole[:cut])
		if kind, _ := client.answer(set); kind != replyErrInvalid {
			t.Fatalf("cut at %d: %x", cut, kind)
		}
	}
}

// BLOCK_STATUS works when the last SET_META_CONTEXT found something, for the export that is served in the end, and never
// else.
func TestWhenStatusMayBeAsked(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	type option struct {
		id   uint32
		data []any
	}
	structured, set := option{optionStructuredReply, nil}, option{optionSetMetaContext, metaData("first", allocationName)}
	for _, c := range []struct {
		name    string
		options []option
		last    option
		want    string
	}{
		{"set", []option{structured, set}, option{optGo, goData("first")}, "512:3"},
		{"set, by the default name", []option{structured, set}, option{optGo, goData("")}, "512:3"},
		{"set, then the old way in", []option{structured, set}, option{optionExportName, []any{"first"}}, "512:3"},
		{"not set", []option{structured}, option{optGo, goData("first")}, "error 22"},
		{"not even structured", nil, option{optGo, goData("first")}, "simple 22"},
		{"set for another", []option{structured, set}, option{optGo, goData("second")}, "error 22"},
		{"set for another, the old way", []option{structured, set}, option{optionExportName, []any{"second"}}, "error 22"},
		{"only listed", []option{structured, {optionListMetaContext, metaData("first")}}, option{optGo, goData("first")}, "error 22"},
		{"listed after", []option{structured, set, {optionListMetaContext, metaData("first", "x:")}}, option{optGo, goData("first")}, "512:3"},
		{"set to nothing after", []option{structured, set, {optionSetMetaContext, metaData("first")}}, option{optGo, goData("first")}, "error 22"},
		{"failed after", []option{structured, set, {optionSetMetaContext, metaData("third", "base:")}}, option{optGo, goData("first")}, "error 22"},
		{"malformed after", []option{structured, set, {optionSetMetaContext, nil}}, option{optGo, goData("first")}, "error 22"},
		{
			"too large after",
			[]option{structured, set, {optionSetMetaContext, []any{make([]byte, maxOptionSize+1)}}},
			option{optGo, goData("first")},
			"error 22",
		},
		{"info in between", []option{structured, set, {optInfo, goData("second")}}, option{optGo, goData("first")}, "512:3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(clientFixedNewstyle | clientNoZeroes)
			final := func(id uint32) {
				for kind, _ := client.answer(id); kind != repAck && kind < 1<<31; kind, _ = client.answer(id) {
				}
			}
			for _, o := range c.options {
				client.option(o.id, o.data...)
				final(o.id)
			}
			client.option(c.last.id, c.last.data...)
			if c.last.id == optGo {
				final(optGo)
			} else {
				client.get(10)
			}
			client.put(request(cmdBlockStatus, 0, 1, 0, 512))
			if said, _ := client.structured(); said != c.want {
				t.Fatalf("%s, want %s", said, c.want)
			}
		})
	}
}

// INFO and the GO after it say the same, with and without structured replies.
func TestInfoThenGoAgree(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	for _, structured := range []bool{false, true} {
		c := dial(t, path)
		c.greeting(clientFixedNewstyle)
		if structured {
			c.option(optionStructuredReply)
			c.acknowledged(optionStructuredReply)
		}
		var said [2]string
		for i, id := range []uint32{optInfo, optGo} {
			c.option(id, goData("second", 1, 3)...)
			for kind, data := c.answer(id); kind != repAck; kind, data = c.answer(id) {
				said[i] += string(data)
			}
		}
		if said[0] != said[1] {
			t.Errorf("%q and %q", said[0], said[1])
		}
		if df := said[0][11]&byte(flagSendDF) != 0; df != structured {
			t.Errorf("DF is %v, structured replies %v", df, structured)
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
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}
