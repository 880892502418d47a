package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const upgradedSource = `role: source
name: vol0
device: /var/lib/mirror-agent/vol0.img
size: 96MiB
journal-size: 64MiB
nbd: 127.0.0.1:10809
target: [127.0.0.1:7400]
peer-key: [%s]
`

// newBuild builds the program once more, as another version.
func newBuild(t *testing.T, version string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "mirror-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version="+version, "-o", bin, "./cmd/mirror-agent")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// TestUpgradeMounted: source and target are an installed package under a real systemd, Debian's kernel attaches and uses an ext4. The package is
// upgraded under it: its script restarts both agents, the new program runs them, and all that the filesystem sees is a pause.
func TestUpgradeMounted(t *testing.T) {
	needVM(t)
	needTools(t, "systemctl", "dpkg", "nsenter")
	files := shortDir(t)
	tool(t, "cp", newPackage(t, "v1.2.3"), files+"/1.deb")
	tool(t, "cp", packProgram(t, filepath.Join(t.TempDir(), "package"), "v1.3.0", newBuild(t, "v1.3.0")), files+"/2.deb")
	m := bootMachine(t, files)
	m.run("dpkg", "--force-depends", "-i", "/mnt/1.deb")
	key := func(file string) string {
		return strings.TrimSpace(m.sh("mirror-agent keygen --key " + file + " && chown mirror-agent: " + file))
	}
	write := func(name, text string) {
		m.run("sh", "-ec", `printf %s "$2" >"/etc/mirror-agent/$1.yaml"`, "sh", name, text)
	}
	own, spare := key("/etc/mirror-agent/node.key"), key("/etc/mirror-agent/spare.key")
	write("vol0", fmt.Sprintf(upgradedSource, spare))
	write("spare", strings.NewReplacer("size: 16MiB\njournal-size: 16MiB", "size: 96MiB\njournal-size: 64MiB").Replace(fmt.Sprintf(targetFile, own)))
	units := []string{"mirror-agent@spare", "mirror-agent@vol0"}
	if out, err := m.try("systemctl", "enable", "--now", units[0], units[1]); err != nil {
		said, _ := m.try("systemctl", "status", "--no-pager", "--full", "--lines=50", units[0], units[1])
		t.Fatalf("start: %v\n%s%s", err, out, said)
	}
	m.until(units[1], "StatusText", "primary, in sync")

	before := map[string]string{}
	upgrades := 0
	job := guestJob{uri: "nbd://127.0.0.1:10809/vol0", script: "guest-upgrade.sh", inside: []string{"nsenter", "--target", m.pid, "--net"}}
	job.onLine = func(line string) {
		if strings.TrimSpace(line) == hostOrder+"upgrade" {
			upgrades++
			for _, u := range units {
				before[u] = m.shown(u, "MainPID")
			}
			m.run("dpkg", "--force-depends", "-i", "/mnt/2.deb")
		}
		if strings.Contains(line, "PASS upgrade") {
			t.Log(line)
		}
	}
	passed(t, job.run(t), "upgrade")
	checkEqual(t, "upgrades", upgrades, 1)
	checkEqual(t, "version of the package", m.sh(`dpkg-query -W -f '${Version}' mirror-agent`), "1.3.0")
	for _, u := range units {
		pid := m.shown(u, "MainPID")
		if pid == before[u] || pid == "0" {
			t.Errorf("%s: process %s, before the upgrade %s", u, pid, before[u])
		}
		checkEqual(t, "what runs as "+u, m.sh("/proc/"+pid+"/exe version"), m.sh("mirror-agent version"))
		checkEqual(t, u+": starts after a failure", m.shown(u, "NRestarts"), "0")
	}
	if out := m.sh("mirror-agent version"); !strings.Contains(out, "v1.3.0") {
		t.Errorf("the new program says %s", out)
	}
	m.until(units[1], "StatusText", "primary, in sync")
	m.run("systemctl", "stop", units[1])
	m.run("systemctl", "stop", units[0])
	m.run("cmp", "/var/lib/mirror-agent/vol0.img", "/var/lib/mirror-agent/spare.img")
	m.run("e2fsck", "-fn", "/var/lib/mirror-agent/spare.img")
}
