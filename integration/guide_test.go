package integration

import (
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// elsewhere are commands of README.md that the walk below does not carry out, by their beginnings, and who does.
var elsewhere = map[string]string{
	"nyc1# apt install":                            "TestPackageLife",
	"nyc1# mirror-agent keygen &&":                 "TestPackageLife",
	"nyc1# cp /etc/mirror-agent/vol0.yaml.example": "TestPackageLife",
	"nyc1# systemctl":                              "TestPackageLife",
	"ams1# mirror-agent promote":                   "TestMajority", // fra2 is ahead
}

var machineLine = regexp.MustCompile(`^(ok|WARN|FAIL) (kernel|limits|clock|disk|version)|^# fail`)

// ofMachine says which lines of doctor tell of the machine that it runs on.
func ofMachine(line string) bool {
	return machineLine.MatchString(line) || strings.HasPrefix(line, "→ ") && !strings.Contains(line, "firewall")
}

// TestGuide carries out what README.md tells to type, word for word, on hosts with the names and addresses that it uses: each command ends as
// it is shown to end, and prints what is shown, but for numbers. A command that is added there has to be added here, or to elsewhere.
func TestGuide(t *testing.T) {
	needRoot(t, "namespaces and mounts")
	needTools(t, "unshare", "nsenter", "ip", "nft", "nbdinfo", "qemu-io", "nbdfuse", "losetup", "mkfs.ext4", "fusermount3", "sqlite3")
	g := readGuide(t)
	// A tenth of 64 GiB, written three times, is no log for a test.
	small := "MIRROR_AGENT_JOURNAL_SIZE=64MiB"
	nyc1 := newGuideHost(t, g, "nyc1", small)
	fra2 := newGuideHost(t, g, "fra2", small, "MIRROR_AGENT_RETAIN_TIME=30m")
	ams1 := newGuideHost(t, g, "ams1", small)
	nyc1.join(fra2, "net1", "10.1.0.5", "10.1.0.9")
	nyc1.join(fra2, "net2", "10.2.0.5", "10.2.0.9")
	nyc1.join(ams1, "net3", "10.3.0.5", "10.3.0.9")
	fra2.join(ams1, "net4", "10.4.0.9", "10.4.0.5")
	ams1.sh("ip route add 10.1.0.0/24 via 10.4.0.9 && ip route add 10.2.0.0/24 via 10.4.0.9")
	fra2.sh("ip route add 10.3.0.0/24 via 10.4.0.5")

	hosts := []*guideHost{nyc1, fra2, ams1}
	for _, h := range hosts {
		h.makesKey()
	}
	fra2.runs("mirror-agent target")
	ams1.runs("mirror-agent target")
	nyc1.writes("/etc/mirror-agent/vol0.yaml", g.file("role: source"))
	nyc1.sh("mirror-agent config check /etc/mirror-agent/vol0.yaml")
	silence(hosts, "net2")
	nyc1.doesBut("mirror-agent doctor --config", ofMachine)
	silence(hosts)
	source := nyc1.runs("mirror-agent source")
	nyc1.untilFed("10.1.0.9:7400")
	nyc1.until("both paths are active", func(s *status) bool { return activePaths(s) == 2 })
	nyc1.does("mirror-agent status")
	nyc1.sh(g.line("nbdinfo 'nbd+unix"))
	nyc1.sh(g.line("qemu-io -f raw"))
	fra2.sh("dd if=/dev/urandom of=/srv/vol0.img bs=4096 count=1 seek=1282 conv=notrunc")
	nyc1.doesBut("mirror-agent verify", func(line string) bool { return strings.Contains(line, "left yields to applications") }) // on a terminal only
	nyc1.sh("mirror-agent verify --repair")
	nyc1.offersTLS(source)

	leave := nyc1.usesFilesystem()
	nyc1.sh("mirror-agent checkpoint create p2 && mirror-agent checkpoint create auto-20261123T074455Z && sync /srv/data")
	nyc1.untilFed("10.1.0.9:7400")
	fra2.does("mirror-agent checkpoint list")
	fra2.does("mirror-agent promote --at checkpoint:p2 --force --dry-run")
	fra2.does("mirror-agent drill start --at checkpoint:p2")
	fra2.does("mirror-agent drill stop")
	fra2.writes("/root/nightly.yaml", g.file("label: nightly"))
	fra2.does("mkdir -p /mnt/drill")
	fra2.does("mirror-agent drill run --config nightly.yaml")
	leave()
	nyc1.untilFed("10.1.0.9:7400")
	fra2.writes("/root/quarterly.yaml", "label: quarterly\nchecks: [{name: application, run: nbdinfo --can connect \"$MIRROR_AGENT_DRILL_URI\"}]\n")
	s := g.take("fra2", "mirror-agent drill run --kind failover")
	s.command += " --yes" // nobody is asked without a terminal
	fra2.carriesOut(s, func(line string) bool { return strings.HasPrefix(line, "begin?") })
	nyc1.until("it leads again", func(s *status) bool { return s.State == "in sync" })

	// To be shut down, and home again.
	fra2.does("mirror-agent promote --planned")
	nyc1.until("it follows", func(s *status) bool { return s.Role == "secondary" && s.State == streaming })
	nyc1.does("mirror-agent failback")
	nyc1.untilFed("10.1.0.9:7400")

	// The target is lost: its cables are cut.
	silence(hosts, "net1", "net2")
	nyc1.until("it goes on alone", func(s *status) bool { return s.State == "degraded" && s.follower("target").State == "down" })
	nyc1.does("mirror-agent explain")
	nyc1.does("mirror-agent switch backup")
	nyc1.untilFed("10.3.0.9:7400")
	silence(hosts)
	ams1.does("mirror-agent promote")

	// The source is lost: it is cut off from all, and somebody writes there on.
	silence(hosts, "net1", "net2", "net3")
	nyc1.sh(g.line("qemu-io -f raw"))
	ams1.does("mirror-agent promote ")
	silence(hosts)
	nyc1.until("it is fenced", func(s *status) bool { return s.State == "fenced" })
	nyc1.does("mirror-agent demote --dry-run")
	nyc1.does("mirror-agent demote")
	nyc1.until("it follows", func(s *status) bool { return s.Role == "secondary" && s.State == streaming })

	g.left(elsewhere)
}

// offersTLS makes certificates, and serves a client on another host by TLS; then the page. In the end the source is as it was.
func (h *guideHost) offersTLS(source *guideDaemon) {
	t := h.t
	t.Helper()
	h.sh(h.g.file(`new="openssl req `))
	app1 := newGuideHost(t, h.g, "app1")
	h.join(app1, "net5", "10.5.0.5", "10.5.0.9")
	app1.sh("ip route add 10.1.0.0/24 via 10.5.0.5 && mkdir DIR")
	for _, file := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
		app1.writes("/root/DIR/"+file, h.sh("cat "+file))
	}
	tls := h.runs("mirror-agent source … --nbd ", source)
	for _, client := range []string{"nbdinfo 'nbds:", "qemu-img info"} {
		s := h.g.take("app1", client)
		if out := app1.sh(strings.ReplaceAll(s.command, "=DIR", "=/root/DIR")); !strings.Contains(out, "64G") && !strings.Contains(out, "64 GiB") {
			t.Errorf("%s: %s", client, out)
		}
	}
	tls.stop()
	h.sh("groupadd --system mirror-agent") // as the package does
	h.does("install -m 640 -g mirror-agent")
	page := h.runs("mirror-agent source … --http ", source)
	page.stop()
	source.start()
	h.untilFed("10.1.0.9:7400")
}

