package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const markAttribute = "user.mirror-agent"

// copyFile copies content and mark, as cp -a and a good backup do.
func copyFile(t testing.TB, from, to string) {
	t.Helper()
	tool(t, "cp", "--sparse=always", from, to)
	b := make([]byte, 256)
	n, err := unix.Getxattr(from, markAttribute, b)
	if errors.Is(err, unix.ENODATA) {
		return
	}
	if err == nil {
		err = unix.Setxattr(to, markAttribute, b[:n], 0)
	}
	if err != nil {
		t.Fatalf("mark of %s: %v", from, err)
	}
}

// someWrites lets an agent serve for a while, and ends it.
func someWrites(t *testing.T, a *agent, seed byte) {
	t.Helper()
	a.start()
	c := a.dial(startLimit)
	for i := range 32 {
		if err := c.write(int64(i)*4096, []byte(strings.Repeat(string(seed), 4096)), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	c.close()
}

// TestWrongDisk: files that do not belong together, or that somebody has open. Each is refused by name with the way out, and
// not one byte is changed.
func TestWrongDisk(t *testing.T) {
	// twice: the volume lives, is copied, lives on.
	twice := func(t *testing.T, m *testMirror, end func(*agent)) (oldDevice, oldJournal string) {
		t.Helper()
		someWrites(t, m.source, 'a')
		end(m.source)
		oldDevice, oldJournal = m.path("old", "img"), m.path("old", "journal")
		copyFile(t, m.source.device, oldDevice)
		copyFile(t, m.path("source", "journal"), oldJournal)
		someWrites(t, m.source, 'b')
		end(m.source)
		return oldDevice, oldJournal
	}
	cleanly, killed := (*agent).stop, (*agent).kill
	apart := []string{"source.img", "source.journal", "do not belong together", "setfattr"}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, m *testMirror) (args []string)
		words []string
	}{
		{"an older copy of the device", func(t *testing.T, m *testMirror) []string {
			old, _ := twice(t, m, cleanly)
			copyFile(t, old, m.source.device)
			return nil
		}, apart},
		{"an older copy of the device after kills", func(t *testing.T, m *testMirror) []string {
			old, _ := twice(t, m, killed)
			copyFile(t, old, m.source.device)
			return nil
		}, apart},
		{"an older copy of the journal", func(t *testing.T, m *testMirror) []string {
			_, old := twice(t, m, cleanly)
			copyFile(t, old, m.path("source", "journal"))
			return nil
		}, apart},
		{"an older copy of the journal after kills", func(t *testing.T, m *testMirror) []string {
			_, old := twice(t, m, killed)
			copyFile(t, old, m.path("source", "journal"))
			return nil
		}, apart},
		{"a device without its mark", func(t *testing.T, m *testMirror) []string {
			someWrites(t, m.source, 'a')
			m.source.stop()
			if err := unix.Removexattr(m.source.device, markAttribute); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"source.img", "source.journal", "does not bear the mark", "setfattr"}},
		{"the target's device", func(t *testing.T, m *testMirror) []string {
			m.start()
			m.source.untilLevel("target")
			m.source.stop()
			m.target.stop()
			return []string{"--device", m.target.device}
		}, []string{"target.img", "source.journal", "do not belong together"}},
		{"the target's journal", func(t *testing.T, m *testMirror) []string {
			m.start()
			m.source.untilLevel("target")
			m.source.stop()
			m.target.stop()
			return []string{"--journal", m.path("target", "journal")}
		}, []string{"source.img", "target.journal", "do not belong together"}},
		{"journals of two mirrors swapped", func(t *testing.T, m *testMirror) []string {
			someWrites(t, m.source, 'a')
			m.source.stop()
			other := m.agent("other", append(slices.Clone(m.source.args), "--name", "other", "--device", m.path("other", "img"),
				"--journal", m.path("other", "journal"), "--nbd", "unix:"+m.path("other", "nbd"))...)
			other.start()
			other.untilUp()
			other.stop()
			return []string{"--journal", m.path("other", "journal")}
		}, []string{`"other"`, `"vol0"`}},
		{"another mirror of the same name", func(t *testing.T, m *testMirror) []string {
			someWrites(t, m.source, 'a')
			m.source.stop()
			other := m.agent("other", append(slices.Clone(m.source.args), "--device", m.path("other", "img"),
				"--journal", m.path("other", "journal"), "--nbd", "unix:"+m.path("other", "nbd"))...)
			other.start()
			other.untilUp()
			other.stop()
			return []string{"--device", m.path("other", "img")}
		}, []string{"other.img", "another mirror", "uuid"}},
		{"the journal is the device, by a symbolic link", func(t *testing.T, m *testMirror) []string {
			someWrites(t, m.source, 'a')
			m.source.stop()
			return []string{"--journal", link(t, os.Symlink, m.source.device, m.path("link", "journal"))}
		}, []string{"link.journal", "two files"}},
		{"the journal is the device, by a hard link", func(t *testing.T, m *testMirror) []string {
			someWrites(t, m.source, 'a')
			m.source.stop()
			return []string{"--journal", link(t, os.Link, m.source.device, m.path("link", "journal"))}
		}, []string{"link.journal", "two files"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t, aloneLayout)
			args := c.spoil(t, m)
			refused(t, m.dir, append(slices.Clone(m.source.args), args...), nil, c.words...)
		})
	}
}

