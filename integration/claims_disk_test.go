package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// mountedMirror is a mirror with an ext4 on its source's device, in use.
type mountedMirror struct {
	*netMirror
	dir    string
	trees  int
	hashes map[string]string
	leave  func()
}

const mountedBytes = 96 << 20

// newMounted begins a mirror and makes a filesystem on it.
func newMounted(t *testing.T, lay netLayout) *mountedMirror {
	t.Helper()
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "fusermount3")
	lay.size = mountedBytes
	m := &mountedMirror{netMirror: newNetMirror(t, newTopology(t), lay), hashes: map[string]string{}}
	m.begin()
	dev, detach := loopDevice(t, m.source.nbd)
	tool(t, "mkfs.ext4", "-q", "-F", dev)
	m.dir = filepath.Join(shortDir(t), "mnt")
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	unmount := mountAt(t, dev, m.dir)
	m.leave = func() {
		t.Helper()
		unmount()
		tool(t, "e2fsck", "-fn", dev)
		detach()
	}
	return m
}

// write makes a tree of files of its own, with fsyncs, while a fault is on.
func (m *mountedMirror) write(t *testing.T) {
	t.Helper()
	m.trees++
	name := "tree" + strconv.Itoa(m.trees)
	root := filepath.Join(m.dir, name)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m.hashes[name] = writeTree(t, root)
	tool(t, "sync", "-f", root)
}

// compare ends everything when a follower has all there is, compares both devices
// byte for byte, and reads the trees from the follower's.
func (m *mountedMirror) compare(t *testing.T, kind string) {
	t.Helper()
	m.leave()
	m.stopLevel(kind)
	device := m.target.device
	if kind == "backup" {
		device = m.backup.device
	}
	tool(t, "e2fsck", "-fn", device)
	loop := tool(t, "losetup", "-f", "--show", device)
	loop = loop[:len(loop)-1]
	t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", loop) })
	unmount := mountAt(t, loop, m.dir)
	for name, want := range m.hashes {
		checkEqual(t, name+" on the "+kind+"'s device", hashTree(t, filepath.Join(m.dir, name)), want)
	}
	unmount()
}

// claimMirroring: a filesystem in use, and every fault of a path that there is.
func claimMirroring(t *testing.T, _ *plays) {
	m := newMounted(t, netLayout{})
	k := m.net.toTarget
	for _, f := range []struct{ on, off func() }{
		{func() { k[0].silence(bothWays) }, k[0].heal},
		{func() { k[1].kill(portNumber) }, func() {}},
		{k[1].unplug, k[1].plug},
		{func() { k[0].silence(forth) }, k[0].heal},
		{k[0].refuse, k[0].heal},
	} {
		f.on()
		m.write(t)
		f.off()
		m.source.until(portLimit, "both paths are active", func(s *status) bool { return activePaths(s) == 2 })
	}
	m.compare(t, "target")
}

// claimClusterMirroring: the target falls silent, and the backup ends up with the same bytes.
func claimClusterMirroring(t *testing.T, _ *plays) {
	m := newMounted(t, netLayout{toBackup: 2, sourceArgs: []string{"--switch", "auto"}})
	m.write(t)
	for _, k := range m.net.toTarget[:2] {
		k.silence(bothWays)
	}
	m.write(t)
	m.source.untilStreaming("backup")
	m.net.toBack[0].silence(back)
	m.write(t)
	m.compare(t, "backup")
}

// claimMirroringAway: three paths, all gone for a while, and two faults while the
// target catches up; then the whole of its device is that of the source.
func claimMirroringAway(t *testing.T, _ *plays) {
	m := newMounted(t, netLayout{toTarget: 3})
	m.write(t)
	for _, k := range m.net.toTarget {
		k.unplug()
	}
	m.source.until(portLimit, "the target is out of reach", func(s *status) bool { return s.follower("target").State != streaming })
	m.write(t)
	for _, k := range m.net.toTarget {
		k.plug()
	}
	m.net.toTarget[2].silence(forth)
	m.source.until(portLimit, "a path is back", func(s *status) bool { return activePaths(s) > 0 })
	m.net.toTarget[0].kill(portNumber)
	m.write(t)
	m.net.toTarget[2].heal()
	m.source.untilStreaming("target")
	m.compare(t, "target")
}
