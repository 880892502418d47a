package integration

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackageFiles: what is in the package is what an operator looks for, and the sums and the SBOM beside it are of it.
func TestPackageFiles(t *testing.T) {
	needTools(t, "sha256sum")
	file := newPackage(t, "v1.2.3")
	root := t.TempDir()
	tool(t, "dpkg-deb", "-x", file, root)
	if !strings.HasSuffix(file, fmt.Sprintf("/mirror-agent_1.2.3_%s.deb", strings.TrimSpace(tool(t, "go", "env", "GOARCH")))) {
		t.Errorf("file name %s", file)
	}

	bin, err := elf.Open(filepath.Join(root, "usr/bin/mirror-agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	if libs, err := bin.ImportedLibraries(); !raceBinary() && (err != nil || len(libs) > 0) {
		t.Errorf("the program needs %v (%v)", libs, err)
	}

	// A page and a completion for each command that help knows.
	help := runAgent(t, "help").stdout
	for _, command := range []string{"source", "promote", "verify", "log", "keygen"} {
		if !strings.Contains(help, "\n  "+command) {
			t.Errorf("help does not know %s", command)
		}
		page := tool(t, "zcat", filepath.Join(root, "usr/share/man/man1/mirror-agent-"+command+".1.gz"))
		for _, want := range []string{".SH NAME\nmirror\\-agent\\-" + command, ".SH EXAMPLES", ".SH OPTIONS"} {
			if command != "log" && !strings.Contains(page, want) {
				t.Errorf("the page of %s has no %q", command, want)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, "usr/share/man/man1/mirror-agent-log-inspect.1.gz")); err != nil {
		t.Error(err)
	}
	for _, f := range []string{
		"bash-completion/completions/mirror-agent", "zsh/vendor-completions/_mirror-agent", "fish/vendor_completions.d/mirror-agent.fish",
		"doc/mirror-agent/README.md", "doc/mirror-agent/copyright",
	} {
		if st, err := os.Stat(filepath.Join(root, "usr/share", f)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}

	tool(t, "sh", "-ec", `cd "$1" && sha256sum -c SHA256SUMS`, "sh", filepath.Dir(file))
	b, err := os.ReadFile(filepath.Join(root, "usr/share/doc/mirror-agent/sbom.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		BomFormat  string
		Metadata   struct{ Component struct{ Version string } }
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(b, &sbom); err != nil {
		t.Fatal(err)
	}
	checkEqual(t, "format", sbom.BomFormat, "CycloneDX")
	checkEqual(t, "version", sbom.Metadata.Component.Version, "v1.2.3")
	known := map[string]bool{}
	for _, c := range sbom.Components {
		known[c.Name] = c.Version != "" && c.PURL == "pkg:golang/"+c.Name+"@"+c.Version
	}
	for line := range strings.Lines(tool(t, "go", "version", "-m", program(t))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "dep" && !known[f[1]] {
			t.Errorf("the SBOM does not know %s", f[1])
		}
	}
	if !known["stdlib"] {
		t.Error("the SBOM does not know Go's own library")
	}

	again := buildPackage(t, filepath.Join(t.TempDir(), "again"), "v1.2.3")
	one, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same program packed again gives another file")
	}
}

const sourceFile = `role: source
name: vol0
device: /var/lib/mirror-agent/vol0.img
size: 16MiB
journal-size: 16MiB
nbd: systemd:nbd
target: [127.0.0.1:7400]
peer-key: [%s]
`

const targetFile = `role: target
name: vol0
device: /var/lib/mirror-agent/spare.img
size: 16MiB
journal-size: 16MiB
listen: [127.0.0.1:7400]
control: /run/mirror-agent/spare.sock
key: /etc/mirror-agent/spare.key
peer-key: [%s]
`

// TestPackageLife: installed, started by its units under a real systemd, upgraded, removed, purged.
func TestPackageLife(t *testing.T) {
	needTools(t, "systemctl", "systemd-analyze", "qemu-io", "dpkg")
	files := shortDir(t)
	for i, version := range []string{"v1.2.3", "v1.2.4"} {
		tool(t, "cp", newPackage(t, version), fmt.Sprintf("%s/%d.deb", files, i+1))
	}
	m := bootMachine(t, files)
	m.run("dpkg", "--force-depends", "-i", "/mnt/1.deb")
	if out := m.run("/usr/bin/mirror-agent", "version"); !strings.Contains(out, "mirror-agent ") {
		t.Errorf("version: %s", out)
	}
	checkEqual(t, "folders", m.sh(`stat -c '%U:%G %a %n' /etc/mirror-agent /var/lib/mirror-agent`),
		"root:mirror-agent 750 /etc/mirror-agent\nmirror-agent:mirror-agent 750 /var/lib/mirror-agent\n")

	// As README tells it.
	key := func(flags string) string {
		return strings.TrimSpace(m.sh("mirror-agent keygen " + flags + " && chown mirror-agent: /etc/mirror-agent/*.key"))
	}
	write := func(name, text string) {
		m.run("sh", "-ec", `printf %s "$2" >"/etc/mirror-agent/$1.yaml"`, "sh", name, text)
	}
	own, spare := key(""), key("--key /etc/mirror-agent/spare.key")
	write("vol0", fmt.Sprintf(sourceFile, spare))
	write("spare", fmt.Sprintf(targetFile, own))
	if out := m.run("systemd-analyze", "verify", "--man=no", "mirror-agent@vol0.service", "mirror-agent@vol0.socket"); strings.Contains(out, "mirror-agent") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	m.run("systemd-analyze", "security", "--threshold=20", "--no-pager", "mirror-agent@vol0.service")
	m.sh("mkdir -p /run/systemd/system/mirror-agent@.service.d && printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\nRestartSec=1\n' >/run/systemd/system/mirror-agent@.service.d/quick.conf && systemctl daemon-reload")

	m.run("systemctl", "enable", "--now", "mirror-agent@spare", "mirror-agent@vol0.socket")
	checkEqual(t, "the source before any client", m.shown("mirror-agent@vol0", "ActiveState"), "inactive")
	qemuIO := func(command string) string {
		return m.run("qemu-io", "-f", "raw", "-c", command, "nbd+unix:///vol0?socket=/run/mirror-agent/vol0.nbd")
	}
	qemuIO("write -P 7 1M 1M") // starts it
	m.until("mirror-agent@vol0", "StatusText", "primary, in sync")
	m.until("mirror-agent@spare", "StatusText", "secondary")
	if out := m.run("mirror-agent", "status", "--name", "vol0"); !strings.Contains(out, "primary · in sync") || !strings.Contains(out, "unix:/run/mirror-agent/vol0.nbd") {
		t.Errorf("status for root: %s", out)
	}
	checkEqual(t, "who runs it", m.sh(`stat -c %U /proc/$(systemctl show --value -p MainPID mirror-agent@vol0)`), "mirror-agent\n")

	pid := m.shown("mirror-agent@vol0", "MainPID")
	m.run("systemctl", "reload", "mirror-agent@vol0")
	checkEqual(t, "after a reload", m.shown("mirror-agent@vol0", "MainPID"), pid)
	m.run("kill", "-STOP", pid) // it hangs
	m.until("mirror-agent@vol0", "NRestarts", "1")
	m.until("mirror-agent@vol0", "StatusText", "primary, in sync")
	qemuIO("read -P 7 1M 1M")

	m.sh("echo '# mine' >>/etc/mirror-agent/vol0.yaml.example")
	pid = m.shown("mirror-agent@vol0", "MainPID")
	m.run("dpkg", "--force-depends", "-i", "/mnt/2.deb")
	checkEqual(t, "version", m.sh(`dpkg-query -W -f '${Version}' mirror-agent`), "1.2.4")
	if now := m.shown("mirror-agent@vol0", "MainPID"); now == pid || now == "0" {
		t.Errorf("process %s, %s before the upgrade", now, pid)
	}
	m.sh("grep -q mine /etc/mirror-agent/vol0.yaml.example && test -s /etc/mirror-agent/node.key")
	m.until("mirror-agent@vol0", "StatusText", "primary, in sync")
	qemuIO("read -P 7 1M 1M")

	m.run("dpkg", "-r", "mirror-agent")
	checkEqual(t, "after the removal", m.sh("ls /etc/mirror-agent"), "node.key\nspare.key\nspare.yaml\nvol0.yaml\nvol0.yaml.example\n")
	m.sh("! pgrep -x mirror-agent && cmp /var/lib/mirror-agent/vol0.img /var/lib/mirror-agent/spare.img")
	m.run("dpkg", "-P", "mirror-agent")
	m.sh("! test -e /etc/mirror-agent && getent passwd mirror-agent")
	pattern := m.sh("dd status=none if=/var/lib/mirror-agent/vol0.img bs=1M skip=1 count=1 | tr -d '\\007' | wc -c && cmp /var/lib/mirror-agent/vol0.img /var/lib/mirror-agent/spare.img")
	checkEqual(t, "bytes of the first mebibyte that are not what was written", strings.TrimSpace(pattern), "0")
}
