package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// What a field is made in turn: nothing, one less and one more than it is, and all that is out of bounds.
func wrongValues(right, limit uint32) []uint32 {
	return []uint32{0, 1, right - 1, right + 1, limit - 1, limit, limit + 1, 1 << 31, math.MaxUint32 - 27, math.MaxUint32}
}

// metaAnswer is what proto.md wants for the data of LIST_META_CONTEXT and SET_META_CONTEXT, decoded once more from the text:
// "32 bits, length of export name. String, name of export. 32 bits, number of queries. Zero or more queries, each being: 32
// bits, length of query. String."
func metaAnswer(data []byte, set bool, export string) (kind uint32, found bool) {
	r := bytes.NewReader(data)
	text := func() (string, bool) {
		var n uint32
		if binary.Read(r, binary.BigEndian, &n) != nil || int64(n) > int64(r.Len()) || n > 4096 {
			return "", false
		}
		p := make([]byte, n)
		r.Read(p)
		return string(p), true
	}
	name, ok := text()
	var count uint32
	if !ok || binary.Read(r, binary.BigEndian, &count) != nil {
		return replyErrInvalid, false
	}
	found = count == 0 && !set
	for range count {
		q, ok := text()
		if !ok || !strings.Contains(q, ":") {
			return replyErrInvalid, false
		}
		found = found || q == allocationName || q == "base:" && !set
	}
	switch {
	case r.Len() > 0:
		return replyErrInvalid, false
	case name != export && name != "":
		return protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, false
	}
	return repAck, found
}

// Every length and count in the data of both options is made wrong, and the data is cut and prolonged at every byte.
func TestMalformedMetaContext(t *testing.T) {
	long := strings.Repeat("n", maxNameSize)
	_, path := start(t, Options{}, Export{Name: "fuzz", Device: blockdev.NewMemory(mib, nil)},
		Export{Name: long, Device: blockdev.NewMemory(mib, nil)})
	for _, id := range []uint32{optionListMetaContext, optionSetMetaContext} {
		var c *raw
		tried := 0
		try := func(data []byte) {
			t.Helper()
			if tried%(maxOptions/2) == 0 { // a handshake has that many options at most
				c = dial(t, path)
				c.greeting(clientFixedNewstyle)
				c.option(optionStructuredReply)
				c.acknowledged(optionStructuredReply)
			}
			tried++
			want, found := metaAnswer(data, id == optionSetMetaContext, "fuzz")
			c.option(id, data)
			kind, text := c.answer(id)
			if got := kind == replyMetaContext; got != found {
				t.Fatalf("option %d with %.60q: context found %v, want %v (%x %q)", id, data, got, found, kind, text)
			}
			if found {
				kind, _ = c.answer(id)
			}
			if kind != want {
				t.Fatalf("option %d with %.60q: %x, want %x", id, data, kind, want)
			}
		}
		for _, queries := range [][]string{{}, {allocationName}, {"base:", "x-y:z"}, {"x-y:z", allocationName, "q:"}, {""}, {"base"}, {"nul\x00l:"}} {
			data := encode(metaData("fuzz", queries...)...)
			try(data)
			for cut := range data {
				try(data[:cut])
			}
			for _, n := range []int{1, 4, 8} {
				try(append(bytes.Clone(data), make([]byte, n)...))
			}
			fields := []int{0, 8}
			for at, i := 12, 0; i < len(queries); at, i = at+4+len(queries[i]), i+1 {
				fields = append(fields, at)
			}
			for _, at := range fields {
				for _, value := range wrongValues(be32(data[at:]), uint32(len(data)-at)) {
					wrong := bytes.Clone(data)
					binary.BigEndian.PutUint32(wrong[at:], value)
					try(wrong)
				}
			}
		}
		for _, n := range []int{maxNameSize, maxNameSize + 1} { // a name or query longer than names are, all of it there
			name := strings.Repeat("x", n)
			try(encode(metaData(name, allocationName)...))
			try(encode(metaData("fuzz", name[:n-2]+":x", allocationName)...))
		}
	}
	// And the longest name that there may be is a name.
	c := dial(t, path)
	c.greeting(clientFixedNewstyle)
	c.option(optInfo, goData(long)...)
	if kind, data := c.answer(optInfo); kind != repInfo {
		t.Errorf("the export whose name is as long as names may be: %x %q", kind, data)
	}
}

