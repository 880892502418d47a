package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
)

// check compares a finding's level and a part of what it says and tells to do.
func (f finding) check(t *testing.T, name string, want level, says string) {
	t.Helper()
	if f.Level != want || !strings.Contains(f.Says+" → "+f.Do, says) {
		t.Errorf("%s: %+v; want %s and …%s…", name, f, want, says)
	}
	if (f.Level == levelOK) != (f.Do == "") {
		t.Errorf("%s: %+v: what is not well has a way out, and nothing else", name, f)
	}
}

func TestDoctor_limits(t *testing.T) {
	fileLimit(20000, 20000).check(t, "enough", levelOK, "20000 files")
	fileLimit(1024, 524288).check(t, "what Go raises", levelOK, "1024")
	fileLimit(256, 512).check(t, "few", levelWarn, "LimitNOFILE")
	for _, f := range examineLimits() {
		if f.Says == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestDoctor_clock(t *testing.T) {
	for _, tt := range []struct {
		ahead, unsure float64
		want          level
		says          string
	}{
		{0.0005, 0.0002, levelOK, "0.5 ms ahead"},
		{-0.5, 0.001, levelOK, "0.50 s behind"},
		{1.2, 0.5, levelOK, "give or take 0.50 s"}, // it may be less than a second
		{-5, 0.01, levelWarn, "5.00 s behind"},
		{3600, 0.01, levelFail, "chrony"},
	} {
		clockDrift(&mirror.HostStatus{Name: "fra2", Version: "v1", ClockAhead: tt.ahead, ClockUnsure: tt.unsure}).check(t, fmt.Sprint(tt.ahead), tt.want, tt.says)
	}
	st := &mirror.Status{
		Followers: []mirror.FollowerStatus{{Host: &mirror.HostStatus{Name: "fra2", Version: "v1", ClockAhead: 10}}, {}},
		Source:    &mirror.SourceStatus{Host: &mirror.HostStatus{Name: "old"}}, // which does not tell its time
	}
	if list := examineClock(st); len(list) != 2 || list[1].About != "fra2" {
		t.Errorf("%+v", list)
	}
}

func TestDoctor_kernel(t *testing.T) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	root := t.TempDir()
	examineKernel(root)[0].check(t, "none", levelWarn, "has no module nbd")
	modules := filepath.Join(root, "lib/modules", release)
	if err := os.MkdirAll(modules, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(modules, "modules.dep"), []byte("kernel/drivers/block/nbd.ko.xz:\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	examineKernel(root)[0].check(t, "not loaded", levelWarn, "modprobe nbd")
	if err := os.MkdirAll(filepath.Join(root, "sys/module/nbd"), 0o700); err != nil {
		t.Fatal(err)
	}
	examineKernel(root)[0].check(t, "loaded", levelOK, "attach works")
}

func TestDoctor_space(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		name      string
		d         diskPlace
		has, free int64
		want      level
		says      string
	}{
		{"room for all", diskPlace{"device", "d", 10 * gib}, 0, 20 * gib, levelOK, "20 GiB free"},
		{"sparse, more than there is", diskPlace{"device", "d", 10 * gib}, gib, 5 * gib, levelWarn, "9.0 GiB"},
		{"written once", diskPlace{"device", "d", 10 * gib}, 10 * gib, 0, levelOK, "free"},
		{"of any size", diskPlace{"device", "d", 0}, 0, 0, levelOK, "free"},
		{"a log that does not fit", diskPlace{"log", "j", gib}, 0, gib / 2, levelFail, "--journal-size"},
		{"a log that is there", diskPlace{"log", "j", gib}, gib, gib, levelOK, "free"},
		{"no room beside it", diskPlace{"log", "j", gib}, gib, 1 << 20, levelWarn, "resync"},
	} {
		spaceFinding(tt.d, tt.has, tt.free).check(t, tt.name, tt.want, tt.says)
	}
}

func TestDoctor_filesystem(t *testing.T) {
	for _, tt := range []struct {
		name  string
		magic int64
		noCow bool
		want  level // "": nothing to say
		says  string
	}{
		{"ext4", unix.EXT4_SUPER_MAGIC, false, "", ""},
		{"xfs", unix.XFS_SUPER_MAGIC, false, "", ""},
		{"btrfs", unix.BTRFS_SUPER_MAGIC, false, levelWarn, "chattr +C"},
		{"btrfs without copies", unix.BTRFS_SUPER_MAGIC, true, levelOK, "off"},
		{"zfs", magicZFS, false, levelWarn, "--journal /dev"},
		{"tmpfs", unix.TMPFS_MAGIC, false, levelFail, "in memory"},
		{"nfs", unix.NFS_SUPER_MAGIC, false, levelWarn, "local disk"},
		{"a container's", unix.OVERLAYFS_SUPER_MAGIC, false, levelWarn, "volume"},
	} {
		f, ok := filesystemFinding(diskPlace{"log", "j", 0}, tt.magic, tt.noCow)
		if ok != (tt.want != "") {
			t.Errorf("%s: %+v", tt.name, f)
		} else if ok {
			f.check(t, tt.name, tt.want, tt.says)
		}
	}
}

func TestDoctor_sync(t *testing.T) {
	times := func(ms ...int) (d []time.Duration) {
		for _, m := range ms {
			d = append(d, time.Duration(m)*time.Millisecond)
		}
		return d
	}
	syncVerdict("x", times(1, 2, 3, 40, 2), "").check(t, "fast", levelOK, "median 2.0 ms, longest of 5 40.0 ms")
	syncVerdict("x", times(12, 11, 2), "").check(t, "slow", levelWarn, "power-loss protection")
	syncVerdict("x", times(1, 1, 2000), "").check(t, "slow now and then", levelWarn, "something else")
	dir := t.TempDir()
	if f := syncFinding(dir); f.Level == levelFail || !strings.Contains(f.Says, "longest of 20") {
		t.Errorf("%+v", f)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	syncFinding(filepath.Join(dir, "missing")).check(t, "no such directory", levelFail, "make files there")
}

func TestDoctor_cache(t *testing.T) {
	disk := t.TempDir()
	partition := filepath.Join(disk, "sda1")
	for name, text := range map[string]string{"queue/write_cache": "write through\n", "queue/rotational": "1\n", "sda1/size": "5"} {
		path := filepath.Join(disk, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{disk, partition} {
		if s := cacheOf(dir); !strings.Contains(s, "no write cache") || !strings.Contains(s, "rotating") {
			t.Errorf("%s: %q", dir, s)
		}
	}
	if s := cacheOf(t.TempDir()); s != "" {
		t.Errorf("no disk at all: %q", s)
	}
}

// asked starts a node as another host's agent would, and returns its address.
func asked(t *testing.T, name string, key, peer ed25519.PrivateKey) string {
	t.Helper()
	c := dataport.DefaultConfig()
	c.Name, c.Key, c.Listen = name, key, []string{"127.0.0.1:0"}
	c.Peers = append(c.Peers, publicKeyOf(peer))
	n, err := dataport.NewNode(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n.Addrs()[0]
}

func TestDoctor_network(t *testing.T) {
	here, there, stranger := newKey(t), newKey(t), newKey(t)
	fra, ams, strangers, deaf := asked(t, "fra2", there, here), asked(t, "ams1", there, here), asked(t, "who", stranger, here), asked(t, "deaf", there, stranger)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := l.Addr().String()
	defer l.Close()
	free := freeAddress(t)
	s := defaultSettings()
	s.config.Key = here
	s.config.Peers = append(s.config.Peers, publicKeyOf(there))
	a := newTestApp(t)
	look := func(target ...string) map[string]finding {
		s.config.Target = target
		found := map[string]finding{}
		for _, f := range a.examineNetwork(t.Context(), &s, nil) {
			found[strings.TrimPrefix(f.About, "target ")] = f
		}
		return found
	}
	look(fra)[fra].check(t, "well", levelOK, "fra2 answers in")
	look(strangers)[strangers].check(t, "another key", levelFail, "presented key "+dataport.FormatPublicKey(publicKeyOf(stranger)))
	look(deaf)[deaf].check(t, "does not know us", levelFail, "keygen --show")
	look(free)[free].check(t, "nobody", levelFail, "nothing listens there")
	if f := look(fra, ams); f[fra].Level != levelOK || f[ams].Level != levelOK {
		t.Errorf("%+v", f)
	} else {
		f["target"].check(t, "two hosts", levelFail, "different hosts")
	}
	s.config.Listen, s.metrics = []string{taken, free, "192.0.2.7:1"}, taken
	f := look(fra)
	f["listen "+taken].check(t, "taken", levelFail, "another --listen")
	f["listen "+free].check(t, "free", levelOK, "free")
	f["listen 192.0.2.7:1"].check(t, "of elsewhere", levelFail, "no such address")
	f["metrics "+taken].check(t, "metrics", levelFail, "another --metrics")
	s.config.Key = nil
	look(fra)[""].check(t, "without a key", levelWarn, "not asked")

	// Without settings the agent's paths have to do.
	none := defaultSettings()
	list := a.examineNetwork(t.Context(), &none, &mirror.Status{Followers: []mirror.FollowerStatus{{Target: "t", Paths: []mirror.PathStatus{
		{ID: 1, State: "active", RTTMicros: 1500}, {ID: 2, State: "down", Reason: "reset"}, {ID: 3, State: "backoff", Unproven: true},
	}}}})
	if len(list) != 3 {
		t.Fatalf("%+v", list)
	}
	list[0].check(t, "active", levelOK, "1.50 ms")
	list[1].check(t, "down", levelWarn, "reset → look at the link")
	list[2].check(t, "unproven", levelOK, "never reached")
}

func TestDoctor_mtu(t *testing.T) {
	probeFinding("x", dataport.Probed{Name: "fra2", MTU: 1500}, nil).check(t, "usual", levelOK, "MTU 1500")
	probeFinding("x", dataport.Probed{Name: "fra2", MTU: 1000}, nil).check(t, "small", levelWarn, "tunnels")
	probeFinding("x", dataport.Probed{}, context.DeadlineExceeded).check(t, "silence", levelFail, "firewall")
	probeFinding("x", dataport.Probed{}, &net.DNSError{Err: "no such host"}).check(t, "name", levelFail, "correct the name")
	probeFinding("x", dataport.Probed{}, unix.EHOSTUNREACH).check(t, "route", levelFail, "no route")
}

func TestDoctor_versions(t *testing.T) {
	own := readVersion().Version
	list := examineVersions(&mirror.Status{
		Version:   own,
		Followers: []mirror.FollowerStatus{{Target: "t", Host: &mirror.HostStatus{Name: "fra2", Version: "v0.0.1"}}},
		Source:    &mirror.SourceStatus{Host: &mirror.HostStatus{Name: "nyc1"}},
	})
	if len(list) != 3 { // a source that does not say its version is not judged
		t.Fatalf("%+v", list)
	}
	list[1].check(t, "same", levelOK, own)
	list[2].check(t, "another", levelWarn, "v0.0.1")
}

// diagnose runs the command and reads its JSON.
func diagnose(t *testing.T, a *testApp, args ...string) (code int, found map[string]finding) {
	t.Helper()
	code, out, stderr := a.exec(t, append([]string{"doctor", "--json"}, args...)...)
	var d diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("%v in %s%s", err, out, stderr)
	}
	found = map[string]finding{}
	failures := 0
	for _, f := range d.Findings {
		found[strings.TrimSpace(f.Area+" "+f.About)] = f
		if f.Level == levelFail {
			failures++
		}
	}
	if failures != d.Failures || (code == exitFailed) != (failures > 0) {
		t.Errorf("status %d with %d failures, %d told", code, failures, d.Failures)
	}
	return code, found
}

func TestDoctor_command(t *testing.T) {
	a := newTestApp(t)
	dir := t.TempDir()
	key, other := filepath.Join(dir, "node.key"), newKey(t)
	if code, _, err := a.exec(t, "keygen", "--key", key); code != exitDone {
		t.Fatal(err)
	}
	write := func(lines string) string {
		return writeFile(t, "v.yaml", "role: source\nname: v\ndevice: "+filepath.Join(dir, "d.img")+"\nsize: 16MiB\nnbd: unix:"+filepath.Join(dir, "n")+"\nkey: "+key+"\n"+lines)
	}
	good := write("target: [" + freeAddress(t) + "]\npeer-key: [" + dataport.FormatPublicKey(publicKeyOf(other)) + "]\n")
	_, f := diagnose(t, a, "--config", good)
	f["config "+good].check(t, "config", levelOK, "source of v")
	f["keys "+key].check(t, "key", levelOK, "ed25519:")
	f["keys peer-key"].check(t, "peers", levelOK, "1 other")
	f["agent"].check(t, "agent", levelOK, "does not run")
	if f["disk fdatasync beside the log"].Says == "" || f["limits nofile"].Says == "" || f["clock"].Says == "" || f["kernel nbd"].Says == "" {
		t.Errorf("not all was looked at: %+v", f)
	}

	_, f = diagnose(t, a, "--config", write("targts: x\n"))
	f["config"].check(t, "a key that does not exist", levelFail, `"targts"`)
	own := dataport.FormatPublicKey(publicKeyOf(mustKey(t, key)))
	_, f = diagnose(t, a, "--config", write("target: ["+freeAddress(t)+"]\npeer-key: ["+own+"]\n"))
	if f["keys peer-key"].Level != levelFail {
		t.Errorf("its own key as another's: %+v", f["keys peer-key"])
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	_, f = diagnose(t, a, "--config", good)
	f["keys "+key].check(t, "a key for all to read", levelFail, "chmod 600")
	if code, _, stderr := a.exec(t, "doctor", "--size", "much"); code != exitUsage {
		t.Errorf("%d, %s", code, stderr)
	}
}

// While the agent runs doctor needs to be told nothing but where.
func TestDoctor_running(t *testing.T) {
	a := newTestApp(t)
	dir := t.TempDir()
	background(t, a, "source", "--name", "vol0", "--device", filepath.Join(dir, "dev"), "--size", "16MiB", "--journal-size", "16MiB",
		"--nbd", "unix:"+filepath.Join(dir, "nbd"), "--start-wait", "0")
	askUntil(t, a, func(st *mirror.Status) bool { return st.NBD.Address != "" })
	_, f := diagnose(t, a)
	f["agent vol0"].check(t, "agent", levelOK, "primary, standalone")
	f["version the agent here"].check(t, "version", levelOK, readVersion().Version)
	if !strings.Contains(f["disk log"].Says, "dev.journal") {
		t.Errorf("%+v", f["disk log"])
	}
	code, out, _ := a.exec(t, "doctor", "--name", "vol0")
	if !strings.Contains(out, "agent  vol0: runs") || code == exitUsage {
		t.Errorf("%d: %s", code, out)
	}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	k, err := dataport.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustKey(t *testing.T, path string) ed25519.PrivateKey {
	t.Helper()
	k, err := dataport.LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func publicKeyOf(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
