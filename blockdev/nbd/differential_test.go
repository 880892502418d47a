package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev"
)

// nbdkit runs it with a plugin and returns the path of its socket.
func nbdkit(t *testing.T, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skip("nbdkit is not installed: apt-get install nbdkit")
	}
	path := filepath.Join(t.TempDir(), "nbdkit.sock")
	var said bytes.Buffer
	cmd := exec.Command(program, append([]string{"-f", "--exit-with-parent", "-U", path}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		// The socket's file is there before anybody listens.
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return path
		}
		if time.Now().After(deadline) {
			t.Fatalf("nbdkit does not listen: %s", &said)
		}
	}
}

// A random stream of commands, right and wrong ones, one by one and in packets, gets the same errors, the same bytes and the same holes
// from nbdkit and from this server, with simple and with structured replies, in the clear and by TLS. Only of its memory can nbdkit say
// that zeroing is fast; that is cut into other holes than ours.
func TestAgainstNbdkit(t *testing.T) {
	for _, c := range []twin{
		{name: "simple"},
		{name: "structured", structured: true},
		{name: "TLS", secure: true},
		{name: "structured, TLS", secure: true, structured: true},
		{name: "memory", memory: true},
		{name: "structured, memory", memory: true, structured: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.begin(t)
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			cookie := uint64(0)
			for range 300 {
				c.play(t, randomRequest(rng, cookie, twinSize, c.offered))
				cookie++
			}
			const parts = 32
			for range 30 {
				var packet [][]byte
				for i := range uint64(parts) {
					p := randomRequest(rng, cookie, twinSize/parts, c.offered)
					place := i // of one part of the device, or beyond its end
					if h := parseRequest(p); h.Offset+uint64(h.Length) > twinSize/parts {
						place = parts - 1
					}
					if command := parseRequest(p).Type; command != cmdFlush {
						binary.BigEndian.PutUint64(p[16:], be64(p[16:])+place*twinSize/parts)
					}
					packet = append(packet, p)
					cookie++
				}
				c.play(t, packet...)
			}
			if c.structured {
				sameHoles(t, c.ours, c.theirs, 0, twinSize, c.vague)
			}
		})
	}
}

const twinSize = 4 * mib

// twin is a device of ours and one of nbdkit, to which the same is done.
type twin struct {
	name                       string
	secure, structured, memory bool
	ours, theirs               *raw
	offered                    uint16 // by both, transmission flags
	vague                      vague
}

