package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// infoAnswer is what proto.md wants for the data of INFO and GO, decoded once more from the text: "32 bits, length of name (unsigned);
// MUST be no larger than the option data length - 6. String, name of the export. 16 bits, number of information requests. 16 bits x
// n". It returns the kind of the last reply and the types of information before it.
func infoAnswer(data []byte, export string) (kind uint32, infos string) {
	if len(data) < 6 {
		return replyErrInvalid, ""
	}
	n := uint64(be32(data))
	if n > uint64(len(data))-6 || n > 4096 {
		return replyErrInvalid, ""
	}
	name, rest := string(data[4:4+n]), data[4+n:]
	wanted := rest[2:]
	if len(wanted) != 2*int(binary.BigEndian.Uint16(rest)) {
		return replyErrInvalid, ""
	}
	if name != export && name != "" {
		return protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, ""
	}
	types := map[uint16]bool{0: true, 3: true} // always told
	for ; len(wanted) > 0; wanted = wanted[2:] {
		types[binary.BigEndian.Uint16(wanted)] = true
	}
	for _, known := range []struct {
		id   uint16
		text string
	}{{0, "0"}, {3, "3"}, {1, "1:" + export}, {2, "2:" + "the description"}} {
		if types[known.id] {
			infos += " " + known.text
		}
	}
	return repAck, infos
}

// Every field in the data of INFO and GO is made wrong, and the data is cut and prolonged at every byte. What is refused leaves the
// handshake where it was; what is not leads a GO into transmission.
func TestMalformedInfo(t *testing.T) {
	_, path := start(t, Options{}, Export{Name: "fuzz", Description: "the description", Device: blockdev.NewMemory(mib, nil)})
	for _, id := range []uint32{optInfo, optGo} {
		var c *raw
		left := 0 // options that the handshake may still have
		try := func(data []byte) {
			t.Helper()
			if left == 0 {
				c, left = dial(t, path), maxOptions/2
				c.greeting(clientFixedNewstyle)
			}
			left--
			want, infos := infoAnswer(data, "fuzz")
			c.option(id, data)
			kind, text := c.answer(id)
			said := ""
			for ; kind == repInfo; kind, text = c.answer(id) {
				said += fmt.Sprint(" ", binary.BigEndian.Uint16(text))
				if text[1] == 1 || text[1] == 2 {
					said += ":" + string(text[2:])
				}
			}
			if kind != want || said != infos {
				t.Fatalf("option %d with %.60q: %x after%s, want %x after%s", id, data, kind, said, want, infos)
			}
			if kind == repAck && id == optGo {
				c.alive()
				c.Close()
				left = 0
			}
		}
		for _, name := range []string{"", "f", "fuzz", "fuzzy", "nul\x00"} {
			for _, types := range [][]uint16{{}, {1}, {3, 0}, {2, 1, 77}, {4, 1 << 8, 1 << 9, math.MaxUint16}, {1, 1, 1}} {
				data := encode(goData(name, types...)...)
				try(data)
				for cut := range data {
					try(data[:cut])
				}
				for _, n := range []int{1, 2, 4, 8} {
					try(append(bytes.Clone(data), make([]byte, n)...))
				}
				for _, value := range append(wrongValues(uint32(len(name)), uint32(len(data)-6)), uint32(len(data)), uint32(len(data)-4)) {
					wrong := bytes.Clone(data)
					binary.BigEndian.PutUint32(wrong, value)
					try(wrong)
				}
				count := uint16(len(types))
				for _, value := range []uint16{0, count - 1, count + 1, 1 << 15, 1<<15 + count, math.MaxUint16} {
					wrong := bytes.Clone(data)
					binary.BigEndian.PutUint16(wrong[4+len(name):], value)
					try(wrong)
				}
			}
		}
		for _, n := range []int{maxNameSize, maxNameSize + 1} { // a name longer than names are, all of it there
			try(encode(goData(strings.Repeat("x", n))...))
		}
		most := (maxOptionSize - 6) / 2
		try(encode(goData("", make([]uint16, most)...)...)) // as many as an option has the room for
	}
}

// Each of the 32 flags that a client may say: those of the protocol lead on, and with any other the connection ends without an answer.
func TestEveryClientFlag(t *testing.T) {
	_, path := start(t, Options{}, Export{Name: "fuzz", Device: blockdev.NewMemory(mib, nil)})
	for bit := range 32 {
		for _, with := range []uint32{0, clientFixedNewstyle, clientFixedNewstyle | clientNoZeroes} {
			flags := with | 1<<bit
			c := dial(t, path)
			c.SetDeadline(time.Now().Add(patience))
			c.greeting(flags)
			if flags > 3 {
				c.Write(option(optInfo, goData("fuzz")...)) // an error: it may be gone already
				if said := readAll(c); len(said) > 0 {
					t.Errorf("flags %#x: %x", flags, said)
				}
				c.Close()
				continue
			}
			c.option(optionExportName, "fuzz")
			n := 10
			if flags&clientNoZeroes == 0 {
				n += reservedZeroes
			}
			if p := c.get(n); be64(p) != mib || len(bytes.Trim(p[10:], "\x00")) > 0 {
				t.Errorf("flags %#x: the export is %x", flags, p)
			}
			c.alive()
			c.Close()
		}
	}
}