// The header of every option: a magic or length that is wrong ends the connection or makes it wait, and nothing of it is left
// when the client has gone.
func TestMalformedOptionHeaders(t *testing.T) {
	p := newPKI(t)
	s, path := start(t, p.options(false), fuzzExport())
	messages := append(handshakeMessages()[1:], option(optionStartTLS))
	for _, m := range messages {
		for field := 0; field < 16; field += 4 {
			for _, value := range wrongValues(be32(m[field:]), maxSkippedSize) {
				wrong := bytes.Clone(m)
				binary.BigEndian.PutUint32(wrong[field:], value)
				if bytes.Equal(wrong, m) {
					continue
				}
				c := dial(t, path)
				c.greeting(clientFixedNewstyle | clientNoZeroes)
				c.put(wrong)
				giveUp(t, c) // so that it need not wait for what the length promises
				said := readAll(c)
				checkReplies(t, said)
				if field < 8 && len(said) > 0 {
					t.Errorf("a wrong magic was answered: %x with %x", wrong, said)
				}
				c.Close()
			}
		}
	}
	for s.Stats().Connections > 0 {
		runtime.Gosched()
	}
}

// readAll reads to the end, however it comes.
func readAll(c *raw) []byte {
	var b bytes.Buffer
	b.ReadFrom(c)
	return b.Bytes()
}

// statusAnswer is what proto.md wants for a request of 1 MiB at 0 on a device of 1 MiB that has one field wrong.
func statusAnswer(p []byte, size uint64) string {
	h := parseRequest(p)
	switch {
	case h.Type != cmdBlockStatus || h.CommandFlags&^(cmdFlagFUA|cmdFlagReqOne) != 0 || h.Length == 0:
		return "error 22"
	case h.Offset > size || h.Offset+uint64(h.Length) > size:
		return "error 22"
	}
	return fmt.Sprintf("%d:3", h.Length)
}

// Every field of a BLOCK_STATUS is made wrong, and the connection goes on at the right byte with the right cookie.
func TestMalformedBlockStatus(t *testing.T) {
	const size = mib
	_, path := start(t, Options{}, Export{Device: blockdev.NewMemory(size, nil)})
	c := connectStructured(t, path)
	right := request(cmdBlockStatus, 0, 0x0123456789abcdef, 0, size)
	try := func(wrong []byte) {
		t.Helper()
		c.put(wrong, request(cmdFlush, 0, 7, 0, 0))
		want := map[uint64]string{be64(wrong[8:]): statusAnswer(wrong, size), 7: "simple 0"}
		for range 2 {
			cookie, said, _ := c.answered()
			if want[cookie] != said {
				t.Fatalf("%x: %q for %x, want %q", wrong, said, cookie, want[cookie])
			}
			delete(want, cookie)
		}
	}
	try(right)
	for _, offset := range []uint64{1, size - 1, size, size + 1, 1 << 31, 1 << 32, 1 << 63, math.MaxUint64 - size + 1, math.MaxUint64} {
		for _, length := range []uint32{0, 1, 512, size - 1, size, size + 1, 1 << 31, math.MaxUint32} {
			wrong := bytes.Clone(right)
			binary.BigEndian.PutUint64(wrong[16:], offset)
			binary.BigEndian.PutUint32(wrong[24:], length)
			try(wrong)
		}
	}
	for _, length := range wrongValues(size, size) {
		wrong := bytes.Clone(right)
		binary.BigEndian.PutUint32(wrong[24:], length)
		try(wrong)
	}
	for bit := range 16 {
		wrong := bytes.Clone(right)
		binary.BigEndian.PutUint16(wrong[4:], 1<<bit)
		try(wrong)
	}
	for _, cookie := range []uint64{0, 8, 1 << 63, math.MaxUint64} {
		wrong := bytes.Clone(right)
		binary.BigEndian.PutUint64(wrong[8:], cookie)
		try(wrong)
	}
	for _, command := range []uint16{8, 9, 77, 1 << 15, math.MaxUint16} {
		wrong := bytes.Clone(right)
		binary.BigEndian.PutUint16(wrong[6:], command)
		try(wrong)
	}
	for at := range 4 {
		c := connectStructured(t, path)
		wrong := bytes.Clone(right)
		wrong[at] ^= 1
		c.put(wrong)
		c.ended()
	}
}