func (c *twin) begin(t *testing.T) {
	o, export, args, p := Options{}, Export{Device: blockdev.NewMemory(twinSize, nil)}, []string{"memory", fmt.Sprint(twinSize)}, newPKI(t)
	c.vague = vague{}
	if c.memory {
		for b := range uint64(twinSize / 4096) {
			c.vague[b] = true
		}
	} else {
		peer := filepath.Join(t.TempDir(), "peer")
		if err := os.WriteFile(peer, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(peer, twinSize); err != nil {
			t.Fatal(err)
		}
		d, err := blockdev.OpenFile(filepath.Join(t.TempDir(), "ours"), blockdev.FileOptions{Create: true, Size: twinSize})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		export.Device, args = d, []string{"file", peer}
	}
	if c.secure {
		o = p.options(true)
		args = append([]string{"--tls=require", "--tls-verify-peer", "--tls-certificates=" + p.dir}, args...)
	}
	theirPath := nbdkit(t, args...)
	_, ourPath := start(t, o, export)
	c.offered = math.MaxUint16
	for to, path := range map[**raw]string{&c.ours: ourPath, &c.theirs: theirPath} {
		client := dial(t, path)
		client.SetDeadline(time.Now().Add(5 * time.Minute))
		client.greeting(clientFixedNewstyle | clientNoZeroes)
		if c.secure {
			client = client.secure(p)
		}
		if c.structured {
			client.structure()
		}
		client.option(optGo, goData("")...)
		for kind, info := client.answer(optGo); kind != repAck; kind, info = client.answer(optGo) {
			if binary.BigEndian.Uint16(info) == protocol.NEGOTIATION_TYPE_INFO_EXPORT {
				c.offered &= binary.BigEndian.Uint16(info[10:])
			}
		}
		*to = client
	}
	if fast := c.offered&flagSendFastZero != 0; fast != c.memory {
		t.Fatalf("both offer %#x", c.offered)
	}
}

// play has requests that do not touch each other done at once, by both, and compares the outcomes.
func (c *twin) play(t *testing.T, packet ...[]byte) {
	t.Helper()
	ours := c.ours.outcomes(packet...)
	packet = slices.DeleteFunc(packet, func(p []byte) bool {
		// nbdkit 1.32 looks for the payload of a refused write beside TLS, and hangs.
		h := parseRequest(p)
		return c.secure && h.Type == cmdWrite && ours[h.Handle] != "error 0"
	})
	theirs := c.theirs.outcomes(packet...)
	for _, p := range packet {
		h := parseRequest(p)
		a, b := ours[h.Handle], theirs[h.Handle]
		if a != b {
			t.Fatalf("request %d, command %d with flags %x, %d bytes at %d: we say %.80q, nbdkit %.80q",
				h.Handle, h.Type, h.CommandFlags, h.Length, h.Offset, a, b)
		} else if b != "error 0" {
			continue
		}
		if !c.memory {
			c.vague.note(&h)
		}
		if h.Type == cmdBlockStatus && len(packet) == 1 {
			sameHoles(t, c.ours, c.theirs, h.Offset, h.Length, c.vague)
		}
	}
}

// vague are the blocks of 4 KiB that were zeroed and must not be a hole. Whether a filesystem calls them one depends on what it has in
// its cache.
type vague map[uint64]bool

func (v vague) note(h *protocol.TransmissionRequestHeader) {
	end := h.Offset + uint64(h.Length)
	switch {
	case h.Type == cmdWriteZeroes && h.CommandFlags&cmdFlagNoHole != 0:
		for b := h.Offset / 4096; b*4096 < end; b++ {
			v[b] = true
		}
	case h.Type == cmdTrim || h.Type == cmdWriteZeroes:
		for b := (h.Offset + 4095) / 4096; (b+1)*4096 <= end; b++ {
			delete(v, b)
		}
	}
}

// sameHoles compares what both call a hole within a range: the same bytes, but for what is vague. What either calls a hole has to
// read as zeroes, at both.
func sameHoles(t *testing.T, ours, theirs *raw, off uint64, n uint32, v vague) {
	t.Helper()
	a, b := ours.holes(off, n), theirs.holes(off, n)
	content := theirs.outcome(request(cmdRead, cmdFlagDF, 1, off, n))[len("error 0"):]
	if got := ours.outcome(request(cmdRead, cmdFlagDF, 1, off, n))[len("error 0"):]; got != content {
		t.Fatalf("%d bytes at %d differ", n, off)
	}
	for i := range content {
		at := off + uint64(i)
		if (a[i] || b[i]) && content[i] != 0 || a[i] != b[i] && !v[at/4096] {
			t.Fatalf("at %d is %#x: a hole for us %v, for nbdkit %v", at, content[i], a[i], b[i])
		}
	}
}

// holes asks for the status of a range until all of it is known, and returns for every byte whether it is a hole that reads as
// zeroes. A reply lies within the range, but the last extent may reach beyond it.
func (c *raw) holes(off uint64, n uint32) []bool {
	c.t.Helper()
	found := make([]bool, 0, n)
	for len(found) < int(n) {
		at, rest := off+uint64(len(found)), int(n)-len(found)
		c.put(request(cmdBlockStatus, 0, 5, at, uint32(rest)))
		k := c.chunk()
		if !k.done || k.kind != chunkBlockStatus || len(k.payload) < 12 {
			c.t.Fatalf("status of %d bytes at %d: %+v", rest, at, k)
		}
		for p := k.payload[4:]; len(p) > 0; p = p[8:] {
			if be32(p) == 0 || len(found) >= int(n) {
				c.t.Fatalf("status of %d bytes at %d: an extent of %d bytes after %d", rest, at, be32(p), len(found))
			}
			hole := be32(p[4:]) == stateHole|stateZero
			for range min(int(be32(p)), int(n)-len(found)) {
				found = append(found, hole)
			}
		}
	}
	return found
}

// randomRequest is a request, wrong in some way now and then. No length is 0, which every server may take as it likes, and FAST_ZERO is
// for those that offer it.
func randomRequest(rng *rand.Rand, cookie uint64, size int, offered uint16) []byte {
	commands := []uint16{cmdRead, cmdRead, cmdWrite, cmdWrite, cmdFlush, cmdTrim, cmdWriteZeroes, cmdWriteZeroes, cmdCache, cmdBlockStatus, 77}
	command, flags := commands[rng.IntN(len(commands))], uint16(0)
	off := uint64(rng.IntN(size))
	n := uint64(1 + rng.IntN(min(200_000, size/2)))
	if rng.IntN(4) > 0 {
		off, n = off&^4095, n&^4095+4096
	}
	if rng.IntN(20) > 0 {
		off = min(off, uint64(size)-n)
	}
	switch rng.IntN(8) {
	case 0:
		flags = cmdFlagFUA
	case 1:
		flags = 1 << 9
	case 2:
		switch command {
		case cmdWriteZeroes:
			flags = []uint16{cmdFlagNoHole, cmdFlagFastZero, cmdFlagNoHole | cmdFlagFastZero}[rng.IntN(3)]
			if offered&flagSendFastZero == 0 {
				flags = cmdFlagNoHole
			}
		case cmdRead:
			flags = cmdFlagDF
		case cmdBlockStatus:
			flags = cmdFlagReqOne
		}
	}
	if command == cmdFlush {
		off, n = 0, 0
	}
	if uint64(off)+uint64(n) > uint64(size) {
		flags = 0 // of two mistakes at once either may be answered
	}
	p := request(command, flags, cookie, off, uint32(n))
	if command == cmdWrite {
		p = append(p, pattern(int(n), byte(cookie))...)
	}
	return p
}

// outcome does one request and returns the error, or the data.
func (c *raw) outcome(p []byte) string {
	c.t.Helper()
	return c.outcomes(p)[be64(p[8:])]
}

// outcomes does some requests at once and returns the error, or the data, by cookie. Into how many chunks it is cut is not compared, but
// with DF it is one.
func (c *raw) outcomes(packet ...[]byte) map[uint64]string {
	c.t.Helper()
	said, data, chunks, open := map[uint64]string{}, map[uint64][]byte{}, map[uint64]int{}, map[uint64]*protocol.TransmissionRequestHeader{}
	for _, p := range packet {
		h := parseRequest(p)
		open[h.Handle], data[h.Handle] = &h, make([]byte, h.Length)
	}
	go c.Write(bytes.Join(packet, nil))
	for len(open) > 0 {
		k := c.chunk()
		h := open[k.cookie]
		if h == nil {
			c.t.Fatalf("a reply to %d that nobody waits for", k.cookie)
		}
		switch k.kind {
		case ^uint16(0):
			said[k.cookie] = fmt.Sprint("error ", be32(k.payload))
			if be32(k.payload) == 0 && h.Type == cmdRead {
				data[k.cookie] = c.get(int(h.Length))
			}
		case chunkData, chunkHole:
			if k.kind == chunkData {
				copy(data[k.cookie][be64(k.payload)-h.Offset:], k.payload[8:])
			}
			if chunks[k.cookie]++; chunks[k.cookie] > 1 && h.CommandFlags&cmdFlagDF != 0 {
				c.t.Fatalf("%d bytes at %d in pieces, with flags %x", h.Length, h.Offset, h.CommandFlags)
			}
		case chunkBlockStatus: // what it says is compared by sameHoles
			if extents := (len(k.payload) - 4) / 8; extents < 1 || extents > 1 && h.CommandFlags&cmdFlagReqOne != 0 {
				c.t.Fatalf("%d extents with flags %x", extents, h.CommandFlags)
			}
		case chunkNone:
		default:
			said[k.cookie] = fmt.Sprint("error ", be32(k.payload))
		}
		if !k.done {
			continue
		}
		if said[k.cookie] == "" || said[k.cookie] == "error 0" {
			said[k.cookie] = "error 0"
			if h.Type == cmdRead {
				said[k.cookie] += string(data[k.cookie])
			}
		}
		delete(open, k.cookie)
	}
	return said
}