func link(t testing.TB, how func(from, to string) error, from, to string) string {
	t.Helper()
	if err := how(from, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestSureOfTheDisk: the command that the refusal names makes the volume start again.
func TestSureOfTheDisk(t *testing.T) {
	m := newMirror(t, aloneLayout)
	someWrites(t, m.source, 'a')
	m.source.stop()
	if err := unix.Removexattr(m.source.device, markAttribute); err != nil {
		t.Fatal(err)
	}
	r := runAgentWithin(t, 20*time.Second, append(slices.Clone(m.source.args), "--control", m.source.control)...)
	_, rest, ok := strings.Cut(r.stderr, "setfattr -n "+markAttribute+" -v '")
	value, rest, _ := strings.Cut(rest, "' ")
	if r.code != 1 || !ok || !strings.HasPrefix(rest, m.source.device) {
		t.Fatalf("exit status %d: %s", r.code, r.stderr)
	}
	if err := unix.Setxattr(m.source.device, markAttribute, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	someWrites(t, m.source, 'b')
	m.source.stop()
}

// TestKilledWhileStamping: kills all through starts and ends never make a volume that refuses its own files.
func TestKilledWhileStamping(t *testing.T) {
	m := newMirror(t, aloneLayout)
	someWrites(t, m.source, 'a')
	m.source.stop()
	r := newRand(t)
	for i := range 24 {
		m.source.start()
		if i%2 == 1 {
			m.source.dial(startLimit).close()
			m.source.signal(syscall.SIGTERM)
		}
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		if m.source.hasEnded() && m.source.wait(time.Second) != nil {
			t.Fatalf("round %d: the source refused to start", i)
		}
		m.source.kill()
	}
	someWrites(t, m.source, 'b')
	m.source.stop()
}

// TestTwoAgents: what a running agent has open, nobody else gets, by whatever name and in whatever part.
func TestTwoAgents(t *testing.T) {
	m := newMirror(t, aloneLayout)
	someWrites(t, m.source, 'a')
	dev, journal := m.source.device, m.path("source", "journal")
	// The second one keeps its own files elsewhere: those of the first are being written.
	dir := shortDir(t)
	own := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		name            string
		device, journal string
	}{
		{"both", dev, journal},
		{"over symbolic links", link(t, os.Symlink, dev, m.path("sym", "img")), link(t, os.Symlink, journal, m.path("sym", "journal"))},
		{"over hard links", link(t, os.Link, dev, m.path("hard", "img")), link(t, os.Link, journal, m.path("hard", "journal"))},
		{"the device with another journal", dev, own("2.journal")},
		{"the device as a journal", own("3.img"), dev},
		{"the journal as a device", journal, own("4.journal")},
		{"the journal of another device", own("5.img"), journal},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := fileHash(t, dev)
			refused(t, dir, append(slices.Clone(m.source.args), "--device", c.device, "--journal", c.journal, "--nbd", "unix:"+own("nbd")), nil)
			if got := fileHash(t, dev); got != before {
				t.Error("the device was changed")
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) > 1 { // its control socket at most
				t.Errorf("it left %v (%v)", files, err)
			}
		})
	}
	c := m.source.dial(startLimit)
	p := make([]byte, 4096)
	if err := c.read(0, p); err != nil || p[0] != 'a' {
		t.Errorf("the first one reads %q (%v)", p[0], err)
	}
	c.close()
	m.source.stop()
}

