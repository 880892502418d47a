package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"mirror-agent/mirror"
	"mirror-agent/mirror/hook"
)

func load(t *testing.T, a *testApp, role mirror.Role, args ...string) (settings, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	addDaemonFlags(fs)
	if err := fs.Parse(args); err != nil {
		return settings{}, err
	}
	l, err := newLoader(&a.app, fs)
	if err != nil {
		return settings{}, err
	}
	return l.load(role)
}

const fullFile = `
role: source
name: vol0
node: nyc1
device: /srv/vol0.img
size: 64GiB
adopt: true
nbd: unix:/run/vol0.nbd
nbd-tls-cert: /tls/cert
nbd-tls-key: /tls/key
nbd-tls-ca: /tls/ca
listen: 10.1.0.5:7400
target: [10.1.0.9:7400, 10.2.0.9:7400]
backup:
  - [10.3.0.9:7400, 10.4.0.9:7400]
  - cold:10.5.0.9:7400
backups: hot
local: 10.1.0.5,10.2.0.5
mode: async
switch: auto
on-loss: freeze
on-full: wait
push-back: 25s
alone: refuse
start-wait: 0
journal: /log/vol0
journal-size: 1G
retain-time: 10m
retain-size: 256MiB
checkpoint-every: 15m
scrub-every: 6h
control: /run/c.sock
key: /k
peer-key: [ed25519:a, ed25519:b]
insecure: true
announced: false
compress: zstd
bandwidth: 08:00-18:00=20MB/s,*=100MB/s
resync-rate: 50MiB
state-dir: /var/lib/mirror
sync-interval: 250ms
unreachable-after: 5s
path-down-after: 2s
active-paths: 1
metrics: 10.1.0.5:9188
watchdog: 30s
auto-promote: true
arbiter: etcds://e1:2379/m
arbiter-ttl: 20s
arbiter-tls-ca: /tls/etcd-ca
arbiter-tls-cert: /tls/etcd-cert
arbiter-tls-key: /tls/etcd-key
http: 10.1.0.5:9189
http-token: /tls/token
http-tls-cert: /tls/http-cert
http-tls-key: /tls/http-key
http-tls-ca: /tls/http-ca
http-control: true
hook: "promoted,fenced=logger a, b"
hooks:
  - {on: [alarm, mode], run: [/bin/page, "a b"], timeout: 5s}
  - on: all
    run: /bin/true
log-level: debug
log-format: json
`

