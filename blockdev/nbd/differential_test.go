package nbd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

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
		if _, err := os.Stat(path); err == nil {
			return path
		}
		if time.Now().After(deadline) {
			t.Fatalf("nbdkit does not listen: %s", &said)
		}
	}
}

// A random stream of commands, right and wrong ones, gets the same errors and the same bytes from nbdkit and from this
// server, with simple and with structured replies.
func TestAgainstNbdkit(t *testing.T) {
	const size = 4 * mib
	for _, c := range []struct {
		name    string
		connect func(testing.TB, string) *raw
	}{{"simple", connect}, {"structured", connectStructured}} {
		t.Run(c.name, func(t *testing.T) {
			peer := filepath.Join(t.TempDir(), "peer")
			if err := os.WriteFile(peer, make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
			theirs := c.connect(t, nbdkit(t, "file", peer))
			d, err := blockdev.OpenFile(filepath.Join(t.TempDir(), "ours"), blockdev.FileOptions{Create: true, Size: size})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			_, path := start(t, Options{}, Export{Device: d})
			ours := c.connect(t, path)
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			for _, client := range []*raw{ours, theirs} {
				client.SetDeadline(time.Now().Add(time.Minute))
			}
			for i := range uint64(400) {
				p := randomRequest(rng, i, size)
				a, b := ours.outcome(p), theirs.outcome(p)
				if a != b {
					h := parseRequest(p)
					t.Fatalf("request %d, command %d with flags %x, %d bytes at %d: we say %.80q, nbdkit %.80q",
						i, h.Type, h.CommandFlags, h.Length, h.Offset, a, b)
				}
			}
		})
	}
}

// randomRequest is a request, wrong in some way now and then. No length is 0, which every server may take as it likes.
func randomRequest(rng *rand.Rand, cookie uint64, size int) []byte {
	commands := []uint16{cmdRead, cmdRead, cmdWrite, cmdWrite, cmdFlush, cmdTrim, cmdWriteZeroes, cmdWriteZeroes, cmdCache, 77}
	command, flags := commands[rng.IntN(len(commands))], uint16(0)
	off := uint64(rng.IntN(size))
	n := uint64(1 + rng.IntN(200_000))
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
		if command == cmdWriteZeroes {
			flags = cmdFlagNoHole
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

// outcome does one request and returns the error, or the data. Into how many chunks it is cut is not compared.
func (c *raw) outcome(p []byte) string {
	c.t.Helper()
	go c.Write(p)
	h := parseRequest(p)
	result, data := "", make([]byte, h.Length)
	for done := false; !done; {
		k := c.chunk()
		done = k.done
		if k.cookie != h.Handle {
			c.t.Fatalf("cookie %d, not %d", k.cookie, h.Handle)
		}
		switch k.kind {
		case ^uint16(0):
			result = fmt.Sprint("error ", be32(k.payload))
			if be32(k.payload) == 0 && h.Type == cmdRead {
				data = c.get(int(h.Length))
			}
		case chunkData:
			copy(data[be64(k.payload)-h.Offset:], k.payload[8:])
		case chunkHole, chunkNone:
		default:
			result = fmt.Sprint("error ", be32(k.payload))
		}
	}
	if result == "" || result == "error 0" {
		result = "error 0"
		if h.Type == cmdRead {
			result += string(data)
		}
	}
	return result
}
