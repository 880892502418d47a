package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// installPackage unpacks a package file into a root that holds nothing else but
// /proc, /dev/null, /tmp and room for data: no shell, no library, no other program.
func installPackage(t *testing.T, file string) *netRoot {
	t.Helper()
	needTools(t, "dpkg-deb", "chroot")
	r := &netRoot{path: shortDir(t)}
	tool(t, "dpkg-deb", "-x", file, r.path)
	for _, d := range []string{"proc", "dev", "tmp", "d"} {
		if err := os.Mkdir(r.dir(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "mknod", "-m", "666", r.dir("dev/null"), "c", "1", "3")
	tool(t, "mount", "-t", "proc", "proc", r.dir("proc"))
	t.Cleanup(func() {
		if out, err := tryTool(toolTimeout, "umount", r.dir("proc")); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return r
}

// claimInstalled: the package is installed on three hosts, each in its own network
// and all in a root without anything else, and goes through the bad day: a path is cut,
// the target killed, the source killed, the backup promoted.
func claimInstalled(t *testing.T, _ *plays) {
	needRoot(t, "network namespaces, chroot")
	root := installPackage(t, newPackage(t, "v1.2.3"))
	n := newTopology(t)
	m := newNetMirror(t, n, netLayout{toBackup: 2, sourceArgs: []string{"--switch", "auto"}, root: root})
	m.begin()
	for _, a := range []*agent{m.source, m.target, m.backup} {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", a.pid()))
		if err != nil || exe != root.dir("usr/bin/mirror-agent") {
			t.Errorf("%s runs %s (%v), not what was installed", a.name, exe, err)
		}
	}
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 200)
	n.toTarget[0].silence(bothWays)
	m.source.until(portLimit, "one path is down", func(s *status) bool { return activePaths(s) == 1 })
	ld.untilAnswered(t, 200)
	n.toTarget[0].heal()
	m.source.until(portLimit, "both paths again", func(s *status) bool { return activePaths(s) == 2 })
	m.target.kill()
	m.source.untilStreaming("backup")
	m.backup.untilMembers(3)
	ld.untilAnswered(t, 200)
	m.source.kill()
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	m.takeOver(l)
}

// claimMedium: the package from its file passes the drill in a host of its own.
func claimMedium(t *testing.T, _ *plays) {
	needRoot(t, "network namespaces, chroot")
	file := newPackage(t, "v1.2.3")
	root := installPackage(t, file)
	n := newTopology(t)
	out := n.src.run(t, "chroot", root.path, "/usr/bin/mirror-agent", "demo", "--drill", "--size", "64MiB", "--timeout", "100s")
	for _, line := range []string{"kill the target (SIGKILL): noticed", "data flow moves to the backup, in sync", "every promise of the source is kept", "the mirror held"} {
		if !strings.Contains(out, line) {
			t.Errorf("the drill's report does not say %q", line)
		}
	}
	t.Logf("report:\n%s", out)
}
