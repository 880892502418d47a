package dataport

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// FuzzConversation lets an authenticated peer say a recorded conversation with changes. Each change is six bytes: which
// frame, what is done to it, and a value. Checksums are made right after most of them, or nothing behind the checksum
// would ever be reached. Whatever comes: no panic, nothing held beyond the window, no nonsense said in return, and the
// session ends when the connection does.
func FuzzConversation(f *testing.F) {
	base := readConversation(f)
	f.Add([]byte{})
	for op := range byte(changesEnd) {
		for _, at := range []byte{3, 4, 5, 8, 10} { // small, first, last, call, reply
			f.Add([]byte{at, op, 1, 0, 0, 0})
		}
		f.Add([]byte{4, op, 255, 255, 255, 255, 5, op, 0, 0, 0, 128})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 6*32 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			r := newReplay(t)
			firsts := 0
			for _, said := range changed(r.adopt(base), in) {
				if said.h.flags&flagFirst != 0 {
					firsts++
				}
				r.write(said.raw)
				if n, frames := r.s.held(); n > 2*(128<<10)+200_000 || frames > (128<<10)/frameCost+1 {
					t.Errorf("holds %d bytes in %d frames", n, frames)
				}
			}
			if len(r.client.sizes) > firsts {
				t.Errorf("%d messages were delivered, %d began", len(r.client.sizes), firsts)
			}
			_ = r.conn.Close()
			time.Sleep(r.n.conf.Timing.UnreachableAfter + time.Second)
			if r.s.Err() == nil {
				t.Error("the session lives without a path")
			}
			r.close()
		})
	})
}

const (
	changeNothing = iota
	changeDrop
	changeAgain
	changeLater // comes after the next one
	changeType
	changeFlags
	changeSeq
	changeAck
	changeSack
	changeConsumed
	changeCredit
	changePathBytes
	changeClient
	changeSession
	changeMessage
	changeOffset
	changeCall
	changePayload // its bytes; the checksum follows
	changeLength  // the payload gets so long; the header says so
	changeLie     // the header says another length
	changeBit     // of the whole frame, nothing is made right
	changeCut     // so much of it comes, then the next frame
	changesEnd
)

type changedFrame struct {
	h   header
	raw []byte
}

// changed applies the changes of a fuzzer's input to the conversation.
func changed(base []spoken, in []byte) (out []changedFrame) {
	all := slices.Clone(base)
	var order []int
	for i := range all {
		order = append(order, i)
	}
	raw := map[int]func([]byte) []byte{}
	again := map[int]int{}
	for ; len(in) >= 6; in = in[6:] {
		i, v := int(in[0])%len(all), binary.LittleEndian.Uint32(in[2:])
		h := &all[i].h
		// The small values, and those around 2^32 and 2^64.
		wide := uint64(v)
		if v&0x8000_0000 != 0 {
			wide = ^uint64(v &^ 0x8000_0000)
		} else if v&0x4000_0000 != 0 {
			wide = uint64(v&0xff_ffff) << 40
		}
		switch in[1] % changesEnd {
		case changeDrop:
			order = slices.DeleteFunc(order, func(o int) bool { return o == i })
		case changeAgain:
			again[i] = min(again[i]+1+int(v%3), 5)
		case changeLater:
			if at := slices.Index(order, i); at >= 0 && at+1 < len(order) {
				order[at], order[at+1] = order[at+1], order[at]
			}
		case changeType:
			h.typ = frameType(v)
		case changeFlags:
			h.flags ^= frameFlags(v)
		case changeSeq:
			h.seq = wide
		case changeAck:
			h.ack = wide
		case changeSack:
			h.sack = uint64(v) | uint64(v)<<32
		case changeConsumed:
			h.consumed = wide
		case changeCredit:
			h.credit = wide
		case changePathBytes:
			h.pathBytes = wide
		case changeClient:
			h.client ^= v
		case changeSession:
			h.session ^= SessionID(v)
		case changeMessage:
			h.message = v
		case changeOffset:
			h.offset = v
		case changeCall:
			h.call = wide
		case changePayload:
			all[i].payload = bytes.Clone(all[i].payload)
			if n := len(all[i].payload); n > 0 {
				all[i].payload[int(v)%n]++
				h.payloadHash = sumOf(all[i].payload)
			}
		case changeLength:
			all[i].payload = bytes.Repeat([]byte{byte(v)}, int(v%(300<<10)))
			h.payload, h.payloadHash = uint32(len(all[i].payload)), sumOf(all[i].payload)
		case changeLie:
			h.payload = v
		case changeBit:
			raw[i] = func(b []byte) []byte { b[int(v>>3)%len(b)] ^= 1 << (v & 7); return b }
		case changeCut:
			raw[i] = func(b []byte) []byte { return b[:int(v)%len(b)] }
		}
	}
	for _, i := range order {
		b := all[i].encode()
		if f := raw[i]; f != nil {
			b = f(b)
		}
		for range 1 + again[i] {
			out = append(out, changedFrame{all[i].h, b})
		}
	}
	return out
}

// The frames of the conversation carry the session and client of the recording; a replayed one its own.
func (r *replay) adopt(frames []spoken) []spoken {
	frames = slices.Clone(frames)
	for i := range frames {
		frames[i].h.session, frames[i].h.client = r.s.id, clientID("test")
	}
	return frames
}

// FuzzWelcome sends whatever as the first frame of a connection, with right checksums. No answer but a hello, no
// session without one, and the connection is gone when its deadline is over.
func FuzzWelcome(f *testing.F) {
	for kind := helloOpen; kind < helloKindEnd; kind++ {
		h := sampleHello()
		h.kind, h.client = kind, "test"
		f.Add(h.encode())
		h.client, h.addrs, h.maxMessage = "nobody", addrList{}, 0
		f.Add(h.encode())
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{255}, 300))
	f.Fuzz(func(t *testing.T, body []byte) {
		synctest.Test(t, func(t *testing.T) {
			mem := dataporttest.NewNet()
			n := talkNode(t, mem, &talker{}, "target:1")
			defer n.Close()
			c, err := mem.Dial(context.Background(), "", "target:1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b := make([]byte, headerBytes)
			h := header{typ: frameHello, payload: uint32(len(body)), payloadHash: sumOf(body)}
			h.encode(b)
			_, _ = c.Write(append(b, body...))
			w, _ := n.secure(context.Background(), c, true)
			var a hello
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			err = w.readHello(&a)
			sessions := len(n.sessionsOf(nil))
			if welcome := err == nil && a.kind == helloAccepted; welcome != (sessions == 1) || sessions > 1 {
				t.Errorf("answer of kind %d (%v), %d sessions", a.kind, err, sessions)
			}
			time.Sleep(n.conf.Timing.HandshakeTimeout + goodbyeTime)
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.door.waiting) > 0 {
				t.Error("the connection is still held")
			}
		})
	})
}
