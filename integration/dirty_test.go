package integration

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// hammer writes n times 64 KiB at random places of [off, off+span).
func hammer(t testing.TB, c *nbdClient, rng *rand.Rand, off, span int64, n int) {
	t.Helper()
	p := make([]byte, 64<<10)
	for i := range n {
		for k := range p[:512] {
			p[k*128] = byte(rng.Uint32())
		}
		if err := c.write(off+rng.Int64N((span-int64(len(p)))/512)*512, p, false); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 {
			if err := c.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDirtyResync: while the target is away three times the log is written
// over a small part of the device, and the source is killed in between. When
// the target is back it gets about that part and no more (G6). Once the file
// with the bitmap is gone all is compared instead, and both say so.
func TestDirtyResync(t *testing.T) {
	const size, span, ring = 256 << 20, 4 << 20, 16 << 20
	m := newMirror(t, layout{size: size, journal: "16MiB", sourceArgs: []string{"--start-wait", "300ms", "--sync-interval", "100ms", "--unreachable-after", "1s"}})
	m.start()
	rng := newRand(t)
	c := m.source.dial(startLimit)
	hammer(t, c, rng, 0, size, 500)
	m.source.untilLevel("target")
	away := func(off int64) {
		t.Helper()
		m.target.kill()
		for range 2 {
			hammer(t, c, rng, off, span, 3*ring/(64<<10)/2)
			c.close()
			m.source.kill()
			m.source.start()
			c = m.source.dial(startLimit)
		}
	}

	away(40<<20 + 512)
	s := m.source.mustStatus()
	// Blocks of 4 KiB at both ends.
	if d := s.follower("target").DirtyBytes; d < span/4*3 || d > span+2*4096 {
		t.Errorf("%d bytes are dirty, %d were written over", d, span)
	}
	before := m.toTarget[0].Carried(dataporttest.Forward)
	m.target.start()
	m.source.untilLevel("target")
	sent := m.toTarget[0].Carried(dataporttest.Forward) - before
	t.Logf("%d KiB sent for %d KiB dirty, of a device of %d KiB", sent>>10, span>>10, size>>10)
	if sent < span/4*3 || sent > span+span/2 {
		t.Errorf("%d bytes were sent to resync %d", sent, span)
	}
	m.said("what changed since is copied")

	away(80 << 20)
	c.close()
	m.source.kill()
	files, err := filepath.Glob(m.path("source", "journal.dirty.*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no bitmap files: %v", err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	m.source.start()
	m.target.start()
	m.source.untilLevel("target")
	m.said("bitmap of what it lacks cannot be used", "all blocks are compared")
	m.stopLevel("target")
}

// said: the source's events tell all words.
func (m *testMirror) said(words ...string) {
	m.t.Helper()
	out := m.source.mustCommand("events", "--json")
	for _, w := range words {
		if !strings.Contains(out, w) {
			m.t.Errorf("the events do not say %q:\n%s", w, out)
		}
	}
}

// TestOnFull: a link that is far slower than the writers. With wait they go
// at its pace; with track they do for a while, then the target is left behind,
// and has all again when they let up.
func TestOnFull(t *testing.T) {
	const size = 64 << 20
	for _, policy := range []string{"track", "wait"} {
		t.Run(policy, func(t *testing.T) {
			m := newMirror(t, layout{size: size, journal: "16MiB", sourceArgs: []string{"--mode", "async", "--on-full", policy, "--push-back", "1s"}})
			m.start()
			c := m.source.dial(startLimit)
			rng := newRand(t)
			m.toTarget[0].Rate(4 << 20)
			hammer(t, c, rng, 0, size, 3*16<<20/(64<<10))
			out := m.source.mustCommand("events", "--json")
			if got := strings.Contains(out, "writers outran it"); got != (policy == "track") {
				t.Errorf("left behind: %v", got)
			}
			m.toTarget[0].Rate(0)
			c.close()
			m.source.until(60*time.Second, "level again", func(s *status) bool {
				f := s.follower("target")
				return f.State == streaming && f.LagBytes == 0 && f.DirtyBytes == 0
			})
			m.stopLevel("target")
		})
	}
}

// TestRawPartitions: journal and device of both hosts are block devices; what has no place beside them is in the state directory. A
// target that was away for longer than the log lasts gets what changed, also after a restart of the source, and a promoted one
// keeps account of the old source.
func TestRawPartitions(t *testing.T) {
	needRoot(t, "loop devices")
	needTools(t, "losetup")
	const size, ring = 64 << 20, 16 << 20
	dir := shortDir(t)
	raw := func(name string) []string {
		t.Helper()
		args := []string{"--state-dir", filepath.Join(dir, name)}
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for flag, bytes := range map[string]int64{"--device": size, "--journal": ring} {
			file := filepath.Join(dir, name+flag)
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, bytes); err != nil {
				t.Fatal(err)
			}
			loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", file))
			t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", loop) })
			args = append(args, flag, loop)
		}
		return args
	}
	m := newMirror(t, layout{
		size: size, journal: "16MiB", targetArgs: raw("target"),
		sourceArgs: append(raw("source"), "--start-wait", "300ms", "--sync-interval", "100ms", "--unreachable-after", "1s"),
	})
	m.start()
	rng := newRand(t)
	c := m.source.dial(startLimit)
	hammer(t, c, rng, 0, size, 500)
	m.source.untilLevel("target")
	m.target.kill()
	hammer(t, c, rng, 8<<20, 4<<20, 3*ring/(64<<10)/2)
	c.close()
	m.source.kill()
	m.source.start()
	m.target.start()
	m.source.untilLevel("target")
	m.said("what changed since is copied")
	if files, err := filepath.Glob(filepath.Join(dir, "source", mirrorName+".dirty.*")); err != nil || len(files) == 0 {
		t.Errorf("no bitmap in the state directory: %v", err)
	}
	for _, where := range []string{"/dev/*.staging", "/dev/*.dirty.*", "/dev/*.members", filepath.Join(dir, "target", "*.staging")} {
		if files, err := filepath.Glob(where); err != nil || len(files) > 0 {
			t.Errorf("left behind: %q, %v", files, err)
		}
	}
	r := m.target.command("promote", "--force")
	if r.code != 0 {
		t.Fatalf("promote: %s", r.stderr)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "target", mirrorName+".*")); err != nil || len(files) < 3 {
		t.Errorf("the target keeps %q, %v", files, err)
	}
}