func TestLoadEveryKeyFromTheFile(t *testing.T) {
	a := newTestApp(t)
	got, err := load(t, a, 0, "--config", writeFile(t, "node.yaml", fullFile))
	if err != nil {
		t.Fatal(err)
	}
	want := defaultSettings()
	c := &want.config
	c.Name, c.Role, c.Device, c.Size, c.NBD = "vol0", mirror.RolePrimary, "/srv/vol0.img", 64<<30, "unix:/run/vol0.nbd"
	c.Adopt, c.Announced = true, false
	c.NodeName, c.Listen = "nyc1", []string{"10.1.0.5:7400"}
	c.Target = []string{"10.1.0.9:7400", "10.2.0.9:7400"}
	c.Backups, c.HotBackups = [][]string{{"10.3.0.9:7400", "10.4.0.9:7400"}, {"10.5.0.9:7400"}}, []bool{true, false}
	want.backups, want.kinds = hotBackup, []backupKind{"", coldBackup}
	c.Local = []string{"10.1.0.5", "10.2.0.5"}
	c.Mode, c.Switch, c.OnLoss, c.Alone = mirror.ModeAsync, mirror.SwitchAuto, mirror.OnLossFreeze, mirror.AloneRefuse
	c.OnFull, c.PushBack = mirror.OnFullWait, 25*time.Second
	c.StartWait, c.Journal, c.JournalSize, c.Insecure = 0, "/log/vol0", 1<<30, true
	c.Compress, c.Bandwidth = "zstd", "08:00-18:00=20MB/s,*=100MB/s"
	c.ResyncBytes = 50 << 20
	c.StateDir = "/var/lib/mirror"
	c.RetainTime, c.RetainBytes = 10*time.Minute, 256<<20
	c.CheckpointEvery = 15 * time.Minute
	c.AutoPromote, c.Arbiter, c.ArbiterTTL = true, "etcds://e1:2379/m", 20*time.Second
	c.ArbiterCA, c.ArbiterCert, c.ArbiterKey = "/tls/etcd-ca", "/tls/etcd-cert", "/tls/etcd-key"
	c.ScrubEvery = 6 * time.Hour
	c.SyncInterval, c.UnreachableAfter, c.PathDownAfter = 250*time.Millisecond, 5*time.Second, 2*time.Second
	c.ActivePaths, c.Watchdog, want.metrics = 1, 30*time.Second, "10.1.0.5:9188"
	want.hooks = []hook.Hook{
		{On: []string{"promoted", "fenced"}, Run: []string{"/bin/sh", "-c", "logger a, b"}, Timeout: hook.DefaultTimeout},
		{On: []string{"alarm", "mode"}, Run: []string{"/bin/page", "a b"}, Timeout: 5 * time.Second},
		{On: []string{"all"}, Run: []string{"/bin/true"}, Timeout: hook.DefaultTimeout},
	}
	want.control, want.keyFile, want.peerKeys = "/run/c.sock", "/k", []string{"ed25519:a", "ed25519:b"}
	want.nbdTLS = nbdTLSFiles{"/tls/cert", "/tls/key", "/tls/ca", false}
	want.page = pageSettings{"10.1.0.5:9189", "/tls/token", nbdTLSFiles{"/tls/http-cert", "/tls/http-key", "/tls/http-ca", false}, true, nil}
	want.logLevel, want.logFormat = 0, "json"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// The file above is complete: a key that is forgotten here is not tested.
	for _, k := range keyNames() {
		if !strings.Contains(fullFile, "\n"+k+":") {
			t.Errorf("key %s is not in the test's file", k)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	file := writeFile(t, "node.yaml", "mode: async\nname: from-file\ntarget: 10.0.0.1:1\nbackup: 10.0.0.9:9\n")
	for _, tt := range []struct {
		name string
		env  map[string]string
		args []string
		mode mirror.Mode
		node string
		to   []string
	}{
		{"defaults", nil, nil, mirror.ModeFlush, "", nil},
		{"file over default", nil, []string{"--config", file}, mirror.ModeAsync, "from-file", []string{"10.0.0.1:1"}},
		{
			"environment over file",
			map[string]string{"MIRROR_AGENT_MODE": "flush", "MIRROR_AGENT_TARGET": "10.0.0.2:2,10.0.0.3:3"},
			[]string{"--config", file},
			mirror.ModeFlush, "from-file",
			[]string{"10.0.0.2:2", "10.0.0.3:3"},
		},
		{
			"flag over environment",
			map[string]string{"MIRROR_AGENT_MODE": "flush", "MIRROR_AGENT_NAME": "from-env", "MIRROR_AGENT_TARGET": "10.0.0.2:2"},
			[]string{"--config", file, "--mode", "async", "--target", "10.0.0.4:4"},
			mirror.ModeAsync, "from-env",
			[]string{"10.0.0.4:4"},
		},
		{"a flag that repeats the default counts", map[string]string{"MIRROR_AGENT_MODE": "async"}, []string{"--mode", "flush"}, mirror.ModeFlush, "", nil},
		{"the file by the environment", map[string]string{"MIRROR_AGENT_CONFIG": file}, nil, mirror.ModeAsync, "from-file", []string{"10.0.0.1:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newTestApp(t)
			for k, v := range tt.env {
				a.vars[k] = v
			}
			s, err := load(t, a, mirror.RolePrimary, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if c := s.config; c.Mode != tt.mode || c.Name != tt.node || !reflect.DeepEqual(c.Target, tt.to) {
				t.Errorf("mode %s name %q target %q", c.Mode, c.Name, c.Target)
			}
		})
	}
}

func TestLoadBackups(t *testing.T) {
	want := [][]string{{"10.0.0.1:1", "10.0.0.2:2"}, {"10.0.0.3:3"}}
	a := newTestApp(t)
	s, err := load(t, a, mirror.RolePrimary, "--backup", "10.0.0.1:1,10.0.0.2:2", "--backup", "10.0.0.3:3")
	if err != nil || !reflect.DeepEqual(s.config.Backups, want) {
		t.Errorf("flags: %q, %v", s.config.Backups, err)
	}
	a.vars["MIRROR_AGENT_BACKUP"] = "10.0.0.1:1,10.0.0.2:2 10.0.0.3:3"
	s, err = load(t, a, mirror.RolePrimary)
	if err != nil || !reflect.DeepEqual(s.config.Backups, want) {
		t.Errorf("environment: %q, %v", s.config.Backups, err)
	}
	for _, tt := range []struct {
		args []string
		hot  []bool
	}{
		{[]string{"--backup", "10.0.0.1:1", "--backup", "10.0.0.3:3"}, nil},
		{[]string{"--backups", "hot", "--backup", "10.0.0.1:1", "--backup", "10.0.0.3:3"}, []bool{true, true}},
		{[]string{"--backup", "10.0.0.1:1", "--backup", "hot:10.0.0.3:3,10.0.0.4:4"}, []bool{false, true}},
		{[]string{"--backup", "cold:10.0.0.1:1", "--backup", "[::1]:3", "--backups", "hot"}, []bool{false, true}},
		{[]string{"--backup", "hot:10"}, nil}, // a host of that name
		{[]string{"--backups", "hot"}, nil},
	} {
		s, err := load(t, newTestApp(t), mirror.RolePrimary, tt.args...)
		if err != nil || !reflect.DeepEqual(s.config.HotBackups, tt.hot) {
			t.Errorf("%q: hot %v, %v", tt.args, s.config.HotBackups, err)
		}
		for _, b := range s.config.Backups {
			if err := hostPort(b[0]); err != nil || strings.HasPrefix(b[0], "hot:1") && len(b[0]) > 6 {
				t.Errorf("%q: address %q", tt.args, b[0])
			}
		}
	}
}

func TestLoadErrors(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		role       mirror.Role
		want       string
	}{
		{"unknown key", "role: source\ntargts: a\n", 0, `node.yaml:2: unknown key "targts" (did you mean "target"?)`},
		{"unknown, nothing near", "role: source\nzzzzzz: a\n", 0, `node.yaml:2: unknown key "zzzzzz"`},
		{"case matters", "Role: source\n", 0, `node.yaml:1: unknown key "Role" (did you mean "role"?)`},
		{"twice", "role: source\nname: a\n\nname: b\n", 0, `node.yaml:4: key "name" was given already in line 2`},
		{"syntax", "role: source\nname: [a\n", 0, "node.yaml:"},
		{"no mapping", "- role\n", 0, `node.yaml:1: "key: value" lines are expected`},
		{"two documents", "role: source\n---\nrole: target\n", 0, "second document"},
		{"no role", "name: a\n", 0, `no role; add "role: source"`},
		{"empty", "", 0, "no role"},
		{"bad role", "role: boss\n", 0, `node.yaml:1: role: role "boss": choose source or target`},
		{"other role", "\nrole: target\n", mirror.RolePrimary, "node.yaml:2: role: role target, but the command says otherwise"},
		{"bad size", "role: source\n\nsize: many\n", 0, `node.yaml:3: size: size "many"`},
		{"bad duration", "role: source\nstart-wait: 10\n", 0, `node.yaml:2: start-wait: duration "10"`},
		{"bad mode", "role: source\nmode: fast\n", 0, `node.yaml:2: mode: unknown mode "fast"`},
		{"bad address", "role: source\ntarget: [10.0.0.1]\n", 0, `node.yaml:2: target: address "10.0.0.1"`},
		{"bad port", "role: source\nbackup: 10.0.0.1:99999\n", 0, `node.yaml:2: backup: address`},
		{"bad local", "role: source\nlocal: eth0\n", 0, `node.yaml:2: local: local address "eth0"`},
		{"bad nbd", "role: source\nnbd: here\n", 0, `node.yaml:2: nbd: address "here"`},
		{"bad bool", "role: source\ninsecure: perhaps\n", 0, `node.yaml:2: insecure:`},
		{"no value", "role: source\nname:\n", 0, "node.yaml:2: name: no value"},
		{"a map", "role: source\nname: {a: b}\n", 0, "node.yaml:2: name: a value is expected"},
		{"a list", "role: source\nname: [a, b]\n", 0, "node.yaml:2: name: one value is expected, not 2"},
		{"an empty list", "role: source\ntarget: []\n", 0, "node.yaml:2: target: an empty list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, newTestApp(t), tt.role, "--config", writeFile(t, "node.yaml", tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "config ") {
				t.Errorf("got %v\nwant …%s…", err, tt.want)
			}
		})
	}
	t.Run("environment", func(t *testing.T) {
		a := newTestApp(t)
		a.vars["MIRROR_AGENT_JOURNAL_SIZE"] = "much"
		if _, err := load(t, a, mirror.RolePrimary); err == nil || !strings.HasPrefix(err.Error(), "MIRROR_AGENT_JOURNAL_SIZE: ") {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzConfigFile(f *testing.F) {
	f.Add(fullFile)
	f.Add("role: source\nbackup: [[a:1], b:2]")
	f.Add("? [a]\n: b")
	f.Add("&a name: *a")
	f.Fuzz(func(t *testing.T, content string) {
		if len(content) > 4096 {
			return
		}
		_, _ = load(t, newTestApp(t), 0, "--config", writeFile(t, "node.yaml", content))
	})
}
