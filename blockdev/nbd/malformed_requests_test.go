package nbd

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// terms are what a client and an export agreed on, as far as it decides what the answer to a request is.
type terms struct {
	structured, readOnly bool
	plain                bool // the device has no CACHE, and knows nothing of FAST_ZERO
	block, maximum       uint32
	size                 uint64
}

// errors are the values that a request may be refused with, once more from proto.md and the package comment; none is for one that has
// to succeed. Of several mistakes at once any may be answered.
func (o terms) errors(command, flags uint16, offset uint64, length uint32) (values []uint32) {
	mistake := func(is bool, value uint32) {
		if is {
			values = append(values, value)
		}
	}
	known := map[uint16]uint16{
		cmdRead: 0, cmdWrite: 0, cmdFlush: 0, cmdTrim: 0, cmdWriteZeroes: cmdFlagNoHole | cmdFlagFastZero,
		cmdCache: 0, cmdBlockStatus: cmdFlagReqOne,
	}
	if o.plain {
		delete(known, cmdCache)
	}
	if o.structured {
		known[cmdRead] = cmdFlagDF
	} else {
		delete(known, cmdBlockStatus)
	}
	allowed, ok := known[command]
	mistake(!ok, 22)
	mistake(flags&^(allowed|cmdFlagFUA) != 0, 22)
	if !ok || command == cmdFlush {
		mistake(offset != 0 || length != 0, 22)
		return values
	}
	changes := command == cmdWrite || command == cmdTrim || command == cmdWriteZeroes
	mistake(changes && o.readOnly, 1)
	mistake(command == cmdBlockStatus && length == 0, 22)
	tooLong := length > o.maximum
	mistake(tooLong && command == cmdRead && o.structured, 75)
	mistake(tooLong && (command == cmdWrite || command == cmdRead && !o.structured), 22)
	outside := offset > o.size || uint64(length) > o.size-offset
	mistake(outside && (command == cmdWrite || command == cmdWriteZeroes), 28)
	mistake(outside && command != cmdWrite && command != cmdWriteZeroes, 22)
	mistake(offset%uint64(o.block) != 0 || length%o.block != 0, 22)
	mistake(flags&cmdFlagFastZero != 0 && command == cmdWriteZeroes && o.plain, 95)
	return values
}

// judged is a connection whose every reply is compared with what it has to be, and every byte of the device with a model.
type judged struct {
	*raw
	terms   terms
	device  *blockdev.Memory
	model   []byte
	scratch []byte
	payload []byte // of writes: from anywhere in it
	cookie  uint64
}

func negotiated(t *testing.T, o terms) *judged {
	t.Helper()
	d := blockdev.NewMemory(int64(o.size), nil)
	j := &judged{terms: o, device: d, model: make([]byte, o.size), scratch: make([]byte, o.size), payload: pattern(int(o.size), 77)}
	j.fill()
	e := Export{Device: d, ReadOnly: o.readOnly, BlockMin: o.block}
	if o.plain {
		e.Device = plain{d}
	}
	_, path := start(t, Options{MaxPayloadBytes: o.maximum}, e)
	if o.structured {
		j.raw = connectStructured(t, path)
	} else {
		j.raw = connect(t, path)
	}
	return j
}

// fill puts data into two quarters of every maximum, so that there is data and are holes.
func (j *judged) fill() {
	part := uint64(j.terms.maximum / 4)
	for at := uint64(0); at < j.terms.size; at += 2 * part {
		j.place(at, part)
	}
}

// place puts data there, if that is on the device, without a request.
func (j *judged) place(at, n uint64) {
	if at < j.terms.size && n <= j.terms.size-at {
		data := j.model[at:][:n]
		copy(data, j.payload)
		j.device.WriteAt(data, int64(at))
	}
}

