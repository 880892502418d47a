package integration

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGrow: a mirror grows under load, with block devices on both sides that are enlarged by hand, and with files; the
// target that is killed meanwhile follows. Nothing that was answered is lost and both devices are equal afterwards.
func TestGrow(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	rng := newRand(t)
	l := newLedger(rng.Uint64(), m.size)
	c := m.source.dial(10 * time.Second)
	ld := l.startLoad(c, rand.New(rand.NewPCG(1, 2)), 4, 16)
	for _, size := range []string{"24MiB", "40MiB"} {
		ld.untilAnswered(t, 200)
		said := m.source.mustCommand("resize", size)
		if !strings.Contains(said, strings.Replace(size, "MiB", " MiB", 1)) {
			t.Errorf("resize %s said %q", size, said)
		}
		if size == "24MiB" {
			m.target.kill()
			m.target.start()
		}
	}
	ld.untilAnswered(t, 200)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	m.source.untilStreaming("target")
	const grown = 40 << 20
	info := tool(t, "nbdinfo", "--size", nbdURI(m.source.nbd))
	checkEqual(t, "size of the export", strings.TrimSpace(info), "41943040")
	if n := m.source.mustStatus().Device.SizeBytes; n != grown {
		t.Errorf("status says %d bytes", n)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 9 39M 1M", "-c", "read -P 0 20M 4M", "-c", "flush", nbdURI(m.source.nbd))
	if err := l.verify(c.read, allAcked); err != nil {
		t.Error(err)
	}
	c.close()
	m.stopLevel("target") // and their devices are equal
	if st, err := os.Stat(m.path("target", "img")); err != nil || st.Size() != grown {
		t.Errorf("the target's device: %v %v", st, err)
	}
}

// TestGrowBlockDevices: the agents cannot make a block device longer, so the target refuses, with nothing changed, until it is.
func TestGrowBlockDevices(t *testing.T) {
	needRoot(t, "loop devices")
	dir := shortDir(t)
	back := map[string]string{}
	loops := map[string]string{}
	for _, name := range []string{"source", "target"} {
		back[name] = filepath.Join(dir, name+".back")
		if err := os.WriteFile(back[name], nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(back[name], 16<<20); err != nil {
			t.Fatal(err)
		}
		loops[name] = strings.TrimSpace(tool(t, "losetup", "-f", "--show", back[name]))
		t.Cleanup(func() { tool(t, "losetup", "-d", loops[name]) })
	}
	enlarge := func(name string) {
		t.Helper()
		if err := os.Truncate(back[name], 32<<20); err != nil {
			t.Fatal(err)
		}
		tool(t, "losetup", "-c", loops[name])
	}
	m := newMirror(t, layout{sourceArgs: []string{"--device", loops["source"], "--size", "0"}, targetArgs: []string{"--device", loops["target"], "--size", "0"}})
	m.start()
	m.source.untilStreaming("target")
	refused := func(why string) {
		t.Helper()
		r := m.source.command("resize", "32MiB")
		if r.code != 1 || !strings.Contains(r.stderr, why) {
			t.Fatalf("exit %d, %q; want %q", r.code, r.stderr, why)
		}
		if n := m.source.mustStatus().Device.SizeBytes; n != 16<<20 {
			t.Fatalf("refused, and the device has %d bytes", n)
		}
	}
	refused("enlarge it first")
	enlarge("source")
	refused("enlarge it first") // now it is the target
	enlarge("target")
	m.source.mustCommand("resize")
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 5 31M 1M", "-c", "read -P 0 16M 15M", "-c", "flush", nbdURI(m.source.nbd))
	m.target.until(20*time.Second, "as large as the source", func(s *status) bool { return s.Device.SizeBytes == 32<<20 })
	m.source.kill()
	m.source.start()
	m.source.untilStreaming("target")
	tool(t, "qemu-io", "-f", "raw", "-c", "read -P 5 31M 1M", nbdURI(m.source.nbd))
	m.source.untilLevel("target")
	m.source.stop()
	m.target.stop()
	sameFile(t, loops["source"], loops["target"])
}

// TestCheckpointCommands: what is made on the source is listed on both hosts.
func TestCheckpointCommands(t *testing.T) {
	m := newMirror(t, layout{})
	m.start()
	m.source.untilStreaming("target")
	for _, name := range []string{"before-upgrade", "after"} {
		if said := m.source.mustCommand("checkpoint", "create", name); !strings.Contains(said, "checkpoint "+name+" at LSN ") {
			t.Errorf("said %q", said)
		}
	}
	for _, a := range []*agent{m.source, m.target} {
		var found []struct {
			Name string
			LSN  uint64
			Time time.Time
		}
		if err := json.Unmarshal([]byte(a.mustCommand("checkpoint", "list", "--json")), &found); err != nil {
			t.Fatal(err)
		}
		if len(found) != 2 || found[0].Name != "before-upgrade" || found[1].Name != "after" || found[1].LSN <= found[0].LSN || time.Since(found[0].Time) > time.Hour {
			t.Errorf("listed: %+v", found)
		}
	}
	if r := m.target.command("checkpoint", "create", "here"); r.code != 1 || !strings.Contains(r.stderr, "on the source") {
		t.Errorf("on the target: exit %d, %q", r.code, r.stderr)
	}
	if r := m.source.command("checkpoint", "create", "a b"); r.code != 1 || !strings.Contains(r.stderr, "checkpoint") {
		t.Errorf("a bad name: exit %d, %q", r.code, r.stderr)
	}
}