// TestTwoAgentsBlockDevice: the same on a block device, which another node names as well.
func TestTwoAgentsBlockDevice(t *testing.T) {
	needRoot(t, "a loop device")
	needTools(t, "losetup")
	m := newMirror(t, aloneLayout)
	disk := m.path("disk", "img")
	writeFile(t, disk, "")
	truncate(t, disk, m.size)
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", disk))
	t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", dev) })
	t.Cleanup(m.source.kill) // before the device goes
	m.source.args = append(m.source.args, "--device", dev)
	someWrites(t, m.source, 'a')
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	node := m.path("node", "dev")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		t.Skipf("needs root: a device node: %v", err)
	}
	for name, second := range map[string]string{"itself": dev, "another node": node, "symbolic link": link(t, os.Symlink, dev, m.path("sym", "dev"))} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			own := func(name string) string { return filepath.Join(dir, name) }
			before := fileHash(t, dev)
			refused(t, dir, append(slices.Clone(m.source.args), "--device", second, "--journal", own("journal"), "--nbd", "unix:"+own("nbd")), nil)
			if got := fileHash(t, dev); got != before {
				t.Error("the device was changed")
			}
		})
	}
	m.source.stop()
}

// TestWrongBlockDevice: a block device can bear no mark, and what was last written to it tells it from an older copy and from another
// device all the same. It is refused with the way out, and not one byte is changed; with its own content it serves again.
func TestWrongBlockDevice(t *testing.T) {
	needRoot(t, "a loop device")
	for _, c := range []struct {
		name  string
		end   func(*agent)
		spoil func(t *testing.T, dev, old string)
	}{
		{"an older copy", (*agent).stop, func(t *testing.T, dev, old string) { tool(t, "dd", "if="+old, "of="+dev, "bs=1M", "conv=fsync") }},
		{"an older copy after a kill", (*agent).kill, func(t *testing.T, dev, old string) { tool(t, "dd", "if="+old, "of="+dev, "bs=1M", "conv=fsync") }},
		{"another device", (*agent).stop, func(t *testing.T, dev, _ string) {
			tool(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", dev)
			tool(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=8", "conv=fsync")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t, aloneLayout)
			disk, old, right := m.path("disk", "img"), m.path("old", "img"), m.path("right", "img")
			writeFile(t, disk, "")
			truncate(t, disk, m.size)
			dev := loopOver(t, disk)
			t.Cleanup(m.source.kill) // before the device goes
			m.source.args = append(m.source.args, "--device", dev)
			someWrites(t, m.source, 'a')
			m.source.stop()
			tool(t, "dd", "if="+dev, "of="+old, "bs=1M")
			someWrites(t, m.source, 'b')
			m.source.until(portLimit, "has applied all", func(s *status) bool { return s.Log.Applied == s.Log.Head })
			c.end(m.source)
			tool(t, "dd", "if="+dev, "of="+right, "bs=1M")
			c.spoil(t, dev, old)
			before := fileHash(t, dev)
			refused(t, m.dir, m.source.args, nil, dev, "samples differ", "move the journal away", "nothing was changed")
			if fileHash(t, dev) != before {
				t.Error("the device was changed")
			}
			tool(t, "dd", "if="+right, "of="+dev, "bs=1M", "conv=fsync")
			someWrites(t, m.source, 'c')
			m.source.stop()
		})
	}
}

// TestDeviceRots: some of what was last written to a device is otherwise at the next start. That is not another device: it starts, and
// says so.
func TestDeviceRots(t *testing.T) {
	m := newMirror(t, aloneLayout)
	someWrites(t, m.source, 'a')
	m.source.stop()
	f, err := os.OpenFile(m.source.device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 48<<10), 0); err != nil { // of 128 KiB
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.source.start()
	m.source.untilUp()
	if e := m.source.mustCommand("events", "--json"); !strings.Contains(e, "device-differs") || !strings.Contains(e, "mirror-agent verify") {
		t.Errorf("no event: %s", e)
	}
	m.source.stop()
}

// TestDeviceGrown: a device that is larger than what is mirrored goes on, and the difference is shown.
func TestDeviceGrown(t *testing.T) {
	m := newMirror(t, aloneLayout)
	someWrites(t, m.source, 'a')
	m.source.stop()
	truncate(t, m.source.device, m.size+1<<20)
	i := slices.Index(m.source.args, "--size")
	m.source.args = slices.Delete(m.source.args, i, i+2)
	someWrites(t, m.source, 'b')
	checkEqual(t, "mirrored size", m.source.mustStatus().Device.SizeBytes, m.size)
	if s := m.source.mustCommand("status", "--json"); !strings.Contains(s, `"spare_bytes": 1048576`) {
		t.Errorf("status does not show the difference: %s", s)
	}
	if e := m.source.mustCommand("events", "--json"); !strings.Contains(e, "device-grown") {
		t.Errorf("no event: %s", e)
	}
	m.source.stop()
}
