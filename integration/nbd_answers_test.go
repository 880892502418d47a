package integration

import (
	"strings"
	"testing"
)

// TestNBDAnswers: what no client library can be made to say, and what only the agent's own status can show.
func TestNBDAnswers(t *testing.T) {
	m := newMirror(t, layout{size: 64 << 20})
	m.start()
	const enospc, einval = nbdError(28), nbdError(22)

	t.Run("an unknown export is refused in words", func(t *testing.T) {
		for _, name := range []string{"nosuch", mirrorName + "x", strings.Repeat("n", 4096)} {
			c, err := dialNBD(m.source.nbd, name)
			if err == nil {
				c.close()
				t.Fatalf("export %.20q was opened", name)
			}
			if !strings.Contains(err.Error(), "no such export") {
				t.Errorf("%v", err)
			}
		}
		if _, err := dialNBD(m.source.nbd, strings.Repeat("n", 4097)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a name longer than names are: %v", err)
		}
	})
	t.Run("past the end", func(t *testing.T) { // is an error, and the connection lives on
		c := m.source.dial(startLimit)
		defer c.close()
		p := make([]byte, 4096)
		checkEqual(t, "write at the end", c.write(m.size, p, false), error(enospc))
		checkEqual(t, "write over the end", c.write(m.size-512, p, true), error(enospc))
		checkEqual(t, "read over the end", c.read(m.size-512, p), error(einval))
		checkEqual(t, "read far away", c.read(1<<62, p), error(einval))
		checkEqual(t, "read around 2^64", c.read(-512, p), error(einval))
		checkEqual(t, "write around 2^64", c.write(-512, p, false), error(enospc))
		checkEqual(t, "trim over the end", c.do(nbdTrim, 0, m.size-512, 4096, nil, nil), error(einval))
		checkEqual(t, "zero over the end", c.do(nbdWriteZeroes, 0, m.size-512, 4096, nil, nil), error(enospc))
		for _, command := range []uint16{8, 9, 77, 1 << 15, 1<<16 - 1} {
			checkEqual(t, "unknown command", c.do(command, 0, 0, 0, nil, nil), error(einval))
		}
		checkEqual(t, "flush with a length", c.do(nbdFlush, 0, 0, 512, nil, nil), error(einval))
		checkEqual(t, "flush with an offset", c.do(nbdFlush, 0, 512, 0, nil, nil), error(einval))
		checkEqual(t, "read after all that", c.read(m.size-4096, p), nil)
	})
	// CAN_MULTI_CONN: a flush answered on B covers what was answered on A. In mode flush that means durable here and at the target.
	t.Run("a flush covers other connections", func(t *testing.T) {
		a, b := m.source.dial(startLimit), m.source.dial(startLimit)
		defer a.close()
		defer b.close()
		if a.flags&(1<<8) == 0 {
			t.Fatalf("flags %#x say nothing of CAN_MULTI_CONN", a.flags)
		}
		p := make([]byte, 64<<10)
		for i := range int64(20) {
			for k := range p {
				p[k] = byte(i) + byte(k>>8)
			}
			if err := a.write(i<<16, p, false); err != nil {
				t.Fatal(err)
			}
			head := m.source.mustStatus().Log.Head
			what := "flush on another connection"
			if i%2 == 0 {
				checkEqual(t, what, b.flush(), nil)
			} else {
				// A FUA write promises only itself, but it comes after the others in the log.
				what = "FUA write on another connection"
				checkEqual(t, what, b.write(m.size-4096, p[:4096], true), nil)
			}
			// A target that is out of sync for a moment is not waited for; when it counts again it has all that a flush was answered for.
			s := m.source.mustStatus()
			if s.Log.Durable < head || s.State == "in sync" && s.follower("target").Durable < head {
				t.Errorf("after a %s: written up to %d, durable up to %d here and %d at the target", what, head, s.Log.Durable, s.follower("target").Durable)
			}
		}
	})
	m.stopLevel("target")
}