// try says one request and judges the reply. That the connection lives on and stands at the right byte is seen by the next.
func (j *judged) try(command, flags uint16, offset uint64, length uint32) {
	j.t.Helper()
	j.cookie += 1<<56 + 3
	if command == cmdTrim || command == cmdWriteZeroes {
		j.place(offset, uint64(length)) // something to be zeroed
	}
	packet := request(command, flags, j.cookie, offset, length)
	if command == cmdWrite {
		packet = append(packet, j.payload[j.cookie%uint64(j.terms.maximum-1):][:length]...)
	}
	if _, err := j.Write(packet); err != nil {
		j.t.Fatal(err)
	}
	want := j.terms.errors(command, flags, offset, length)
	cookie, said, data := j.answered()
	if said == "simple 0" && command == cmdRead && !j.terms.structured {
		said, data = fmt.Sprintf("data %d+%d", offset, length), j.get(int(length))
	}
	wrong := ""
	switch {
	case cookie != j.cookie:
		wrong = fmt.Sprintf("for %x instead of %x", cookie, j.cookie)
	case len(want) > 0:
		word := "simple"
		if j.terms.structured {
			word = "error"
		}
		if !slices.ContainsFunc(want, func(value uint32) bool { return said == fmt.Sprint(word, " ", value) }) {
			wrong = fmt.Sprintf("instead of %s %d", word, want)
		}
	default:
		wrong = j.success(packet, said, data)
	}
	if wrong != "" {
		j.t.Fatalf("%+v, command %d with flags %#x, %d bytes at %#x: %.80q %s", j.terms, command, flags, length, offset, said, wrong)
	}
}

// same compares the device with the model.
func (j *judged) same(command, flags uint16, offset uint64) {
	j.t.Helper()
	j.device.ReadAt(j.scratch, 0)
	if !bytes.Equal(j.scratch, j.model) {
		j.t.Fatalf("%+v, command %d with flags %#x at %#x: the device has other bytes than it should", j.terms, command, flags, offset)
	}
}

// success changes the model as a request that succeeds does and says what is wrong with the reply to it.
func (j *judged) success(packet []byte, said string, data []byte) (wrong string) {
	h := parseRequest(packet)
	place := j.model[h.Offset:][:h.Length]
	switch h.Type {
	case cmdWrite:
		copy(place, packet[requestSize:])
	case cmdTrim, cmdWriteZeroes:
		clear(place)
	case cmdRead:
		return readWrong(said, data, place, h.Offset, h.CommandFlags&cmdFlagDF != 0)
	case cmdBlockStatus:
		return statusWrong(said, place, h.CommandFlags&cmdFlagReqOne != 0)
	}
	if said != "simple 0" {
		return "instead of a success"
	}
	return ""
}

// readWrong says what is wrong with the answer to a read: its chunks are one after the other, the whole of it, and one with DF.
func readWrong(said string, data, want []byte, offset uint64, whole bool) string {
	chunks := strings.Fields(said)
	at := offset
	for p := chunks; len(p) > 1; p = p[2:] {
		var from, n uint64
		if fmt.Sscanf(p[1], "%d+%d", &from, &n); from != at {
			return "with a gap"
		}
		at += n
	}
	switch {
	case !bytes.Equal(data, want) || at != offset+uint64(len(want)):
		return "with other data than there is"
	case len(want) == 0 && said != "none" && said != fmt.Sprintf("data %d+0", offset):
		return "for nothing"
	case whole && len(chunks) > 2:
		return "in pieces"
	}
	return ""
}

// statusWrong says what is wrong with extents: a hole reads as zeroes, together they are the range, or there is one.
func statusWrong(said string, content []byte, one bool) string {
	extents := strings.Fields(said)
	if one && len(extents) != 1 {
		return "instead of one extent"
	}
	for _, x := range extents {
		var n, state int
		if _, err := fmt.Sscanf(x, "%d:%d", &n, &state); err != nil || n <= 0 || n > len(content) || state != 0 && state != 3 {
			return "which are no extents of it"
		}
		if state == 3 && len(bytes.Trim(content[:n], "\x00")) > 0 {
			return "where there is data"
		}
		content = content[n:]
	}
	if len(content) > 0 && !one {
		return "which is not all of it"
	}
	return ""
}