// writes makes a file there.
func (h *guideHost) writes(file, text string) {
	h.t.Helper()
	cmd := h.command("cat >" + file)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %s: %v\n%s", h.name, file, err, out)
	}
}

// usesFilesystem makes a filesystem on the mirror with what README.md says where the kernel has no NBD, and a database in it.
func (h *guideHost) usesFilesystem() (leave func()) {
	h.t.Helper()
	fuse := h.command("exec sh -c '" + strings.ReplaceAll(strings.TrimSuffix(h.g.line("nbdfuse -C 4"), "&"), "'", `'\''`) + "'")
	if err := fuse.Start(); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = fuse.Wait(); close(done) }()
	eventually(h.t, 20*time.Second, "nbdfuse shows its file", func() (bool, string) {
		out, code := h.try("test -s /run/vol0/nbd")
		return code == 0, out
	})
	dev := strings.TrimSpace(h.sh(h.g.line("losetup --direct-io=on")))
	leave = sync.OnceFunc(func() {
		out, code := h.try("umount /srv/data; losetup -d " + dev + " && fusermount3 -u /run/vol0")
		if code != 0 {
			h.t.Errorf("leave the filesystem: %s", out)
		}
		<-done
	})
	h.t.Cleanup(leave)
	h.sh("mkfs.ext4 -q -J size=4 " + dev + " 512M && mkdir /srv/data && mount " + dev + " /srv/data && sqlite3 /srv/data/app.db 'create table t(n); insert into t values(1)' && sync /srv/data")
	return leave
}

// silence cuts cables at both ends, so that nobody is told; without any it mends all.
func silence(hosts []*guideHost, cables ...string) {
	rules := "add table inet cut\ndelete table inet cut\n"
	if len(cables) > 0 {
		rules += "table inet cut { chain i { type filter hook input priority 0; iifname { " + strings.Join(cables, ", ") + " } drop; }; }\n"
	}
	for _, h := range hosts {
		h.t.Helper()
		h.sh("printf '%b' '" + rules + "' | nft -f -")
	}
}