// Every command with every flag, and every offset with every length that is at or beyond a bound, gets exactly the answer that it has
// to, and the device has exactly the bytes that it has to.
func TestMalformedRequests(t *testing.T) {
	const max = 64 << 10
	small := terms{block: 1, maximum: max, size: 3 * max}
	rows := []terms{{block: 1, maximum: bufferSize, size: 2 * bufferSize, structured: true}} // a buffer does not hold a request
	for i := range 8 {
		o := small
		o.structured = i&1 != 0
		switch i / 2 {
		case 1:
			o.readOnly = true
		case 2:
			o.block = 512
		case 3:
			o.plain = true
		}
		rows = append(rows, o)
	}
	flags := []uint16{0, cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero, math.MaxUint16}
	for bit := range 16 {
		flags = append(flags, 1<<bit)
	}
	for _, o := range rows {
		j := negotiated(t, o)
		for _, command := range []uint16{cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdCache, cmdWriteZeroes, cmdBlockStatus, 8, 77, 1 << 15, math.MaxUint16} {
			for _, flag := range flags {
				j.SetDeadline(time.Now().Add(patience))
				at := offsets(o)
				if command > cmdBlockStatus || flag > cmdFlagFastZero<<1 { // nothing is right about it anyway
					at = []uint64{0, o.size}
				}
				for _, offset := range at {
					for _, length := range lengths(o) {
						if command == cmdWrite && length > o.maximum+1 {
							continue // its payload would have to follow, see TestMalformedEnds
						}
						j.try(command, flag, offset, length)
					}
					if command == cmdWrite || command == cmdTrim || command == cmdWriteZeroes || offset == o.size {
						j.same(command, flag, offset)
					}
				}
			}
			j.fill()
		}
	}
}

// offsets are the bounds of an offset, and one less and one more of each.
func offsets(o terms) []uint64 {
	return []uint64{0, 1, uint64(o.maximum), o.size - 512, o.size - 1, o.size, o.size + 1, 1 << 32, 1 << 63, math.MaxUint64 - 511, math.MaxUint64}
}

// lengths begin with the longest: what one request does is not hidden by the next.
func lengths(o terms) []uint32 {
	return []uint32{math.MaxUint32, math.MaxUint32 - 511, 1 << 31, uint32(o.size) + 1, uint32(o.size), o.maximum + 1, o.maximum, 512, 511, 1, 0}
}

// A DISC, whatever else it says, and a request with a wrong magic end the connection after what came before was answered, or not; a write whose
// payload does not come is never answered. Nothing of them or behind them reaches the device.
func TestMalformedEnds(t *testing.T) {
	for _, structured := range []bool{false, true} {
		o := terms{block: 1, maximum: 64 << 10, size: 192 << 10, structured: structured}
		d := blockdev.NewMemory(int64(o.size), nil)
		_, path := start(t, Options{MaxPayloadBytes: o.maximum}, Export{Device: d})
		behind := request(cmdWrite, 0, 9, 8, 4, []byte("late"))
		ends := func(wrong []byte, polite bool) {
			t.Helper()
			c := connect(t, path)
			if structured {
				c = connectStructured(t, path)
			}
			if polite {
				c.put(request(cmdWrite, cmdFlagFUA, 1, 0, 4, []byte("done")), wrong, behind)
				c.expect(0, 1)
			} else {
				c.put(wrong)
				giveUp(t, c)
			}
			// What it still had to read may be why the connection is reset.
			if said := readAll(c); len(said) > 0 {
				t.Fatalf("%x was answered %x", wrong[:requestSize], said)
			}
			c.Close()
		}
		for bit := range 17 {
			ends(request(cmdDisc, uint16(1<<bit), 2, 0, 0), true)
		}
		for _, offset := range offsets(o) {
			ends(request(cmdDisc, 0, math.MaxUint64, offset, 0), true)
		}
		for _, length := range lengths(o) {
			ends(request(cmdDisc, 0, 1, 0, length), true)
			if length > 4 {
				ends(request(cmdWrite, 0, 2, 8, length, []byte("part")), false)
				ends(request(cmdWrite, 1<<9, 2, 8, length, []byte("part")), false)
			}
		}
		for command := range uint16(9) {
			for at := range 4 {
				wrong := request(command, 0, 2, 0, 0)
				wrong[at] ^= 1
				ends(append(wrong, behind...), false)
			}
		}
		got := make([]byte, o.size)
		d.ReadAt(got, 0)
		if !bytes.Equal(bytes.TrimRight(got, "\x00"), []byte("done")) {
			t.Errorf("the device has %.40q", got)
		}
	}
}
